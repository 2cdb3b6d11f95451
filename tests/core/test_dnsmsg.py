"""A client's query: which are read, and as what question; and what the reply to each of them says."""

from collections.abc import Iterable

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsig
import pytest
from dns.rcode import Rcode
from dns.rdatatype import AAAA, HTTPS, TXT, A
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyfw.core import dnsmsg
from proxyfw.core.dnsanswer import Answer
from proxyfw.core.dnsmsg import MAX_QUERY, MAX_UDP, Query, Question, Unreadable
from proxyfw.core.hostname import Hostname
from proxyfw.core.sniffed import Malformed, NotMine
from proxyfw.core.verdict import Reason

ID = b"\x12\x34"
RD, CD, AD, TC, DO = 0x0100, 0x0010, 0x0020, 0x0200, 0x8000
GITHUB = Hostname("github.com")
LABELS = b"\x06github\x03com\0"
A_IN = b"\0\1\0\1"
LETTERS = "only letters, digits, hyphens, underscores and dots may be in a name"
UNSUPPORTED = Reason.UNSUPPORTED


def query(
    labels: bytes = LABELS,
    kind: int = A,
    rdclass: int = 1,
    flags: int = RD,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    after: bytes = b"",
) -> bytes:
    """Bytes as a client sends them; `counts`: questions, answers, authority, additional."""
    numbers = b"".join(count.to_bytes(2) for count in counts)
    return ID + flags.to_bytes(2) + numbers + labels + kind.to_bytes(2) + rdclass.to_bytes(2) + after


def opt(version: int = 0, size: int = 4096, flags: int = 0, options: bytes = b"") -> bytes:
    data = len(options).to_bytes(2) + options
    return b"\0" + b"\0\x29" + size.to_bytes(2) + bytes([0, version]) + flags.to_bytes(2) + data


def option(code: int, data: bytes) -> bytes:
    return code.to_bytes(2) + len(data).to_bytes(2) + data


def with_edns(*options: bytes, labels: bytes = LABELS, kind: int = A, size: int = 4096, flags: int = 0) -> bytes:
    return query(labels, kind, counts=(1, 0, 0, 1), after=opt(size=size, flags=flags, options=b"".join(options)))


def record(kind: int, data: bytes, name: bytes = b"\xc0\x0c", rdclass: int = 1) -> bytes:
    return name + kind.to_bytes(2) + rdclass.to_bytes(2) + bytes(4) + len(data).to_bytes(2) + data


def signed() -> bytes:
    message = dns.message.from_wire(query())
    message.use_tsig(dns.tsig.Key("key.example", b"secret"), fudge=300)
    return message.to_wire()


def answered(data: bytes) -> Query:
    read = dnsmsg.read(data)
    assert isinstance(read, Query), read
    return read


SHORT = Answer(Rcode.NOERROR, (dns.rrset.from_text("github.com.", 60, "IN", "A", "192.0.2.1"),), ttl=60)
LONG = Answer(
    Rcode.NOERROR,
    (
        dns.rrset.from_text("github.com.", 60, "IN", "CNAME", "far.example."),
        dns.rrset.from_text("far.example.", 60, "IN", "AAAA", *(f"2001:db8::{n:x}" for n in range(100))),
    ),
    ttl=60,
)
NO_SUCH_NAME = Answer(
    Rcode.NXDOMAIN, (), (dns.rrset.from_text("com.", 60, "IN", "SOA", "a.example. b.example. 1 2 3 4 60"),), 60
)
EMPTIED = Answer(Rcode.NOERROR, why=Reason.PRIVATE_ADDRESS)


def told(message: dns.message.Message) -> list[tuple[int, str]]:
    """The extended errors in a reply."""
    return [(int(o.code), o.text) for o in message.options if isinstance(o, dns.edns.EDEOption)]


def records(*sections: Iterable[dns.rrset.RRset]) -> int:
    return sum(len(rrset) for section in sections for rrset in section)


def check_reply(data: bytes, reply: bytes, asked: Query | Unreadable, size: int = 65535) -> dns.message.Message:
    """What holds for each reply."""
    message = dns.message.from_wire(reply)
    assert reply[:2] == data[:2]
    assert len(reply) <= size
    assert message.flags & dns.flags.QR
    assert message.flags & dns.flags.RA
    assert not message.flags & (dns.flags.AD | dns.flags.AA)
    assert message.flags & RD == int.from_bytes(data[2:4]) & RD
    assert not message.additional
    if isinstance(asked, Query):
        told = message.question[0]
        told_as = (told.name.to_wire() or b"") + told.rdtype.to_bytes(2) + told.rdclass.to_bytes(2)
        assert told_as == asked.asked, "letter for letter"
        assert (message.edns >= 0) == asked.edns
    else:
        assert not message.question
        assert (message.edns >= 0) == (asked.rcode == Rcode.BADVERS)
    assert message.edns <= 0
    return message


def check(data: bytes) -> Query | Unreadable | NotMine:
    """Reads it, and makes each reply that there is to it."""
    read = dnsmsg.read(data)
    if isinstance(read, NotMine):
        assert len(data) < 12 or data[2] & 0x80
    elif isinstance(read, Unreadable):
        reply = check_reply(data, dnsmsg.error(data, read.rcode), read)
        assert reply.rcode() == read.rcode
        assert reply.opcode() == data[2] >> 3
    else:
        assert (read.question is None) == (read.broken is not None)
        for rcode in (read.rcode, Rcode.SERVFAIL):
            reply = check_reply(data, dnsmsg.refusal(data, read, Reason.NO_MATCH, rcode), read, read.size)
            assert reply.rcode() == (rcode or Rcode.NXDOMAIN)
            assert not records(reply.answer, reply.authority)
        for found in (SHORT, LONG, NO_SUCH_NAME, EMPTIED):
            by_udp = check_reply(data, dnsmsg.answer(data, read, found, 1, udp=True), read, read.size)
            by_tcp = check_reply(data, dnsmsg.answer(data, read, found, 1, udp=False), read)
            assert by_udp.rcode() == by_tcp.rcode() == found.rcode
            assert records(by_tcp.answer, by_tcp.authority) == records(found.answer, found.authority)
            assert not by_tcp.flags & dns.flags.TC
            cut = records(by_udp.answer, by_udp.authority) < records(found.answer, found.authority)
            assert bool(by_udp.flags & dns.flags.TC) == cut == (found is LONG)
    return read


NO_OPT = Malformed("what follows the question is no OPT record")


def check_query(data: bytes) -> Query:
    read = check(data)
    assert isinstance(read, Query), read
    return read


@pytest.mark.parametrize(
    ("data", "question"),
    [
        pytest.param(query(), Question(GITHUB, A), id="a plain query"),
        pytest.param(query(kind=AAAA), Question(GITHUB, AAAA), id="AAAA"),
        pytest.param(query(kind=HTTPS), Question(GITHUB, HTTPS), id="HTTPS"),
        pytest.param(query(kind=65280), Question(GITHUB, 65280), id="a type without a name"),
        pytest.param(query(kind=127), Question(GITHUB, 127), id="the type before the meta types"),
        pytest.param(query(kind=256), Question(GITHUB, 256), id="the type after the meta types"),
        pytest.param(query(b"\x06GiTHuB\x03cOm\0"), Question(GITHUB, A), id="the case drawn by lot (0x20)"),
        pytest.param(query(b"\x04_dns\x08resolver\x04arpa\0"), Question(Hostname("_dns.resolver.arpa"), A),
                     id="an underscore"),
        pytest.param(query(b"\x3f" + b"a" * 63 + b"\x03com\0"), Question(Hostname("a" * 63 + ".com"), A),
                     id="a label of 63 bytes"),
        pytest.param(query((b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"),
                     Question(Hostname(".".join(["a" * 63] * 3 + ["a" * 61])), A), id="a name of 255 octets"),
        pytest.param(query(flags=0), Question(GITHUB, A), id="no recursion desired"),
        pytest.param(query(flags=RD | AD), Question(GITHUB, A), id="AD"),
        pytest.param(query(flags=RD | 0x06EF), Question(GITHUB, A), id="every flag that means nothing in a query"),
        pytest.param(query(flags=RD | CD), Question(GITHUB, A, checking_disabled=True), id="CD"),
        pytest.param(with_edns(), Question(GITHUB, A), id="EDNS"),
        pytest.param(with_edns(flags=DO), Question(GITHUB, A, dnssec_ok=True), id="DO"),
        pytest.param(with_edns(flags=0x7FFF), Question(GITHUB, A), id="every EDNS flag but DO"),
        pytest.param(with_edns(option(10, b"8 bytes.")), Question(GITHUB, A), id="a cookie"),
        pytest.param(with_edns(option(8, b"\0\1\x18\0\xc0\0\2")), Question(GITHUB, A), id="a client subnet"),
        pytest.param(with_edns(option(12, b"hidden"), option(65001, b"hidden")), Question(GITHUB, A),
                     id="padding, and an option of its own"),
        pytest.param(with_edns(option(8, b"\0\1\xff\0")), Question(GITHUB, A), id="a broken client subnet"),
    ],
)  # fmt: skip
def test_a_query_is_its_question_and_nothing_else(data: bytes, question: Question) -> None:
    read = check_query(data)
    assert (read.question, read.broken, read.rcode) == (question, None, Rcode.NXDOMAIN)
    after = check(data + b"\0")
    assert after == Unreadable(Rcode.FORMERR, NO_OPT if read.edns else Malformed("bytes after the question"))


@pytest.mark.parametrize(
    ("data", "rcode", "broken"),
    [
        pytest.param(query(kind=255), Rcode.NOTIMP, Malformed("type ANY", UNSUPPORTED), id="ANY"),
        pytest.param(query(kind=252), Rcode.NOTIMP, Malformed("type AXFR", UNSUPPORTED), id="AXFR"),
        pytest.param(query(kind=251), Rcode.NOTIMP, Malformed("type IXFR", UNSUPPORTED), id="IXFR"),
        pytest.param(query(kind=253), Rcode.NOTIMP, Malformed("type MAILB", UNSUPPORTED), id="MAILB"),
        pytest.param(query(kind=128), Rcode.NOTIMP, Malformed("type NXNAME", UNSUPPORTED), id="the first meta type"),
        pytest.param(query(kind=0), Rcode.NOTIMP, Malformed("type TYPE0", UNSUPPORTED), id="type 0"),
        pytest.param(query(kind=41), Rcode.NOTIMP, Malformed("type OPT", UNSUPPORTED), id="OPT"),
        pytest.param(query(rdclass=3), Rcode.REFUSED, Malformed("class CH", UNSUPPORTED), id="class CH"),
        pytest.param(query(rdclass=255), Rcode.REFUSED, Malformed("class ANY", UNSUPPORTED), id="class ANY"),
        pytest.param(query(b"\7version\4bind\0", TXT, 3), Rcode.REFUSED, Malformed("class CH", UNSUPPORTED),
                     id="version.bind"),
        pytest.param(query(b"\0", 2), Rcode.NXDOMAIN, Malformed(".: the name is empty"), id="the root"),
        pytest.param(query(b"\0", 255), Rcode.NOTIMP, Malformed("type ANY", UNSUPPORTED), id="ANY of the root"),
        pytest.param(query(b"\3a b\3com\0"), Rcode.NXDOMAIN, Malformed(r"a\032b.com: " + LETTERS), id="a space"),
        pytest.param(query(b"\3a.b\3com\0"), Rcode.NXDOMAIN, Malformed(r"a\.b.com: " + LETTERS),
                     id="a dot inside a label"),
        pytest.param(query(b"\4\xff\0\n\x80\3com\0"), Rcode.NXDOMAIN,
                     Malformed(r"\255\000\010\128.com: " + LETTERS), id="a binary label"),
        pytest.param(query("\7bücher\2de\0".encode()), Rcode.NXDOMAIN,
                     Malformed(r"b\195\188cher.de: " + LETTERS), id="UTF-8"),
        pytest.param(query(b"\1*\3com\0"), Rcode.NXDOMAIN, Malformed("*.com: " + LETTERS), id="an asterisk"),
        pytest.param(query(b"\2-a\3com\0"), Rcode.NXDOMAIN,
                     Malformed("-a.com: a label begins or ends with a hyphen"), id="a hyphen first"),
        pytest.param(query(b"\0011\0012\0013\0014\0"), Rcode.NXDOMAIN,
                     Malformed("1.2.3.4: it is an address, not a name"), id="an address"),
    ],
)  # fmt: skip
def test_what_is_not_looked_up(data: bytes, rcode: Rcode, broken: Malformed) -> None:
    read = check_query(data)
    assert (read.question, read.broken, read.rcode) == (None, broken, rcode)
    reply = dns.message.from_wire(dnsmsg.refusal(data, read, broken.reason, read.rcode))
    assert reply.rcode() == rcode


TOO_LONG = Malformed("a query of more than 1024 bytes", Reason.OVERSIZED)
WITH_RECORDS = Malformed("a query with records in it")
NOT_WHOLE = Malformed("the question is not whole, or its name is no name")


@pytest.mark.parametrize(
    ("data", "rcode", "broken"),
    [
        pytest.param(query(flags=0x0800), Rcode.NOTIMP, Malformed("opcode IQUERY", UNSUPPORTED), id="IQUERY"),
        pytest.param(query(flags=0x2000), Rcode.NOTIMP, Malformed("opcode NOTIFY", UNSUPPORTED), id="NOTIFY"),
        pytest.param(query(kind=6, flags=0x2800), Rcode.NOTIMP, Malformed("opcode UPDATE", UNSUPPORTED), id="UPDATE"),
        pytest.param(query(kind=6, flags=0x2800, counts=(1, 0, 1, 0), after=record(A, bytes(4), rdclass=255)),
                     Rcode.NOTIMP, Malformed("opcode UPDATE", UNSUPPORTED), id="UPDATE that is broken"),
        pytest.param(query(flags=0x3000, counts=(0, 0, 0, 0)), Rcode.NOTIMP, Malformed("opcode 6", UNSUPPORTED),
                     id="a session of DNS (RFC 8490), of another format"),
        pytest.param(query(flags=0x7800), Rcode.NOTIMP, Malformed("opcode 15", UNSUPPORTED), id="opcode 15"),
        pytest.param(query(counts=(2, 0, 0, 0), after=b"\xc0\x0c" + A_IN), Rcode.FORMERR,
                     Malformed("2 questions in one query"), id="two questions"),
        pytest.param(ID + b"\1\0" + bytes(8), Rcode.FORMERR, Malformed("0 questions in one query"), id="no question"),
        pytest.param(query(counts=(1, 1, 0, 0), after=record(A, bytes(4))), Rcode.FORMERR, WITH_RECORDS,
                     id="a record in the answer section"),
        pytest.param(query(counts=(1, 0, 1, 0), after=record(A, bytes(4))), Rcode.FORMERR, WITH_RECORDS,
                     id="a record in the authority section"),
        pytest.param(query(counts=(1, 0, 0, 1), after=opt(version=1)), Rcode.BADVERS,
                     Malformed("EDNS version 1", UNSUPPORTED), id="EDNS version 1"),
        pytest.param(query(counts=(1, 0, 0, 1), after=opt(version=255, flags=DO)), Rcode.BADVERS,
                     Malformed("EDNS version 255", UNSUPPORTED), id="EDNS version 255"),
        pytest.param(query(counts=(1, 0, 0, 2), after=opt() + opt()), Rcode.FORMERR, WITH_RECORDS,
                     id="two OPT records"),
        pytest.param(query(counts=(1, 1, 0, 0), after=opt()), Rcode.FORMERR, WITH_RECORDS,
                     id="OPT in the answer section"),
        pytest.param(query(counts=(1, 0, 0, 1), after=record(TXT, b"\6hidden")), Rcode.FORMERR, NO_OPT,
                     id="a record in the additional section"),
        pytest.param(query(counts=(1, 0, 0, 91), after=record(A, b"", rdclass=255) * 91), Rcode.FORMERR, TOO_LONG,
                     id="many records, of a class that the library would remember"),
        pytest.param(query(counts=(1, 0, 0, 1), after=record(A, b"", b"\0", 255)), Rcode.FORMERR, NO_OPT,
                     id="one such record"),
        pytest.param(query(counts=(1, 0, 0, 1), after=record(24, bytes(18) + b"\0" + bytes(64), b"\0", 255)),
                     Rcode.FORMERR, NO_OPT, id="SIG(0)"),
        pytest.param(signed(), Rcode.FORMERR, NO_OPT, id="TSIG"),
        pytest.param(query(counts=(1, 0, 0, 1), after=opt()[:-1]), Rcode.FORMERR, NO_OPT, id="half an OPT record"),
        pytest.param(with_edns(option(12, bytes(MAX_QUERY))), Rcode.FORMERR, TOO_LONG, id="much padding"),
        pytest.param(query(after=bytes(MAX_QUERY)), Rcode.FORMERR, TOO_LONG, id="many bytes after it"),
        pytest.param(query(b"\x40" + b"a" * 64 + b"\0"), Rcode.FORMERR,
                     NOT_WHOLE, id="a label of 64 bytes"),
        pytest.param(query((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0"), Rcode.FORMERR,
                     NOT_WHOLE, id="a name of 256 octets"),
        pytest.param(query(b"\xc0\x0c"), Rcode.FORMERR, NOT_WHOLE,
                     id="a pointer at itself"),
        pytest.param(query(b"\3www\xc0\x0c"), Rcode.FORMERR, NOT_WHOLE,
                     id="a pointer that closes a loop"),
        pytest.param(query(b"\xc0\x20"), Rcode.FORMERR, NOT_WHOLE,
                     id="a pointer ahead"),
        pytest.param(query(counts=(0xFFFF, 0, 0, 0)), Rcode.FORMERR, Malformed("65535 questions in one query"),
                     id="65535 questions, of which one is there"),
    ],
)  # fmt: skip
def test_a_broken_query_gets_an_error(data: bytes, rcode: Rcode, broken: Malformed) -> None:
    assert check(data) == Unreadable(rcode, broken)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(query()[:11], id="less than a header"),
        pytest.param(query(flags=0x8180), id="a response"),
        pytest.param(query(flags=0x8180, after=bytes(MAX_QUERY)), id="a long response"),
        pytest.param(b"\xff" * 40, id="only ones"),
    ],
)
def test_what_is_no_query_gets_no_reply(data: bytes) -> None:
    assert check(data) == NotMine()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param(query(), 512, id="without EDNS"),
        pytest.param(with_edns(size=0), 512, id="less than the least"),
        pytest.param(with_edns(size=1000), 1000, id="what it can take"),
        pytest.param(with_edns(size=65535), MAX_UDP, id="more than passes unfragmented"),
    ],
)
def test_a_reply_over_udp_is_no_longer_than_the_client_can_take(data: bytes, size: int) -> None:
    assert check_query(data).size == size


@pytest.mark.parametrize(
    ("reason", "rcode", "replied", "code"),
    [
        pytest.param(Reason.NO_MATCH, Rcode.NXDOMAIN, Rcode.NXDOMAIN, 15, id="a name that is not permitted: Blocked"),
        pytest.param(Reason.UNSUPPORTED, Rcode.NOTIMP, Rcode.NOTIMP, 21, id="such a type: Not Supported"),
        pytest.param(Reason.LIMIT, Rcode.SERVFAIL, Rcode.SERVFAIL, 0, id="too many: Other"),
        pytest.param(Reason.DNS_FAILURE, Rcode.SERVFAIL, Rcode.SERVFAIL, 0, id="no resolver answered: Other"),
    ],
)
def test_a_refusal_says_why(reason: Reason, rcode: Rcode, replied: Rcode, code: int) -> None:
    for data, expected in ((with_edns(flags=DO), [(code, f"proxyfw: {reason}")]), (query(), [])):
        reply = dns.message.from_wire(dnsmsg.refusal(data, check_query(data), reason, rcode))
        assert (reply.rcode(), told(reply), reply.authority) == (replied, expected, [])


def test_an_answer_says_what_was_taken_out_of_it() -> None:
    reply = dns.message.from_wire(dnsmsg.answer(with_edns(), check_query(with_edns()), EMPTIED, 0, udp=True))
    assert (reply.rcode(), told(reply)) == (Rcode.NOERROR, [(15, "proxyfw: private-address")])
    reply = dns.message.from_wire(dnsmsg.answer(with_edns(), check_query(with_edns()), SHORT, 0, udp=True))
    assert told(reply) == []


@pytest.mark.parametrize("udp", [True, False])
def test_an_answer_ages(udp: bool) -> None:
    for age, ttl in ((0, 60), (59, 1), (60, 0), (100, 0)):
        reply = dns.message.from_wire(dnsmsg.answer(query(), check_query(query()), SHORT, age, udp))
        assert [rrset.ttl for rrset in reply.answer] == [ttl]


@pytest.mark.parametrize("flags", [0, RD, RD | CD, RD | AD | CD | TC])
def test_the_flags_of_a_reply(flags: int) -> None:
    data = query(flags=flags, counts=(1, 0, 0, 1), after=opt(flags=DO))
    reply = dns.message.from_wire(dnsmsg.answer(data, check_query(data), SHORT, 0, udp=True))
    assert reply.flags == dns.flags.QR | dns.flags.RA | flags & (RD | CD)
    assert reply.ednsflags == DO


def test_the_same_question_with_another_id_is_read_once() -> None:
    assert dnsmsg.read(query()) is dnsmsg.read(b"\x43\x21" + query()[2:])


def test_the_question_is_repeated_byte_for_byte() -> None:
    data = query(b"\x06GiTHuB\x03cOm\0")
    for reply in (
        dnsmsg.answer(data, check_query(data), SHORT, 0, udp=True),
        dnsmsg.refusal(data, check_query(data), Reason.NO_MATCH),
    ):
        assert reply[12 : len(data)] == data[12:]


REAL = (query(), query(b"\x06GiTHuB\x03cOm\0", AAAA, flags=RD | CD), with_edns(flags=DO),
        with_edns(option(10, b"8 bytes."), option(8, b"\0\1\x18\0\xc0\0\2"), option(12, bytes(99)), kind=HTTPS),
        query(b"\x02no\x04host\x04a b!\0"))  # fmt: skip
real = st.sampled_from(REAL)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda body: ID + b"\1\0\0\1\0\0\0\0\0\1" + body))
@settings(max_examples=300, deadline=None)
def test_any_bytes_get_an_answer(data: bytes) -> None:
    check(data)


@given(real, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_query_with_bytes_changed_gets_an_answer(data: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for at, byte in changes:
        changed[at % len(data)] = byte
    check(bytes(changed))


@given(real, st.binary(min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_bytes_after_a_query_make_it_broken(data: bytes, after: bytes) -> None:
    assert isinstance(check(data + after), Unreadable)


@pytest.mark.parametrize("data", REAL)
def test_a_query_cut_short_anywhere_is_not_believed(data: bytes) -> None:
    for length in range(len(data)):
        read = check(data[:length])
        if length < 12:
            assert read == NotMine()
        else:
            assert isinstance(read, Unreadable)
            assert (read.rcode, read.broken.reason) == (Rcode.FORMERR, Reason.MALFORMED)


LABELS = st.sampled_from(
    [b"github", b"GitHub", b"com", b"a.b", b"x" * 63, b"a" * 64, b"-x", b"_sip", b"", b"1", b"\xe9", b" "]
)


@given(
    name=st.lists(LABELS, max_size=5),
    tail=st.sampled_from([b"\0", b"", b"\xc0\x0c", b"\0\0"]),
    kind=st.sampled_from([0, A, AAAA, HTTPS, 41, 251, 255, 256, 65535]),
    rdclass=st.sampled_from([1, 1, 1, 3, 255]),
    flags=st.integers(0, 0xFFFF),
    counts=st.sampled_from([(1, 0, 0, 0), (1, 0, 0, 1), (1, 0, 0, 1), (0, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 256)]),
    opt=st.sampled_from([
        b"", b"\0\0\x29\x04\xd0\0\0\0\0\0\0", b"\0\0\x29\x02\x00\0\0\x80\0\0\0", b"\0\0\x29\xff\xff\0\1\0\0\0\0",
        b"\0\0\x29\0\0\xff\0\xff\xff\0\0", b"\0\0\x29\x04\xd0\0\0\0\0\0\4\xfd\xe9\0\0", b"\0\0\x29\x04\xd0\0\0\0\0\0\1",
    ]),
    cut=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=1000)
def test_a_query_is_read_as_the_library_reads_it(
    name: list[bytes], tail: bytes, kind: int, rdclass: int, flags: int, counts: tuple[int, ...], opt: bytes, cut: int
) -> None:
    """Never more is read as a query than dnspython takes for one, and never another name, type, class or flag."""
    labels = b"".join(bytes([len(label)]) + label for label in name) + tail
    data = ID + (flags & 0x7FFF).to_bytes(2) + b"".join(count.to_bytes(2) for count in counts)
    data += labels + kind.to_bytes(2) + rdclass.to_bytes(2) + opt
    data = data[: len(data) - cut]
    read = check(data)
    if not isinstance(read, Query):
        return
    message = dns.message.from_wire(data)
    (asked,) = message.question
    assert (asked.name.labels, asked.rdclass) == (read.name.labels, int.from_bytes(read.asked[-2:]))
    assert dns.rdatatype.to_text(asked.rdtype) == read.kind
    assert (message.edns == 0, message.flags) == (read.edns, read.flags)
    if read.question is not None:
        told = (message.ednsflags & DO != 0, message.flags & CD != 0)
        assert (read.question.dnssec_ok, read.question.checking_disabled) == told
        assert asked.name == dns.name.from_text(read.question.name)
