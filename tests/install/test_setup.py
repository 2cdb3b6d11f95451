"""./setup.sh qubes where it does not install: it says why, and what to do instead. Needs no machine, and no root."""

import os
import subprocess
from pathlib import Path

import pytest

from install.stock import copy_source

ROOT = Path(__file__).parents[2]
NOTHING_INSTALLED = ("dpkg-query", "rpm")
FAILING = ("apt-get", "dnf", "nft", "systemctl", "mount")


class Qube:
    """A checkout, a folder that stands for /, and doubles of the programs that would change the system.

    No package is installed, and none can be: an installation goes no further than that.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self._source, self._programs = folder / "root", folder / "source", folder / "bin"
        copy_source(ROOT, self._source)
        self._programs.mkdir()
        for name in (*NOTHING_INSTALLED, *FAILING):
            self._program(name, "exit 1")
        self._program("id", "echo 0")

    def is_a(self, **values: str) -> None:
        """Makes it a qube, with these values in QubesDB."""
        told = "".join(f'"/{key.replace("_", "-")}") echo {value};;' for key, value in values.items())
        self._program("qubesdb-read", f'case "$1" in {told} *) exit 2;; esac')

    def has(self, *services: str) -> None:
        """Switches services on."""
        for name in services:
            path = self.root / "run/qubes-service" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def setup(self) -> subprocess.CompletedProcess[str]:
        """Runs ./setup.sh qubes."""
        environ = {**os.environ, "PROXYFW_ROOT": str(self.root), "PATH": f"{self._programs}:{os.environ['PATH']}"}
        command = [str(self._source / "setup.sh"), "qubes"]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def _program(self, name: str, text: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def qube(tmp_path: Path) -> Qube:
    return Qube(tmp_path)


def test_outside_qubes_it_points_to_the_other_installation(qube):
    done = qube.setup()

    assert done.returncode == 2
    assert "not a qube of Qubes OS" in done.stderr
    assert "./setup.sh install" in done.stderr
    assert not qube.root.exists()


def test_where_custom_persist_is_on_only_a_template_will_do(qube):
    qube.is_a(qubes_vm_persistence="rw-only", type="AppVM", name="sys-fw")
    qube.has("custom-persist", "qubes-firewall")

    done = qube.setup()

    assert done.returncode == 2
    assert "custom-persist" in done.stderr
    assert "qvm-service sys-fw proxyfw on" in done.stderr
    assert not (qube.root / "rw").exists()


def test_in_a_disposable_netvm_it_warns_that_all_is_lost(qube):
    qube.is_a(qubes_vm_persistence="none", type="DispVM", name="disp1")
    qube.has("qubes-firewall")

    assert "is gone when it is shut down" in qube.setup().stderr


def test_where_qubes_firewall_is_off_it_warns_that_boot_is_open(qube):
    qube.is_a(qubes_vm_persistence="rw-only", type="AppVM", name="sys-fw")
    qube.has("qubes-network")

    assert "qvm-service sys-fw qubes-firewall on" in qube.setup().stderr


def test_in_an_ordinary_netvm_it_warns_of_nothing(qube):
    qube.is_a(qubes_vm_persistence="rw-only", type="AppVM", name="sys-fw")
    qube.has("qubes-firewall", "qubes-network")

    assert "WARNING" not in qube.setup().stderr


def test_where_the_packages_cannot_be_had_nothing_is_changed(qube):
    qube.is_a(qubes_vm_persistence="rw-only", type="AppVM", name="sys-fw")
    qube.has("qubes-firewall", "qubes-network")

    assert qube.setup().returncode != 0
    assert not (qube.root / "rw").exists()
