"""mitmproxy's view of flows: what the log has of each connection, and of plain HTTP the heads of its messages.

What is relayed is not kept: there is no content to be seen, also of plain HTTP.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from mitmproxy.connection import Client, Server
from mitmproxy.flow import Error, Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.net.http.http1 import read_request_head, read_response_head
from mitmproxy.tcp import TCPFlow

from proxyfw.core.verdict import Allow, in_a_word
from proxyfw.mitmcase import MitmCase, Told

KEPT = 1000  # flows: the view would keep all of them for ever


class View(Protocol):
    """What is used of mitmproxy's."""

    def add(self, flows: Sequence[Flow]) -> None:
        """Shows them."""

    def update(self, flows: Sequence[Flow]) -> None:
        """They are other now."""

    def remove(self, flows: Sequence[Flow]) -> None:
        """Forgets them."""


class FlowView:
    """Shows the last `KEPT` flows."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._kept: deque[Flow] = deque()
        self._current: WeakKeyDictionary[MitmCase, Flow] = WeakKeyDictionary()

    def show(self, case: MitmCase, told: Told) -> None:
        """Something is to be seen of a connection."""
        if told.flow is not None and told.verdict is not None:
            self._add(case, self._connection(case, told))
        elif told.request:
            self._request(case, told.request)
        elif flow := self._current.get(case):
            if told.answer and isinstance(flow, HTTPFlow):
                flow.response = read_response_head(_lines(told.answer))
            flow.live = not told.ended
            self._view.update([flow])

    def _connection(self, case: MitmCase, told: Told) -> TCPFlow:
        flow, verdict = told.flow, told.verdict
        assert flow is not None
        assert verdict is not None
        client = Client(peername=(case.ends.address, 0), sockname=("", 0))
        server = Server(address=(told.reached or str(flow.destination or flow.name or ""), flow.port), sni=flow.name)
        shown = TCPFlow(client, server, live=False)
        word = in_a_word(verdict)
        detail = "" if isinstance(verdict, Allow) else verdict.detail
        shown.comment = ": ".join(filter(None, (f"{word} {case.ends.client}", verdict.reason, verdict.rule, detail)))
        if word == "deny":
            shown.error = Error(shown.comment)
        return shown

    def _request(self, case: MitmCase, head: bytes) -> None:
        """A request takes the place of its connection, or stands beside those before it."""
        before = self._current.get(case)
        if before is None:
            return
        shown = HTTPFlow(before.client_conn, before.server_conn)
        shown.request = read_request_head(_lines(head))
        shown.request.scheme = "http"
        address = before.server_conn.address
        host_header = shown.request.host_header
        if address is not None:
            shown.request.host, shown.request.port = address
        shown.request.host_header = host_header
        shown.comment = before.comment
        if isinstance(before, TCPFlow) and before in self._kept:
            self._kept.remove(before)
            self._view.remove([before])
        self._add(case, shown)

    def _add(self, case: MitmCase, flow: Flow) -> None:
        self._current[case] = flow
        self._kept.append(flow)
        self._view.add([flow])
        while len(self._kept) > KEPT:
            self._view.remove([self._kept.popleft()])


def _lines(head: bytes) -> list[bytes]:
    return head.removesuffix(b"\r\n\r\n").split(b"\r\n")
