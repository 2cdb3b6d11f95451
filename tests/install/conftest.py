"""The machines of the installation tests. A boot takes half a second, an installation five."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from install import stock
from install.machine import Machine, MachineError, Memory, copy, reason_not_to
from install.netvm import APP, OTHER, Netvm, configure

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    """Where the machines' files are, with the layer `stock`; skips where what they need is not there."""
    if reason := reason_not_to():
        pytest.skip(reason)
    wheels = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    lock = ["--only-binary", ":all:", "-r", str(_ROOT / "requirements.lock"), "-d", str(wheels)]
    got = subprocess.run([*command, *lock], capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"the Python packages to install cannot be had: {got.stderr.strip()[-300:]}")
    try:
        made = Memory(tmp_path_factory.mktemp("machines"))
    except MachineError as error:
        pytest.skip(str(error))
    try:
        stock.build(made.outside("stock"), _ROOT, wheels, _ROOT / "tests/doubles/qubesdb")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def untouched(memory: Memory) -> Iterator[Netvm]:
    """A stock netvm in which nothing is ever installed: the first one that boots, if one can."""
    netvm = Netvm(Machine(memory, "untouched", ["stock"]), APP)
    try:
        netvm.start()
    except MachineError as error:
        pytest.skip(f"systemd cannot be booted here: {error}")
    yield netvm
    netvm.stop()


class Boot:
    """Boots machines, and switches them off in the end."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._running = ExitStack()

    def __call__(
        self,
        name: str,
        rw: Path | None = None,
        services: tuple[str, ...] = stock.NETVM,
        layers: tuple[str, ...] = (),
        values: Mapping[str, str] = APP,
        prepare: Callable[[Path], None] = lambda _: None,
    ) -> Netvm:
        """`rw` is what has lasted of a former machine; `layers` are above `stock`; `prepare(upper)` changes files
        before the boot.
        """
        machine = Machine(self._memory, name, [*layers, "stock"])
        netvm = Netvm(machine, values, services)
        if rw is not None:
            copy(rw, machine.upper / "rw")
        prepare(machine.upper)
        self._running.callback(netvm.stop)
        netvm.start()
        return netvm

    def stop(self) -> None:
        """Switches all of them off."""
        self._running.close()


@pytest.fixture(scope="module")
def boot(memory: Memory, untouched: Netvm) -> Iterator[Boot]:
    """Machines that run until the tests of the file are done."""
    boot = Boot(memory)
    yield boot
    boot.stop()


@pytest.fixture(scope="session")
def fresh(memory: Memory, untouched: Netvm) -> Iterator[Netvm]:
    """A stock netvm in which ./setup.sh qubes was just run; `told` is what it said."""
    boot = Boot(memory)
    netvm = boot("fresh")
    assert netvm.reaches(OTHER) == "hello"  # qubes-firewall lets this client reach everything
    netvm.told = netvm.setup("qubes")
    yield netvm
    boot.stop()


@pytest.fixture(scope="session")
def rw(fresh: Netvm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that lasts of it, with a client in the configuration."""
    kept = tmp_path_factory.mktemp("kept") / "rw"
    copy(fresh.machine.upper / "rw", kept)
    configure(kept)
    return kept
