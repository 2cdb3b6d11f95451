"""The demo's internet, as one process: a resolver (UDP and TCP), and web servers (HTTP, TLS) at the sites' addresses.

Run as `python -m proxyfw.demo.internet PLAN.json EVENTS`. It prints "ready" when everything listens. Each query and
each request that arrives becomes one line of JSON in EVENTS, so that a test can see what never arrived.
"""

import json
import socket
import socketserver
import ssl
import sys
import threading
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL = 5
ADDRESS_OF_EVIL = "198.51.100.66"

SITES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("github.com", "api.github.com"): ("198.51.100.10", "2001:db8:1::10"),
    ("pypi.org", "files.pythonhosted.org"): ("198.51.100.20", "2001:db8:1::20"),
    ("en.wikipedia.org",): ("198.51.100.30", "2001:db8:1::30"),
    ("evil.example",): (ADDRESS_OF_EVIL, "2001:db8:1::66"),
}
"""The names of the demo's sites, and the addresses of each: all from the ranges for documentation."""


@dataclass(frozen=True, slots=True)
class Site:
    """One web server: its names, its addresses, and its certificate where it speaks TLS."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All sites, names that resolve to anything else, and the resolver's own address."""

    resolver: str
    sites: tuple[Site, ...]
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """For `read`, in another process."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> "Plan":
        """What `write` wrote."""
        given = json.loads(path.read_text())
        return Plan(given["resolver"], tuple(Site(**site) for site in given["sites"]), given["names"])

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """What the resolver answers."""
        found = next((site.addresses for site in self.sites if name in site.names), ())
        return tuple(self.names.get(name, found))


class Events:
    """Lines of JSON in a file, from many threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a")

    def add(self, **event: Any) -> None:
        """One event."""
        with self._lock:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()


def answer(plan: Plan, query: bytes, events: Events) -> bytes:
    """The resolver's reply to one message; b"" to what is no query."""
    try:
        message = dns.message.from_wire(query)
    except dns.exception.DNSException:
        return b""
    question = message.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    events.add(kind="dns", name=name, type=dns.rdatatype.to_text(question.rdtype))
    reply = dns.message.make_response(message)
    reply.flags |= dns.flags.RA
    addresses = plan.addresses_of(name)
    if not addresses:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    family = {dns.rdatatype.A: ".", dns.rdatatype.AAAA: ":"}.get(question.rdtype)
    fitting = [address for address in addresses if family and family in address]
    if fitting:
        reply.answer.append(dns.rrset.from_text_list(question.name, TTL, "IN", question.rdtype, fitting))
    return reply.to_wire()


def _serve_dns(plan: Plan, events: Events) -> None:
    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(answer(plan, data, events), self.client_address)

    class Tcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = int.from_bytes(self.rfile.read(2))
            reply = answer(plan, self.rfile.read(length), events)
            self.wfile.write(len(reply).to_bytes(2) + reply)

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    _in_background(socketserver.ThreadingUDPServer((plan.resolver, 53), Udp))
    _in_background(socketserver.ThreadingTCPServer((plan.resolver, 53), Tcp))


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_WebServer"

    def do_GET(self) -> None:
        """Says who was reached, and as whom."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        host = self.headers.get("Host", "")
        sni = getattr(self.connection, "server_name", "")
        here = self.connection.getsockname()
        version = self.connection.version() if isinstance(self.connection, ssl.SSLSocket) else "no TLS"
        self.server.events.add(kind="request", host=host, sni=sni, address=here[0], port=here[1], path=self.path)
        body = f"reached {host} at {here[0]} port {here[1]} ({version}, SNI {sni or 'none'})\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Events say it already."""


class _WebServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, port: int, events: Events, tls: ssl.SSLContext | None) -> None:
        self.events = events
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._tls = tls
        super().__init__((address, port), _Page)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of its own name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake is made in the connection's own thread."""
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True)
        try:
            super().finish_request(request, client_address)
        finally:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A handshake that fails is an event too: something arrived."""
        self.events.add(kind="broken", client=client_address[0], error=str(sys.exc_info()[1]))


def _context(site: Site) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.certificate, site.key)

    def note(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        connection.server_name = name or ""

    context.sni_callback = note
    return context


def _in_background(server: socketserver.BaseServer) -> None:
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    """Serves until its standard input ends."""
    plan, events = Plan.read(Path(sys.argv[1])), Events(Path(sys.argv[2]))
    _serve_dns(plan, events)
    for site in plan.sites:
        for address in site.addresses:
            _in_background(_WebServer(address, 80, events, None))
            if site.certificate:
                _in_background(_WebServer(address, 443, events, _context(site)))
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
