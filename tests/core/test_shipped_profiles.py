"""The profiles in `profiles/`: well-formed, no broader than they say, and enough for the real sites and tools."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from publicsuffixlist import PublicSuffixList
from shipped_hosts import ANYONE, GRANTED, ON_PORTS, REFUSED, SHARED, STRANGERS

from proxyfw.core.hostname import normalise
from proxyfw.core.pattern import Form, Index, Pattern, parse_port
from proxyfw.core.problem import Problem
from proxyfw.core.profile import Library, Profile, link, parse_profile

FOLDER = Path(__file__).parents[2] / "profiles"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

ALIASES = {"archlinux": "arch", "qubes-os": "qubes"}

REQUIRED = """
    github gitlab codeberg pypi npm crates go rubygems debian ubuntu fedora arch qubes whonix docker-hub ghcr
    wikipedia google youtube gmail protonmail signal matrix element telegram mozilla vscode jetbrains huggingface
    openai anthropic ntp letsencrypt stackoverflow duckduckgo archive.org fastly github-networks google-networks
    google-cloud-networks aws-networks fastly-networks cloudflare-networks wikipedia-networks microsoft365-networks
"""

# Every port besides the usual ones: why, and the patterns that have it.
PORTS = {
    "22": (
        "git over SSH",
        "github.com gist.github.com gitlab.com codeberg.org salsa.debian.org git.launchpad.net aur.archlinux.org hf.co",
    ),
    "443": (
        "git over SSH where 22 is closed: without an SNI only a written port counts",
        "ssh.github.com altssh.gitlab.com",
    ),
    "123/udp": ("NTP", ".pool.ntp.org .ntp.ubuntu.com ntp-bootstrap.ubuntu.com"),
    "4460": ("keys for NTS", ".ntp.ubuntu.com ntp-bootstrap.ubuntu.com"),
    "11371": ("keys without TLS (hkp)", "keyserver.ubuntu.com"),
    "465": ("sending mail", "smtp.gmail.com"),
    "587": ("sending mail", "smtp.gmail.com"),
    "993": ("reading mail (IMAP)", "imap.gmail.com"),
    "995": ("reading mail (POP)", "pop.gmail.com"),
    "3478": ("calls through a relay (TURN)", "turn.matrix.org"),
    "3478/udp": ("calls through a relay (TURN)", "turn.matrix.org .voip.signal.org"),
    "443/udp": ("calls through a relay: TURN says no name", ".voip.signal.org"),
    "80": ("calls through a relay: TURN says no name", ".voip.signal.org"),
}

# Profiles that fetch lists of addresses: from where, and the ports that they open there.
FEEDS = {
    "telegram": ("core.telegram.org", "80 443 5222"),
    "github-networks": ("api.github.com", "22 80 443"),
    "google-networks": ("www.gstatic.com", "80 443 443/udp"),
    "google-cloud-networks": ("www.gstatic.com", "80 443 443/udp"),
    "aws-networks": ("ip-ranges.amazonaws.com", "80 443 443/udp"),
    "fastly-networks": ("api.fastly.com", "80 443 443/udp"),
    "cloudflare-networks": ("www.cloudflare.com", "80 443 443/udp"),
    "wikipedia-networks": ("wikitech.wikimedia.org", "80 443 443/udp"),
    "microsoft365-networks": (
        "endpoints.office.com",
        "80 443 443/udp 25 587 143 993 995 3478/udp 3479/udp 3480/udp 3481/udp",
    ),
}


def source(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


@cache
def library() -> tuple[Library, dict[str, Profile], list[Problem]]:
    profiles, problems = {}, []
    for name in NAMES:
        profile, found = parse_profile(name, source(name).name, source(name).read_text(encoding="utf-8"))
        problems += found
        if profile is not None:
            profiles[name] = profile
    linked, found = link(profiles)
    return linked, profiles, problems + found


def profile(name: str) -> Profile:
    return library()[1][name]


def patterns(name: str) -> list[Pattern]:
    return [pattern for profile in library()[0].expand(name) for pattern in profile.domains]


@cache
def index(name: str) -> Index:
    return Index(patterns(name))


def host(pattern: Pattern) -> str:
    """As it stands in the file, without the port."""
    return pattern.text.partition(":")[0]


@cache
def registered() -> PublicSuffixList:
    return PublicSuffixList(only_icann=True)


def cases(table: Mapping[str, str]) -> list[object]:
    return [pytest.param(name, host, id=f"{name}: {host}") for name, hosts in table.items() for host in hosts.split()]


every_profile = pytest.mark.parametrize("name", NAMES)
each_written_out = pytest.mark.parametrize("name", [name for name in NAMES if name not in ALIASES])


def test_the_profiles_that_must_be_there_are_there() -> None:
    assert set(REQUIRED.split()) - set(NAMES) == set()


def test_each_profile_of_names_has_a_row_of_real_hosts() -> None:
    assert sorted(GRANTED) == [name for name in NAMES if not name.endswith("-networks")]


def test_all_of_them_parse_and_link_without_an_error_or_a_warning() -> None:
    assert [str(problem) for problem in library()[2]] == []
    assert sorted(library()[1]) == NAMES


def test_only_yaml_files_are_shipped_and_the_names_are_lower_case() -> None:
    assert [
        path.name for path in FOLDER.iterdir() if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*\.yaml", path.name)
    ] == []


@pytest.mark.parametrize(("name", "meant"), ALIASES.items())
def test_an_alias_includes_the_profile_that_it_stands_for_and_has_nothing_of_its_own(name: str, meant: str) -> None:
    assert profile(name).include == (meant,)
    assert (profile(name).domains, profile(name).networks, profile(name).feeds) == ((), (), ())


def test_all_that_only_include_another_are_listed_as_aliases() -> None:
    bare = {name for name in NAMES if not profile(name).domains and not profile(name).feeds}
    assert bare == set(ALIASES)


@every_profile
def test_the_keys_are_the_description_and_what_is_granted(name: str) -> None:
    written: dict[str, Any] = yaml.safe_load(source(name).read_text(encoding="utf-8"))
    assert {"description"} < set(written) <= {"description", "domains", "include", "feeds"}


@every_profile
def test_the_description_is_one_line(name: str) -> None:
    written = yaml.safe_load(source(name).read_text(encoding="utf-8"))["description"]
    assert written == profile(name).description
    assert 20 <= len(written) <= 120


@each_written_out
def test_the_file_says_where_its_list_comes_from(name: str) -> None:
    assert re.match(r"# Source: .*https://", source(name).read_text(encoding="utf-8"))


@every_profile
def test_patterns_are_plain_lower_case_names(name: str) -> None:
    assert [
        each.text for each in profile(name).domains if not re.fullmatch(r"[a-z0-9*.-]+(:[0-9]+(/udp)?)?", each.text)
    ] == []


@every_profile
def test_no_pattern_stands_twice_in_a_profile_and_what_it_includes(name: str) -> None:
    written = [pattern.text for pattern in patterns(name)]
    assert sorted(written) == sorted(set(written))


@every_profile
def test_no_pattern_is_covered_by_another(name: str) -> None:
    covered = []
    for pattern in patterns(name):
        # A written port also counts without an SNI or a Host, so that only another written port covers it.
        others = Index(each for each in patterns(name) if each is not pattern and each.ports == pattern.ports)
        port = pattern.ports[0]
        inside = host(pattern).replace("*", "x") if pattern.form is Form.IN_LABEL else pattern.fixed
        if others.find(normalise(inside), port.transport, port.number):
            covered.append(pattern.text)
    assert covered == []


def test_ports_stand_only_where_the_table_says_why() -> None:
    written: dict[str, set[str]] = {}
    for name in NAMES:
        for pattern in profile(name).domains:
            if pattern.names_port:
                written.setdefault(str(pattern.ports[0]), set()).add(host(pattern))
    assert written == {port: set(names.split()) for port, (_, names) in PORTS.items()}


def test_only_the_listed_profiles_fetch_each_from_its_owner_and_for_these_ports() -> None:
    fetched = {
        (name, urlsplit(feed.source.url).hostname, " ".join(map(str, feed.ports)))
        for name in NAMES
        for feed in profile(name).feeds
    }
    assert fetched == {(name, *what) for name, what in FEEDS.items()}


@every_profile
def test_nothing_is_fetched_for_a_profile_that_includes_others(name: str) -> None:
    assert [each.name for each in library()[0].expand(name) if each.feeds and each.name != name] == []


@pytest.mark.parametrize("name", FEEDS)
def test_a_profile_that_fetches_says_so(name: str) -> None:
    assert "fetch" in profile(name).description


@pytest.mark.parametrize("name", [name for name in FEEDS if name.endswith("-networks")])
def test_a_profile_of_networks_has_nothing_but_its_lists_and_says_what_is_reached(name: str) -> None:
    assert (profile(name).domains, profile(name).include) == ((), ())
    assert re.search(r" by address - every .* reached", profile(name).description)


@every_profile
def test_no_addresses_are_written_into_a_shipped_profile(name: str) -> None:
    assert (profile(name).networks, profile(name).private) == ((), False)


@every_profile
def test_no_public_suffix_under_a_wildcard(name: str) -> None:
    lists = (PublicSuffixList(only_icann=True), PublicSuffixList())
    wide = [each for each in profile(name).domains if each.form is not Form.EXACT]
    assert [each.text for each in wide if not all(known.is_private(each.fixed) for known in lists)] == []


@every_profile
def test_where_strangers_have_hosts_only_the_owners_are_named(name: str) -> None:
    strange = []
    for pattern in profile(name).domains:
        domain = registered().privatesuffix(pattern.fixed)
        assert domain is not None, pattern.text
        below = pattern.fixed.removesuffix(domain).removesuffix(".")
        wide = pattern.form is Form.IN_LABEL or (not below and pattern.form is not Form.EXACT)
        known = any(re.fullmatch(owned, below) for owned in SHARED.get(domain, ()))
        if domain in ANYONE.split() or (domain in SHARED and (wide or not known)):
            strange.append(pattern.text)
    assert strange == []


def test_each_exception_on_a_shared_domain_is_in_use() -> None:
    fixed = {pattern.fixed for name in NAMES for pattern in profile(name).domains}
    unused = [
        (domain, owned)
        for domain, exceptions in SHARED.items()
        for owned in exceptions
        if not any(re.fullmatch(rf"(?:{owned})\.?{re.escape(domain)}", name) for name in fixed)
    ]
    assert unused == []


@every_profile
def test_a_name_with_something_glued_to_either_end_is_refused(name: str) -> None:
    fixed = [pattern.fixed for pattern in profile(name).domains]
    look_alikes = [f"evil{registered().privatesuffix(each)}" for each in fixed]
    look_alikes += [f"{each}.evil.example" for each in fixed]
    assert [fake for fake in look_alikes if index(name).ports_of(normalise(fake))] == []


@every_profile
def test_strangers_on_shared_hosts_are_refused(name: str) -> None:
    assert [host for host in STRANGERS.split() if index(name).ports_of(normalise(host))] == []


@pytest.mark.parametrize(("name", "asked"), cases(GRANTED))
def test_real_hosts_are_granted_on_the_usual_ports(name: str, asked: str) -> None:
    usual = [("tcp", 80), ("tcp", 443), ("udp", 443)]
    others = [("tcp", 21), ("tcp", 25), ("tcp", 8443), ("udp", 53), ("udp", 80)]
    assert [port for port in usual + others if index(name).find(normalise(asked), *port)] == usual


@pytest.mark.parametrize(("name", "asked"), cases(ON_PORTS))
def test_what_needs_another_port_has_it_without_an_sni(name: str, asked: str) -> None:
    name_asked, _, text = asked.partition(":")
    port = parse_port(text)
    by_pin = Index(pattern for pattern in patterns(name) if pattern.names_port)
    assert by_pin.find(normalise(name_asked), port.transport, port.number)


def test_each_written_port_is_needed_by_a_program_in_the_tables() -> None:
    needed = {
        found
        for name, asked in ((name, each) for name, many in ON_PORTS.items() for each in many.split())
        for found in index(name).find_all(normalise(asked.partition(":")[0]))
        if asked.endswith(f":{found.ports[0]}")
    }
    written = {each for name in NAMES for each in profile(name).domains if each.names_port}
    assert sorted(f"{each.profile} {each.text}" for each in written - needed) == []


@pytest.mark.parametrize(("name", "asked"), cases(REFUSED))
def test_look_alikes_and_neighbours_are_refused(name: str, asked: str) -> None:
    for transport, port in (("tcp", 80), ("tcp", 443), ("udp", 443)):
        assert index(name).find(normalise(asked), transport, port) is None
