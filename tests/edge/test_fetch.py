"""Getting a document: what a server may do, and what each thing that it may not do is called."""

import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from far_proxy import far
from https_server import EXPIRED, Authority, Chain, Peer, Server, document, redirect, serving

from proxyfw.core.feedformats import MAX_DOCUMENT
from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy
from proxyfw.edge.fetch import Fetched, FetchError, get, trust

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
LONG = 10.0  # seconds of patience, where it is not to matter
SHORT = 0.4


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def chain(authority: Authority) -> Chain:
    return authority.certificate()


@pytest.fixture(autouse=True)
def _trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@pytest.fixture
def server(chain: Chain) -> Iterator[Server]:
    with serving(chain) as made:
        yield made


def fetch(url: str, etag: str = "", modified: str = "", patience: float = LONG) -> Fetched:
    return get(url, etag, modified, patience)


def refusal(url: str, patience: float = LONG, etag: str = "") -> str:
    with pytest.raises(FetchError) as refused:
        get(url, etag, "", patience)
    return str(refused.value)


# What is taken


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(document(b"192.0.2.1\n"), b"192.0.2.1\n", id="a document of a known length"),
        pytest.param(document(b""), b"", id="an empty document: its format is for others to judge"),
        pytest.param(document(b"\xff\xfe\x80"), b"\xff\xfe\x80", id="bytes that are no UTF-8: likewise"),
        pytest.param(document(b"x", "Content-Encoding: identity"), b"x", id="an encoding that is none"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            b"abcde",
            id="in chunks",
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc", id="as long as the connection, which TLS ends"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + document(b"x"), b"x", id="after an interim answer"),
    ],
)
def test_a_document(server: Server, answer: bytes, body: bytes) -> None:
    assert fetch(server.serve("/", answer)) == Fetched("changed", body, "", "")


def test_what_is_asked(server: Server) -> None:
    fetch(server.serve("/list?of=1", document(b"x")))
    (asked,) = server.asked
    assert asked.path == "/list?of=1"
    assert asked.headers == {
        "host": f"localhost:{server.port}",
        "user-agent": "proxyfw",
        "accept-encoding": "identity",
        "connection": "close",
    }


def test_a_server_that_is_named_by_its_address(server: Server) -> None:
    server.serve("/", document(b"x"))
    assert fetch(server.url(host="127.0.0.1")).document == b"x"


def test_proxies_of_the_environment_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(server.serve("/", document(b"x"))).document == b"x"


def test_a_cookie_is_not_kept(server: Server) -> None:
    server.serve("/next", document(b"x"))
    fetch(server.serve("/", document(b"", "Set-Cookie: a=b", "Location: /next", status="302 Found")))
    assert [peer.path for peer in server.asked] == ["/", "/next"]
    assert all("cookie" not in peer.headers for peer in server.asked)


# What is known already


def test_a_list_that_is_known_by_its_etag(server: Server) -> None:
    url = server.serve("/", document(b"x", 'ETag: W/"one"', f"Last-Modified: {DATE}"))
    first = fetch(url)
    assert first == Fetched("changed", b"x", 'W/"one"', DATE)
    server.serve("/", document(b"", status="304 Not Modified"))
    assert fetch(url, first.etag, first.modified) == Fetched("same", b"", 'W/"one"', DATE)
    assert (server.asked[1].headers["if-none-match"], server.asked[1].headers["if-modified-since"]) == ('W/"one"', DATE)


def test_a_list_that_is_known_by_its_date(server: Server) -> None:
    url = server.serve("/", document(b"", 'ETag: "new"', status="304 Not Modified"))
    assert fetch(url, "", DATE) == Fetched("same", b"", '"new"', DATE)
    assert server.asked[0].headers["if-modified-since"] == DATE
    assert "if-none-match" not in server.asked[0].headers


def test_known_and_yet_another_now(server: Server) -> None:
    url = server.serve("/", document(b"new", 'ETag: "two"'))
    assert fetch(url, '"one"', DATE) == Fetched("changed", b"new", '"two"', "")


def test_not_modified_although_nothing_was_known(server: Server) -> None:
    assert refusal(server.serve("/", document(b"", status="304 Not Modified"))) == "HTTP status 304 (Not Modified)"


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("x" * 1025, id="longer than 1 KiB"),
        pytest.param("\xe9", id="not ASCII"),
        pytest.param("a\tb", id="a control character"),
        pytest.param("", id="empty"),
    ],
)
def test_what_cannot_be_asked_with_is_not_kept(server: Server, header: str) -> None:
    url = server.serve("/", document(b"x", f"ETag: {header}", f"Last-Modified: {header}"))
    assert fetch(url) == Fetched("changed", b"x", "", "")


def test_what_cannot_be_asked_with_is_not_sent(server: Server) -> None:
    fetch(server.serve("/", document(b"x")), 'a"\r\nHost: other', "\u20ac")
    assert server.asked[0].headers.keys() == {"host", "user-agent", "accept-encoding", "connection"}


# Redirects


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    "location",
    [
        pytest.param("/there?a=b", id="a path"),
        pytest.param("there?a=b", id="a path beside it"),
        pytest.param("https://localhost:{port}/there?a=b", id="a whole URL"),
        pytest.param("//localhost:{port}/there?a=b", id="a host"),
        pytest.param("/there?a=b#part", id="a part of it, which nobody is told"),
    ],
)
def test_a_redirect_is_followed(server: Server, status: str, location: str) -> None:
    server.serve("/there?a=b", document(b"x", 'ETag: "there"'))
    url = server.serve("/", redirect(location.format(port=server.port), status))
    assert fetch(url, '"known"') == Fetched("changed", b"x", '"there"', "")
    assert server.asked[1].headers["if-none-match"] == '"known"'


def test_as_many_redirects_as_there_may_be(server: Server) -> None:
    for at in range(3):
        server.serve(f"/{at}", redirect(f"/{at + 1}"))
    server.serve("/3", document(b"x"))
    assert fetch(server.url("/0")).document == b"x"


@pytest.mark.parametrize(
    ("location", "reason", "asked"),
    [
        pytest.param("http://localhost/", "redirect to http:// refused", 1, id="to plain HTTP"),
        pytest.param("file:///etc/passwd", "redirect to file:// refused", 1, id="to a file"),
        pytest.param("data:,192.0.2.1", "redirect to data:// refused", 1, id="to itself, as it were"),
        pytest.param("x" * 99 + "://y", f"redirect to {'x' * 20}:// refused", 1, id="to a scheme with a long name"),
        pytest.param("/", "the redirects lead in a circle", 1, id="to the same place"),
        pytest.param("/back", "the redirects lead in a circle", 2, id="to a place that leads back"),
        pytest.param("/1", "more than 3 redirects", 4, id="again and again"),
        pytest.param("https://user:word@localhost/", "a user name or password in the URL", 1, id="with a password"),
        pytest.param("https://[::1/", "a redirect to what is no URL", 1, id="to no URL"),
        pytest.param("https://localhost:99999/", "this is not an https URL", 1, id="to a port that does not exist"),
        pytest.param("/a b", "this is not an https URL", 1, id="with a space"),
        pytest.param("/\xe9", "this is not an https URL", 1, id="with a letter that URLs do not have"),
    ],
)
def test_a_redirect_is_refused(server: Server, location: str, reason: str, asked: int) -> None:
    url = server.serve("/", redirect(location))
    server.serve("/back", redirect("/"))
    for at in range(1, 5):
        server.serve(f"/{at}", redirect(f"/{at + 1}"))
    assert refusal(url) == reason
    assert len(server.asked) == asked


def test_a_redirect_that_leads_nowhere(server: Server) -> None:
    assert refusal(server.serve("/", document(b"", status="302 Found"))) == "a redirect that leads nowhere"


# Who it is


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        pytest.param(Authority.self_signed, "self-signed certificate", id="self-signed"),
        pytest.param(
            lambda authority: authority.certificate(["DNS:other.example"]),
            "Hostname mismatch, certificate is not valid for 'localhost'.",
            id="another host's",
        ),
        pytest.param(
            lambda authority: authority.certificate(valid=EXPIRED), "certificate has expired", id="out of date"
        ),
    ],
)
def test_a_bad_certificate(authority: Authority, made: Callable[[Authority], Chain], reason: str) -> None:
    with serving(made(authority)) as server:
        server.serve("/", document(b"x"))
        assert refusal(server.url()) == f"certificate verify failed: {reason}"
        assert server.asked == [], "it was asked nothing"


def test_a_certificate_of_an_authority_that_is_not_trusted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").ca))
    reason = refusal(server.serve("/", document(b"x")))
    assert reason == "certificate verify failed: unable to get local issuer certificate"


def test_a_redirect_leads_to_no_address_of_this_machine_or_its_network(server: Server, authority: Authority) -> None:
    with serving(authority.certificate(["DNS:localhost", "IP:127.0.0.1"])) as other:
        url = server.serve("/", redirect(other.url()))
        assert refusal(url) == "a redirect to an address that is not public"
        assert other.asked == []


def test_a_server_that_speaks_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_say, args=(listener, b"HTTP/1.1 200 OK\r\n\r\n"))
        thread.start()
        reason = refusal(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
    assert reason == "TLS failed: wrong version number"


def test_what_tls_is_spoken() -> None:
    context = trust()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_server_that_goes_in_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_say, args=(listener, b""))
        thread.start()
        reason = refusal(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
    assert reason == "the connection ended early"


def _say(listener: socket.socket, data: bytes) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(data)


# Whether it is there


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refusal(f"https://127.0.0.1:{port}/") == "connection refused"


@pytest.mark.parametrize("error", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def fails(*_: object, **__: object) -> object:
        raise socket.gaierror(error, "why")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert refusal("https://lists.example/") == "the name does not resolve"


def test_the_next_address_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.serve("/", document(b"x"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*kind, closed), (*kind, ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert fetch(server.url()).document == b"x"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://localhost/", id="plain HTTP"),
        pytest.param("https://", id="no host"),
        pytest.param("https://localhost:x/", id="a port that is no number"),
        pytest.param("https://localhost:0/", id="port 0"),
        pytest.param("https://local\nhost/", id="a line break"),
        pytest.param("", id="nothing"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    assert refusal(url) == "this is not an https URL"


def test_a_host_that_no_name_can_be() -> None:
    assert refusal(f"https://{'a' * 64}.example/") == "the name does not resolve"


# What it says


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(document(b"x", status="500 Oops"), "HTTP status 500 (Internal Server Error)", id="500"),
        pytest.param(document(b"x", status="403 No"), "HTTP status 403 (Forbidden)", id="403"),
        pytest.param(document(b"x", status="299 Odd"), "HTTP status 299", id="a status without a name"),
        pytest.param(document(b"", status="204 None"), "HTTP status 204 (No Content)", id="nothing, by its status"),
        pytest.param(document(b"x", status="206 Part"), "HTTP status 206 (Partial Content)", id="a part"),
        pytest.param(b"what?\r\n\r\n", "the answer is not HTTP", id="not HTTP"),
        pytest.param(b"HTTP/1.1 xxx OK\r\n\r\n", "the answer is not HTTP", id="a status that is no number"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
            "the answer is not HTTP",
            id="a hundred headers and one",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\na: " + b"b" * 70000 + b"\r\n\r\n", "the answer is not HTTP", id="an endless header"
        ),
        pytest.param(b"", "the connection ended early", id="nothing"),
        pytest.param(
            document(b"x", "Content-Encoding: gzip"), "the document is compressed, which was not asked for", id="gzip"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "the document comes in an unknown transfer coding",
            id="compressed on the way",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "the connection ended early", id="less than announced"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            "the connection ended early",
            id="a chunk cut",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
            "the connection ended early",
            id="no last chunk",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nab",
            "the connection ended early",
            id="chunks of no length",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_DOCUMENT + 1),
            "the document is larger than 16 MiB",
            id="too large, as announced",
        ),
    ],
)
def test_a_bad_answer(server: Server, answer: bytes, reason: str) -> None:
    assert refusal(server.serve("/", answer)) == reason


def test_a_length_that_is_too_small_takes_no_more(server: Server) -> None:
    url = server.serve("/", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabcdef")
    assert fetch(url).document == b"ab"


def test_a_connection_that_is_cut_is_no_end_of_a_document(server: Server) -> None:
    def cut(peer: Peer) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\n\r\n192.0.2.1\n")
        peer.cut()

    server.pages["/"] = cut
    assert refusal(server.url()) == "the connection ended early"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


@pytest.mark.parametrize(
    ("head", "more"),
    [
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 65536, id="a body"),
        pytest.param(CHUNKED, CHUNK, id="chunks"),
        pytest.param(CHUNKED + b"-1\r\n", b"x" * 65536, id="a chunk of less than nothing"),
    ],
)
def test_a_document_that_never_ends(server: Server, head: bytes, more: bytes) -> None:
    server.pages["/"] = lambda peer: peer.flood(more, head)
    tracemalloc.start()
    try:
        assert refusal(server.url(), patience=120) == "the document is larger than 16 MiB"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_DOCUMENT


@pytest.mark.parametrize(
    ("head", "more"),
    [
        pytest.param(CHUNKED + b"0\r\n", b"a: b\r\n" * 10000, id="trailers"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, id="interim answers"),
        pytest.param(CHUNKED, b"1\r\nx\r\n" * 10000, id="chunks of one byte"),
    ],
)
def test_what_never_ends_beside_a_document(
    server: Server, head: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyfw.edge.fetch._Bounded.allowance", 1 << 20)  # the real one takes some seconds
    server.pages["/"] = lambda peer: peer.flood(more, head)
    assert refusal(server.url(), patience=120) == "the document is larger than 16 MiB"


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        pytest.param(b"", b"", id="nothing at all"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x", id="a body, byte by byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"a", id="a header, byte by byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunk by chunk"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim answers, one by one"),
    ],
)
def test_what_comes_too_slowly(server: Server, head: bytes, drop: bytes) -> None:
    server.pages["/"] = lambda peer: peer.drip(drop, head)
    assert refusal(server.url(), patience=SHORT) == "timed out"


def test_redirects_have_one_patience_together(server: Server) -> None:
    server.pages["/"] = lambda peer: peer.drip(b"")
    server.serve("/first", redirect("/"))
    assert refusal(server.url("/first"), patience=SHORT) == "timed out"


def test_a_server_that_is_silent_in_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # which never accepts
        assert refusal(f"https://127.0.0.1:{listener.getsockname()[1]}/", patience=SHORT) == "timed out"


# Through another proxy


@pytest.fixture(scope="module")
def far_chain(authority: Authority) -> Chain:
    return authority.certificate(["DNS:list.far.example", "DNS:next.far.example", "IP:127.0.0.1"])


@pytest.mark.parametrize("scheme", Scheme)
def test_a_document_through_a_proxy_where_names_are_looked_up_there(scheme: Scheme, far_chain: Chain) -> None:
    with serving(far_chain) as server, far(scheme, server.port) as proxy:
        server.serve("/", redirect("https://next.far.example:8443/more"))
        server.serve("/more", document(b"192.0.2.1"))
        found = get("https://list.far.example/", "", "", LONG, through=proxy.proxy)
    assert found == Fetched("changed", b"192.0.2.1", "", "")
    assert proxy.asked == [("list.far.example", 443), ("next.far.example", 8443)]


@pytest.mark.parametrize(
    ("to", "error"),
    [
        pytest.param("https://10.1.2.3/", "a redirect to an address that is not public", id="a private address"),
        pytest.param("https://[::1]/", "a redirect to an address that is not public", id="loopback"),
    ],
)
def test_a_redirect_by_a_proxy_is_not_followed_to_an_address_of_this_side(
    to: str, error: str, far_chain: Chain
) -> None:
    with serving(far_chain) as server, far(Scheme.SOCKS5, server.port) as proxy:
        server.serve("/", redirect(to))
        with pytest.raises(FetchError) as refused:
            get("https://list.far.example/", "", "", LONG, through=proxy.proxy)
    assert str(refused.value) == error
    assert proxy.asked == [("list.far.example", 443)]


@pytest.mark.parametrize(
    ("scheme", "refusal", "error"),
    [
        pytest.param(Scheme.SOCKS5, b"\5\5\0\1" + bytes(6), "the upstream proxy says: connection refused",
                     id="SOCKS 5: the target refuses"),
        pytest.param(Scheme.SOCKS5, b"\5\2\0\1" + bytes(6), "the upstream proxy says: not allowed by its rules",
                     id="SOCKS 5: the proxy refuses"),
        pytest.param(Scheme.SOCKS4A, b"\0\x5b" + bytes(6),
                     "the upstream proxy says: refused, or not reached: SOCKS 4 does not tell which", id="SOCKS 4a"),
        pytest.param(Scheme.HTTP, b"HTTP/1.1 403 No\r\n\r\n",
                     "the upstream proxy says: not allowed by its rules (HTTP status 403)", id="HTTP"),
        pytest.param(Scheme.SOCKS5, b"\5\0\0\3\1\xff\0\0", "the upstream proxy: what it answers is not SOCKS",
                     id="SOCKS 5: no text"),
        pytest.param(Scheme.HTTP, b"nonsense\r\n\r\n", "the upstream proxy: what it answers is not HTTP", id="no HTTP"),
        pytest.param(Scheme.HTTP, b"HTTP/1.1 200 OK\r\n",
                     "the upstream proxy: it closed the connection without an answer", id="HTTP: cut short"),
        pytest.param(Scheme.SOCKS5, b"\5\0\0", "the upstream proxy: Connection closed unexpectedly",
                     id="SOCKS 5: cut short"),
    ],
)  # fmt: skip
def test_a_proxy_that_does_not_lead_there(scheme: Scheme, refusal: bytes, error: str) -> None:
    with far(scheme, 1, refusal) as proxy, pytest.raises(FetchError) as refused:
        get("https://list.far.example/", "", "", LONG, through=proxy.proxy)
    assert str(refused.value) == error
    assert proxy.asked == [("list.far.example", 443)]


@pytest.mark.parametrize("scheme", Scheme)
def test_a_proxy_that_is_silent_is_not_waited_for(scheme: Scheme) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = UpstreamProxy(scheme, ip_address("127.0.0.1"), silent.getsockname()[1])
        with pytest.raises(FetchError) as refused:
            get("https://list.far.example/", "", "", SHORT, through=proxy)
    assert str(refused.value) == "the upstream proxy: no answer before the deadline"


@pytest.mark.parametrize("scheme", Scheme)
def test_without_the_proxy_nothing_is_fetched(scheme: Scheme, server: Server) -> None:
    url = server.serve("/", document(b"x"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = UpstreamProxy(scheme, ip_address("127.0.0.1"), taken.getsockname()[1])
        with pytest.raises(FetchError) as refused:
            get(url, "", "", LONG, through=proxy)
    assert str(refused.value) == "the upstream proxy: not reached: connection refused"
    assert server.asked == []
