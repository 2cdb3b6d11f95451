"""What the configured resolvers say, asked once and kept: for the relay, record by record; for the proxy, addresses."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import dns.message
import dns.rdatatype
from dns.rcode import Rcode

from proxyfw.core import dnsanswer
from proxyfw.core.address import IPAddress
from proxyfw.core.dnsanswer import Answer
from proxyfw.core.dnscache import DnsCache
from proxyfw.core.dnsmsg import Question
from proxyfw.core.hostname import Hostname, HostnameError, normalise

MIN_TTL = 5.0  # seconds that the proxy keeps the addresses of a name, whatever their TTL
FAILURE_TTL = 2  # seconds that a failure of all resolvers is kept, so that they are not asked per connection
NEGATIVE_TTL = 10.0  # seconds that the proxy keeps "no such name"
MAX_NAMES = 4096
MAX_LINKS = 8  # look-ups to follow a chain of aliases that a resolver did not

FAILED = Answer(Rcode.SERVFAIL, ttl=FAILURE_TTL)
"""No resolver answered."""

_TYPES = (dns.rdatatype.AAAA, dns.rdatatype.A)


class Failure(Enum):
    """Why a name has no addresses."""

    UNRESOLVABLE = "the resolver says that the name has no address"
    NO_ANSWER = "no resolver answered"


Addresses = tuple[IPAddress, ...] | Failure


@dataclass(frozen=True, slots=True)
class _Entry:
    addresses: Addresses
    until: float


class Resolver:
    """One question at a time for a name and type, however many wait for it. `ask`: puts it to the network."""

    def __init__(
        self, ask: Callable[[Question], Awaitable[dns.message.Message | None]], clock: Callable[[], float]
    ) -> None:
        self._ask_upstream = ask
        self._clock = clock
        self._answers = DnsCache()
        self._asking: dict[Question, asyncio.Task[Answer]] = {}
        self._names: OrderedDict[Hostname, _Entry] = OrderedDict()
        self.waiting: Counter[str] = Counter()
        """Look-ups under way for each client, also those for which nobody waits any more."""
        self._resolving: dict[Hostname, asyncio.Task[Addresses]] = {}

    def known(self, question: Question) -> tuple[Answer, float] | None:
        """The answer that is held, and its age in seconds; None: ask `find`."""
        return self._answers.get(question, self._clock())

    async def find(self, question: Question, client: str = "") -> Answer:
        """The answer, just found or held. FAILED where no resolver answered. `client`: on whose behalf."""
        held = self.known(question)
        if held is not None:
            return held[0]
        task = self._asking.get(question)
        if task is None:
            task = self._asking[question] = asyncio.create_task(self._find(question))
            self.waiting[client] += 1
            task.add_done_callback(lambda _: self._found(question, client))
        return await asyncio.shield(task)

    def _found(self, question: Question, client: str) -> None:
        self._asking.pop(question, None)
        self.waiting[client] -= 1
        if not self.waiting[client]:
            del self.waiting[client]

    async def _find(self, question: Question) -> Answer:
        answer = await self._ask(question)
        for _ in range(MAX_LINKS):
            if answer.open_end is None:
                break
            try:
                end = normalise(answer.open_end.to_text(omit_final_dot=True))
            except HostnameError:
                break
            rest = await self._ask(question._replace(name=end))
            if rest is FAILED:
                answer = FAILED
                break
            answer = rest.after(answer)
        self._answers.put(question, answer, self._clock())
        return answer

    async def _ask(self, question: Question) -> Answer:
        message = await self._ask_upstream(question)
        return FAILED if message is None else dnsanswer.read(message, question.rdtype, question.dnssec_ok)

    def cached(self, name: Hostname) -> Addresses | None:
        """The addresses, where they are held and have not run out; None: ask `resolve`."""
        entry = self._names.get(name)
        if entry is not None:  # once run out, both types are asked for again: it may have been half an answer
            return entry.addresses if entry.until > self._clock() else None
        # What the relay has asked for a client, if that is both: one alone may be the family that leads nowhere.
        held = [found for rdtype in _TYPES if (found := self.known(Question(name, rdtype)))]
        if len(held) < len(_TYPES):
            return None
        return tuple(address for answer, _ in held for address in answer.addresses) or None

    def is_asking(self, name: Hostname) -> bool:
        """Whether this name is being looked up, so that nothing more is asked by `resolve`."""
        return name in self._resolving

    async def resolve(self, name: Hostname, client: str = "") -> Addresses:
        """The addresses of a name, IPv6 and IPv4, in the order of the answers; never empty."""
        held = self.cached(name)
        if held is not None:
            return held
        task = self._resolving.get(name)
        if task is None:
            task = self._resolving[name] = asyncio.create_task(self._resolve(name, client))
            task.add_done_callback(lambda _: self._resolving.pop(name, None))
        return await asyncio.shield(task)

    async def _resolve(self, name: Hostname, client: str) -> Addresses:
        answers = await asyncio.gather(*(self.find(Question(name, rdtype), client) for rdtype in _TYPES))
        addresses = tuple(address for answer in answers for address in answer.addresses)
        failed = FAILED in answers
        if addresses:
            # Half an answer (one of the two questions failed) serves now, but is asked again soon.
            ttl = min(answer.ttl for answer in answers if answer.addresses)
            return self._keep(name, addresses, FAILURE_TTL if failed else max(ttl, MIN_TTL))
        if failed:
            return self._keep(name, Failure.NO_ANSWER, FAILURE_TTL)
        return self._keep(name, Failure.UNRESOLVABLE, NEGATIVE_TTL)

    def _keep(self, name: Hostname, addresses: Addresses, ttl: float) -> Addresses:
        self._names[name] = _Entry(addresses, self._clock() + ttl)
        self._names.move_to_end(name)
        while len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
        return addresses
