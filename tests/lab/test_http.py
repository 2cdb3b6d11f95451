"""Plain HTTP, judged request by request: what is permitted arrives, and nothing else reaches any server."""

import hashlib
from array import array

import pytest

from lab.sockets import connect, eventually, read_all, read_until

GITHUB, PYPI, EVIL = "198.51.100.10", "198.51.100.20", "198.51.100.66"
GET = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"


def ask(lab, data, address=GITHUB, client="work"):
    """Everything that a client gets for these bytes."""
    with connect(lab, client, address, 80) as sock:
        sock.sendall(data)
        return read_all(sock)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_permitted_host_is_reached(lab, log, family):
    done = lab.curl("work", family, "http://github.com/page?a=b")

    assert done.stdout.startswith("reached github.com at "), done.stderr
    row = log.closed(client="work", name="github.com", verdict="allow")
    assert (row["protocol"], row["name_source"], row["reason"]) == ("http", "host", "domain")
    assert min(row["bytes_up"], row["bytes_down"]) > 50


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_refused_host_gets_a_page_that_says_who_what_and_why(lab, log, arrived, family):
    done = lab.curl("work", family, "-w", "%{http_code} %{content_type}", "http://evil.example/")

    assert done.stdout == (
        "proxyfw refused this connection.\n\n"
        "client: work\n"
        "host:   evil.example\n"
        "reason: no-match\n"
        "403 text/plain; charset=utf-8"
    )
    log.expect(client="work", name="evil.example", verdict="deny", reason="no-match", protocol="http")
    assert not arrived("request")


def test_the_refusal_of_a_head_request_has_no_body(lab):
    answer = ask(lab, b"HEAD / HTTP/1.1\r\nHost: evil.example\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b"\r\n\r\n")


def test_head_is_answered_without_a_body(lab):
    done = lab.curl("work", "-I", "http://github.com/")

    assert done.stdout.startswith("HTTP/1.1 200 OK"), done.stderr


def test_a_permitted_host_at_evils_address_ends_at_the_host(lab, arrived):
    done = lab.curl("work", "--resolve", f"github.com:80:{EVIL}", "http://github.com/")

    assert f"reached github.com at {GITHUB} port 80" in done.stdout
    assert [request["address"] for request in arrived("request")] == [GITHUB]


def test_requests_on_one_connection_share_a_server_connection(lab, log):
    done = lab.curl("work", "-w", "%{num_connects}\n", "http://github.com/one", "http://github.com/two")

    assert done.stdout.splitlines()[1::2] == ["1", "0"], done.stderr
    log.closed(name="github.com")
    assert len(log.rows()) == 1


def test_a_second_request_to_a_refused_host_reaches_no_server(lab, log, arrived):
    with connect(lab, "work", GITHUB, 80) as sock:
        sock.sendall(GET % b"github.com")
        assert b"reached github.com" in read_until(sock, b"SNI none)\n")
        sock.sendall(GET % b"evil.example")
        assert read_all(sock).startswith(b"HTTP/1.1 403 ")

    assert [request["host"] for request in arrived("request")] == ["github.com"]
    log.expect(name="evil.example", verdict="deny", reason="no-match", destination=GITHUB)


def test_a_pipelined_request_to_a_refused_host_reaches_no_server(lab, arrived):
    answer = ask(lab, GET % b"github.com" + GET % b"evil.example" + GET % b"github.com")

    assert [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/")][1:] == []
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"reached github.com" in answer
    assert b"host:   evil.example" in answer
    assert [request["host"] for request in arrived("request")] == ["github.com"]


def test_a_second_request_to_another_permitted_host_reaches_that_host(lab, log, arrived):
    answer = ask(lab, GET % b"github.com" + GET % b"pypi.org" + b"GET / HTTP/1.0\r\nHost: github.com\r\n\r\n")

    assert f"reached pypi.org at {PYPI} port 80".encode() in answer
    assert [(request["host"], request["address"]) for request in arrived("request")] == [
        ("github.com", GITHUB),
        ("pypi.org", PYPI),
        ("github.com", GITHUB),
    ]
    row = log.expect(name="pypi.org", verdict="allow", destination=PYPI)
    assert row["detail"] == f"the client aimed at {GITHUB}"


@pytest.mark.parametrize(
    ("request_head", "page"),
    [
        pytest.param(b"GET /x HTTP/1.0\r\nHost: github.com", b"reached github.com", id="HTTP/1.0"),
        pytest.param(b"GET http://github.com/x HTTP/1.0", b"reached github.com", id="HTTP/1.0 with a URL, no Host"),
        pytest.param(
            b"GET http://github.com/x HTTP/1.1\r\nHost: github.com\r\nConnection: close",
            b"reached github.com",
            id="a URL as the target",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nhOsT:GitHub.COM.\r\nConnection: close", b"reached github.com", id="Host in capitals"
        ),
        pytest.param(b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example", b"no-match", id="a refused URL"),
        pytest.param(b"GET / HTTP/1.0", b"no-name", id="HTTP/1.0 without Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: 198.51.100.10", b"no-name", id="an address as Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: [2001:db8:1::10]", b"no-name", id="an IPv6 address as Host"),
        pytest.param(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443", b"400", id="CONNECT"),
    ],
)
def test_ways_to_name_a_host(lab, arrived, request_head, page):
    answer = ask(lab, request_head + b"\r\n\r\n")

    assert page in answer
    assert [request["host"] for request in arrived("request")] == ["github.com"] * (page == b"reached github.com")


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason", "detail"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: github.com\r\nHost: evil.example\r\n\r\n",
            *(b"400", "ambiguous", "two Host fields"),
            id="two Hosts",
        ),
        pytest.param(
            b"GET http://github.com/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            *(b"400", "ambiguous", "Host and the URL name different hosts"),
            id="Host against URL",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: github.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            *(b"400", "malformed", "Content-Length together with Transfer-Encoding"),
            id="two ways to say the length",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: github.com\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
            *(b"400", "malformed", "two Content-Length fields"),
            id="two lengths",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: github.com\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            *(b"400", "malformed", "Transfer-Encoding is not exactly chunked"),
            id="a coding that some take for chunked",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: github.com\r\n evil.example\r\n\r\n",
            *(b"400", "malformed", "a header line is folded (obs-fold)"),
            id="a folded line",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost : github.com\r\n\r\n",
            *(b"400", "malformed", "whitespace between a field name and its colon"),
            id="a space before the colon",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: github.com@evil.example\r\n\r\n",
            *(b"400", "malformed", "userinfo in Host"),
            id="a user name in Host",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: github.com\nX: y\r\n\r\n",
            *(b"400", "malformed", "a line feed without a carriage return"),
            id="a bare line feed",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: github.com\r\nX: " + bytes(70000).replace(b"\0", b"x") + b"\r\n\r\n",
            *(b"431", "oversized", "the header section is longer than 65536 bytes"),
            id="a head of more than 64 KiB",
        ),
    ],
)
def test_a_request_that_can_be_read_two_ways_reaches_no_server(
    lab, log, arrived, request_bytes, status, reason, detail
):
    assert ask(lab, request_bytes).startswith(b"HTTP/1.1 " + status)

    row = log.expect(client="work", verdict="deny", protocol="http")
    assert (row["reason"], row["detail"]) == (reason, detail)
    assert not arrived("request")


def test_a_smuggled_request_is_the_body_it_says_it_is(lab, arrived):
    hidden = GET % b"evil.example"
    post = b"POST / HTTP/1.1\r\nHost: github.com\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(hidden)

    answer = ask(lab, post + hidden)

    assert answer.count(b"HTTP/1.1 ") == 1
    assert [request["host"] for request in arrived("request")] == ["github.com"]


def test_a_request_that_stops_in_its_head_is_cut_off(hasty_lab, hasty_log):
    with connect(hasty_lab, "quiet", GITHUB, 80) as first, connect(hasty_lab, "quiet", GITHUB, 80) as later:
        first.sendall(b"GET / HT")
        later.sendall(GET % b"github.com")
        read_until(later, b"SNI none)\n")
        later.sendall(b"GET / HTTP/1.1\r\nHost: git")
        read_all(first)
        read_all(later)

    hasty_log.expect(client="quiet", verdict="deny", reason="timeout", protocol="http", name=None)
    assert eventually(lambda: sum(row["reason"] == "timeout" for row in hasty_log.rows()) == 2)


def test_an_offer_of_http_2_without_tls_is_declined(lab):
    done = lab.curl("work", "--http2", "-w", "%{http_version}", "http://github.com/")

    assert done.stdout.endswith("SNI none)\n1.1"), done.stderr


def test_http_2_without_asking_first_names_nothing(lab, log, arrived):
    done = lab.curl("work", "--max-time", "3", "--http2-prior-knowledge", "http://github.com/")

    assert done.returncode != 0
    log.expect(client="work", verdict="deny")
    assert not arrived("request")


def test_a_large_download_arrives_as_it_is(lab, nginx):
    file = lab.folder / "nginx" / "www" / "download"
    data = array("Q", range(8 << 20)).tobytes()
    file.write_bytes(data)

    done = lab.inside("work", "sh", "-c", "curl -sS http://files.lab.example/download | sha256sum", timeout=60)

    file.unlink()
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest(), done.stderr


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-T", "FILE", "-H", "Expect:"], id="with its length"),
        pytest.param(["-T", "FILE", "-H", "Transfer-Encoding: chunked", "-H", "Expect:"], id="chunked"),
        pytest.param(["-X", "PUT", "--data-binary", "@FILE", "-H", "Expect: 100-continue"], id="after 100-continue"),
    ],
)
def test_an_upload_arrives_as_it_is(lab, nginx, tmp_path, options):
    data = array("Q", range(1 << 20)).tobytes()
    file = tmp_path / "upload"
    file.write_bytes(data)
    options = [option.replace("FILE", str(file)) for option in options]

    done = lab.curl("work", "-v", *options, "-w", "%{http_code}", "http://files.lab.example/http-upload")

    uploaded = lab.folder / "nginx" / "www" / "http-upload"
    assert done.stdout == "201", done.stderr
    assert ("HTTP/1.1 100 Continue" in done.stderr) == ("100-continue" in " ".join(options))
    assert uploaded.read_bytes() == data
    uploaded.unlink()


def test_an_answer_in_the_middle_of_an_upload_arrives(lab, nginx, tmp_path):
    file = tmp_path / "too-large"
    file.write_bytes(bytes(64 << 20))

    done = lab.curl("work", "-T", str(file), "-H", "Expect:", "-w", "%{http_code}", "http://files.lab.example/small/it")

    assert done.stdout.endswith("413"), done.stderr
