"""What the commands print for people: lines of text from values. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from proxyfw.core.profile import Library, Profile, link
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
    rows = [("client", "mode", "dns", "open", "pins", "look-ups", "rules", "address", "profiles")]
    rows += [
        (
            *(c["name"], c["mode"], c["dns"], *(str(c[key]) for key in ("connections", "pins", "lookups", "rules"))),
            *(" ".join(c["addresses"]) or "-", " ".join(c["profiles"]) or "-"),
        )
        for c in status["clients"]
    ]
    return lines + _aligned(rows)


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


def profile_table(profiles: Iterable[Profile]) -> list[str]:
    """The list of profiles."""
    return _aligned([(profile.name, profile.description) for profile in profiles])


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What one profile grants, with what it includes."""

    profile: Profile
    members: tuple[Profile, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.profile.name,
            "description": self.profile.description,
            "includes": [member.name for member in self.members[1:]],
            "domains": [{"pattern": p.text, "profile": p.profile, "where": str(p.where)} for p in self._domains()],
            "networks": [{"network": g.text, "profile": g.profile, "where": str(g.where)} for g in self._networks()],
        }

    def as_text(self) -> list[str]:
        """For people."""
        domains, networks = self._domains(), self._networks()
        lines = [f"{self.profile.name}: {self.profile.description}".rstrip(": "), f"  file: {self.profile.where.file}"]
        if len(self.members) > 1:
            lines.append(f"  includes: {', '.join(member.name for member in self.members[1:])}")
        if any(member.private for member in self.members):
            lines.append("  private: its names may lead to private addresses")
        lines.append(f"  {counted(len(domains), 'domain')}, {counted(len(networks), 'network')}")
        for grant in (*domains, *networks):
            origin = f"   (from {grant.profile})" if grant.profile != self.profile.name else ""
            lines.append(f"    {grant.text}{origin}")
        return lines

    def _domains(self) -> list[Any]:
        return [pattern for member in self.members for pattern in member.domains]

    def _networks(self) -> list[Any]:
        return [grant for member in self.members for grant in member.networks]


def profile_report(name: str, profiles: Mapping[str, Profile], library: Library | None) -> ProfileReport:
    """What `profiles NAME` tells."""
    return ProfileReport(profiles[name], (library or link(profiles)[0]).expand(name))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
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
