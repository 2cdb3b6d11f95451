"""What the packet layer tells of a packet, as a row of the log."""

from collections.abc import Sequence

from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Flow, Policy, Protocol
from proxyfw.core.verdict import Allow, Reason
from proxyfw.edge.logdb import Row
from proxyfw.edge.nflog import Refused

_PROTOCOLS = frozenset(protocol.value for protocol in Protocol)


def client_of(refused: Refused, policy: Policy) -> str:
    """The client that sent it; "" where that is unknown: an address that came from the wrong interface is nobody's."""
    reason = refused.prefix.rpartition(" ")[2]
    return (policy.client_at(str(refused.source)) or "") if reason != Reason.UNKNOWN_CLIENT else ""


def row_of(refused: Refused, policy: Policy, names: Sequence[Hostname]) -> Row:
    """The row. `names`: those that the client was told its destination for; so the row says what to allow."""
    mode, _, reason = refused.prefix.rpartition(" ")
    row = Row(
        client=client_of(refused, policy),
        address=str(refused.source),
        protocol=refused.protocol,
        destination=str(refused.destination),
        port=refused.port,
        verdict=mode or "deny",
        reason=reason,
    )
    if names and refused.protocol in _PROTOCOLS and reason in (Reason.NO_NAME, Reason.PIN):
        flow = Flow(row.client, Protocol(refused.protocol), refused.destination, refused.port)
        flow, verdict = policy.decide_pinned(flow, names)
        row.name, row.name_source = flow.name or "", flow.name_source.value
        if isinstance(verdict, Allow):
            row.rule = verdict.rule
        else:
            row.reason, row.detail = verdict.reason.value, verdict.detail
    return row
