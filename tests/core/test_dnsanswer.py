"""What of a resolver's reply a client is told: the chain from the name asked, and nothing beside it."""

from contextlib import suppress
from ipaddress import ip_address

import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from dns.rcode import Rcode
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyfw.core import dnsanswer, dnsmsg
from proxyfw.core.dnsanswer import MAX_CHAIN, MAX_NEGATIVE_TTL, MAX_TTL, Answer
from proxyfw.core.dnsmsg import Query
from proxyfw.core.verdict import Reason


def put(section: list[dns.rrset.RRset], records: tuple[str, ...]) -> None:
    for text in records:
        name, ttl, kind, data = text.split(None, 3)
        rdclass = "IN"
        if kind == "CLASS9":
            rdclass, (kind, data) = kind, data.split(None, 1)
        section.append(dns.rrset.from_text(f"{name}.", int(ttl), rdclass, kind, data))


def reply(
    *answer: str,
    authority: tuple[str, ...] = (),
    additional: tuple[str, ...] = (),
    asked: str = "www.example",
    kind: str = "A",
    rcode: Rcode = Rcode.NOERROR,
) -> dns.message.Message:
    """A reply as it comes from the network. A record: name without the last dot, TTL, type, data."""
    message = dns.message.make_response(dns.message.make_query(f"{asked}.", kind))
    message.set_rcode(rcode)
    put(message.answer, answer)
    put(message.authority, authority)
    put(message.additional, additional)
    return dns.message.from_wire(message.to_wire())


def read(message: dns.message.Message, dnssec_ok: bool = False) -> Answer:
    return dnsanswer.read(message, message.question[0].rdtype, dnssec_ok)


def texts(rrsets: tuple[dns.rrset.RRset, ...]) -> list[str]:
    """As `reply` has them; of a signature, what it covers."""
    return [
        f"{rrset.name.to_text(True)} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} "
        + ("of " + dns.rdatatype.to_text(rrset.covers) if rrset.covers else record.to_text())
        for rrset in rrsets
        for record in rrset
    ]


def signature(name: str, covers: str, ttl: int = 60) -> str:
    return f"{name} {ttl} RRSIG {covers} 13 2 60 20300101000000 20200101000000 1 example. c2lnbmF0dXJl"


SOA = "example 60 SOA a.example. b.example. 1 2 3 4 60"
NSEC = "a.example 60 NSEC z.example. A"
ADDRESS = "www.example 60 A 192.0.2.1"
ALIAS = "www.example 60 CNAME cdn.example."
ALIASED = "cdn.example 60 A 192.0.2.1"
EVIL = "evil.example 60 A 192.0.2.66"


@pytest.mark.parametrize(
    ("message", "answer", "ttl"),
    [
        pytest.param(reply(ADDRESS, "www.example 60 A 192.0.2.2"), [ADDRESS, "www.example 60 A 192.0.2.2"], 60,
                     id="two addresses"),
        pytest.param(reply(ALIAS, ALIASED), [ALIAS, ALIASED], 60, id="an alias"),
        pytest.param(reply(ALIASED, ALIAS), [ALIAS, ALIASED], 60, id="an alias after its target"),
        pytest.param(reply(ALIAS, "cdn.example 9 CNAME x.example.", "x.example 30 A 192.0.2.1"),
                     [ALIAS, "cdn.example 9 CNAME x.example.", "x.example 30 A 192.0.2.1"], 9,
                     id="two aliases: the smallest TTL"),
        pytest.param(reply(ALIAS, kind="CNAME"), [ALIAS], 60, id="an alias is what was asked for"),
        pytest.param(reply(ALIAS, "cdn.example 60 CNAME x.example.", kind="CNAME"), [ALIAS], 60,
                     id="an alias is what was asked for, and not followed"),
        pytest.param(reply(ADDRESS, EVIL, ALIASED), [ADDRESS], 60, id="records of other names"),
        pytest.param(reply(ADDRESS, "www.example 60 TXT x", "www.example 60 AAAA 2001:db8::1"), [ADDRESS], 60,
                     id="records of other types"),
        pytest.param(reply(ADDRESS, authority=("example 60 NS ns.example.", SOA), additional=(EVIL,)), [ADDRESS], 60,
                     id="records in the other sections"),
        pytest.param(reply("www.example 60 CLASS9 A \\# 2 0001", ADDRESS), [ADDRESS], 60, id="another class before it"),
        pytest.param(reply("www.example 0 A 192.0.2.1"), ["www.example 0 A 192.0.2.1"], 0, id="a TTL of 0"),
        pytest.param(reply(ALIAS, "cdn.example 0 A 192.0.2.1"), [ALIAS, "cdn.example 0 A 192.0.2.1"], 0,
                     id="a TTL of 0 behind an alias"),
        pytest.param(reply("www.example 86400 A 192.0.2.1"), [f"www.example {MAX_TTL} A 192.0.2.1"], MAX_TTL,
                     id="a TTL of a day"),
        pytest.param(reply("example 60 DNAME example.net.", "www.example 60 CNAME www.example.net.",
                           "www.example.net 60 A 192.0.2.1"),
                     ["example 60 DNAME example.net.", "www.example 60 CNAME www.example.net.",
                      "www.example.net 60 A 192.0.2.1"], 60, id="DNAME and the alias made of it"),
        pytest.param(reply("example 60 DNAME example.net.", "www.example.net 60 A 192.0.2.1"),
                     ["example 60 DNAME example.net.", "www.example 60 CNAME www.example.net.",
                      "www.example.net 60 A 192.0.2.1"], 60, id="DNAME alone"),
        pytest.param(reply("example 60 DNAME .", "www 60 A 192.0.2.1"),
                     ["example 60 DNAME .", "www.example 60 CNAME www.", "www 60 A 192.0.2.1"], 60,
                     id="DNAME that leads to the root"),
        pytest.param(reply("www.example 60 DNAME example.net.", ADDRESS), [ADDRESS], 60,
                     id="DNAME of the name itself says nothing of it"),
        pytest.param(reply("example 60 DNAME example.net.", asked="example", kind="DNAME"),
                     ["example 60 DNAME example.net."], 60, id="DNAME is what was asked for"),
    ],
)  # fmt: skip
def test_the_chain_is_told_and_nothing_else(message: dns.message.Message, answer: list[str], ttl: int) -> None:
    found = read(message)
    assert (found.rcode, texts(found.answer), found.authority, found.ttl) == (Rcode.NOERROR, answer, (), ttl)
    assert (found.open_end, found.why) == (None, None)
    expected = [record.split()[3] for record in answer if record.split()[2] == "A"]
    assert list(map(str, found.addresses)) == expected


LOOP = "cdn.example 60 CNAME www.example."
SELF = "www.example 60 CNAME www.example."
GROWING = "example 60 DNAME x.example."
GROWN = [f"www{'.x' * at}.example 60 CNAME www{'.x' * (at + 1)}.example." for at in range(MAX_CHAIN)]
LONG = [f"{'www' if at == 0 else f'n{at}'}.example 60 CNAME n{at + 1}.example." for at in range(MAX_CHAIN + 1)]
OFF = "example 60 DNAME " + ".".join(["a" * 63] * 3 + ["a" * 58]) + "."


@pytest.mark.parametrize(
    ("message", "aliases", "open_end"),
    [
        pytest.param(reply(ALIAS), [ALIAS], "cdn.example", id="an alias that the resolver did not follow"),
        pytest.param(reply(ALIAS, EVIL, "cdn.example 60 TXT x"), [ALIAS], "cdn.example",
                     id="an alias, and nothing of use at its end"),
        pytest.param(reply("example 60 DNAME example.net."), ["example 60 DNAME example.net.",
                     "www.example 60 CNAME www.example.net."], "www.example.net", id="DNAME that was not followed"),
        pytest.param(reply(ALIAS, rcode=Rcode.NXDOMAIN), [ALIAS], None, id="the end does not exist"),
        pytest.param(reply(ALIAS, authority=(SOA,)), [ALIAS], None, id="the end has no such record"),
        pytest.param(reply(ALIAS, LOOP), [ALIAS, LOOP], None, id="a loop"),
        pytest.param(reply(SELF), [SELF], None, id="an alias of itself"),
        pytest.param(reply(*LONG[:MAX_CHAIN]), LONG[:MAX_CHAIN], f"n{MAX_CHAIN}.example", id="the longest chain"),
        pytest.param(reply(*LONG), LONG[:MAX_CHAIN], None, id="a longer chain"),
        pytest.param(reply(*LONG, f"n{MAX_CHAIN + 1}.example 60 A 192.0.2.1"), LONG[:MAX_CHAIN], None,
                     id="a longer chain, and an address at its end"),
        pytest.param(reply(GROWING), [GROWING, *GROWN], None, id="DNAME that leads below itself"),
        pytest.param(reply(OFF), [OFF], None, id="DNAME that makes a name too long"),
    ],
)  # fmt: skip
def test_a_chain_without_an_end(message: dns.message.Message, aliases: list[str], open_end: str | None) -> None:
    found = read(message)
    assert texts(found.answer) == aliases
    assert (found.open_end and found.open_end.to_text(True)) == open_end
    assert (found.rcode, found.addresses) == (message.rcode(), ())


@pytest.mark.parametrize(
    ("message", "authority", "ttl"),
    [
        pytest.param(reply(rcode=Rcode.NXDOMAIN, authority=(SOA,)), [SOA], 60, id="no such name"),
        pytest.param(reply(authority=(SOA,)), [SOA], 60, id="no such record"),
        pytest.param(reply(rcode=Rcode.NXDOMAIN), [], 0, id="no such name, and no SOA"),
        pytest.param(reply(), [], 0, id="no such record, and no SOA"),
        pytest.param(reply(authority=("example 60 NS ns.example.",), additional=(EVIL,)), [], 0, id="a referral"),
        pytest.param(reply(authority=("example 9 SOA a. b. 1 2 3 4 60",)), ["example 9 SOA a. b. 1 2 3 4 60"], 9,
                     id="the TTL of the SOA"),
        pytest.param(reply(authority=("example 60 SOA a. b. 1 2 3 4 9",)), ["example 60 SOA a. b. 1 2 3 4 9"], 9,
                     id="the minimum in the SOA"),
        pytest.param(reply(authority=("example 9999 SOA a. b. 1 2 3 4 9999",)),
                     [f"example {MAX_NEGATIVE_TTL} SOA a. b. 1 2 3 4 9999"], MAX_NEGATIVE_TTL, id="more than the most"),
        pytest.param(reply("www.example 7 CNAME cdn.example.", authority=(SOA,)), [SOA], 7, id="behind an alias"),
        pytest.param(reply(authority=("net 60 SOA a. b. 1 2 3 4 60", EVIL)), [], 0, id="the SOA of another zone"),
        pytest.param(reply("www.example 60 CNAME www.example.net.", authority=(SOA, "net 60 SOA a. b. 1 2 3 4 60")),
                     ["net 60 SOA a. b. 1 2 3 4 60"], 60, id="an SOA of each zone that the chain leads through"),
        pytest.param(reply(authority=(SOA, NSEC, signature("example", "SOA"), signature("a.example", "NSEC"))), [SOA],
                     60, id="proofs that were not asked for"),
    ],
)  # fmt: skip
def test_an_absence_is_told_with_how_long_it_lasts(
    message: dns.message.Message, authority: list[str], ttl: int
) -> None:
    found = read(message)
    assert (found.rcode, texts(found.authority), found.ttl) == (message.rcode(), authority, ttl)
    assert (found.addresses, found.open_end) == ((), None)


SIGNED = (signature("www.example", "A"), signature("www.example", "CNAME"), signature("cdn.example", "A"))
NSEC3 = "0p9mhaveqvm6t7vbl5lop2u3t2rp3tom.example 60 NSEC3 1 0 0 - 0p9mhaveqvm6t7vbl5lop2u3t2rp3ton A"


@pytest.mark.parametrize(
    ("message", "answer", "authority"),
    [
        pytest.param(reply(ADDRESS, *SIGNED, EVIL, signature("evil.example", "A")),
                     [ADDRESS, "www.example 60 RRSIG of A"], [], id="an address"),
        pytest.param(reply(ALIAS, ALIASED, *SIGNED),
                     [ALIAS, "www.example 60 RRSIG of CNAME", ALIASED, "cdn.example 60 RRSIG of A"], [], id="an alias"),
        pytest.param(reply("example 60 DNAME example.net.", signature("example", "DNAME"),
                           "www.example.net 60 A 192.0.2.1"),
                     ["example 60 DNAME example.net.", "example 60 RRSIG of DNAME",
                      "www.example 60 CNAME www.example.net.", "www.example.net 60 A 192.0.2.1"], [], id="DNAME"),
        pytest.param(reply(ADDRESS, SIGNED[0], authority=(NSEC, signature("a.example", "NSEC"), SOA,
                                                          "example 60 NS ns.example.", signature("example", "NS"))),
                     [ADDRESS, "www.example 60 RRSIG of A"], [NSEC, "a.example 60 RRSIG of NSEC"],
                     id="an address that a wildcard gave, and the proof that it may"),
        pytest.param(reply(authority=(SOA, signature("example", "SOA"), NSEC, signature("a.example", "NSEC"), NSEC3)),
                     [], [SOA, "example 60 RRSIG of SOA", NSEC, "a.example 60 RRSIG of NSEC", NSEC3],
                     id="no such record"),
        pytest.param(reply(authority=(SOA, "example 60 NS ns.example.", signature("example", "NS"))), [], [SOA],
                     id="the signature of what is left out"),
    ],
)  # fmt: skip
def test_signatures_and_proofs_are_for_who_asks_for_them(
    message: dns.message.Message, answer: list[str], authority: list[str]
) -> None:
    found = read(message, dnssec_ok=True)
    assert texts(found.answer) == answer
    assert sorted(texts(found.authority)) == sorted(authority)
    plain = read(message)
    assert texts(plain.answer) == [text for text in answer if " RRSIG " not in text]
    assert texts(plain.authority) == [text for text in authority if " SOA " in text]


def https(data: str, name: str = "www.example", kind: str = "HTTPS") -> str:
    return f"{name} 60 {kind} {data}"


KEY = 'ech="AAT+DQAA"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(["1 . alpn=\"h2,h3\" port=\"8443\""], None, id="nothing to take out"),
        pytest.param([f"1 . alpn=h2 {KEY}"], ["1 . alpn=\"h2\""], id="ECH"),
        pytest.param([f"1 . {KEY}"], ["1 ."], id="ECH alone"),
        pytest.param([f"1 . mandatory=alpn alpn=h2 {KEY}"], ["1 . mandatory=\"alpn\" alpn=\"h2\""],
                     id="ECH that is not mandatory"),
        pytest.param([f"1 . mandatory=ech {KEY}"], [], id="ECH that is mandatory"),
        pytest.param([f"1 . mandatory=ech {KEY}", "2 . alpn=h2"], ["2 . alpn=\"h2\""],
                     id="ECH that is mandatory in one of two"),
        pytest.param([f"1 . alpn=h2 no-default-alpn {KEY} key65333=x"],
                     ["1 . alpn=\"h2\" no-default-alpn key65333=\"x\""], id="parameters without a value"),
        pytest.param(["1 . ipv4hint=192.0.2.1 ipv6hint=2001:db8::1"], None, id="hints at global addresses"),
        pytest.param(["1 . ipv4hint=192.168.1.1 ipv6hint=2001:db8::1"], ["1 . ipv6hint=\"2001:db8::1\""],
                     id="a hint at a private address"),
        pytest.param(["1 . ipv4hint=192.0.2.1,127.0.0.1"], ["1 ."], id="a global and a loopback address"),
        pytest.param(["1 . ipv6hint=::ffff:10.0.0.1"], ["1 ."], id="an IPv6 address that stands for a private one"),
        pytest.param(["1 . mandatory=ipv4hint ipv4hint=10.137.0.1"], [], id="a mandatory hint at a Qubes address"),
        pytest.param(["0 cdn.example."], None, id="AliasMode"),
        pytest.param(["0 cdn.example.", f"1 . {KEY}"], ["0 cdn.example.", "1 ."], id="AliasMode beside another"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_service_records_lose_ech_and_hints_inward(before: list[str], after: list[str] | None, kind: str) -> None:
    """`after`: None where they stay as they are, and their signature with them."""
    message = reply(*(https(one, kind=kind) for one in before), signature("www.example", kind), kind=kind)
    found = read(message, dnssec_ok=True)
    kept = [https(one, kind=kind) for one in (before if after is None else after)]
    signed = [f"www.example 60 RRSIG of {kind}"] if after is None else []
    assert sorted(one.replace('"', "") for one in texts(found.answer)) == sorted(
        one.replace('"', "") for one in [*kept, *signed]
    )
    assert b"\xfe\x0d" not in b"".join(record.to_wire() for rrset in found.answer for record in rrset)
    assert (found.addresses, found.authority, found.open_end) == ((), (), None)


def test_a_service_record_behind_an_alias_is_cleaned_too() -> None:
    found = read(reply(ALIAS, https(f"1 . {KEY}", "cdn.example"), kind="HTTPS"))
    assert texts(found.answer) == [ALIAS, https("1 .", "cdn.example")]


def test_the_case_of_letters_makes_no_difference() -> None:
    message = reply(ALIAS, ALIASED)
    message.question[0].name = dns.name.from_text("wWw.eXample.")
    message.answer[1].name = dns.name.from_text("CDN.example.")
    assert texts(read(message).answer) == [ALIAS, "CDN.example 60 A 192.0.2.1"]


@pytest.mark.parametrize(
    ("message", "unwanted", "answer", "addresses"),
    [
        pytest.param(reply(ADDRESS, "www.example 60 A 10.0.0.1", SIGNED[0]), ["10.0.0.1"], [ADDRESS], ["192.0.2.1"],
                     id="one of two, and the signature of both"),
        pytest.param(reply(ADDRESS, SIGNED[0]), ["192.0.2.1"], [], [], id="the only one"),
        pytest.param(reply(ALIAS, ALIASED, *SIGNED), ["192.0.2.1"], [ALIAS, "www.example 60 RRSIG of CNAME"], [],
                     id="behind an alias, which stays as it was signed"),
        pytest.param(reply("www.example 60 AAAA fd00::1", "www.example 60 AAAA 2001:db8::1", kind="AAAA"), ["fd00::1"],
                     ["www.example 60 AAAA 2001:db8::1"], ["2001:db8::1"], id="IPv6"),
    ],
)  # fmt: skip
def test_without_some_addresses(
    message: dns.message.Message, unwanted: list[str], answer: list[str], addresses: list[str]
) -> None:
    whole = read(message, dnssec_ok=True)
    before = texts(whole.answer)
    less = whole.without(frozenset(map(ip_address, unwanted)), Reason.PRIVATE_ADDRESS)
    assert (texts(less.answer), list(map(str, less.addresses))) == (answer, addresses)
    assert (less.why, less.ttl, less.rcode) == (Reason.PRIVATE_ADDRESS, whole.ttl, whole.rcode)
    assert (texts(whole.answer), whole.why) == (before, None), "others still get the whole of it"


def test_the_rest_of_a_chain_comes_after_its_beginning() -> None:
    start = read(reply("www.example 9 CNAME cdn.example."))
    rest = read(reply("cdn.example 60 CNAME x.example.", asked="cdn.example"))
    end = read(reply("x.example 30 A 192.0.2.1", asked="x.example"))
    short = read(reply("x.example 3 A 192.0.2.1", asked="x.example"))
    gone = read(reply(authority=(SOA,), asked="x.example", rcode=Rcode.NXDOMAIN))
    lost = read(reply(asked="x.example"))
    for last, ttl in ((end, 9), (short, 3), (gone, 9), (lost, 0)):
        found = last.after(rest.after(start))
        assert texts(found.answer)[:2] == ["www.example 9 CNAME cdn.example.", "cdn.example 60 CNAME x.example."]
        assert (found.rcode, found.authority, found.addresses) == (last.rcode, last.authority, last.addresses)
        assert (found.open_end, found.size) == (None, start.size + rest.size + last.size)
        assert found.ttl == ttl


NAMES = ("www.example", "cdn.example", "x.cdn.example", "example", "evil.net", "net")
DATA = {
    "A": st.sampled_from(["192.0.2.1", "10.0.0.1"]),
    "AAAA": st.just("2001:db8::1"),
    "CNAME": st.sampled_from([f"{name}." for name in NAMES]),
    "DNAME": st.sampled_from([f"{name}." for name in NAMES]),
    "HTTPS": st.sampled_from(["0 cdn.example.", f"1 . {KEY}", f"1 . mandatory=ech {KEY}", "1 . ipv4hint=10.0.0.1"]),
    "RRSIG": st.sampled_from(["A", "CNAME", "DNAME", "HTTPS", "SOA", "NSEC"]).map(
        lambda covers: signature("x", covers).split(None, 3)[3]
    ),
    "SOA": st.just("a.example. b.example. 1 2 3 4 60"),
    "NSEC": st.just("z.example. A"),
    "TXT": st.just("x"),
    "CLASS9": st.just("A \\# 2 0001"),
}
record = st.sampled_from(sorted(DATA)).flatmap(
    lambda kind: st.builds(
        lambda name, ttl, data: f"{name} {ttl} {kind} {data}",
        st.sampled_from(NAMES),
        st.sampled_from([0, 60, 99999]),
        DATA[kind],
    )
)
records = st.lists(record, max_size=8).map(tuple)
ASKED = ["A", "AAAA", "CNAME", "DNAME", "HTTPS", "TXT"]


def check(found: Answer, message: dns.message.Message, kind: int, dnssec_ok: bool) -> None:
    """Each record is reached by the chain from the question, once; the first leads to the second, and so on."""
    name, types = message.question[0].name, set()
    for rrset in found.answer:
        assert rrset.rdclass == 1
        types.add(rrset.rdtype)
        if rrset.rdtype == dns.rdatatype.RRSIG and kind != dns.rdatatype.RRSIG:
            assert dnssec_ok
            assert rrset.covers in types
        elif rrset.rdtype == dns.rdatatype.DNAME and rrset.name != name:
            assert name.is_subdomain(rrset.name)
        else:
            assert rrset.name == name
            assert rrset.rdtype in (kind, dns.rdatatype.CNAME)
            name = rrset[0].target if rrset.rdtype == dns.rdatatype.CNAME else name
    owners = [(rrset.name, rrset.rdtype, rrset.covers) for rrset in found.answer]
    assert len(owners) == len(set(owners)) <= 2 * (2 * MAX_CHAIN + 1)
    for rrset in found.authority:
        assert (rrset.rdtype == dns.rdatatype.SOA and name.is_subdomain(rrset.name)) or dnssec_ok
    assert found.open_end in (None, name)
    assert all(rrset.ttl <= MAX_TTL for rrset in (*found.answer, *found.authority))
    assert 0 <= found.ttl <= min((rrset.ttl for rrset in found.answer), default=MAX_NEGATIVE_TTL)
    query = dnsmsg.read(dns.message.make_query("www.example.", "A", want_dnssec=True).to_wire())
    assert isinstance(query, Query)
    wire = dnsmsg.answer(bytes(2), query, found, 0, udp=False)
    if len(found.answer) < MAX_CHAIN // 2:  # dnspython reads no name that is compressed in more than 16 steps
        assert len(dns.message.from_wire(wire).answer) == len(found.answer)


@given(records, records, records, st.sampled_from(NAMES), st.sampled_from(ASKED), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_record_told_is_reached_from_the_question(
    answer: tuple[str, ...], beside: tuple[str, ...], more: tuple[str, ...], asked: str, kind: str, dnssec_ok: bool
) -> None:
    message = reply(*answer, authority=beside, additional=more, asked=asked, kind=kind)
    check(read(message, dnssec_ok), message, message.question[0].rdtype, dnssec_ok)


REAL = [
    reply(ALIAS, ALIASED, *SIGNED, authority=(NSEC,)).to_wire(),
    reply(GROWING, "www.x.example 60 A 192.0.2.1").to_wire(),
    reply(https(f"1 . mandatory=alpn alpn=h2 ipv4hint=192.0.2.1 {KEY}"), https("0 x."), kind="HTTPS").to_wire(),
    reply(authority=(SOA, NSEC3, signature("example", "SOA")), rcode=Rcode.NXDOMAIN).to_wire(),
]


@given(st.sampled_from(REAL), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_reply_with_bytes_changed_is_read(data: bytes, changes: list[tuple[int, int]], dnssec_ok: bool) -> None:
    changed = bytearray(data)
    for at, byte in changes:
        changed[at % len(data)] = byte
    with suppress(dns.exception.DNSException):
        message = dns.message.from_wire(bytes(changed))
        for kind in (1, 5, 39, 46, 65):
            found = dnsanswer.read(message, kind, dnssec_ok)
            if message.question and message.rcode() < 16:
                check(found, message, kind, dnssec_ok)
