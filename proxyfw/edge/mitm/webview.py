"""mitmproxy's web view, which looks and does not touch: it could set any option, and run any command."""

from typing import Any

from mitmproxy.options import Options
from mitmproxy.tools.web.master import WebMaster
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule, RuleRouter


def web_master(options: Options) -> WebMaster:
    """mitmproxy with its web view."""
    master = WebMaster(options)
    master.app = RuleRouter([Rule(_OnlyReads(), master.app)])
    return master


class _OnlyReads(Matcher):
    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Whether the request goes through; what does not is not found."""
        return {} if request.method in ("GET", "HEAD") else None
