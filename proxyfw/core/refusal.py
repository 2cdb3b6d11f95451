"""What an HTTP client is told when it is refused: a status by cause, and a page that says who, what and why."""

import errno

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.verdict import Deny, Reason

# RFC 9110 section 15. What is not here was refused by the policy: 403.
_STATUS = {
    Reason.MALFORMED: 400,
    Reason.AMBIGUOUS: 400,
    Reason.SILENT: 408,
    Reason.TIMEOUT: 408,
    Reason.OVERSIZED: 431,
    Reason.ERROR: 500,
    Reason.UNRESOLVABLE: 502,
    Reason.UNREACHABLE: 502,
    Reason.UPSTREAM_PROXY: 502,
    Reason.LIMIT: 503,
    Reason.PROXY_DOWN: 503,
    Reason.DNS_FAILURE: 504,
}


def status_of(deny: Deny) -> int:
    """The HTTP status that says why: 403 for the policy, 504 where an answer did not come in time."""
    status = _STATUS.get(deny.reason, 403)
    return 504 if status == 502 and deny.error == errno.ETIMEDOUT else status


def page(deny: Deny, client: str, host: Hostname | IPAddress | None) -> bytes:
    """The page, as plain text in UTF-8."""
    lines = [
        "proxyfw refused this connection.",
        "",
        f"client: {client}",
        f"host:   {host or 'none named'}",
        f"reason: {deny.reason.value}" + (f" ({deny.detail})" if deny.detail else ""),
        "",
    ]
    return "\n".join(lines).encode()


def page_fields(text: bytes) -> list[tuple[str, str]]:
    """The header fields of an answer that is such a page and ends the connection."""
    return [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(text))),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ]
