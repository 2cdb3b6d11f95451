"""What a resolver said, cut down to what a client may be told: the chain from the name asked to its records.

Whatever else stands in the message (further sections, records of other names) is left out. ECH keys are taken out of
HTTPS and SVCB records, so that clients name their host in the clear (RFC 9460, DESIGN section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.name
import dns.rdata
import dns.rdatatype
import dns.rrset
from dns.rcode import Rcode
from dns.rdataclass import IN
from dns.rdatatype import CNAME, DNAME, HTTPS, NSEC, NSEC3, RRSIG, SOA, SVCB, A
from dns.rdtypes.svcbbase import ParamKey

from proxyfw.core.address import AddressKind, IPAddress, kind_of
from proxyfw.core.hostname import Hostname
from proxyfw.core.upstreamproxy import MAPPED_TTL, mapped
from proxyfw.core.verdict import Reason

MAX_TTL = 3600  # seconds that a client is told to keep an answer; a pin lives as long
MAX_NEGATIVE_TTL = 300  # the same for "no such name" (RFC 2308 section 5 allows up to three hours)
MAX_ADDRESSES = 64  # of a name that are told: each is pinned, and may be dialled
MAX_RECORDS = 256  # of any other type: whoever has a name chooses how many it has, and each takes time
MAX_CHAIN = 16  # aliases between the name asked and its records

# All now, and no more later: dnspython would look a type up when it first meets it, and remember what it found for a
# record of another class, which a stranger may have sent first.
dns.rdata.load_all_types()  # type: ignore[no-untyped-call]

_REMEMBERED = 1024  # answers made up here
_ADDRESSES = (A, dns.rdatatype.AAAA)
_HINTS = (ParamKey.IPV4HINT, ParamKey.IPV6HINT)


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """What is told of one question. Compared by identity: it is what one look-up found.

    `ttl`: seconds that it may be kept, 0 for not at all. `addresses`: those in it, `size`: its bytes, roughly.
    `cost`: bytes of the reply that it was read from.
    `open_end`: the alias that it ends in, where the resolver did not follow it. `why`: what was taken out of it, and so
    makes it differ from what the resolver said.
    """

    rcode: Rcode
    answer: tuple[dns.rrset.RRset, ...] = ()
    authority: tuple[dns.rrset.RRset, ...] = ()
    ttl: int = 0
    addresses: tuple[IPAddress, ...] = ()
    open_end: dns.name.Name | None = None
    size: int = 64
    cost: int = 0
    why: Reason | None = None

    def without(self, unwanted: frozenset[IPAddress], why: Reason) -> "Answer":
        """The same without some of its addresses."""
        kept = []
        for rrset in self.answer:
            if rrset.rdtype in _ADDRESSES:
                left = [record for record in rrset if ip_address(record.address) not in unwanted]
                kept += [dns.rrset.from_rdata_list(rrset.name, rrset.ttl, left)] if left else []
            elif rrset.rdtype != RRSIG or rrset.covers not in _ADDRESSES:  # that signs what is not there any more
                kept.append(rrset)
        addresses = tuple(address for address in self.addresses if address not in unwanted)
        return replace(self, answer=tuple(kept), addresses=addresses, why=why)

    def after(self, chain: "Answer") -> "Answer":
        """This answer as the continuation of a chain that ended in its name."""
        return replace(
            self,
            answer=(*chain.answer, *self.answer),
            ttl=min((self.ttl, *(rrset.ttl for rrset in chain.answer))),  # the chain's own is 0: it has no end
            size=chain.size + self.size,
            cost=chain.cost + self.cost,
        )


def read(message: dns.message.Message, rdtype: int, dnssec_ok: bool) -> Answer:
    """The answer in a resolver's reply to a question of its own (NOERROR or NXDOMAIN). Pure, and raises nothing."""
    if not message.question:
        return Answer(message.rcode())
    said, beside = _internet(message.answer), _internet(message.authority)
    chain, name = _chain(said, message.question[0].name, rdtype)
    aliases = bool(chain)
    records = _find(said, name, rdtype)
    if records is not None and rdtype in _ADDRESSES:
        records = _limited(records, MAX_TTL, MAX_ADDRESSES)
    positive = records is not None
    if records is not None:
        cleaned = _clean(records)
        chain += [cleaned] if cleaned else []
    proof = [] if positive else _soa(beside, name)
    ended = positive or bool(proof) or message.rcode() != Rcode.NOERROR or bool(_next(said, name))
    if dnssec_ok:  # the denial of existence too, also of a name for which a wildcard stood in (RFC 4035 section 3.1.3)
        proof += [rrset for rrset in beside if rrset.rdtype in (NSEC, NSEC3)][:MAX_CHAIN]
        chain, proof = _signed(chain, said), _signed(proof, beside)
    answer = tuple(_limited(rrset, MAX_TTL) for rrset in chain)
    authority = tuple(_limited(rrset, MAX_NEGATIVE_TTL) for rrset in proof)
    return Answer(
        rcode=message.rcode(),
        answer=answer,
        authority=authority,
        ttl=_ttl(answer, authority, positive),
        addresses=tuple(ip_address(r.address) for s in answer if s.rdtype in _ADDRESSES for r in s),
        open_end=name if aliases and not ended else None,
        size=64 + sum(_size(rrset) for rrset in (*answer, *authority)),
        cost=len(message.wire or b""),
    )


@lru_cache(maxsize=_REMEMBERED)
def of_mapped(name: Hostname, rdtype: int) -> Answer:
    """What a client with an upstream proxy is told, which nobody was asked for: the mapped address of the name, and no
    record of any other type (NODATA; RFC 2308 section 2.2 has it without an SOA, so that nobody remembers it).
    """
    if rdtype != A:
        return Answer(Rcode.NOERROR)
    address = mapped(name)
    told = dns.rrset.from_text(dns.name.from_text(name), MAPPED_TTL, "IN", "A", str(address))
    return Answer(Rcode.NOERROR, (told,), ttl=MAPPED_TTL, addresses=(address,), size=64 + _size(told))


def _internet(section: list[dns.rrset.RRset]) -> list[dns.rrset.RRset]:
    """Those of class IN: of another one, a type has another shape."""
    return [rrset for rrset in section if rrset.rdclass == IN and len(rrset)]


def _chain(
    section: list[dns.rrset.RRset], name: dns.name.Name, rdtype: int
) -> tuple[list[dns.rrset.RRset], dns.name.Name]:
    """The aliases from the name asked on, each once, and the name that they end in."""
    found: list[dns.rrset.RRset] = []
    if rdtype == CNAME:
        return found, name
    for _ in range(MAX_CHAIN):
        step = [] if _find(section, name, rdtype) is not None else _next(section, name)
        new = [rrset for rrset in step if rrset not in found]
        found += new
        if not new or new[-1].rdtype != CNAME:
            break
        name = new[-1][0].target
    return found, name


def _next(section: list[dns.rrset.RRset], name: dns.name.Name) -> list[dns.rrset.RRset]:
    """What leads on from a name: a CNAME, and the DNAME that it was made of (RFC 1034 section 3.6.2, RFC 6672)."""
    alias = _find(section, name, CNAME)
    tree = next((s for s in section if s.rdtype == DNAME and name != s.name and name.is_subdomain(s.name)), None)
    if tree is not None and alias is None:
        alias = _synthesised(name, tree)
    return [rrset for rrset in (tree, alias) if rrset is not None]


def _synthesised(name: dns.name.Name, tree: dns.rrset.RRset) -> dns.rrset.RRset | None:
    """The CNAME that a DNAME stands for (RFC 6672 section 3.1)."""
    try:
        target = name.relativize(tree.name).concatenate(tree[0].target)
    except dns.name.NameTooLong:
        return None
    return dns.rrset.from_text(name, tree.ttl, "IN", "CNAME", target.to_text())


def _find(section: list[dns.rrset.RRset], name: dns.name.Name, rdtype: int) -> dns.rrset.RRset | None:
    return next((s for s in section if s.rdtype == rdtype and s.name == name), None)


def _signed(rrsets: list[dns.rrset.RRset], section: list[dns.rrset.RRset]) -> list[dns.rrset.RRset]:
    """Each followed by its signature, where it stands in the section as it was signed."""
    signatures = {(s.name, s.covers): s for s in section if s.rdtype == RRSIG}
    unchanged = set(map(id, section))
    told = []
    for rrset in rrsets:
        signature = signatures.get((rrset.name, rrset.rdtype)) if id(rrset) in unchanged else None
        told += [rrset, signature] if signature is not None else [rrset]
    return told


def _soa(section: list[dns.rrset.RRset], name: dns.name.Name) -> list[dns.rrset.RRset]:
    """The SOA of the name's zone, which says how long its absence may be remembered."""
    return [s for s in section if s.rdtype == SOA and name.is_subdomain(s.name)][:1]


def _clean(records: dns.rrset.RRset) -> dns.rrset.RRset | None:
    """HTTPS and SVCB records without ECH, and without hints at addresses that only a look-up may give."""
    if records.rdtype not in (HTTPS, SVCB):
        return records
    changed, kept = False, []
    for record in records:
        params = {key: value for key, value in record.params.items() if not _unwanted(key, value)}
        mandatory: Any = params.get(ParamKey.MANDATORY)
        if mandatory is not None and not set(mandatory.keys) <= params.keys():
            changed = True
            continue  # who does not know the parameter must not use the record, RFC 9460 section 8
        changed = changed or len(params) != len(record.params)
        kept.append(record.replace(params=params))
    if not changed:
        return records
    return dns.rrset.from_rdata_list(records.name, records.ttl, kept) if kept else None


def _unwanted(key: int, value: Any) -> bool:
    if key == ParamKey.ECH:
        return True
    return key in _HINTS and any(kind_of(ip_address(a)) is not AddressKind.GLOBAL for a in value.addresses)


def _limited(rrset: dns.rrset.RRset, ttl: int, most: int = MAX_RECORDS) -> dns.rrset.RRset:
    """With no longer a TTL, and no more records."""
    if rrset.ttl <= ttl and len(rrset) <= most:
        return rrset
    return dns.rrset.from_rdata_list(rrset.name, min(rrset.ttl, ttl), list(rrset)[:most])


def _ttl(answer: Sequence[dns.rrset.RRset], authority: Sequence[dns.rrset.RRset], positive: bool) -> int:
    """The smallest of the chain; of "no such name", what its SOA says (RFC 2308 section 5), and 0 without one."""
    if positive:
        return min((rrset.ttl for rrset in answer), default=0)
    soa = next((rrset for rrset in authority if rrset.rdtype == SOA), None)
    if soa is None:
        return 0
    minimum: int = soa[0].minimum
    return min(soa.ttl, minimum, MAX_NEGATIVE_TTL, *(rrset.ttl for rrset in answer))


def _size(rrset: dns.rrset.RRset) -> int:
    """Bytes that it takes in memory, roughly: what counts is that it grows as the records do."""
    return 200 + sum(100 + len(record.to_wire()) for record in rrset)
