"""DNS messages between a client and the relay: a query's bytes in, a reply's bytes out (RFC 1035, 6891, 8914).

A query is read here, and a refusal written: a question and no more is plain enough, and what a client sends never
reaches the library, which would parse (and remember) whatever records it has in it. dnspython writes the answers.

A query is judged by its one question alone: nothing else that a client puts into it (options, the case of the name)
goes any further, and so nothing can hide in there.
"""

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.edns import EDECode
from dns.rcode import Rcode

from proxyfw.core.dnsanswer import Answer
from proxyfw.core.hostname import Hostname, HostnameError, normalise
from proxyfw.core.sniffed import Malformed, NotMine
from proxyfw.core.verdict import Reason

MAX_QUERY = 1024
"""Bytes of a query: a name, and what EDNS adds. More is not a question that a stub resolver asks."""

MAX_UDP = 1232
"""Bytes of a reply over UDP, at most: what passes everywhere unfragmented (the DNS flag day of 2020)."""

_PLAIN_UDP = 512  # RFC 1035 section 2.3.4, for a client without EDNS
HEADER = 12  # bytes, RFC 1035 section 4.1.1
_QR = 0x80  # in the third byte
_REMEMBERED = 1024  # queries read and replies made: clients ask the same again and again
_ERRORS = {Rcode.NXDOMAIN: EDECode.BLOCKED, Rcode.NOTIMP: EDECode.NOT_SUPPORTED, Rcode.REFUSED: EDECode.NOT_SUPPORTED}
_SHORT = 4096  # bytes of an answer, up to which it is remembered as it was sent: whoever has a name chooses its size
_REFUSED = Rcode.NXDOMAIN
_ONE, _ONE_WITH_OPT = b"\0\1\0\0\0\0\0\0", b"\0\1\0\0\0\0\0\1"  # the counts: a question, and an OPT record
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")
_COUNTS = struct.Struct("!4H")  # of questions, answers, authorities, and additional records
_OPT = 11  # bytes of an OPT record without options
_CD, _REPLY, _KEPT = (int(f) for f in (dns.flags.CD, dns.flags.QR | dns.flags.RA, dns.flags.RD | dns.flags.CD))
_MAX_LABEL, _MAX_NAME = 63, 255  # bytes, RFC 1035 section 2.3.4


class Question(NamedTuple):
    """What is asked of a resolver, always in class IN. `dnssec_ok`, `checking_disabled`: the bits DO and CD."""

    name: Hostname
    rdtype: int
    dnssec_ok: bool = False
    checking_disabled: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Query:
    """A well-formed query. `asked`: name, type and class as the client wrote them, which the reply repeats.

    Compared by identity: the same bytes are read once, and give the same query. `edns`: whether it has an OPT record;
    `size`: bytes of a reply over UDP that the client takes.
    `question`: None where `broken` says why it is not to be answered. `rcode`: with what it is refused.
    """

    asked: bytes
    flags: int
    edns: bool
    size: int
    question: Question | None
    broken: Malformed | None = None
    rcode: Rcode = _REFUSED

    @property
    def name(self) -> dns.name.Name:
        """The name as it was written."""
        return dns.name.from_wire(self.asked, 0)[0]

    @property
    def kind(self) -> str:
        """The record type, in words."""
        return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(int.from_bytes(self.asked[-4:-2])))

    @property
    def dnssec_ok(self) -> bool:
        """The bit DO, which the reply repeats (RFC 3225 section 3)."""
        return self.question is not None and self.question.dnssec_ok


@dataclass(frozen=True, slots=True)
class Unreadable:
    """It is a query, and broken: it gets this error, and nothing is looked up."""

    rcode: Rcode
    broken: Malformed


def read(data: bytes) -> Query | Unreadable | NotMine:
    """What a client sent. NotMine: no query at all (an answer, a scrap): it gets no reply."""
    if len(data) < HEADER or data[2] & _QR:
        return NotMine()
    if len(data) > MAX_QUERY:
        return Unreadable(Rcode.FORMERR, Malformed(f"a query of more than {MAX_QUERY} bytes", Reason.OVERSIZED))
    return _read(data[2:])


@lru_cache(maxsize=_REMEMBERED)
def _read(body: bytes) -> Query | Unreadable:
    """`body`: the message without its id, which differs each time."""
    if opcode := body[0] >> 3:  # before the rest is read, which may be of another format (RFC 8490)
        words = dns.opcode.to_text(dns.opcode.Opcode.make(opcode))
        return Unreadable(Rcode.NOTIMP, Malformed(f"opcode {words}", Reason.UNSUPPORTED))
    questions, *others, additional = _COUNTS.unpack_from(body, 2)
    if questions != 1:  # RFC 9619
        return _broken(f"{questions} questions in one query")
    if any(others) or additional > 1:
        return _broken("a query with records in it")
    labels, end = _labels(body, HEADER - 2)
    asked, rest = body[HEADER - 2 : end + 4], body[end + 4 :]
    if labels is None or len(body) < end + 4:
        return _broken("the question is not whole, or its name is no name")
    # An OPT record: the root, type 41, size, extended rcode, version, flags, length (RFC 6891 section 6.1.2). Its
    # options are not looked at: they go nowhere.
    if additional and (len(rest) < _OPT or rest[:3] != b"\0\0\x29" or len(rest) != _OPT + int.from_bytes(rest[9:11])):
        return _broken("what follows the question is no OPT record")
    if rest and not additional:
        return _broken("bytes after the question")
    if additional and rest[6]:
        return Unreadable(Rcode.BADVERS, Malformed(f"EDNS version {rest[6]}", Reason.UNSUPPORTED))
    return _query(int.from_bytes(body[:2]), labels, asked, rest)


def _broken(detail: str) -> Unreadable:
    return Unreadable(Rcode.FORMERR, Malformed(detail))


def _labels(body: bytes, at: int) -> tuple[list[bytes] | None, int]:
    """The labels of a name, and where it ends (RFC 1035 section 3.1). None: it is longer than a name may be, or cut
    short, or has a pointer, for which there is nothing in a question to point at."""
    labels, begin = [], at
    while at < len(body) and (length := body[at]):
        if length > _MAX_LABEL:
            return None, at
        labels.append(body[at + 1 : at + 1 + length])
        at += 1 + length
    at += 1
    return (labels if at - begin <= _MAX_NAME and at <= len(body) else None), at


def _query(flags: int, labels: list[bytes], asked: bytes, opt: bytes) -> Query:
    rdtype, rdclass = int.from_bytes(asked[-4:-2]), int.from_bytes(asked[-2:])
    question, broken, rcode = None, None, _REFUSED
    if rdclass != dns.rdataclass.IN:
        words = dns.rdataclass.to_text(dns.rdataclass.RdataClass.make(rdclass))
        broken, rcode = Malformed(f"class {words}", Reason.UNSUPPORTED), Rcode.REFUSED
    elif _is_meta(rdtype):
        words = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rdtype))
        broken, rcode = Malformed(f"type {words}", Reason.UNSUPPORTED), Rcode.NOTIMP
    else:
        try:
            plain = labels and all(map(_LABEL.fullmatch, labels))  # then dots are between labels alone
            text = b".".join(labels).decode("ascii") if plain else _text(labels)
            name = normalise(text)
            question = Question(name, rdtype, bool(opt) and bool(opt[7] & 0x80), bool(flags & _CD))
        except HostnameError as error:
            broken = Malformed(f"{text}: {error}")
    return Query(asked, flags, bool(opt), _size(opt), question, broken, rcode)


def _text(labels: list[bytes]) -> str:
    return dns.name.Name([*labels, b""]).to_text(omit_final_dot=True)


def _size(opt: bytes) -> int:
    return min(max(int.from_bytes(opt[3:5]), _PLAIN_UDP), MAX_UDP)


def _is_meta(rdtype: int) -> bool:
    """ANY (RFC 8482), zone transfers, and whatever else is no type of a record (RFC 6895 section 3.1)."""
    return 128 <= rdtype <= 255 or rdtype in (0, dns.rdatatype.OPT)


def error(data: bytes, rcode: Rcode) -> bytes:
    """The reply to a broken query: a header alone, as nothing else of it can be believed."""
    flags = (data[2] << 8 | data[3]) & (dns.flags.RD | 0x7800) | dns.flags.QR | dns.flags.RA
    if rcode > 15:  # BADVERS: its upper bits go into an OPT record, RFC 6891 section 6.1.3
        message = dns.message.Message(int.from_bytes(data[:2]))
        message.flags = dns.flags.Flag(flags)
        message.use_edns(0, payload=MAX_UDP)
        message.set_rcode(rcode)
        return message.to_wire()
    return data[:2] + (flags | rcode).to_bytes(2) + bytes(8)


def text_of(query: Query) -> str:
    """The name asked as text, for one that is no host name; what is not printable is escaped."""
    return query.name.to_text(omit_final_dot=True)


def refusal(data: bytes, query: Query, reason: Reason, rcode: Rcode = _REFUSED) -> bytes:
    """The reply that refuses. Clients take NXDOMAIN as final; REFUSED sends them to their next resolver.

    `rcode`: another one than NXDOMAIN. A client with EDNS is also told why (RFC 8914: Blocked). There is no SOA, so
    that nobody remembers it: it may be allowed soon.
    """
    head = data[:2] + (_flags(query) | rcode).to_bytes(2) + (_ONE_WITH_OPT if query.edns else _ONE)
    return head + query.asked + (_told_why(query.dnssec_ok, reason, rcode) if query.edns else b"")


@lru_cache(maxsize=64)
def _told_why(dnssec_ok: bool, reason: Reason, rcode: Rcode) -> bytes:
    """The OPT record of a refusal."""
    bare = dns.message.Message(0)
    _use_edns(bare, dnssec_ok, _ERRORS.get(rcode, EDECode.OTHER), reason)
    return bare.to_wire()[HEADER:]


def answer(data: bytes, query: Query, found: Answer, age: int, udp: bool) -> bytes:
    """The reply that answers. `age`: whole seconds since it was found; `udp`: cut to what the client can take."""
    make = _short_answer if found.size <= _SHORT else _answer
    return data[:2] + make(query, found, age, query.size if udp else 65535)


def _answer(query: Query, found: Answer, age: int, size: int) -> bytes:
    reply = _reply(query)
    reply.set_rcode(found.rcode)
    for section, rrsets in ((reply.answer, found.answer), (reply.authority, found.authority)):
        section += [dns.rrset.from_rdata_list(s.name, max(s.ttl - age, 0), list(s)) for s in rrsets]
    if query.edns:
        _use_edns(reply, query.dnssec_ok, EDECode.BLOCKED, found.why)
    return reply.to_wire(max_size=size, prefer_truncation=True)[2:]


_short_answer = lru_cache(maxsize=_REMEMBERED)(_answer)


def _reply(query: Query) -> dns.message.Message:
    reply = dns.message.Message(0)
    reply.flags = dns.flags.Flag(_flags(query))
    rdtype, rdclass = (int.from_bytes(query.asked[at:][:2]) for at in (-4, -2))
    reply.question.append(
        dns.rrset.RRset(query.name, dns.rdataclass.RdataClass.make(rdclass), dns.rdatatype.RdataType.make(rdtype))
    )
    return reply


def _flags(query: Query) -> int:
    """Those of a reply. AD is never set: nothing was validated here."""
    return _REPLY | query.flags & _KEPT


def _use_edns(reply: dns.message.Message, dnssec_ok: bool, code: EDECode, why: Reason | None) -> None:
    options: list[dns.edns.Option] = [dns.edns.EDEOption(code, f"proxyfw: {why}")] if why else []
    reply.use_edns(0, int(dns.flags.DO) if dnssec_ok else 0, MAX_UDP, options=options)
