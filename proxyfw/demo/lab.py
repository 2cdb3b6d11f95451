"""The whole demo world: the network, its internet, and the real service in the netvm."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from proxyfw.demo.authority import Authority
from proxyfw.demo.internet import Plan, Site
from proxyfw.demo.network import RESOLVER, Network

_PATIENCE = 20.0  # seconds for a process to end, or for a command in a client
_numbers = count()


class LabError(Exception):
    """Something of the demo world did not start; the message says what, with its words."""


class Lab:
    """Starts everything, runs commands in clients, and takes everything away again.

    `clients`: name to its part of proxyfw.yaml. `profiles`: further profiles, name to text.
    `sites`: names to addresses, each with a web server. `names`: further names that resolve, to any address.
    `addresses`: further ones of the internet, where nobody listens. `unlisted`: clients that are attached, and not in
    the configuration.
    """

    def __init__(
        self,
        clients: dict[str, dict[str, Any]],
        sites: dict[tuple[str, ...], tuple[str, ...]],
        profiles: dict[str, str] | None = None,
        names: dict[str, tuple[str, ...]] | None = None,
        addresses: Sequence[str] = (),
        unlisted: Sequence[str] = (),
    ) -> None:
        label = f"pfw{os.getpid()}-{next(_numbers)}"
        everywhere = [*addresses, *(address for found in sites.values() for address in found)]
        self.network = Network(label, (*clients, *unlisted), everywhere)
        self._clients, self._sites, self._names = clients, sites, names or {}
        self._profiles = profiles or {}
        self._processes: list[subprocess.Popen[str]] = []
        self.service: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Makes the network, starts its internet and the service. Raises LabError or NetworkError."""
        self._folder = tempfile.TemporaryDirectory(prefix="proxyfw-lab-")
        self.folder = Path(self._folder.name)
        self.authority = Authority(self.folder / "certificates")
        self.config = self.folder / "proxyfw.yaml"
        self.events = self.folder / "events"
        try:
            self.network.start()
            self.authority.start()
            self._start_internet()
            (self.folder / "profiles").mkdir()
            for name, text in self._profiles.items():
                self.write_profile(name, text)
            self.write_config(self._clients)
            self.start_service()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every process that was started here, and takes the network and the files away."""
        for process in reversed(self._processes):
            _end(process)
        self._processes.clear()
        self.network.stop()
        self._folder.cleanup()

    def write_config(self, clients: dict[str, dict[str, Any]], **settings: Any) -> None:
        """Writes proxyfw.yaml for these clients (JSON is YAML). Who gives no `address` has its own."""
        known = self.network.clients
        config = {
            "clients": {
                name: {"address": [known[name].address4, known[name].address6], **part}
                for name, part in clients.items()
            },
            "dns": {"upstream": [RESOLVER]},
            "state_dir": str(self.folder / "state"),
            **settings,
        }
        self.config.write_text(json.dumps(config, indent=2))

    def write_profile(self, name: str, text: str) -> None:
        """Writes a profile beside the configuration."""
        (self.folder / "profiles" / f"{name}.yaml").write_text(text)

    def start_service(self, *before: str) -> None:
        """Starts the installed proxyfw in the netvm, and waits until it is ready. Raises LabError.

        `before`: what starts it, such as `prlimit` with its options.
        """
        command = self.network.command(self.network.netvm, *before, *self.proxyfw("run", "-c", str(self.config)))
        self.service = self._spawn(command, stderr=subprocess.PIPE)
        assert self.service.stderr is not None
        said = []
        for line in self.service.stderr:
            said.append(line)
            if "ready:" in line:
                return
        raise LabError(f"proxyfw did not start:\n{''.join(said)}")

    def end_service(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal to the service and waits for its end; its exit status."""
        assert self.service is not None
        process, self.service = self.service, None
        self._processes.remove(process)
        return _end(process, number)

    def proxyfw(self, *arguments: str) -> list[str]:
        """The command line of the installed proxyfw."""
        return [str(Path(sys.executable).parent / "proxyfw"), *arguments]

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a proxyfw command on this configuration, as its user would."""
        return subprocess.run(
            self.proxyfw(*arguments, "-c", str(self.config)),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """What `proxyfw log --json` shows."""
        return [json.loads(line) for line in self.ask("log", "--json", *arguments).stdout.splitlines()]

    def inside(
        self, client: str, *command: str, text: bool = True, timeout: float = _PATIENCE
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a command in a client."""
        full = self.network.command(self.network.namespace(client), *command)
        return subprocess.run(full, capture_output=True, text=text, check=False, timeout=timeout)

    def curl(self, client: str, *arguments: str) -> subprocess.CompletedProcess[Any]:
        """A real curl in a client, trusting the demo's authority."""
        ca = str(self.authority.ca)
        return self.inside(client, "curl", "-sS", "--cacert", ca, "--max-time", "15", *arguments)

    def arrived(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind (dns, request, broken) that reached the internet so far."""
        whole, _, _ = self.events.read_text().rpartition("\n")  # the last line may still be under way
        events = [json.loads(line) for line in whole.splitlines()]
        return [event for event in events if event["kind"] == kind]

    def spawn(self, namespace: str, *command: str) -> subprocess.Popen[str]:
        """Starts a process in a namespace; it is ended with the lab."""
        return self._spawn(self.network.command(namespace, *command))

    def end(self, process: subprocess.Popen[str]) -> None:
        """Ends a process of `spawn` before the lab."""
        self._processes.remove(process)
        _end(process)

    def _start_internet(self) -> None:
        sites = []
        for names, addresses in self._sites.items():
            certificate, key = self.authority.certificate(names)
            sites.append(Site(names, addresses, str(certificate), str(key)))
        plan = self.folder / "plan.json"
        Plan(RESOLVER, tuple(sites), self._names).write(plan)
        module = [sys.executable, "-m", "proxyfw.demo.internet", str(plan), str(self.events)]
        process = self._spawn(self.network.command(self.network.internet, *module), stderr=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            assert process.stderr is not None
            raise LabError(f"the demo's internet did not start:\n{process.stderr.read()}")

    def _spawn(self, command: Sequence[str], stderr: int | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
        self._processes.append(process)
        return process


def _end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return process.returncode
