"""The engine's own world, for the whole session."""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.conftest import arrived, log  # noqa: F401 - fixtures, which take this world's `lab`

from mitm.world import MitmLab, Tunnel

_MISSING = importlib.util.find_spec("mitmproxy") is None and not os.environ.get("CI")

if not _MISSING:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what mitmproxy calls when it is loaded
        import mitmproxy.addons  # noqa: F401


class _Module(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        yield _Skipped.from_parent(self, name="mitmproxy")


class _Skipped(pytest.Item):
    def runtest(self) -> None:
        pytest.skip("mitmproxy is not installed; ./setup.sh test installs it")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Without mitmproxy, each module is one test that is skipped and says why."""
    return _Module.from_parent(parent, path=module_path) if _MISSING else None


@pytest.fixture(scope="session")
def lab() -> Iterator[MitmLab]:
    """The lab's world, with the mitmproxy engine in the netvm."""
    if os.geteuid() != 0:
        pytest.skip("the lab makes network namespaces: run it as root")
    made = MitmLab()
    made.start()
    try:
        yield made
        faults = made.faults()
    finally:
        made.stop()
    assert not faults


@pytest.fixture(scope="session")
def tunnel(lab: MitmLab) -> Tunnel:
    """The phone's WireGuard tunnel to the engine."""
    made = Tunnel(lab)
    why = made.start()
    if why:
        pytest.skip(why)
    return made
