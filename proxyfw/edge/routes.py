"""The policy routing that TPROXY needs: packets with our mark are delivered here, whatever their destination."""

import subprocess

TABLE_AND_PRIORITY = 7300
"""The routing table's number and the rule's priority: one number, unused by Qubes and by wg-quick."""


class RoutesError(Exception):
    """`ip` refused."""


def ensure(mark: int, mask: int) -> None:
    """Adds the rule and the local route of both families, where missing. They stay when the service stops.

    Raises RoutesError. IPv6 switched off in the kernel is no error: then there is nothing to route.
    """
    number = str(TABLE_AND_PRIORITY)
    selector = f"{mark:#x}/{mask:#x}"
    for family, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        shown = _ip(family, "rule", "show", "priority", number)
        if shown.returncode and family == "-6":
            continue
        if f"fwmark {selector}" not in shown.stdout:
            _must(_ip(family, "rule", "add", "priority", number, "fwmark", selector, "lookup", number))
        added = _ip(family, "route", "replace", "local", everything, "dev", "lo", "table", number)
        if added.returncode and family == "-6":
            continue
        _must(added)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RoutesError(f"ip {' '.join(arguments)}: {error}") from None


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RoutesError(f"{' '.join(done.args)}: {done.stderr.strip()}")
