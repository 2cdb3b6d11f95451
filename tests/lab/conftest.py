"""The lab's fixtures: one world for the whole session, a fresh one where the service is killed or reconfigured."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import names_world, qubes_world, world
from lab.control import reload
from lab.impatient import IMPATIENT, with_constants
from lab.sockets import eventually, socket_in
from proxyfw.demo.lab import Lab
from proxyfw.edge.logdb import LogReader
from proxyfw.logview import as_json
from proxyfw.statefiles import LOG_FILE

_WAIT_FOR_ROW = 3.0  # seconds; rows are written within 100 ms


@pytest.fixture(scope="session", autouse=True)
def _namespaces() -> None:
    """Skips the lab where it cannot be built, and says why."""
    if os.geteuid() != 0:
        pytest.skip("the lab makes network namespaces: run it as root")
    name = f"pfw{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture(scope="session", autouse=True)
def _bytecode() -> Iterator[None]:
    """The program is started hundreds of times: it is compiled once, also where bytecode is not to be kept."""
    if not sys.dont_write_bytecode:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="proxyfw-bytecode-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", folder)
        yield


def _started(**settings: Any) -> Iterator[Lab]:
    made = world.make()
    made.start()
    try:
        world.lift_icmp_limit(made)
        if settings:
            made.write_config(world.CLIENTS, **settings)
            assert made.ask("reload").returncode == 0
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The world that tests share; its service runs all the time, with one configuration."""
    yield from _started()


@pytest.fixture
def fresh_lab() -> Iterator[Lab]:
    """A world of the test's own."""
    yield from _started()


@pytest.fixture(scope="session")
def explicit_lab() -> Iterator[Lab]:
    """The shared world once more, where clients find a proxy that they can ask, at any address of the netvm."""
    yield from _started(explicit={"port": world.EXPLICIT_PORT})


@pytest.fixture(scope="session")
def shared_spare() -> Iterator[Lab]:
    """The world of `spare_lab`."""
    yield from _started()


@pytest.fixture
def spare_lab(shared_spare: Lab) -> Iterator[Lab]:
    """A world whose configuration a test may change: it is put back afterwards, and the service goes on meanwhile."""
    yield shared_spare
    _put_back(shared_spare)


@pytest.fixture(scope="session")
def shared_hasty() -> Iterator[Lab]:
    """The world of `hasty_lab`."""
    for made in _started():
        made.end_service()
        made.start_service(*with_constants(IMPATIENT))
        yield made


@pytest.fixture
def hasty_lab(shared_hasty: Lab) -> Iterator[Lab]:
    """As `spare_lab`, and its service soon gives up waiting. test_hellos waits for as long as it does by itself."""
    yield shared_hasty
    _put_back(shared_hasty)


def _put_back(lab: Lab) -> None:
    for folder in ("profiles", "allowed", "feeds"):
        shutil.rmtree(lab.folder / folder, ignore_errors=True)
    (lab.folder / "profiles").mkdir()
    for name, text in world.PROFILES.items():
        lab.write_profile(name, text)
    lab.write_config(world.CLIENTS)
    reload(lab)


class Log:
    """What `proxyfw log --json` tells since the test began; read here, as the command takes longer to start."""

    def __init__(self, lab: Lab) -> None:
        self._reader = LogReader(lab.folder / "state" / LOG_FILE)
        self._begin = time.time()

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, oldest first."""
        return [json.loads(as_json(row)) for row in self._reader.rows(since=self._begin)]

    def expect(self, patience: float = _WAIT_FOR_ROW, **wanted: Any) -> dict[str, Any]:
        """The first row with these values, as soon as it is there."""
        return self._first(lambda row: wanted.items() <= row.items(), f"with {wanted}", patience)

    def closed(self, **wanted: Any) -> dict[str, Any]:
        """The first row with these values, as soon as it tells how the flow ended."""
        return self._first(lambda row: wanted.items() <= row.items() and row["closed_by"], f"closed, with {wanted}")

    def _first(self, fits: Callable[[dict[str, Any]], Any], words: str, patience: float = _WAIT_FOR_ROW) -> Any:
        found = eventually(lambda: next(filter(fits, self.rows()), None), patience)
        rows = self.rows()
        assert found, f"no row {words} among {len(rows)}, the last of them {rows[-20:]}"
        return found


@pytest.fixture
def log(lab: Lab) -> Log:
    """The log of the shared world from here on."""
    return Log(lab)


@pytest.fixture
def fresh_log(fresh_lab: Lab) -> Log:
    """The log of the test's own world."""
    return Log(fresh_lab)


@pytest.fixture
def spare_log(spare_lab: Lab) -> Log:
    """The log of the spare world from here on."""
    return Log(spare_lab)


@pytest.fixture
def hasty_log(hasty_lab: Lab) -> Log:
    """The log of the impatient world from here on."""
    return Log(hasty_lab)


@pytest.fixture(scope="session")
def shared_names() -> Iterator[names_world.World]:
    """The world of the relay's tests, that tests share."""
    with names_world.make() as made:
        yield made


@pytest.fixture
def names(shared_names: names_world.World) -> "Names":
    """That world, and its log from here on."""
    return Names(shared_names)


@pytest.fixture
def fresh_names() -> Iterator["Names"]:
    """Such a world of the test's own."""
    with names_world.make() as made:
        yield Names(made)


@pytest.fixture(scope="session")
def shared_spare_names() -> Iterator[names_world.World]:
    """The world of `spare_names`."""
    with names_world.make() as made:
        yield made


@pytest.fixture
def spare_names(shared_spare_names: names_world.World) -> Iterator["Names"]:
    """Such a world, whose zone and configuration a test may change: they are put back afterwards."""
    yield Names(shared_spare_names)
    shared_spare_names.put_back()


@pytest.fixture
def hasty_names(fresh_names: "Names") -> "Names":
    """Such a world of the test's own, whose service soon gives up waiting."""
    fresh_names.lab.end_service()
    fresh_names.lab.start_service(*with_constants(IMPATIENT))
    return fresh_names


class Names(Log):
    """The world of the relay's tests, and what its log tells since the test began."""

    def __init__(self, made: names_world.World) -> None:
        super().__init__(made.lab)
        self.lab, self.zone, self.configure = made.lab, made.zone, made.configure


@pytest.fixture(scope="session")
def shared_netvm() -> Iterator[qubes_world.World]:
    """The netvm of Qubes OS that tests share."""
    with qubes_world.make() as made:
        yield made


@pytest.fixture
def netvm(shared_netvm: qubes_world.World) -> Iterator[qubes_world.World]:
    """That netvm. What a test changes by the world's own methods is undone after it."""
    yield shared_netvm
    shared_netvm.undo()


@pytest.fixture
def netvm_log(netvm: qubes_world.World) -> Log:
    """Its log from here on."""
    return Log(netvm.lab)


@pytest.fixture
def fresh_netvm() -> Iterator[qubes_world.World]:
    """Such a netvm of the test's own."""
    with qubes_world.make() as made:
        yield made


@pytest.fixture
def arrived(lab: Lab) -> Callable[[str], list[dict[str, Any]]]:
    """What reached the shared world's internet since the test began, by kind: dns, request, broken."""
    before = {kind: len(lab.arrived(kind)) for kind in ("dns", "request", "broken")}
    return lambda kind: lab.arrived(kind)[before[kind] :]


@pytest.fixture(scope="session")
def nginx(lab: Lab) -> None:
    """nginx as files.lab.example: HTTP, TLS and HTTP/2; files of the folder `www`, which PUT writes too."""
    start_nginx(lab)


@pytest.fixture(scope="session")
def explicit_nginx(explicit_lab: Lab) -> None:
    """The same in the world of the explicit proxy."""
    start_nginx(explicit_lab)


def start_nginx(lab: Lab) -> None:
    """Starts it in the lab's internet, and waits until it listens."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    folder = lab.folder / "nginx"
    (folder / "www").mkdir(parents=True)
    certificate, key = lab.authority.certificate(["files.lab.example"])
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, certificate=certificate, key=key, v4=world.FILES4, v6=world.FILES6))
    lab.spawn(lab.network.internet, program, "-c", str(config), "-e", str(folder / "errors"))
    for port in (80, 443):
        assert eventually(lambda port=port: _listens(lab, port)), (folder / "errors").read_text()


def _listens(lab: Lab, port: int) -> bool:
    try:
        with socket_in(lab.network.internet, socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect((world.FILES4, port))
    except OSError:
        return False
    return True


_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    server {{
        listen {v4}:80;
        listen [{v6}]:80;
        listen {v4}:443 ssl http2;
        listen [{v6}]:443 ssl http2;
        server_name files.lab.example;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        root {folder}/www;
        client_max_body_size 0;
        location / {{ dav_methods PUT; }}
        location /small/ {{ dav_methods PUT; client_max_body_size 100k; }}
        location = /hello {{ return 200 "hello over $server_protocol\\n"; }}
    }}
}}
"""
