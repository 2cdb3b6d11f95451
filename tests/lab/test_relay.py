"""The relay, asked as qubes ask: which names resolve, what an answer holds, and what never leaves."""

import json
import os
import socket
from contextlib import suppress

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from lab.hellos import hello
from lab.impatient import IDLE
from lab.names_world import AT_HOME, GITHUB4, GITHUB6, POOL4, ZONE, ZONE_TOO
from lab.sockets import connect, eventually, read_all, udp
from lab.zone import Zone
from proxyfw.core.dnsanswer import MAX_ADDRESSES
from proxyfw.demo.network import GATEWAY4, GATEWAY6
from proxyfw.dnsserve import MAX_TCP
from proxyfw.shared import LOOKUPS_AT_ONCE

NXDOMAIN, NOERROR = dns.rcode.NXDOMAIN, dns.rcode.NOERROR


def ask(names, client, name, kind="A", server="10.139.1.1", tcp=False, **options):
    """The reply to one query of a client, over its own socket."""
    query = dns.message.make_query(name, kind, **options)
    opened = connect(names.lab, client, server, 53) if tcp else udp(names.lab, client, server, 53)
    with opened as sock:
        sock.setblocking(False)
        return (dns.query.tcp if tcp else dns.query.udp)(query, server, sock=sock, timeout=8)


def texts(reply):
    return [str(record) for rrset in reply.answer for record in rrset]


@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
@pytest.mark.parametrize(
    "server",
    ["10.139.1.1", "10.139.1.2", "192.0.2.99", GATEWAY4, "2001:db8:99::53", GATEWAY6],
    ids=["Qubes' first", "Qubes' second", "nobody's address", "the netvm", "nobody's, IPv6", "the netvm, IPv6"],
)
def test_a_permitted_name_resolves_whatever_resolver_is_asked(names, server, tcp):
    reply = ask(names, "dev", "github.com", server=server, tcp=tcp)

    assert (reply.rcode(), texts(reply)) == (NOERROR, [GITHUB4])
    assert reply.flags & dns.flags.RA


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "MX", "NS", "HTTPS", "SRV", "SOA", "NULL", "TYPE4711"])
@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_another_name_does_not_resolve_and_nobody_outside_hears_of_it(names, kind, tcp):
    name = f"x{kind.lower()}{tcp:d}.evil.example"

    reply = ask(names, "dev", name, kind, tcp=tcp, use_edns=0)

    assert (reply.rcode(), reply.answer, reply.authority) == (NXDOMAIN, [], [])
    assert [(option.code, option.text) for option in reply.options] == [(15, "proxyfw: no-match")]
    assert name not in names.zone.names()
    row = names.expect(client="dev", name=name, verdict="deny")
    assert (row["protocol"], row["name_source"], row["reason"], row["port"]) == ("dns", "dns", "no-match", 53)
    assert row["detail"] == kind


@pytest.mark.parametrize(
    ("kind", "rcode"),
    [("ANY", dns.rcode.NOTIMP), ("AXFR", dns.rcode.NOTIMP), ("IXFR", dns.rcode.NOTIMP), ("MAILB", dns.rcode.NOTIMP)],
)
def test_even_of_a_permitted_name_only_records_are_told(names, kind, rcode):
    query = dns.message.make_query("github.com", kind)
    with udp(names.lab, "dev", "10.139.1.1", 53) as sock:
        sock.send(query.to_wire())
        reply = dns.message.from_wire(sock.recv(4096))

    assert reply.rcode() == rcode
    assert ("github.com", kind) not in names.zone.asked
    names.expect(client="dev", name="github.com", verdict="deny", reason="unsupported")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("10.100.51.198.in-addr.arpa", "no-match", id="the name of an address"),
        pytest.param(".", "malformed", id="the root"),
        pytest.param("198.51.100.10", "malformed", id="an address as a name"),
        pytest.param("a\\032b.github.com", "malformed", id="a space under a name that is not granted so"),
        pytest.param("github.com.evil.example", "no-match", id="a permitted name in front"),
        pytest.param("notgithub.com", "no-match", id="a permitted name at the end"),
    ],
)
def test_names_that_only_look_permitted(names, name, why):
    before = len(names.zone.asked)

    assert ask(names, "dev", name, "PTR").rcode() == NXDOMAIN

    assert len(names.zone.asked) == before
    names.expect(client="dev", verdict="deny", reason=why, protocol="dns")


@pytest.mark.parametrize(
    ("sent", "rcode", "why"),
    [
        pytest.param(b"\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00" + b"\x01a\x00\x00\x01\x00\x01" * 2,
                     dns.rcode.FORMERR, "malformed", id="two questions"),
        pytest.param(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",
                     dns.rcode.FORMERR, "malformed", id="a name that points at itself"),
        pytest.param(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01" + bytes(1100),
                     dns.rcode.FORMERR, "oversized", id="much after the end"),
        pytest.param(b"\x12\x34\x28\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x06\x00\x01",
                     dns.rcode.NOTIMP, "unsupported", id="an update"),
        pytest.param(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07version\x04bind\x00\x00\x10\x00\x03",
                     dns.rcode.REFUSED, "unsupported", id="another class"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_broken_messages_get_an_error_and_go_nowhere(names, sent, rcode, why, tcp):
    before, client = len(names.zone.asked), "same" if tcp else "dev"
    with (connect if tcp else udp)(names.lab, client, "10.139.1.1", 53) as sock:
        sock.sendall(len(sent).to_bytes(2) + sent if tcp else sent)
        reply = sock.recv(4096)[2 * tcp :]

    assert (reply[:2], reply[3] & 15) == (b"\x12\x34", rcode)
    assert len(names.zone.asked) == before
    names.expect(client=client, verdict="deny", reason=why, protocol="dns")


def test_what_is_no_query_is_not_answered(names):
    with udp(names.lab, "dev", "10.139.1.1", 53) as sock:
        for scrap in (b"", b"x", b"\x12\x34\x81\x80" + bytes(20)):
            sock.send(scrap)
        sock.send(dns.message.make_query("github.com", "A").to_wire())
        assert texts(dns.message.from_wire(sock.recv(4096))) == [GITHUB4]  # and nothing came before


def test_many_queries_on_one_tcp_connection(names):
    with connect(names.lab, "dev", "10.139.1.1", 53) as sock:
        queries = [dns.message.make_query(name, "A") for name in ("github.com", "evil.example", "github.com")]
        wires = [query.to_wire() for query in queries]
        sock.sendall(b"".join(len(wire).to_bytes(2) + wire for wire in wires))
        file = sock.makefile("rb")
        replies = [dns.message.from_wire(file.read(int.from_bytes(file.read(2)))) for _ in wires]

    assert [reply.id for reply in replies] == [query.id for query in queries]
    assert [texts(reply) for reply in replies] == [[GITHUB4], [], [GITHUB4]]


def test_tcp_connections_to_the_relay_are_few(names):
    socks = [connect(names.lab, "none", "10.139.1.1", 53) for _ in range(MAX_TCP)]
    try:
        with connect(names.lab, "none", "10.139.1.1", 53) as beyond:
            assert read_all(beyond) == b""
        names.expect(client="none", reason="limit", protocol="dns")
        assert texts(ask(names, "dev", "github.com", tcp=True)) == [GITHUB4]
    finally:
        for sock in socks:
            sock.close()


def test_a_peer_that_reads_nothing_does_not_keep_its_connections(hasty_names):
    """Many queries, no reply read: the relay gives up, and does not hold the descriptor."""
    names = hasty_names
    names.zone.records["big.wild.example"] = [f'60 TXT "{number:0250}"' for number in range(25)]
    query = dns.message.make_query("big.wild.example", "TXT").to_wire()
    before = len(os.listdir(f"/proc/{names.lab.service.pid}/fd"))
    socks = []
    for _ in range(3):
        sock = connect(names.lab, "dev", "10.139.1.1", 53)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        sock.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(500):
                sock.send(len(query).to_bytes(2) + query)
        socks.append(sock)
    try:
        assert eventually(lambda: len(os.listdir(f"/proc/{names.lab.service.pid}/fd")) <= before, 5 * IDLE)
    finally:
        for sock in socks:
            sock.close()


def test_long_replies_count_as_many(fresh_names):
    """Whoever has a name chooses how long its answers are, and each takes its time to read."""
    names = fresh_names
    names.zone.records["*.wild.example"] = [f'60 TXT "{number:0250}"' for number in range(25)]
    served = 0
    while served < LOOKUPS_AT_ONCE and not ask(names, "dev", f"{served}.wild.example", "TXT").rcode():
        served += 1

    assert LOOKUPS_AT_ONCE / 10 < served < LOOKUPS_AT_ONCE / 4
    names.expect(client="dev", reason="limit", protocol="dns")
    assert texts(ask(names, "same", "github.com")) == [GITHUB4]


def test_a_reply_that_is_far_too_long_is_not_read(spare_names):
    names = spare_names
    names.zone.records["huge.wild.example"] = [f'60 TXT "{number:0250}"' for number in range(100)]

    assert ask(names, "dev", "huge.wild.example", "TXT").rcode() == dns.rcode.SERVFAIL

    assert texts(ask(names, "dev", "github.com")) == [GITHUB4]


def test_records_in_a_query_are_not_even_read(names):
    """A library that met them first under another class would not know addresses any more, whoever asked."""
    broken = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x04\x01a\x00\x00\x01\x00\x01"
    records = b"".join(b"\x00" + kind.to_bytes(2) + b"\x00\xff" + bytes(6) for kind in (1, 28, 65, 64))
    with udp(names.lab, "none", "10.139.1.1", 53) as sock:
        sock.send(broken + records)
        assert sock.recv(100)[3] & 15 == dns.rcode.FORMERR

    assert texts(ask(names, "dev", "clean.wild.example")) == [GITHUB4]
    assert ask(names, "dev", "svc.example", "HTTPS").rcode() == NOERROR


def test_look_ups_for_connections_count_as_well(fresh_names):
    """Names in ClientHellos of a permitted domain: no more of them are looked up than by queries."""
    names = fresh_names
    count = int(LOOKUPS_AT_ONCE) + 100
    for number in range(count):
        with connect(names.lab, "dev", GITHUB4, 443) as sock:
            sock.sendall(hello(f"{number}.wild.example"))
    assert eventually(lambda: any(row["reason"] == "limit" for row in names.rows()))
    assert len({name for name in names.zone.names() if name.endswith(".wild.example")}) < count


def test_a_refusal_is_logged_once_however_often_it_is_tried(names):
    for _ in range(5):
        for kind in ("A", "AAAA", "HTTPS"):
            ask(names, "dev", "again.example", kind)

    names.expect(name="again.example")
    ask(names, "dev", "and-now.example")
    names.expect(name="and-now.example")
    assert sum(row["name"] == "again.example" for row in names.rows()) == 1


@pytest.mark.parametrize(
    "name", ["use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "_dns.resolver.arpa"]
)
@pytest.mark.parametrize("client", ["dev", "all", "seen"], ids=["granted or not", "dns: all", "observe mode"])
def test_names_that_would_lead_to_another_resolver_say_no(names, client, name):
    assert ask(names, client, name).rcode() == NXDOMAIN

    assert name not in names.zone.names()
    names.expect(client=client, name=name, verdict="deny", reason="canary")


def test_dns_all_lets_every_name_resolve_and_logs_it(names):
    assert texts(ask(names, "all", "second.other.example")) == [GITHUB4]

    assert names.expect(client="all", name="second.other.example")["reason"] == "dns-all"


def test_observe_mode_lets_it_resolve_and_records_the_refusal(names):
    assert texts(ask(names, "seen", "evil.example")) != []

    row = names.expect(client="seen", name="evil.example", protocol="dns")
    assert (row["verdict"], row["reason"]) == ("observe", "no-match")


@pytest.mark.parametrize(
    ("client", "name", "told"),
    [
        pytest.param("dev", "home.example", [GITHUB4], id="private and loopback ones are taken out"),
        pytest.param("all", "home.example", [GITHUB4], id="also where only dns: all lets the name resolve"),
        pytest.param("all", "nas.example", [AT_HOME], id="private: true leaves private ones in"),
    ],
)
def test_addresses_inside_are_not_told(names, client, name, told):
    assert texts(ask(names, client, name)) == told


def test_a_name_that_has_only_addresses_inside_is_refused_with_its_reason(names):
    name = "inside.wild.example"
    names.zone.records[name] = ["60 A 10.1.2.3"]

    reply = ask(names, "dev", name, use_edns=0)

    assert (reply.rcode(), reply.answer) == (NOERROR, [])
    assert [option.text for option in reply.options] == ["proxyfw: private-address"]
    row = names.expect(client="dev", name=name, verdict="deny", reason="private-address")
    assert row["detail"] == "A: it has only 10.1.2.3"


def test_ech_is_taken_out_of_https_records(names):
    (record,) = ask(names, "dev", "svc.example", "HTTPS").answer[0]

    assert record.to_text() == '1 . alpn="h2" ipv4hint="198.51.100.10"'


def test_a_chain_of_aliases_needs_a_grant_for_the_name_asked_alone(names):
    reply = ask(names, "dev", "alias.example")

    assert texts(reply) == ["first.other.example.", "second.other.example.", GITHUB4]
    assert ask(names, "dev", "second.other.example").rcode() == NXDOMAIN


def test_the_reply_repeats_the_name_as_it_was_asked(names):
    reply = ask(names, "dev", "GitHub.COM")

    assert reply.question[0].name.to_text() == "GitHub.COM."
    assert texts(reply) == [GITHUB4]


def test_a_long_answer_is_cut_over_udp_and_whole_over_tcp(names):
    cut = ask(names, "dev", "many.example")
    whole = ask(names, "dev", "many.example", tcp=True)
    roomy = ask(names, "dev", "many.example", use_edns=0, payload=4096)

    assert cut.flags & dns.flags.TC
    assert len(cut.to_wire()) <= 512
    assert len(texts(whole)) == MAX_ADDRESSES
    assert len(roomy.to_wire()) <= 1232


def test_answers_are_kept_for_their_ttl_and_tell_what_is_left_of_it(names):
    name = "kept.wild.example"  # which no other test asks for
    first = ask(names, "dev", name)
    asked = names.zone.asked.count((name, "A"))
    again = ask(names, "dev", name)

    assert (asked, names.zone.asked.count((name, "A"))) == (1, 1)
    assert again.answer[0].ttl <= first.answer[0].ttl == 60


def test_a_ttl_of_zero_is_asked_for_each_time(names):
    before = names.zone.asked.count(("brief.pool.example", "A"))
    for _ in range(3):
        assert texts(ask(names, "dev", "brief.pool.example")) == [POOL4]

    assert names.zone.asked.count(("brief.pool.example", "A")) == before + 3


def test_a_client_learns_no_more_of_a_name_than_it_asked(names):
    """Nothing of the client but the name and the type leaves: no options, no flags, not the case of the letters."""
    query = dns.message.make_query("odd.wild.example", "TXT", use_edns=0)
    query.use_edns(0, options=[dns.edns.GenericOption(65001, b"a secret"), dns.edns.ECSOption("192.0.2.0", 24)])
    with udp(names.lab, "dev", "10.139.1.1", 53) as sock:
        sock.send(query.to_wire())
        assert texts(dns.message.from_wire(sock.recv(4096))) == ['"anything"']

    assert ("odd.wild.example", "TXT") in names.zone.asked
    assert not any(b"a secret" in wire for wire in names.zone.wires)


def test_data_hidden_in_names_gets_nowhere_or_is_limited(fresh_names):
    names, secret = fresh_names, "s" * 60

    def tunnel(domain, count):
        rcodes = []
        with udp(names.lab, "dev", "10.139.1.1", 53) as sock:
            for number in range(0, count, 50):
                for each in range(number, number + 50):
                    sock.send(dns.message.make_query(f"{secret}.{each}.{domain}", "TXT").to_wire())
                rcodes += [dns.message.from_wire(sock.recv(4096)).rcode() for _ in range(50)]
        return rcodes

    assert set(tunnel("evil.example", 300)) == {NXDOMAIN}
    assert not names.zone.asked

    beyond = 150
    rcodes = tunnel("wild.example", int(LOOKUPS_AT_ONCE) + beyond)
    leaked = sum(secret in name for name, _ in names.zone.asked)
    assert rcodes.count(dns.rcode.SERVFAIL) == len(rcodes) - rcodes.count(NOERROR) > 0
    assert leaked == rcodes.count(NOERROR) < LOOKUPS_AT_ONCE + beyond
    names.expect(client="dev", verdict="deny", reason="limit", protocol="dns")
    status = json.loads(names.lab.ask("status", "--json").stdout)
    assert status["relay"]["limited"] == rcodes.count(dns.rcode.SERVFAIL)
    assert next(c["lookups"] for c in status["clients"] if c["name"] == "dev") == leaked
    assert texts(ask(names, "same", "github.com")) == [GITHUB4]  # another client is not held back
    assert "queries refused, as their client had too many names looked up" in names.lab.ask("status").stdout


def test_a_resolver_that_dies_and_returns(hasty_names):
    names = hasty_names
    assert texts(ask(names, "dev", "one.wild.example")) == [GITHUB4]
    names.zone.silent = True

    reply = ask(names, "dev", "two.wild.example")

    assert reply.rcode() == dns.rcode.SERVFAIL
    names.expect(name="two.wild.example", verdict="deny", reason="dns-failure")
    assert texts(ask(names, "dev", "one.wild.example")) == [GITHUB4]  # still held
    names.zone.silent = False
    assert eventually(lambda: texts(ask(names, "dev", "two.wild.example")) == [GITHUB4], 8)


def test_the_second_resolver_answers_while_the_first_is_dead(spare_names):
    names = spare_names
    with Zone(names.lab, ZONE_TOO, {"github.com": ["60 A 198.51.100.10"]}) as second:
        names.configure(dns={"upstream": [ZONE, ZONE_TOO]})
        names.zone.silent = True

        assert texts(ask(names, "dev", "github.com")) == [GITHUB4]
        assert second.asked


def test_without_the_service_no_query_is_answered(fresh_names):
    names = fresh_names
    names.lab.end_service()
    before = len(names.zone.asked)

    for address in ("10.139.1.1", GITHUB4, GATEWAY4):
        with udp(names.lab, "dev", address, 53) as sock:
            sock.send(dns.message.make_query("github.com", "A").to_wire())
            with pytest.raises(OSError, match="No route to host"):
                sock.recv(100)
        with pytest.raises(ConnectionRefusedError):
            connect(names.lab, "dev", address, 53)
    assert len(names.zone.asked) == before

    names.lab.start_service()
    assert texts(ask(names, "dev", "github.com")) == [GITHUB4]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param(["dig", "github.com"], f"IN\tA\t{GITHUB4}", id="dig"),
        pytest.param(["dig", "+tcp", "github.com", "AAAA"], f"IN\tAAAA\t{GITHUB6}", id="dig over TCP"),
        pytest.param(["dig", "+dnssec", "github.com"], "flags: do", id="dig +dnssec"),
        pytest.param(["dig", "+bufsize=512", "many.example"], "Truncated, retrying in TCP mode", id="dig +bufsize"),
        pytest.param(["dig", "+noedns", "github.com", "MX"], "10 mail.github.com.", id="dig without EDNS"),
        pytest.param(["dig", "evil.example"], "EDE: 15 (Blocked): (proxyfw: no-match)", id="dig, refused"),
        pytest.param(["dig", "evil.example"], "status: NXDOMAIN", id="dig, refused, the status"),
        pytest.param(["getent", "ahostsv4", "github.com"], GITHUB4, id="getent"),
        pytest.param(["getent", "ahostsv6", "github.com"], GITHUB6, id="getent, IPv6"),
        pytest.param(["curl", "-sS", "http://evil.example/"], "Could not resolve host: evil.example", id="curl"),
        pytest.param(
            ["/usr/bin/python3", "-c", "import socket; print(socket.getaddrinfo('github.com', 22))"],
            GITHUB4, id="Python",
        ),
        pytest.param(
            ["/usr/bin/python3", "-c", "import socket; socket.getaddrinfo('evil.example', 22)"],
            "Name or service not known", id="Python, refused",
        ),
    ],
)  # fmt: skip
def test_real_clients_agree(names, command, shown):
    done = names.lab.inside("dev", *command, timeout=10)

    assert shown in done.stdout + done.stderr
