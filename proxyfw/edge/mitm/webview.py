"""mitmproxy's web view, which looks and does not touch: it could set any option, and run any command."""

import logging
from typing import Any

from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.tools.web.app import ClientConnection
from mitmproxy.tools.web.master import WebMaster
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule, RuleRouter

_PATHS = frozenset({"/", "/flows", "/events", "/options", "/state", "/commands", "/filter-help", "/updates"})
_STATIC = "/static/"
_TOKEN = "token"
_MAX_HEAD = 1 << 16  # bytes of a request
_MAX_WORD = 1 << 12  # bytes of a message by WebSocket, which is not even read


def web_master(options: Options) -> WebMaster:
    """mitmproxy with its web view."""
    ClientConnection.on_message = _ignore  # filters: expressions that are tried on every flow, while all else waits
    logging.getLogger("tornado").setLevel(logging.ERROR)  # requests that were refused
    return _ReadingMaster(options)


class _ReadingMaster(WebMaster):
    async def running(self) -> None:
        """As mitmproxy has it, less what is not for reading. Raises OSError."""
        self.app.settings["websocket_max_message_size"] = _MAX_WORD
        router = RuleRouter([Rule(_OnlyReads(), self.app)])
        server = HTTPServer(router, max_buffer_size=_MAX_HEAD, max_header_size=_MAX_HEAD, max_body_size=0)
        server.listen(self.options.web_port, self.options.web_host)
        await Master.running(self)


class _OnlyReads(Matcher):
    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Whether the request goes through; what does not is not found."""
        reads = request.method == "GET" and set(request.arguments) <= {_TOKEN}
        return {} if reads and (request.path in _PATHS or request.path.startswith(_STATIC)) else None


def _ignore(_: ClientConnection, __: str | bytes) -> None:
    """What a browser says by WebSocket."""
