"""What is shown in mitmproxy's view of flows, and for how long."""

from ipaddress import ip_address

import pytest
from mitmproxy.flow import Flow as Shown

from mitm.playback import CLIENT, GOOD, World
from proxyfw.connection import Ends
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.verdict import Allow, Deny, Reason
from proxyfw.mitmcase import MitmCase
from proxyfw.mitmview import KEPT, FlowView

FLOW = Flow("work", Protocol.HTTP, ip_address(GOOD), 80, Hostname("good.example"), NameSource.HOST)
ALLOW = Allow(Reason.DOMAIN, "web: good.example")


class View:
    """mitmproxy's, as far as it is used."""

    def __init__(self) -> None:
        self.flows: list[Shown] = []

    def add(self, flows: list[Shown]) -> None:
        self.flows += flows

    def update(self, flows: list[Shown]) -> None:
        assert all(flow in self.flows for flow in flows)

    def remove(self, flows: list[Shown]) -> None:
        for flow in flows:
            self.flows.remove(flow)


@pytest.fixture
def view() -> View:
    return View()


def case(view: View) -> MitmCase:
    world = World()
    world.plane.on_show = FlowView(view).show
    return MitmCase(Ends("work", CLIENT, ip_address(GOOD), GOOD, 80), world.shared, world.plane)


def test_a_connection_is_shown_with_its_verdict(view):
    made = case(view)
    made.tell(FLOW, ALLOW, GOOD)

    (shown,) = view.flows
    assert (shown.type, shown.comment, shown.error) == ("tcp", "allow work: domain: web: good.example", None)
    assert (shown.server_conn.address, shown.server_conn.sni) == ((GOOD, 80), "good.example")


def test_a_refusal_is_an_error(view):
    case(view).tell(FLOW, Deny(Reason.NO_MATCH, detail="granted on 22/tcp"))

    assert view.flows[0].error.msg == "deny work: no-match: granted on 22/tcp"


def test_each_request_is_shown_in_place_of_its_connection(view):
    made = case(view)
    made.tell(FLOW, ALLOW, GOOD)
    for path in ("one", "two"):
        made.show(request=f"GET /{path} HTTP/1.1\r\nHost: good.example\r\n\r\n".encode())
        made.show(answer=b"HTTP/1.1 204 No Content\r\n\r\n")
    made.end("client")

    assert [(flow.request.path, flow.response.status_code, flow.live) for flow in view.flows] == [
        ("/one", 204, True),
        ("/two", 204, False),
    ]
    assert {flow.request.pretty_url for flow in view.flows} == {
        "http://good.example/one",
        "http://good.example/two",
    }


def test_old_flows_make_room(view):
    made = case(view)
    for number in range(KEPT + 5):
        made.tell(FLOW._replace(port=number + 1), ALLOW, GOOD)

    assert len(view.flows) == KEPT
    assert view.flows[0].server_conn.address == (GOOD, 6)
