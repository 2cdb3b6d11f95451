"""Telling systemd how the service is: sd_notify(3), sd_watchdog_enabled(3)."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

_PATIENCE = 1.0  # seconds that systemd may leave its queue full


def notify(text: str) -> None:
    """Sends such as "READY=1" or "WATCHDOG=1"; lines in between. Nothing where systemd did not ask for it, or does not
    take it: what it misses it acts upon itself.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    path = os.fsencode(address)
    if address[0] == "@":  # the abstract namespace, unix(7)
        path = b"\0" + path[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(path)
        sock.send(text.encode())


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Every how many seconds to send "WATCHDOG=1", half of what systemd waits; None where it does not wait for us."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        interval = int(environ.get("WATCHDOG_USEC", "0")) / 2_000_000
    except ValueError:
        return None
    return interval if interval > 0 else None
