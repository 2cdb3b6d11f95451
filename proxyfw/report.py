"""What the commands print for people: lines of text from values. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from proxyfw.core.policy import ClientPolicy
from proxyfw.core.profile import Library, Profile, link
from proxyfw.core.target import Target
from proxyfw.core.verdict import Allow, Reason, Verdict
from proxyfw.logview import printable

_IN_WORDS = {
    Reason.DOMAIN: "a profile grants this name",
    Reason.NETWORK: "a profile grants this address; the kernel forwards it",
    Reason.UPSTREAM_DNS: "DNS to the configured resolver",
    Reason.NO_MATCH: "no profile of this client grants this name",
    Reason.NO_NAME: "no name can be read from it, and no profile of this client grants the address",
    Reason.INTERNAL_ADDRESS: "the netvm, other clients and internal ranges are never reached",
}


def client_report(client: ClientPolicy, target: Target, words: str, verdict: Verdict, detail: str) -> list[str]:
    """The answer of `explain`."""
    lines = [f"{words}: {client.name} -> {target}", f"  reason:  {verdict.reason.value} ({_IN_WORDS[verdict.reason]})"]
    if isinstance(verdict, Allow) and verdict.rule:
        lines.append(f"  rule:    {verdict.rule} ({verdict.where})")
    if detail:
        lines.append(f"  detail:  {detail}")
    if words == "observe":
        lines.append("  mode:    observe: it is logged as refused, and let through")
    if words != "allow" and verdict.reason is Reason.NO_MATCH and isinstance(target.host, str):
        port = "" if target.port in (80, 443) else f":{target.port}"
        lines.append(
            f'  to allow it: add "{target.host}{port}" to domains: of a profile of this client, then proxyfw reload'
        )
        if port:
            lines.append("  (for TLS and plain HTTP; other protocols are allowed by address, under networks:)")
    return lines


def status_report(status: Mapping[str, Any], now: float) -> list[str]:
    """The answer of `status`."""
    log = status["log"]
    lines = [
        f"proxyfw {status['version']}, running for {_span(now - status['since'])}, pid {status['pid']}",
        f"configuration: {status['config']}"
        + (f", reloaded {_moment(status['reloaded'])}" if status["reloaded"] else ""),
    ]
    if status["reload_failed"]:
        lines.append("the latest reload was NOT taken; the last good policy is in force:")
        lines += [f"  {problem}" for problem in status["reload_failed"]]
    lines.append(f"resolvers: {', '.join(status['resolvers'])}")
    lines.append(f"log: {log['file']}, {log['written']} rows written since the start, {log['lost']} lost")
    if log["error"]:
        lines.append(f"  the log cannot be written: {log['error']}")
    if log["packets_not_logged"] or log["kernel_overruns"]:
        lines.append(
            f"  refused packets not logged, as there were too many: {log['packets_not_logged']}"
            f" (and {log['kernel_overruns']} overruns of the kernel's buffer)"
        )
    lines.append(f"connections accepted since the start: {status['accepted']}")
    rows = [("client", "mode", "open", "address", "profiles")]
    rows += [
        (c["name"], c["mode"], str(c["connections"]), " ".join(c["addresses"]) or "-", " ".join(c["profiles"]) or "-")
        for c in status["clients"]
    ]
    return lines + _aligned(rows)


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
        lines.append(
            f"  {len(domains)} domain{'s' * (len(domains) != 1)}, {len(networks)} network{'s' * (len(networks) != 1)}"
        )
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


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _moment(when: float) -> str:
    return datetime.fromtimestamp(when).astimezone().isoformat(" ", "seconds")
