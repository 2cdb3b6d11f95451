"""What an upstream proxy says to our request for a connection: HTTP CONNECT (RFC 9110 section 9.3.6), and the reply
codes of SOCKS 4 and 5. The failures of the proxy itself are told apart from those of the target.
"""

import errno
import os
import re
from base64 import b64encode

import h11

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy
from proxyfw.core.verdict import Reason

MAX_HEAD = 16 << 10
"""Bytes of all heads of an answer to CONNECT."""

_HEAD_END = re.compile(rb"\n\r?\n")  # as h11 has it: a line may end without CR, RFC 9112 section 2.2
_OVERLAP = 2  # bytes of what came before, in which an end may have begun

_SOCKS5 = {  # RFC 1928 section 6
    1: (Reason.UPSTREAM_PROXY, "general failure", 0),
    2: (Reason.UPSTREAM_PROXY, "not allowed by its rules", 0),
    3: (Reason.UNREACHABLE, "network unreachable", errno.ENETUNREACH),
    4: (Reason.UNREACHABLE, "host unreachable", errno.EHOSTUNREACH),
    5: (Reason.UNREACHABLE, "connection refused", errno.ECONNREFUSED),
    6: (Reason.UNREACHABLE, "no answer in time (TTL expired)", errno.ETIMEDOUT),  # what Tor says of that
    7: (Reason.UPSTREAM_PROXY, "it makes no connections", 0),
    8: (Reason.UPSTREAM_PROXY, "it takes no address of this kind", 0),
}
_SOCKS4 = {
    91: (Reason.UPSTREAM_PROXY, "refused, or not reached: SOCKS 4 does not tell which", 0),
    92: (Reason.UPSTREAM_PROXY, "it asks for identd, which is not here", 0),
    93: (Reason.UPSTREAM_PROXY, "it does not take this user", 0),
}
_HTTP = {
    403: (Reason.UPSTREAM_PROXY, "not allowed by its rules", 0),
    407: (Reason.UPSTREAM_PROXY, "it wants another user and password", 0),
    502: (Reason.UNREACHABLE, "not reached", errno.EHOSTUNREACH),
    503: (Reason.UNREACHABLE, "not reached", errno.EHOSTUNREACH),
    504: (Reason.UNREACHABLE, "no answer in time", errno.ETIMEDOUT),
}


class LeaveError(Exception):
    """There is no connection. `reason`: UPSTREAM_PROXY, where it is the proxy's doing; UNREACHABLE and UNRESOLVABLE,
    where it is the target's. `detail`: in words. `error`: of the system's errors (errno) the one that says the same,
    else 0.
    """

    def __init__(self, reason: Reason, detail: str, error: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.error = reason, detail, error


def of_socks(scheme: Scheme, code: int | None, words: str) -> LeaveError:
    """A refusal by SOCKS. `code`: the reply's; None where it is no such reply, and `words` say what it is."""
    codes = _SOCKS5 if scheme is Scheme.SOCKS5 else _SOCKS4
    if code is None or code not in codes:
        return of_proxy(words)
    reason, detail, error = codes[code]
    return LeaveError(reason, f"the upstream proxy says: {detail}", error)


def of_proxy(words: str, error: int = 0) -> LeaveError:
    """A failure of the proxy itself."""
    return LeaveError(Reason.UPSTREAM_PROXY, f"the upstream proxy: {words}", error)


def not_connected(error: OSError) -> LeaveError:
    """The proxy could not be reached."""
    return of_proxy(f"not reached: {_words(error)}")


def broken_off(error: OSError) -> LeaveError:
    """The connection to the proxy ended before the target's stood."""
    return of_proxy(f"it broke off: {_words(error)}")


def _words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else "no reason is given"


def too_late() -> LeaveError:
    """Nothing, or not enough, came before the deadline; from whom, the proxy does not tell."""
    return of_proxy("no answer before the deadline", errno.ETIMEDOUT)


class Connect:
    """A request for a connection by HTTP CONNECT. What follows the answer is the target's: none of it is taken here.

    Reads byte by byte or all at once; `take` says how much is the proxy's own.
    """

    def __init__(self, proxy: UpstreamProxy, host: Hostname | IPAddress, port: int) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._head = bytearray()
        self._taken = 0
        self.request = self._request(proxy, authority(host, port))
        """The bytes to send."""
        self.stands = False
        """Whether the connection to the target stands."""

    def _request(self, proxy: UpstreamProxy, target: str) -> bytes:
        headers = [("Host", target)]
        if proxy.user:
            login = b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
            headers.append(("Proxy-Authorization", f"Basic {login}"))
        request = self._connection.send(h11.Request(method="CONNECT", target=target, headers=headers))
        end = self._connection.send(h11.EndOfMessage())
        return (request or b"") + (end or b"")

    def take(self, data: bytes) -> int:
        """How many of these bytes, the next ones, belong to the proxy's answer. b"": its end. Raises LeaveError."""
        if not data:
            raise of_proxy("it closed the connection without an answer")
        begin = max(len(self._head) - _OVERLAP, 0)
        before = len(self._head)
        self._head += data
        end = _HEAD_END.search(self._head, begin)
        count = len(data) if end is None else end.end() - before
        self._taken += count
        if self._taken > MAX_HEAD:
            raise of_proxy(f"an answer of more than {MAX_HEAD >> 10} KiB")
        if end is not None:
            self._judge(bytes(self._head[: end.end()]))
            self._head.clear()
        return count

    def _judge(self, head: bytes) -> None:
        try:
            self._connection.receive_data(head)
            event = self._connection.next_event()
        except h11.RemoteProtocolError:
            raise of_proxy("what it answers is not HTTP") from None
        if isinstance(event, h11.InformationalResponse):
            return  # the answer is yet to come, RFC 9110 section 15.2
        if not isinstance(event, h11.Response):
            raise of_proxy("what it answers is not HTTP")
        if self._connection.their_state is not h11.SWITCHED_PROTOCOL:
            raise _refused(event)
        self.stands = True


def authority(host: Hostname | IPAddress, port: int) -> str:
    """Host and port, as in the target of CONNECT."""
    return f"{host}:{port}" if isinstance(host, str) or host.version == 4 else f"[{host}]:{port}"


def _refused(response: h11.Response) -> LeaveError:
    status = response.status_code
    reason, detail, error = _HTTP.get(status, (Reason.UPSTREAM_PROXY, "refused", 0))
    if reason is Reason.UNREACHABLE and _is_of_the_name(response):
        reason, detail, error = Reason.UNRESOLVABLE, "the name does not resolve", 0
    return LeaveError(reason, f"the upstream proxy says: {detail} (HTTP status {status})", error)


def _is_of_the_name(response: h11.Response) -> bool:
    """Whether the target's name does not resolve: by RFC 9209 section 2.3.2, or in the words of Squid."""
    return any(
        (name == b"proxy-status" and b"dns_error" in value) or (name == b"x-squid-error" and b"ERR_DNS_FAIL" in value)
        for name, value in response.headers
    )
