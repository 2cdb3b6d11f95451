"""An HTTPS server on loopback, which says to the byte what a test has it say, and an authority of its own."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_CONFIG = """\
[ca]
default_ca = here
[here]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
x509_extensions = server
[any]
commonName = supplied
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[req]
distinguished_name = any
"""
LOOPBACK = ("DNS:localhost", "IP:127.0.0.1")
_FOREVER = ("20000101000000Z", "20991231235959Z")
EXPIRED = ("20000101000000Z", "20000102000000Z")
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

Chain = tuple[Path, Path]
"""A certificate and its key."""


class Authority:
    """Made in a folder. `ca`: the certificate to trust."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "index.txt").touch()
        self.ca, key = self._self_signed("ca", "authority")
        self._sign = ("-cert", str(self.ca), "-keyfile", str(key))

    def certificate(self, names: Sequence[str] = LOOPBACK, valid: tuple[str, str] = _FOREVER) -> Chain:
        """For these names, from the first to the second of these times."""
        at = len(list(self.folder.iterdir()))
        request, key, made = (self.folder / f"{at}.{kind}" for kind in ("request", "key", "pem"))
        _openssl("req", "-new", *_KEY, "-subj", "/CN=test", "-keyout", str(key), "-out", str(request))
        _openssl(
            *("ca", "-config", self._config(names), *self._sign, "-batch", "-notext", "-in", str(request)),
            *("-startdate", valid[0], "-enddate", valid[1], "-out", str(made)),
        )
        return made, key

    def self_signed(self) -> Chain:
        return self._self_signed("alone", "server")

    def _self_signed(self, name: str, extensions: str) -> Chain:
        made, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        _openssl(
            *("req", "-x509", "-config", self._config(["DNS:localhost"]), "-extensions", extensions, *_KEY),
            *("-days", "30", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(made)),
        )
        return made, key

    def _config(self, names: Sequence[str]) -> str:
        path = self.folder / "openssl.cnf"
        path.write_text(_CONFIG.format(folder=self.folder, names=", ".join(names)))
        return str(path)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


class Peer:
    """One connection, its request already read."""

    def __init__(self, sock: ssl.SSLSocket, head: bytes, stop: threading.Event) -> None:
        self._sock = sock
        self._stop = stop
        first, *lines = head.decode("latin-1").split("\r\n")
        self.path = first.split(" ")[1]
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def drip(self, drop: bytes, head: bytes = b"") -> None:
        """Says `head`, then `drop` again and again, slowly, until the other end goes."""
        with suppress(OSError):
            self._sock.sendall(head)
            while not self._stop.wait(0.02):
                self._sock.sendall(drop)

    def flood(self, more: bytes, head: bytes = b"") -> None:
        """The same, as fast as it is read."""
        with suppress(OSError):
            self._sock.sendall(head)
            while not self._stop.is_set():
                self._sock.sendall(more)

    def cut(self) -> None:
        """Ends the connection without TLS saying so."""
        self._sock.shutdown(socket.SHUT_RDWR)


Answer = Callable[[Peer], None]


class Server:
    """`pages`: what to do about each path. `asked`: what was asked, in order."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[Peer] = []
        self.stop = threading.Event()
        self.port = 0

    def url(self, path: str = "/", host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def serve(self, path: str, *parts: bytes) -> str:
        """Says these bytes to whoever asks for this path; its URL."""
        self.pages[path] = lambda peer: peer.send(b"".join(parts))
        return self.url(path)


def document(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer."""
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1") + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return document(b"", f"Location: {location}", status=status)


@contextmanager
def serving(chain: Chain) -> Iterator[Server]:
    """A server with this certificate, on 127.0.0.1. Each connection has one request."""
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*chain)
    threads: list[threading.Thread] = []

    def accept() -> None:
        while not server.stop.is_set():
            with suppress(OSError):
                sock, _ = listener.accept()
                threads.append(threading.Thread(target=_talk, args=(server, context, sock)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server
        finally:
            server.stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join()


def _talk(server: Server, context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.settimeout(10)
    with sock, suppress(OSError, ValueError), context.wrap_socket(sock, server_side=True) as tls:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = tls.recv(65536)
            if not piece:
                return
            head += piece
        peer = Peer(tls, head.partition(b"\r\n\r\n")[0], server.stop)
        server.asked.append(peer)
        server.pages[peer.path](peer)
        tls.unwrap()  # the end, as TLS says it
