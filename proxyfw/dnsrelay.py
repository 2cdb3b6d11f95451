"""The relay: each query of a client judged by the name asked, answered from the resolvers, and pinned.

Of a client with an upstream proxy nothing is asked: it is told a mapped address, which stands for the name.

How queries come and replies leave is in dnsserve.py.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dns.rcode import Rcode

from proxyfw.core import dnsmsg
from proxyfw.core.dnsanswer import Answer, of_mapped
from proxyfw.core.dnsmsg import Query, Unreadable
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.qubes_rules import DNS_PORT
from proxyfw.core.ratelimit import Once, RateLimit
from proxyfw.core.sniffed import NotMine
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, in_a_word, is_refused
from proxyfw.edge.logdb import Row
from proxyfw.edge.nft import NftError
from proxyfw.edge.resolver import FAILED
from proxyfw.pinning import TooManyOpen
from proxyfw.shared import Shared

TOLD_AGAIN = 60.0  # seconds after which the same verdict on the same name has a row again
_ROWS, _ROWS_AT_ONCE = 50.0, 200.0  # rows of one client: the same as for packets
_REMEMBERED = 16384  # verdicts that have had a row lately
_SHOWN = 4  # addresses in a row


class Asked(NamedTuple):
    """A query that was permitted and must be looked up. `destination`: the resolver that the client aimed at."""

    client: str
    address: str
    destination: str
    udp: bool
    data: bytes
    query: Query


@dataclass(slots=True)
class Counts:
    """Since the start. `not_logged`: rows left out, `dropped`: queries not even read, as one client had too many."""

    queries: int = 0
    cached: int = 0
    looked_up: int = 0
    refused: int = 0
    limited: int = 0
    failed: int = 0
    unreadable: int = 0
    not_logged: int = 0
    dropped: int = 0


class DnsRelay:
    """Answers queries."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._rows = RateLimit(_ROWS, _ROWS_AT_ONCE)
        self._told = Once(TOLD_AGAIN, _REMEMBERED)
        self.counts = Counts()

    def reply(self, data: bytes, address: str, destination: str, udp: bool) -> bytes | Asked:
        """The reply, b"" for none; or what must be looked up first, for `look_up`."""
        self.counts.queries += 1
        client = self._shared.policy.client_at(address)
        query = dnsmsg.read(data)
        if client is None or isinstance(query, NotMine):
            self.counts.unreadable += 1
            return b""
        if isinstance(query, Unreadable):
            self.counts.unreadable += 1
            deny = Deny(query.broken.reason, detail=query.broken.detail)
            self._note(client, address, destination, "", deny)
            return dnsmsg.error(data, query.rcode)
        asked = Asked(client, address, destination, udp, data, query)
        verdict = self._decide(asked)
        if is_refused(verdict) or query.question is None:
            return self._refuse(asked, verdict, query.rcode)
        if self._shared.policy.upstream_proxy_of(client) is not None:
            return self._answer_mapped(asked, verdict)
        held = self._shared.resolver.known(query.question)
        if held is not None:
            self.counts.cached += 1
            return self._answer(asked, verdict, *held)
        if not self._shared.may_look_up(client):
            self.counts.limited += 1
            return self._refuse(asked, Deny(Reason.LIMIT, detail="too many look-ups"), Rcode.SERVFAIL)
        return asked

    async def look_up(self, asked: Asked) -> bytes:
        """The reply to a query that was not held."""
        assert asked.query.question is not None
        self.counts.looked_up += 1
        found = await self._shared.resolver.find(asked.query.question, asked.client)
        self._shared.charge(asked.client, found.cost)
        if self._shared.policy.client_at(asked.address) != asked.client:  # the policy may be another by now
            return b""
        verdict = self._decide(asked)
        if is_refused(verdict):
            return self._refuse(asked, verdict)
        if self._shared.policy.upstream_proxy_of(asked.client) is not None:
            return self._answer_mapped(asked, verdict)
        return self._answer(asked, verdict, found, 0.0)

    def fault(self, data: bytes, address: str, destination: str, error: Exception) -> bytes:
        """The reply where proxyfw itself is at fault: nothing is told of the name."""
        self._note(self.client_at(address), address, destination, "", Deny(Reason.ERROR, detail=repr(error)))
        return dnsmsg.error(data, Rcode.SERVFAIL) if len(data) >= dnsmsg.HEADER else b""

    def client_at(self, address: str) -> str:
        """Whose address it is; "" where it is nobody's."""
        return self._shared.policy.client_at(address) or ""

    def refuse_connection(self, address: str, destination: str, deny: Deny) -> None:
        """Notes a TCP connection that was refused."""
        self.counts.limited += 1
        self._note(self.client_at(address), address, destination, "", deny)

    def _decide(self, asked: Asked) -> Verdict:
        query = asked.query
        if query.broken is not None:  # observe mode could not let it through
            return Deny(query.broken.reason, detail=query.broken.detail)
        name = query.question.name if query.question else None
        return self._shared.policy.decide(Flow(asked.client, Protocol.DNS, None, DNS_PORT, name, NameSource.DNS))

    def _answer(self, asked: Asked, verdict: Verdict, found: Answer, age: float) -> bytes:
        """Tells what was found, less what this client could not reach; pinned before it leaves."""
        if found is FAILED:
            self.counts.failed += 1
            return self._refuse(asked, Deny(Reason.DNS_FAILURE, verdict.rule), Rcode.SERVFAIL)
        addresses = found.addresses
        if addresses:
            kept = self._shared.policy.answerable(asked.client, verdict, addresses)
            if len(kept) < len(addresses):
                found = found.without(frozenset(addresses) - frozenset(kept), Reason.PRIVATE_ADDRESS)
                if not kept:
                    verdict = Deny(Reason.PRIVATE_ADDRESS, verdict.rule, f"it has only {_list(addresses)}")
            deny = self._pin(asked, found, age) if kept else None
            if deny is not None:
                return self._refuse(asked, deny, Rcode.SERVFAIL)
        self._tell(asked, verdict, found)
        return dnsmsg.answer(asked.data, asked.query, found, int(age), asked.udp)

    def _answer_mapped(self, asked: Asked, verdict: Verdict) -> bytes:
        """Tells what stands for the name, to a client of which no query leaves."""
        assert asked.query.question is not None
        return self._answer(asked, verdict, of_mapped(asked.query.question.name, asked.query.question.rdtype), 0.0)

    def _pin(self, asked: Asked, found: Answer, age: float) -> Deny | None:
        assert asked.query.question is not None
        try:
            self._shared.pins.learn(asked.client, asked.query.question.name, found.addresses, found.ttl - age)
        except TooManyOpen:
            self.counts.limited += 1
            return Deny(Reason.LIMIT, detail="too many open UDP ports")
        except NftError as error:
            return Deny(Reason.ERROR, detail=f"the packet layer: {error}")
        return None

    def _refuse(self, asked: Asked, verdict: Verdict, rcode: Rcode = Rcode.NXDOMAIN) -> bytes:
        self.counts.refused += 1
        self._tell(asked, verdict)
        return dnsmsg.refusal(asked.data, asked.query, verdict.reason, rcode)

    def _tell(self, asked: Asked, verdict: Verdict, found: Answer | None = None) -> None:
        name = asked.query.question.name if asked.query.question else dnsmsg.text_of(asked.query)
        self._note(asked.client, asked.address, asked.destination, name, verdict, asked.query, found)

    def _note(
        self,
        client: str,
        address: str,
        destination: str,
        name: str,
        verdict: Verdict,
        query: Query | None = None,
        found: Answer | None = None,
    ) -> None:
        """A row, unless this name has had one with the same verdict within the minute."""
        now = self._now()
        word = in_a_word(verdict)
        detail = verdict.detail if isinstance(verdict, Deny) else ""
        # That a client was held back is told once, whatever the names, and always: it is what a flood looks like.
        held_back = verdict.reason is Reason.LIMIT
        key = (client, "" if held_back else name, word, verdict.reason, detail)
        if self._told.seen(key, now):
            return
        if not held_back and not self._rows.take(client, now):
            self.counts.not_logged += 1
            return
        self._told.note(key, now)
        if isinstance(verdict, Allow) and found is not None and found.addresses:
            detail = _list(found.addresses)
        if query is not None:
            detail = f"{query.kind}: {detail}" if detail else query.kind
        self._shared.log.open_row(
            Row(
                client=client,
                address=address,
                protocol=Protocol.DNS.value,
                name=name,
                name_source=NameSource.DNS.value if name else "",
                destination=destination,
                port=DNS_PORT,
                verdict=word,
                reason=verdict.reason.value,
                rule=verdict.rule,
                detail=detail,
            )
        )

    def _now(self) -> float:
        return self._shared.poller.loop.time()


def _list(addresses: tuple[object, ...]) -> str:
    more = ", ..." if len(addresses) > _SHOWN else ""
    return ", ".join(map(str, addresses[:_SHOWN])) + more
