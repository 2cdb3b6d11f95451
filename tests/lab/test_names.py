"""Where a permitted name may lead, and what is said when it leads nowhere."""

import pytest

from lab import control
from lab.hellos import ACCESS_DENIED, INTERNAL_ERROR, hello
from lab.sockets import Server, connect, echo, eventually, read_all, read_until
from lab.world import AT_HOME, RAW4
from proxyfw.demo.network import ROUTER4

SOMEWHERE = "198.51.100.10"  # where the client aims, which does not matter


def answer_to(lab, client, name):
    """What a client gets for a ClientHello with this name."""
    with connect(lab, client, SOMEWHERE, 443) as sock:
        sock.sendall(hello(name))
        return read_all(sock)


@pytest.mark.parametrize(
    ("client", "name", "reason", "detail"),
    [
        pytest.param("work", "private.lab.example", "private-address", f"it has only {AT_HOME}", id="a private one"),
        pytest.param(
            "work", "loopback.lab.example", "private-address", "it has only ::1, 127.0.0.1", id="the netvm's loopback"
        ),
        pytest.param("work", "link-local.lab.example", "private-address", "it has only 169.254.7.7", id="link-local"),
        pytest.param("work", "neighbour.lab.example", "private-address", "it has only 10.137.0.12", id="a client"),
        pytest.param("work", "netvm.lab.example", "private-address", "it has only 10.137.0.5", id="the netvm"),
        pytest.param(
            "home", "loopback.home.example", "private-address", "it has only 127.0.0.1", id="loopback, private allowed"
        ),
        pytest.param(
            "home", "neighbour.home.example", "private-address", "it has only 10.137.0.12", id="client, private allowed"
        ),
        pytest.param(
            "home", "netvm.home.example", "private-address", "it has only 10.137.0.5", id="netvm, private allowed"
        ),
        pytest.param(
            "work", "uplink.lab.example", "internal-address", "the address is this netvm's own", id="the netvm's uplink"
        ),
    ],
)
def test_a_name_that_leads_inside_is_refused(lab, log, client, name, reason, detail):
    alert = INTERNAL_ERROR if reason == "unreachable" else ACCESS_DENIED

    assert answer_to(lab, client, name) == alert

    row = log.expect(client=client, name=name, verdict="deny")
    assert (row["reason"], row["detail"]) == (reason, detail)


def test_a_private_address_is_reached_where_the_profile_says_so(lab, log):
    first = hello("server.home.example")
    with Server(lab, AT_HOME, 443, echo) as server, connect(lab, "home", SOMEWHERE, 443) as sock:
        sock.sendall(first)
        assert read_until(sock, first) == first
        sock.close()
        assert server.result() == first

    log.expect(client="home", name="server.home.example", verdict="allow", destination=AT_HOME)


def test_of_private_and_public_addresses_the_public_one_is_dialled(lab, log):
    with Server(lab, AT_HOME, 443, echo) as inside, connect(lab, "work", AT_HOME, 443) as sock:
        sock.sendall(hello("mixed.lab.example"))
        assert sock.recv(1) == b"\x16"
        assert inside.untouched

    log.expect(name="mixed.lab.example", verdict="allow", destination="198.51.100.10")


def test_over_http_a_name_that_leads_inside_is_refused_with_its_reason(lab):
    told_elsewhere = ("--resolve", f"private.lab.example:80:{AT_HOME}")
    done = lab.curl("work", "-w", "%{http_code}", *told_elsewhere, "http://private.lab.example/")

    assert "reason: private-address (it has only 10.20.30.40)" in done.stdout
    assert done.stdout.endswith("403")


def test_a_name_that_does_not_exist_is_unresolvable(lab, log):
    assert answer_to(lab, "work", "gone.lab.example") == INTERNAL_ERROR

    log.expect(client="work", name="gone.lab.example", verdict="deny", reason="unresolvable")


def test_over_http_a_name_that_does_not_exist_is_a_bad_gateway(lab):
    done = lab.curl(
        "work", "-w", "%{http_code}", "--resolve", f"gone.lab.example:80:{RAW4}", "http://gone.lab.example/"
    )

    assert "reason: unresolvable" in done.stdout
    assert done.stdout.endswith("502")


def test_a_server_that_is_down_is_unreachable(lab, log):
    assert answer_to(lab, "work", "dead.lab.example") == INTERNAL_ERROR

    row = log.expect(client="work", name="dead.lab.example", verdict="deny", reason="unreachable")
    assert row["detail"] == "Connection refused"


def test_a_dead_address_does_not_hide_a_living_one(lab, log):
    with connect(lab, "work", SOMEWHERE, 443) as sock:
        sock.settimeout(2)
        sock.sendall(hello("half-dead.lab.example"))
        assert sock.recv(1) == b"\x16"

    log.expect(name="half-dead.lab.example", verdict="allow", destination="198.51.100.10")


def test_a_dead_resolver_is_told_from_a_name_that_does_not_exist(hasty_lab, hasty_log):
    def ask_at(server):
        hasty_lab.write_config({"work": {"profiles": ["github"]}}, dns={"upstream": [server]})
        control.reload(hasty_lab)

    ask_at(ROUTER4)  # nobody answers on its port 53
    assert answer_to(hasty_lab, "work", "github.com") == INTERNAL_ERROR
    hasty_log.expect(name="github.com", verdict="deny", reason="dns-failure")

    ask_at("198.51.100.53")
    assert eventually(lambda: answer_starts(hasty_lab, "github.com"))


def answer_starts(lab, name):
    """Whether a server answers a ClientHello with this name."""
    with connect(lab, "work", SOMEWHERE, 443) as sock:
        sock.sendall(hello(name))
        return sock.recv(1) == b"\x16"
