"""What a layer asks about its connection: the decision and the log are elsewhere."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol as Interface

from mitmproxy.proxy.commands import StartHook

from proxyfw.core.address import IPAddress
from proxyfw.core.explicit import Asked
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.http1 import Decide
from proxyfw.core.sniffed import Sniffed
from proxyfw.core.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict on a flow, and where that lets it through, the addresses to try, in this order.

    `policy`: the one that said so; it may not be in force any more when a server connection stands.
    """

    flow: Flow
    verdict: Verdict
    addresses: tuple[IPAddress, ...] = ()
    policy: object = None


class Case(Interface):
    """One connection of a client. `protocol`: what it speaks, as far as it is known; the layer sets it."""

    protocol: Protocol

    @property
    def client_name(self) -> str:
        """The client's."""

    @property
    def port(self) -> int:
        """To which the client aims; 0 while it is not known."""

    @property
    def observes(self) -> bool:
        """Whether the client is in observe mode."""

    def flow(self, sniffed: Sniffed | None = None) -> Flow:
        """The connection as the policy sees it."""

    def http_flow(self, asked: Decide, forward: bool) -> Flow:
        """The same for one HTTP request. `forward`: it says by its URL where it is to go."""

    def granted_unheard(self) -> bool:
        """Whether whatever is spoken here is permitted, before anything is known of it."""

    def decide(self, flow: Flow) -> Verdict:
        """What the policy in force says."""

    async def find(self, flow: Flow) -> Found:
        """Decides a flow, and looks up where it may go."""

    async def ask(self, asked: Asked) -> Found:
        """The same for what is asked of a proxy."""

    def begin(self, asked: Asked, flow: Flow, verdict: Verdict, at: IPAddress | None) -> None:
        """From here on it is as if the client had connected to this address, by the name that it asked for."""

    def is_in_force(self, found: Found) -> bool:
        """Whether the policy that found this still is."""

    def goes_on(self, flow: Flow) -> bool:
        """Whether what was let through last was this very flow."""

    def set_decided(self, decided: bool) -> bool:
        """That what it will be is settled, or (again) awaits the client's words; False: too many await them."""

    def tell(self, flow: Flow, verdict: Verdict, reached: str = "") -> None:
        """Writes a verdict to the log. `reached`: the address of the server."""

    def tell_fault(self, error: Exception) -> None:
        """The same of a fault of proxyfw."""

    def note(self, detail: str) -> None:
        """A word on what was let through last."""

    def end(self, closed_by: str, up: int = 0, down: int = 0) -> None:
        """What was let through last has ended."""

    def show(self, request: bytes = b"", answer: bytes = b"") -> None:
        """For the view of flows: the head of an HTTP request as it was sent on, or of the answer to it."""


@dataclass(eq=False, slots=True)
class Question:
    """What a layer awaits: where a connection may go, or the reply to a DNS query. `answer` stays None where it could
    not be found: then it is a refusal.
    """

    find: Callable[[], Awaitable[Found | bytes]]
    answer: Found | bytes | None = None


@dataclass
class ProxyfwAskHook(StartHook):
    """A layer awaits an answer; it is given by the addon."""

    data: Question
