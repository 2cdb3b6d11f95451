"""What `profiles` tells: the list, what one grants, and which have a word or grant a name. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from proxyfw.core.config import parse_address
from proxyfw.core.feed import Feed
from proxyfw.core.hostname import Hostname, HostnameError, normalise
from proxyfw.core.pattern import Index, Pattern
from proxyfw.core.profile import Library, NetworkGrant, Profile, Temporary
from proxyfw.report import aligned, counted, span

_SHOWN = 4  # domains with a word

Profiles = Mapping[str, Profile]


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """What one profile grants, with what it includes, as the files say; `now` in epoch seconds."""

    profile: Profile
    members: tuple[Profile, ...]
    now: float

    @property
    def domains(self) -> list[Pattern]:
        """Those of all members."""
        return [pattern for member in self.members for pattern in member.domains]

    @property
    def networks(self) -> list[NetworkGrant]:
        """Those of all members."""
        return [grant for member in self.members for grant in member.networks]

    @property
    def feeds(self) -> list[Feed]:
        """Those of all members."""
        return [feed for member in self.members for feed in member.feeds]

    @property
    def temporary(self) -> list[Temporary]:
        """What all members grant for a while, and still do."""
        return [entry for member in self.members for entry in member.temporary if entry.until > self.now]

    def counts(self) -> dict[str, int]:
        """How much it grants."""
        return {kind: len(getattr(self, kind)) for kind in ("domains", "networks", "feeds", "temporary")}

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.profile.name,
            "description": self.profile.description,
            "includes": [member.name for member in self.members[1:]],
            "domains": [{"pattern": p.text, "profile": p.profile, "where": str(p.where)} for p in self.domains],
            "networks": [{"network": g.text, "profile": g.profile, "where": str(g.where)} for g in self.networks],
            "feeds": [_feed_as_json(feed) for feed in self.feeds],
            "temporary": [
                {
                    "grant": entry.grant.text,
                    "until": datetime.fromtimestamp(entry.until, UTC).isoformat(),
                    "seconds": round(entry.until - self.now),
                    "profile": entry.grant.profile,
                    "where": str(entry.grant.where),
                }
                for entry in self.temporary
            ],
        }

    def as_text(self) -> list[str]:
        """For people."""
        lines = [f"{self.profile.name}: {self.profile.description}".rstrip(": "), f"  file: {self.profile.where.file}"]
        if len(self.members) > 1:
            lines.append(f"  includes: {', '.join(member.name for member in self.members[1:])}")
        if any(member.private for member in self.members):
            lines.append("  private: its names may lead to private addresses")
        found = [counted(len(kind), word) for kind, word in ((self.domains, "domain"), (self.networks, "network"))]
        found += [counted(len(self.feeds), "feed")] if self.feeds else []
        found += [f"{len(self.temporary)} for a while"] if self.temporary else []
        lines.append(f"  {', '.join(found)}")
        lines += [self._line(pattern.text, pattern.profile) for pattern in self.domains]
        lines += [self._line(grant.text, grant.profile) for grant in self.networks]
        lines += [self._line(_feed_in_words(feed), feed.profile) for feed in self.feeds]
        for entry in self.temporary:
            left = f"{entry.grant.text}   (for another {span(entry.until - self.now)})"
            lines.append(self._line(left, entry.grant.profile))
        return lines

    def _line(self, text: str, profile: str) -> str:
        return f"    {text}" + (f"   (from {profile})" if profile != self.profile.name else "")


def _feed_in_words(feed: Feed) -> str:
    how = [f"every {span(feed.every)}"]
    if feed.source.format is not None:
        how.insert(0, feed.source.format.value)
    if feed.source.select:
        how.insert(1, f"select {', '.join(feed.source.select)}")
    how.append(f"ports {', '.join(map(str, feed.ports))}" if feed.ports else "every port")
    return f"{feed.source.url or feed.source} ({'; '.join(how)})"


def _feed_as_json(feed: Feed) -> dict[str, Any]:
    return {
        "url": feed.source.url,
        "format": feed.source.format,
        "select": list(feed.source.select),
        "python": feed.source.python,
        "ports": [str(port) for port in feed.ports],
        "every": feed.every,
        "profile": feed.profile,
        "where": str(feed.where),
    }


def profile_report(name: str, profiles: Profiles, now: float) -> ProfileReport:
    """What `profiles NAME` tells."""
    return ProfileReport(profiles[name], Library(profiles).expand(name), now)


def profile_table(profiles: Profiles, now: float) -> list[str]:
    """The list of profiles; each counted with what it includes."""
    rows = [("profile", "domains", "networks", "feeds", "description")]
    for name, profile in profiles.items():
        counts = profile_report(name, profiles, now).counts()
        numbers = (str(counts[kind] or "-") for kind in ("domains", "networks", "feeds"))
        rows.append((name, *numbers, profile.description))  # type: ignore[arg-type]
    return aligned(rows) if profiles else []


def profile_list(profiles: Profiles, now: float) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": name,
            "description": profile.description,
            "file": profile.where.file,
            **profile_report(name, profiles, now).counts(),
        }
        for name, profile in profiles.items()
    ]


@dataclass(frozen=True, slots=True)
class Match:
    """A profile that was searched for. `grants`: what of it grants the name or address, or has the word in it."""

    profile: Profile
    grants: tuple[Pattern | NetworkGrant, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What `profiles WORD` tells: who grants such a name or address, and who else has the word."""

    word: str
    granting: tuple[Match, ...]
    having: tuple[Match, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "word": self.word,
            "granting": [_match_as_json(match) for match in self.granting],
            "having": [_match_as_json(match) for match in self.having],
        }

    def as_text(self) -> list[str]:
        """For people."""
        lines = []
        if self.granting:
            lines.append(f"{self.word} is granted by")
            rows = [
                (f"  {match.profile.name}", f"{grant.text}{_from(grant, match.profile)}", str(grant.where))
                for match in self.granting
                for grant in match.grants
            ]
            lines += aligned(rows)
        if self.having:
            lines.append(f'"{self.word}" is in')
            rows = [(f"  {m.profile.name}", m.profile.description, _some(m.grants)) for m in self.having]
            lines += aligned(rows)
        return lines


def _match_as_json(match: Match) -> dict[str, Any]:
    return {
        "name": match.profile.name,
        "description": match.profile.description,
        "grants": [{"text": g.text, "profile": g.profile, "where": str(g.where)} for g in match.grants],
    }


def _from(grant: Pattern | NetworkGrant, profile: Profile) -> str:
    return f" (from {grant.profile})" if grant.profile != profile.name else ""


def _some(grants: tuple[Pattern | NetworkGrant, ...]) -> str:
    return ", ".join(grant.text for grant in grants[:_SHOWN]) + (", ..." if len(grants) > _SHOWN else "")


def find(word: str, profiles: Profiles, now: float) -> Found | None:
    """What has this word, in its name, its description or its domains, or grants this host name or address; None:
    nothing does.
    """
    granting = []
    for name, profile in profiles.items():
        grants = tuple(_granting(word, profile_report(name, profiles, now)))
        granting += [Match(profile, grants)] if grants else []
    told = {match.profile.name for match in granting}
    having = [
        match
        for profile in profiles.values()
        if word and profile.name not in told and (match := _having(word.casefold(), profile))
    ]
    return Found(word, tuple(granting), tuple(having)) if granting or having else None


def _granting(word: str, report: ProfileReport) -> Iterable[Pattern | NetworkGrant]:
    live = [entry.grant for entry in report.temporary]
    address = parse_address(word)
    if address is not None:
        networks = [*report.networks, *(each for each in live if isinstance(each, NetworkGrant))]
        return [grant for grant in networks if address in grant.network]
    name = _host(word)
    if name is None:
        return []
    patterns = [*report.domains, *(each for each in live if isinstance(each, Pattern))]
    return dict.fromkeys(Index(patterns).find_all(name))


def _host(word: str) -> Hostname | None:
    try:
        return normalise(word) if "." in word else None
    except HostnameError:
        return None


def _having(word: str, profile: Profile) -> Match | None:
    """The profile, with those of its own domains that have the word."""
    domains = tuple(pattern for pattern in profile.domains if word in pattern.text.casefold())
    known = f"{profile.name}\n{profile.description}".casefold()
    return Match(profile, domains) if domains or word in known else None
