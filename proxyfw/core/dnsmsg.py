"""DNS messages between a client and the relay: a query's bytes in, a reply's bytes out (RFC 1035, 6891, 8914).

dnspython reads and writes them, but for the usual query and its refusal: those are plain enough to be read and written
here, at a tenth of the cost, so that a client that asks for refused names all day does not keep the others waiting.

A query is judged by its one question alone: nothing else that a client puts into it (options, further records, the case
of the name) goes any further, and so nothing can hide in there.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import dns.edns
import dns.exception
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
_IN = b"\0\1"  # the class
_ONE, _ONE_WITH_OPT = b"\0\1\0\0\0\0\0\0", b"\0\1\0\0\0\0\0\1"  # the counts: a question, and an OPT record
_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")


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
    return _usual(body) or _by_library(body)


def _by_library(body: bytes) -> Query | Unreadable:
    opcode = dns.opcode.Opcode.make(body[0] >> 3)
    if opcode != dns.opcode.QUERY:  # before the rest is read, which may be of another format (RFC 8490)
        return _unsupported(f"opcode {dns.opcode.to_text(opcode)}")
    try:
        message = dns.message.from_wire(b"\0\0" + body)
    except dns.exception.DNSException as error:
        return Unreadable(Rcode.FORMERR, Malformed(f"not a DNS message ({type(error).__name__})"))
    except (ValueError, IndexError, OverflowError, RecursionError):  # from a record's own parser
        return Unreadable(Rcode.FORMERR, Malformed("not a DNS message"))
    if len(message.question) != 1:  # RFC 9619
        return Unreadable(Rcode.FORMERR, Malformed(f"{len(message.question)} questions in one query"))
    if message.answer or message.authority:
        return Unreadable(Rcode.FORMERR, Malformed("a query with records in it"))
    if message.edns > 0:
        return Unreadable(Rcode.BADVERS, Malformed(f"EDNS version {message.edns}", Reason.UNSUPPORTED))
    return _query(message)


def _usual(body: bytes) -> Query | None:
    """A query with one question for a plain host name, and no more than an empty OPT record; None: anything else."""
    if body[0] & 0xF8 or body[2:9] != b"\0\1\0\0\0\0\0" or body[9] > 1:
        return None
    at, labels = HEADER - 2, []
    while at < len(body) and (length := body[at]):
        label = body[at + 1 : at + 1 + length]
        if not _LABEL.fullmatch(label):  # also where it is a pointer, or cut short: the rest of the name is wrong then
            return None
        labels.append(label)
        at += 1 + length
    end = at + 5
    asked, rest = body[HEADER - 2 : end], body[end:]
    rdtype = int.from_bytes(asked[-4:-2])
    if len(body) < end or asked[-2:] != _IN or _is_meta(rdtype):
        return None
    edns = bool(body[9])
    # An OPT record: the root, type 41, size, extended rcode, version 0, flags, no options (RFC 6891 section 6.1.2).
    if rest[:3] + rest[6:7] + rest[9:] != (b"\0\0\x29\0\0\0" if edns else b""):
        return None
    try:
        name = normalise(b".".join(labels).decode("ascii"))
    except HostnameError:
        return None
    flags = int.from_bytes(body[:2])
    question = Question(name, rdtype, edns and bool(rest[7] & 0x80), bool(flags & dns.flags.CD))
    return Query(asked, flags, edns, _size(int.from_bytes(rest[3:5]) if edns else 0), question)


def _size(payload: int) -> int:
    return min(max(payload, _PLAIN_UDP), MAX_UDP)


def _query(message: dns.message.Message) -> Query:
    asked = message.question[0]
    question, broken, rcode = None, None, _REFUSED
    text = asked.name.to_text(omit_final_dot=True)
    try:
        name = normalise(text)
        checking_disabled = bool(message.flags & dns.flags.CD)
        question = Question(name, asked.rdtype, bool(message.ednsflags & dns.flags.DO), checking_disabled)
    except HostnameError as error:
        broken = Malformed(f"{text}: {error}")
    if asked.rdclass != dns.rdataclass.IN:
        broken = Malformed(f"class {dns.rdataclass.to_text(asked.rdclass)}", Reason.UNSUPPORTED)
        question, rcode = None, Rcode.REFUSED
    elif _is_meta(asked.rdtype):
        broken = Malformed(f"type {dns.rdatatype.to_text(asked.rdtype)}", Reason.UNSUPPORTED)
        question, rcode = None, Rcode.NOTIMP
    return Query(
        asked=b"".join((asked.name.to_wire() or b"", asked.rdtype.to_bytes(2), asked.rdclass.to_bytes(2))),
        flags=int(message.flags),
        edns=message.edns >= 0,
        size=_size(message.payload if message.edns >= 0 else 0),
        question=question,
        broken=broken,
        rcode=rcode,
    )


def _is_meta(rdtype: int) -> bool:
    """ANY (RFC 8482), zone transfers, and whatever else is no type of a record (RFC 6895 section 3.1)."""
    return 128 <= rdtype <= 255 or rdtype in (0, dns.rdatatype.OPT)


def _unsupported(what: str) -> Unreadable:
    return Unreadable(Rcode.NOTIMP, Malformed(what, Reason.UNSUPPORTED))


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
    return int(dns.flags.QR | dns.flags.RA) | query.flags & int(dns.flags.RD | dns.flags.CD)


def _use_edns(reply: dns.message.Message, dnssec_ok: bool, code: EDECode, why: Reason | None) -> None:
    options: list[dns.edns.Option] = [dns.edns.EDEOption(code, f"proxyfw: {why}")] if why else []
    reply.use_edns(0, int(dns.flags.DO) if dnssec_ok else 0, MAX_UDP, options=options)
