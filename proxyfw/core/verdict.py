"""What was decided, and why: the words that reach the log unchanged."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard


class Reason(StrEnum):
    """The closed set of reasons. Every verdict carries exactly one; the log stores its value."""

    # allowed
    DOMAIN = "domain"  # a pattern of one of the client's profiles
    NETWORK = "network"  # a network of one of the client's profiles
    FEED = "feed"  # a list of addresses of one of the client's profiles
    PIN = "pin"  # a pattern that names the port, and the client was told this address for the name
    QUBES_RULE = "qubes-rule"  # a Qubes firewall rule of the client, which may also refuse
    RELAY = "relay"  # DNS goes to the relay, which decides by the name asked
    DNS_ALL = "dns-all"  # the client's `dns: all`: every name resolves
    # refused by the policy
    NO_MATCH = "no-match"  # a name is known, and nothing grants it
    NO_NAME = "no-name"  # no name is known, and no rule by address allows it
    INTERNAL_ADDRESS = "internal-address"  # the netvm, other clients, loopback, link-local, multicast, Qubes ranges
    CANARY = "canary"  # a name by which clients ask whether they may use another resolver than this one
    UNSUPPORTED = "unsupported"  # well-formed, and not done here: ANY, zone transfers, BIND, UDP by an upstream proxy
    UNKNOWN_CLIENT = "unknown-client"  # the source address belongs to no configured client
    # refused for what the client sent
    MALFORMED = "malformed"  # not what the protocol allows
    AMBIGUOUS = "ambiguous"  # names that contradict each other
    OVERSIZED = "oversized"  # more than there may be before a name is known: 64 KiB, or 1 KiB of a DNS query
    SILENT = "silent"  # nothing sent before the deadline
    TIMEOUT = "timeout"  # began, and did not finish before the deadline
    # permitted by name, and then refused for what the name led to
    PRIVATE_ADDRESS = "private-address"  # the name has only addresses that a name grant does not reach
    UNRESOLVABLE = "unresolvable"  # the resolver says that the name has no address
    DNS_FAILURE = "dns-failure"  # no configured resolver gave an answer
    UNREACHABLE = "unreachable"  # no address of the name accepted the connection
    UPSTREAM_PROXY = "upstream-proxy"  # the proxy by which all leaves is away, or refuses
    # refused for proxyfw's own sake
    LIMIT = "limit"  # too many connections or DNS queries of this client, or in all
    PROXY_DOWN = "proxy-down"  # nobody accepts connections for the packet layer
    ERROR = "error"  # a fault of proxyfw itself: the connection was closed


@dataclass(frozen=True, slots=True)
class Allow:
    """Permitted. `rule` says what granted it: `github: *.github.com`; `where`, the file and line that say so.

    `private`: the grant by name reaches private addresses too. `by_name`: it rests on SNI or Host, so that one of the
    name's own addresses is dialled, and not just what the client aimed at.
    """

    reason: Reason
    rule: str = ""
    where: str = ""
    private: bool = False
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class Deny:
    """Refused. `detail` says what exactly was wrong where the reason leaves that open.

    `observed`: the client is in observe mode; the refusal is recorded and the connection let through. `error`: of a
    connection that failed, the number of the system's error (errno), else 0.
    """

    reason: Reason
    rule: str = ""
    detail: str = ""
    observed: bool = False
    error: int = 0


Verdict = Allow | Deny


def is_refused(verdict: Verdict) -> TypeGuard[Deny]:
    """Whether the flow ends here: denied, and not let through by observe mode."""
    return isinstance(verdict, Deny) and not verdict.observed


def is_by_name(verdict: Verdict) -> TypeGuard[Allow]:
    """Whether the name itself is permitted, so that one of its own addresses is dialled."""
    return isinstance(verdict, Allow) and verdict.by_name


def in_a_word(verdict: Verdict) -> str:
    """As the log and the commands have it: allow, deny, or observe (refused in observe mode, and let through)."""
    if isinstance(verdict, Allow):
        return "allow"
    return "observe" if verdict.observed else "deny"
