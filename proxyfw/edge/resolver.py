"""Names to addresses through the configured resolvers, with a bounded cache. dnspython does the asking."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
from dns.nameserver import Do53Nameserver

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname

MIN_TTL, MAX_TTL = 5.0, 3600.0  # seconds that an answer is kept
FAILURE_TTL = (
    2.0  # seconds that a failure of all resolvers is kept, so that a dead resolver is not asked per connection
)
NEGATIVE_TTL = 10.0  # seconds that "no such name" is kept
MAX_NAMES = 4096
LIFETIME = 4.0  # seconds for one name over all resolvers
_ATTEMPT = 1.5  # seconds for one question to one resolver


class Failure(Enum):
    """Why a name has no addresses."""

    UNRESOLVABLE = "the resolver says that the name has no address"
    NO_ANSWER = "no resolver answered"


Answer = tuple[IPAddress, ...] | Failure


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: Answer
    until: float


class Resolver:
    """Resolves A and AAAA together; one question at a time for a name, however many wait for it."""

    def __init__(self, upstream: Sequence[tuple[IPAddress, int]], clock: Callable[[], float]) -> None:
        self.upstream = tuple(upstream)
        self._clock = clock
        self._cache: OrderedDict[Hostname, _Entry] = OrderedDict()
        self._asking: dict[Hostname, asyncio.Task[Answer]] = {}
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.nameservers = [Do53Nameserver(str(address), port) for address, port in self.upstream]
        self._resolver.timeout = _ATTEMPT
        self._resolver.lifetime = LIFETIME
        self._resolver.cache = None

    def cached(self, name: Hostname) -> Answer | None:
        """The answer, where one is held that has not run out; None: ask `resolve`."""
        entry = self._cache.get(name)
        return entry.answer if entry is not None and entry.until > self._clock() else None

    async def resolve(self, name: Hostname) -> Answer:
        """The addresses of a name, IPv6 and IPv4, in the order of the answers; never empty."""
        held = self.cached(name)
        if held is not None:
            return held
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return await asyncio.shield(task)

    async def _ask(self, name: Hostname) -> Answer:
        results = await asyncio.gather(*(self._ask_one(name, t) for t in (dns.rdatatype.AAAA, dns.rdatatype.A)))
        addresses = tuple(address for found, _ in results for address in found)
        failed = any(ttl is None for _, ttl in results)
        if addresses:
            # Half an answer (one of the two questions failed) serves now, but is asked again soon.
            ttl = min(ttl for found, ttl in results if found and ttl is not None)
            return self._keep(name, addresses, FAILURE_TTL if failed else min(max(ttl, MIN_TTL), MAX_TTL))
        if failed:
            return self._keep(name, Failure.NO_ANSWER, FAILURE_TTL)
        return self._keep(name, Failure.UNRESOLVABLE, NEGATIVE_TTL)

    async def _ask_one(self, name: Hostname, rdtype: dns.rdatatype.RdataType) -> tuple[list[IPAddress], float | None]:
        """Addresses and TTL; a TTL of None: nobody answered."""
        try:
            answer = await self._resolver.resolve(name + ".", rdtype, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            return [], 0.0
        except (dns.exception.DNSException, OSError):
            return [], None
        if answer.rrset is None:
            return [], 0.0
        # The smallest TTL of the chain: a CNAME may run out before what it points to.
        ttl = min(rrset.ttl for rrset in answer.response.answer)
        return [ip_address(record.address) for record in answer.rrset], float(ttl)

    def _keep(self, name: Hostname, answer: Answer, ttl: float) -> Answer:
        self._cache[name] = _Entry(answer, self._clock() + ttl)
        self._cache.move_to_end(name)
        while len(self._cache) > MAX_NAMES:
            self._cache.popitem(last=False)
        return answer
