"""A real HTTPS server in the lab's internet, whose lists a test changes at will; and the world of its tests."""

import errno
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network, summarize_address_range
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from edge.https_server import EXPIRED, Authority, Chain

from lab.sockets import Server, connect, eventually, read_until, udp
from lab.world import lift_icmp_limit
from proxyfw.core.address import IPNetwork
from proxyfw.core.addresslist import EMPTY, AddressList
from proxyfw.core.feed import Source
from proxyfw.core.feedformats import Format
from proxyfw.core.ruleset import FEED_SET, feed_set
from proxyfw.demo.lab import Lab
from proxyfw.edge.control import ask
from proxyfw.edge.feedcache import Cached, FeedCache
from proxyfw.feeding import PATIENCE
from proxyfw.statefiles import CONTROL_SOCKET, FEED_FOLDER

HOST = "lists.example"
OTHER_CA, WRONG_NAME, TOO_OLD = "other-ca.example", "wrong-name.example", "too-old.example"
NOBODY, NO_NAME = "nobody.example", "no-name.example"  # nobody listens there; it does not resolve
LISTS4, NOBODY4 = "198.51.100.60", "198.51.100.61"
FIRST4, SECOND4, THIRD4 = "203.0.113.1", "203.0.113.17", "203.0.113.33"  # whatever is on lists
FIRST6, SECOND6 = "2001:db8:1::a1", "2001:db8:1::b1"
EVIL4, EVIL6 = "192.0.2.66", "2001:db8:1::666"  # on no good list
PORT = 4321
NAMES = dict.fromkeys((HOST, OTHER_CA, WRONG_NAME, TOO_OLD), (LISTS4,)) | {NOBODY: (NOBODY4,)}
CLIENTS: dict[str, dict[str, Any]] = {"work": {"profiles": []}, "other": {"profiles": []}}

_AS_ITSELF = """\
import sys
from functools import partial
import proxyfw.service as service
service.FeedKeeper = partial(service.FeedKeeper, patience={patience})
from proxyfw.cli import main
del sys.argv[0]
sys.exit(main())
"""
"""What starts the installed proxyfw with less patience for a list than it has by itself."""

Answer = Callable[[ssl.SSLSocket, str], None]


def answer(line: str, body: str | bytes = b"", **headers: str) -> Answer:
    """A whole answer, with this status line."""
    data = body.encode() if isinstance(body, str) else body
    fields = {"Content_Length": str(len(data)), "Connection": "close"} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    whole = f"HTTP/1.1 {line}\r\n{lines}\r\n".encode() + data
    return lambda sock, request: sock.sendall(whole)


def ok(body: str | bytes, **headers: str) -> Answer:
    """A whole answer of status 200."""
    return answer("200 OK", body, **headers)


def redirect(to: str) -> Answer:
    """To another URL."""
    return answer("302 Found", Location=to)


def validated(body: str, name: str, value: str) -> Answer:
    """With a validator, ETag or Last-Modified; and status 304 to whoever has it already."""

    def send(sock: ssl.SSLSocket, request: str) -> None:
        condition = "If-None-Match" if name == "ETag" else "If-Modified-Since"
        known = f"\r\n{condition}: {value}\r\n" in request
        (answer("304 Not Modified") if known else ok(body, **{name: value}))(sock, request)

    return send


def url(path: str, host: str = HOST) -> str:
    return f"https://{host}{path}"


def source(path: str) -> Source:
    """A list of plain text there."""
    return Source(url(path), Format.TEXT)


def profile(path: str, ports: str = f"[{PORT}, '{PORT}/udp']", host: str = HOST) -> str:
    """One with a list of plain text."""
    return f"feeds:\n  - {{url: '{url(path, host)}', format: text, ports: {ports}}}\n"


class FeedServer:
    """`lists`: path to answer. `asked`: the requests, as they came. Each of its names has another certificate."""

    def __init__(self, lab: Lab, chains: Mapping[str, Chain], address: str = LISTS4) -> None:
        self.lists: dict[str, Answer] = {}
        self.asked: list[str] = []
        self._contexts = {}
        for name, chain in chains.items():
            self._contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._contexts[name].load_cert_chain(*chain)
        self._contexts[HOST].sni_callback = self._by_name
        self._server = Server(lab, address, 443, self._serve)

    def __enter__(self) -> "FeedServer":
        self._server.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._server.__exit__(*reason)

    def paths(self) -> list[str]:
        """What was asked for."""
        return [request.split()[1] for request in self.asked]

    def _by_name(self, sock: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        sock.context = self._contexts[name or HOST]

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), self._contexts[HOST].wrap_socket(plain, server_side=True) as sock:
            request = b""
            while b"\r\n\r\n" not in request and (piece := sock.recv(65536)):
                request += piece
            text = request.decode()
            if text:
                self.asked.append(text)
                self.lists.get(text.split()[1], answer("404 Not Found"))(sock, text)


class World:
    """The lab, its server of lists, and what the service says. `said`: lines of its console, from its last start on."""

    def __init__(self, lab: Lab, authority: Authority, patience: float) -> None:
        self.lab = lab
        self.said: list[str] = []
        self._authority = authority
        self._code = _AS_ITSELF.format(patience=patience)
        self._chains = {
            HOST: authority.certificate([f"DNS:{HOST}"]),
            OTHER_CA: lab.authority.certificate([OTHER_CA]),
            WRONG_NAME: authority.certificate(["DNS:another.example"]),
            TOO_OLD: authority.certificate([f"DNS:{TOO_OLD}"], EXPIRED),
        }
        self.server = FeedServer(lab, self._chains)

    def open_server(self) -> None:
        """Has it serve again, what it did before."""
        lists = self.server.lists
        self.server = FeedServer(self.lab, self._chains)
        self.server.lists = lists
        self.server.__enter__()

    def close_server(self) -> None:
        """From here on nobody listens there."""
        self.server.__exit__()

    def start(self) -> None:
        """Starts the service."""
        self.lab.start_service("env", f"SSL_CERT_FILE={self._authority.ca}", sys.executable, "-c", self._code)
        self.said = []
        service = self.lab.service
        assert service is not None
        threading.Thread(target=_read, args=(service.stderr, self.said)).start()

    def configure(self, profiles: Mapping[str, str], **settings: Any) -> None:
        """Has `work` have these profiles, and `other` none."""
        folder = self.lab.folder / "profiles"
        for path in folder.iterdir():
            path.unlink()
        for name, text in profiles.items():
            self.lab.write_profile(name, text)
        self.lab.write_config(CLIENTS | {"work": {"profiles": list(profiles)}}, **settings)

    def use(self, profiles: Mapping[str, str], **settings: Any) -> None:
        """The same, in the running service; their lists are fetched when this returns."""
        self.configure(profiles, **settings)
        self.reload()
        assert eventually(lambda: all(map(_is_settled, self.feeds())), 10), self.feeds()

    def clear(self) -> None:
        """Takes all lists away; the service runs."""
        if self.lab.service is None:
            self.start()
        self.use({})
        self.server.lists.clear()
        for path in self.folder.glob("*.json"):
            path.unlink()

    def ask(self, command: str) -> dict[str, Any]:
        """As the command line does."""
        return ask(self.lab.folder / "state" / CONTROL_SOCKET, command)

    def reload(self) -> None:
        told = self.ask("reload")
        assert told["ok"], told

    def refresh(self, accept: bool = False) -> list[dict[str, Any]]:
        """Waits until all lists were fetched; what there is to say of them."""
        return list(self.ask("refresh accept" if accept else "refresh")["feeds"])

    def feeds(self) -> list[dict[str, Any]]:
        return list(self.ask("status")["feeds"])

    def feed(self, path: str, host: str = HOST) -> dict[str, Any]:
        return next(feed for feed in self.feeds() if feed["source"] == url(path, host))

    @property
    def folder(self) -> Path:
        """Where the last good lists are kept."""
        return self.lab.folder / "state" / FEED_FOLDER

    def cache(self, source: Source) -> Path:
        """Where one of them is."""
        return self.folder / f"{source.id}.json"

    def keep(self, cached: Cached) -> None:
        """Leaves a list there, as an earlier run has."""
        FeedCache(self.folder).save(cached)

    def holds(self, source: Source) -> set[str]:
        """The networks that the packet layer has of a list."""
        found = self.sets()
        return {str(each) for version in (4, 6) for each in found.get(feed_set(source, version), EMPTY).networks()}

    def sets(self) -> dict[str, AddressList]:
        """All sets of feeds, as `nft` lists them."""
        items = json.loads(self.nft("-j", "list", "table", "inet", "proxyfw"))["nftables"]
        sets = [item["set"] for item in items if "set" in item and item["set"]["name"].startswith(FEED_SET)]
        return {each["name"]: AddressList.of(_networks(each.get("elem", []))) for each in sets}

    def nft(self, *arguments: str) -> str:
        """What another program says, or does, in the netvm."""
        command = self.lab.network.command(self.lab.network.netvm, "nft", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def reaches(self, address: str, port: int = PORT, client: str = "work") -> bool:
        """Whether plain TCP, which names no host, comes back from there."""
        try:
            with connect(self.lab, client, address, port) as sock:
                sock.sendall(b"hello\n")
                return read_until(sock, b"\n") == b"hello\n"
        except OSError:
            return False

    def reaches_by_udp(self, address: str, port: int = PORT) -> bool:
        """The same of UDP: it comes back, or is refused at once."""
        with udp(self.lab, "work", address, port) as sock:
            sock.send(b"hello")
            try:
                return sock.recv(100) == b"hello"
            except (ConnectionError, PermissionError):
                return False
            except OSError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                return False


def _is_settled(feed: Mapping[str, Any]) -> bool:
    """Whether it is in force, and on the disk; or it has failed."""
    return bool((feed["networks"] and feed["checked"]) or feed["error"])


def _networks(elements: list[Any]) -> Iterator[IPNetwork]:
    """As nft writes them."""
    for element in elements:
        match element:
            case {"prefix": {"addr": address, "len": length}}:
                yield ip_network(f"{address}/{length}")
            case {"range": [first, last]}:
                yield from summarize_address_range(ip_address(first), ip_address(last))  # type: ignore[type-var]
            case str(address):
                yield ip_network(address)


def _read(console: IO[str], said: list[str]) -> None:
    with suppress(OSError, ValueError):  # it is closed when the service has ended
        said.extend(line.rstrip("\n").removeprefix("proxyfw: ") for line in console)


@contextmanager
def make(patience: float = PATIENCE, more: Iterable[str] = ()) -> Iterator[World]:
    """The world, started. `more`: further addresses of its internet."""
    addresses = (*more, LISTS4, NOBODY4, FIRST4, SECOND4, THIRD4, FIRST6, SECOND6, EVIL4, EVIL6)
    lab = Lab(CLIENTS, {}, {}, NAMES, addresses)
    lab.start()
    try:
        lift_icmp_limit(lab)
        with TemporaryDirectory() as folder:
            world = World(lab, Authority(Path(folder) / "authority"), patience)
            lab.end_service()
            world.start()
            world.server.__enter__()
            try:
                yield world
            finally:
                world.close_server()
    finally:
        lab.stop()
