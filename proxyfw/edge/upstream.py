"""Asking the configured resolvers over the network, as a stub resolver does. dnspython speaks the protocol.

What makes an answer hard to forge (RFC 5452): a random id, a socket and so a random port for each question, and the
case of the name's letters drawn by lot. A reply that does not repeat all of that is not believed.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rdatatype
from dns.message import Message
from dns.rcode import Rcode

from proxyfw.core.address import IPAddress
from proxyfw.core.dnsmsg import MAX_UDP, Question

LIFETIME = 4.0  # seconds for one question over all resolvers
ATTEMPT = 1.5  # seconds for one question to one resolver
SHUN = 30.0  # seconds that a resolver which did not answer is asked last
MAX_REPLY = 8192  # bytes; a longer one takes long to read, and whoever has a name chooses how long it is
MAX_WAITING = 1024  # questions under way at once; each has a socket

_ANSWERS = (Rcode.NOERROR, Rcode.NXDOMAIN)
_NO_EDNS = (Rcode.FORMERR, Rcode.NOTIMP, Rcode.BADVERS)


class Upstream:
    """Asks one resolver after the other. `failures`: questions that nobody answered."""

    def __init__(self, servers: Sequence[tuple[IPAddress, int]], clock: Callable[[], float]) -> None:
        self.servers = tuple(servers)
        self.failures = 0
        self._clock = clock
        self._shunned: dict[tuple[IPAddress, int], float] = {}
        self._waiting = 0

    async def ask(self, question: Question) -> Message | None:
        """A reply (NOERROR or NXDOMAIN) to this very question; None where no resolver gave one in time.

        Those that are silent are asked again; an error is an answer too, and is left to the client to ask again.
        """
        if self._waiting >= MAX_WAITING:
            self.failures += 1
            return None
        self._waiting += 1
        try:
            async with asyncio.timeout(LIFETIME):
                refused = False
                while not refused:
                    for server in self._ranked():
                        reply = await self._ask_one(server, question)
                        if reply is not None and reply.rcode() in _ANSWERS:
                            return reply
                        refused = refused or reply is not None
                    if not refused:
                        await asyncio.sleep(0.1)  # none could even be reached
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        self.failures += 1
        return None

    def _ranked(self) -> list[tuple[IPAddress, int]]:
        """In the order given, those that lately did not answer last."""
        now = self._clock()
        return sorted(self.servers, key=lambda server: self._shunned.get(server, 0.0) > now)

    async def _ask_one(self, server: tuple[IPAddress, int], question: Question) -> Message | None:
        """The resolver's reply, whatever it says; None where none came that can be believed."""
        try:
            reply = await self._exchange(server, _query(question))
            if reply.rcode() in _NO_EDNS:  # an old one, RFC 6891 section 7
                reply = await self._exchange(server, _query(question, edns=False))
        except (dns.exception.DNSException, OSError, EOFError):
            self._shunned[server] = self._clock() + SHUN
            return None
        if reply.rcode() in _ANSWERS:
            self._shunned.pop(server, None)
        return reply

    async def _exchange(self, server: tuple[IPAddress, int], query: Message) -> Message:
        host, port = str(server[0]), server[1]
        # The time is not left to dnspython: asyncio.wait_for of Python 3.11, which it uses, may swallow a cancellation.
        try:
            async with asyncio.timeout(ATTEMPT):
                reply = await dns.asyncquery.udp(
                    query, host, None, port, ignore_unexpected=True, ignore_errors=True, raise_on_truncation=True
                )
            if _repeats(query, reply):
                return reply
        except dns.message.Truncated:  # also one that is cut within a record
            pass
        async with asyncio.timeout(ATTEMPT):
            return await _over_tcp(host, port, query)


async def _over_tcp(host: str, port: int, query: Message) -> Message:
    """One question on a connection of its own; a reply that is too long is as good as an error."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2) + wire)
        length = int.from_bytes(await reader.readexactly(2))
        if length > MAX_REPLY:
            refused = dns.message.make_response(query)
            refused.set_rcode(Rcode.SERVFAIL)
            return refused
        reply = dns.message.from_wire(await reader.readexactly(length))
    finally:
        writer.transport.abort()
    if not query.is_response(reply):
        raise dns.query.BadResponse
    return reply


def _query(question: Question, edns: bool = True) -> Message:
    name = dns.name.Name([_random_case(label) for label in dns.name.from_text(question.name).labels])
    rdtype = dns.rdatatype.RdataType.make(question.rdtype)
    if edns:
        query = dns.message.make_query(name, rdtype, use_edns=0, payload=MAX_UDP, want_dnssec=question.dnssec_ok)
    else:
        query = dns.message.make_query(name, rdtype)
    if question.checking_disabled:
        query.flags |= dns.flags.CD
    return query


def _random_case(label: bytes) -> bytes:
    bits = secrets.randbits(len(label) or 1)
    return bytes(byte ^ 0x20 if bits >> at & 1 and chr(byte).isalpha() else byte for at, byte in enumerate(label))


def _repeats(query: Message, reply: Message) -> bool:
    """Whether the reply has the name letter for letter. Over TCP, where nobody can guess the sequence, it need not."""
    return bool(reply.question) and reply.question[0].name.labels == query.question[0].name.labels
