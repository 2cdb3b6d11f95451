"""What the packet layer tells of a packet, as a row of the log."""

from collections.abc import Callable, Sequence

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy
from proxyfw.core.verdict import Deny, Reason, in_a_word
from proxyfw.edge.logdb import Row
from proxyfw.edge.nflog import Reported

_PROTOCOLS = frozenset(protocol.value for protocol in Protocol)


def row_of(packet: Reported, policy: Policy, names: Callable[[str, IPAddress], Sequence[Hostname]]) -> Row:
    """The row. `names(client, address)`: those that the client was told for this address; so it says what to allow."""
    mode, _, reason = packet.prefix.rpartition(" ")
    # An address that came from the wrong interface is nobody's.
    known = reason != Reason.UNKNOWN_CLIENT
    row = Row(
        client=(policy.client_at(str(packet.source)) or "") if known else "",
        address=str(packet.source),
        protocol=packet.protocol,
        destination=str(packet.destination),
        port=packet.port,
        verdict=mode or "deny",
        reason=reason,
    )
    told = names(row.client, packet.destination)
    by_name = told and packet.protocol in _PROTOCOLS and reason in (Reason.NO_NAME, Reason.PIN)
    if by_name or reason in (Reason.QUBES_RULE, Reason.UNSUPPORTED):
        protocol = Protocol(packet.protocol) if packet.protocol in _PROTOCOLS else Protocol.OTHER
        flow = Flow(row.client, protocol, packet.destination, packet.port, icmp_type=packet.icmp_type)
        flow, verdict = policy.decide_pinned(flow, told)
        if in_a_word(verdict) == row.verdict:  # else another policy is in force by now, or the pin is another
            row.name, row.name_source = flow.name or "", flow.name_source.value
            row.reason, row.rule = verdict.reason.value, verdict.rule
            row.detail = verdict.detail if isinstance(verdict, Deny) else ""
    return row
