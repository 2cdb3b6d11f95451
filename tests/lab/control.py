"""Asks a running service over its control socket, as the commands do: it answers before one of them has started."""

from typing import Any

from proxyfw.demo.lab import Lab
from proxyfw.edge import control
from proxyfw.statefiles import CONTROL_SOCKET


def ask(lab: Lab, command: str) -> dict[str, Any]:
    """What the service answers; `proxyfw status` and the others show it."""
    return control.ask(lab.folder / "state" / CONTROL_SOCKET, command)


def reload(lab: Lab) -> None:
    """Puts what the files say in force."""
    done = ask(lab, "reload")
    assert done["ok"], done


def status(lab: Lab) -> dict[str, Any]:
    """What `proxyfw status --json` shows."""
    return ask(lab, "status")
