"""Which requests reach mitmproxy's web view."""

from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy.options import Options
from mitmproxy.tools.web.app import ClientConnection
from tornado.httputil import HTTPServerRequest

from mitm.playback import run
from proxyfw.edge.mitm.webview import _OnlyReads, web_master

FLOW = "/flows/0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("uri", "passes"),
    [
        pytest.param("/", True, id="the page"),
        pytest.param("/?token=abc", True, id="the page, with the token"),
        pytest.param("/static/app.js", True, id="what belongs to it"),
        pytest.param("/flows", True, id="the flows"),
        pytest.param("/state", True, id="the state"),
        pytest.param("/events", True, id="the events"),
        pytest.param("/options", True, id="the options"),
        pytest.param("/commands", True, id="the commands"),
        pytest.param("/filter-help", True, id="the help"),
        pytest.param("/updates", True, id="the updates"),
        pytest.param("/flows/dump", False, id="a file of all flows"),
        pytest.param("/flows/dump?filter=~u+(a%2B)%2B%24", False, id="an expression that is tried on all flows"),
        pytest.param("/flows?filter=~u+a", False, id="another query"),
        pytest.param("/flows?token=abc&filter=", False, id="the token and another query"),
        pytest.param(FLOW, False, id="one flow"),
        pytest.param(f"{FLOW}/request/content.data", False, id="a content"),
        pytest.param(f"{FLOW}/request/content/auto.json", False, id="a view of a content"),
        pytest.param("/processes", False, id="the programs of this machine"),
        pytest.param("/executable-icon?path=/etc/passwd", False, id="a file of this machine"),
        pytest.param("/commands/set", False, id="a command"),
        pytest.param("/clear", False, id="a change"),
        pytest.param("/statics", False, id="nearly a path"),
    ],
)
def test_requests_that_only_read_what_the_page_needs(uri, passes):
    connection: Any = SimpleNamespace(set_close_callback=lambda _: None, context=SimpleNamespace())

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get"):
        request = HTTPServerRequest(method=method, uri=uri, connection=connection)
        assert (_OnlyReads().match(request) is not None) == (passes and method == "GET")


@run
async def test_what_a_browser_says_by_websocket_is_not_read():
    web_master(Options())
    page: Any = SimpleNamespace()  # whatever is asked of it, it does not have

    assert ClientConnection.on_message(page, '{"type": "flows/updateFilter"}') is None
