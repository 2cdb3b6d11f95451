"""The units and scripts, looked at without running them."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUBES = ROOT / "qubes"
UNITS = QUBES / "systemd"
SCRIPTS = [*sorted(QUBES.glob("proxyfw-*")), QUBES / "uninstall.sh", ROOT / "setup.sh"]
PARTS = [QUBES / "paths.sh", QUBES / "install.sh"]  # read by those


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(UNITS / name)
    return parser


def test_systemd_finds_no_fault_in_the_units():
    done = analyze("verify", *map(str, UNITS.glob("*.service")))

    faults = [line for line in done.stderr.splitlines() if "proxyfw" in line]
    assert [fault for fault in faults if "/usr/lib/proxyfw/" not in fault] == []  # it is not installed here


def test_the_service_is_exposed_to_at_most_2_5_of_10():
    done = analyze("security", "--offline=true", "--threshold=25", "--no-pager", str(UNITS / "proxyfw.service"))

    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_service_has_two_capabilities():
    service = unit("proxyfw.service")["Service"]

    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == "CAP_NET_ADMIN CAP_NET_BIND_SERVICE"
    assert service["User"] == "proxyfw"


def test_forwarding_requires_the_fail_safe():
    failsafe = unit("proxyfw-failsafe.service")

    assert failsafe["Install"]["RequiredBy"] == "qubes-network.service"
    assert {"qubes-network.service", "network-pre.target"} <= set(failsafe["Unit"]["Before"].split())


@pytest.mark.parametrize("script", [*SCRIPTS, *PARTS], ids=lambda path: path.name)
def test_scripts_are_posix_shell(script: Path):
    subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_warn_of(script: Path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    command = ["shellcheck", "--shell=sh", "--external-sources", "--severity=warning", str(script.relative_to(ROOT))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
