"""What the commands print for people: lines of text from values. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from proxyfw.logview import printable


def status_report(status: Mapping[str, Any], now: float) -> list[str]:
    """The answer of `status`."""
    log = status["log"]
    lines = [
        f"proxyfw {status['version']}, running for {span(now - status['since'])}, pid {status['pid']}",
        f"configuration: {status['config']}"
        + (f", reloaded {_moment(status['reloaded'])}" if status["reloaded"] else ""),
    ]
    if status["reload_failed"]:
        lines.append("the latest reload was NOT taken; the last good policy is in force:")
        lines += [f"  {problem}" for problem in status["reload_failed"]]
    lines += [f"note: {note}" for note in status["notes"]]
    lines.append(f"resolvers: {', '.join(status['resolvers'])}")
    if status["explicit"]:
        lines.append(f"explicit proxy: {status['explicit']}")
    lines += _relay_lines(status["relay"])
    lines.append(f"log: {log['file']}, {log['written']} rows written since the start, {log['lost']} lost")
    if log["error"]:
        lines.append(f"  the log cannot be written: {log['error']}")
    if log["packets_not_logged"] or log["kernel_overruns"]:
        lines.append(
            f"  refused packets not logged, as there were too many: {log['packets_not_logged']}"
            f" (and {log['kernel_overruns']} overruns of the kernel's buffer)"
        )
    lines.append(f"connections accepted since the start: {status['accepted']}")
    lines += feed_lines(status["feeds"], status["feeds_on"], now)
    rows = [("client", "mode", "dns", "open", "pins", "look-ups", "rules", "address", "profiles")]
    rows += [
        (
            *(c["name"], c["mode"], c["dns"], *(str(c[key]) for key in ("connections", "pins", "lookups", "rules"))),
            *(" ".join(c["addresses"]) or "-", " ".join(c["profiles"]) or "-"),
        )
        for c in status["clients"]
    ]
    leaving = [f"{c['name']} leaves through {c['upstream_proxy']}" for c in status["clients"] if c["upstream_proxy"]]
    return lines + aligned(rows) + leaving


def _relay_lines(relay: Mapping[str, Any]) -> list[str]:
    lines = [
        f"relay: {relay['queries']} queries: {relay['cached']} answered from the cache, {relay['looked_up']} looked up,"
        f" {relay['refused']} refused"
    ]
    for key, words in (
        ("limited", "queries refused, as their client had too many names looked up"),
        ("dropped", "packets dropped, as their client sent too many"),
        ("failed", "look-ups that no resolver answered"),
        ("unreadable", "messages that were no DNS query"),
        ("not_logged", "refusals and answers not logged, as there were too many"),
    ):
        if relay[key]:
            lines.append(f"  {words}: {relay[key]}")
    if relay["pins_not_kept"]:
        lines.append(f"  pins will not survive a restart: {relay['pins_not_kept']}")
    return lines


def feed_lines(feeds: Sequence[Mapping[str, Any]], on: bool, now: float) -> list[str]:
    """The lists that the running service keeps; nothing where it has none to keep."""
    if not on:
        return ["feeds: off: no list is fetched, and none grants anything"]
    if not feeds:
        return []
    rows = [("feed", "networks", "checked", "next", "profiles", "state")]
    rows += [
        (
            *(feed["source"], str(feed["networks"]), _ago(feed["checked"], now), _in(feed["due"], now)),
            *(" ".join(feed["profiles"]) or "-", _feed_state(feed)),
        )
        for feed in feeds
    ]
    return aligned(rows)


def _feed_state(feed: Mapping[str, Any]) -> str:
    waiting = feed["held_back"]
    accept = f" (its {counted(waiting, 'network')}: proxyfw refresh --accept)" if waiting else ""
    return (feed["error"] or ("good" if feed["checked"] else "not fetched yet")) + accept


def _ago(when: float, now: float) -> str:
    return f"{span(now - when)} ago" if when else "never"


def _in(when: float, now: float) -> str:
    return f"in {span(when - now)}" if when > now else "now"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns, each as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def counted(number: int, word: str) -> str:
    """A number of things: 1 client, 2 clients."""
    return f"{number} {word}{'s' * (number != 1)}"


def span(seconds: float) -> str:
    """A duration in its largest whole unit."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when).astimezone().isoformat(" ", "seconds")
