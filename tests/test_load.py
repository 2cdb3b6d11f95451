"""From whole folders to a policy: what replaces what, and every mistake with its file and line."""

import math
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxyfw import load as module
from proxyfw.core.hostname import Hostname
from proxyfw.core.netvm import World
from proxyfw.core.policy import Flow, NameSource, Protocol
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict
from proxyfw.edge import files
from proxyfw.load import Loaded, load, load_profiles

CONFIG = """\
clients:
  work: {profiles: [github, mine], address: 10.137.0.11}
dns: {upstream: [10.139.1.1]}
"""
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
MINE = "domains: [mine.example]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration that is right, with one profile beside it."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "proxyfw.yaml").write_text(CONFIG)
    (tmp_path / "profiles" / "mine.yaml").write_text(MINE)
    return tmp_path


def loaded(folder: Path) -> Loaded:
    return load(folder / "proxyfw.yaml")


def verdict(found: Loaded, name: str) -> Verdict:
    assert found.policy is not None, found.problems
    return found.policy.decide(Flow("work", Protocol.TLS, None, 443, Hostname(name), NameSource.SNI))


def problems(folder: Path) -> list[str]:
    """The problems of a folder whose policy is refused, with the folder's own path left out."""
    found = loaded(folder)
    assert found.policy is None
    return [str(problem).replace(f"{folder}/", "") for problem in found.problems]


def test_a_good_folder(folder: Path) -> None:
    found = loaded(folder)
    assert found.problems == []
    assert found.config is not None
    assert found.path == folder / "proxyfw.yaml"
    assert verdict(found, "mine.example") == Allow(
        Reason.DOMAIN, "mine: mine.example", f"{folder}/profiles/mine.yaml:1", by_name=True
    )
    assert isinstance(verdict(found, "github.com"), Allow)
    assert verdict(found, "evil.example") == Deny(Reason.NO_MATCH)


def test_a_users_profile_replaces_the_shipped_one_of_its_name(folder: Path) -> None:
    (folder / "profiles" / "github.yaml").write_text("domains: [only.example]\n")
    found = loaded(folder)
    assert verdict(found, "only.example") == Allow(
        Reason.DOMAIN, "github: only.example", f"{folder}/profiles/github.yaml:1", by_name=True
    )
    assert verdict(found, "github.com") == Deny(Reason.NO_MATCH)


def test_a_folder_that_the_configuration_names_replaces_the_one_beside_it(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "mine.yaml").write_text("domains: [other.example]\n")
    (folder / "proxyfw.yaml").write_text(CONFIG + f"profiles: [{folder}/more]\n")
    found = loaded(folder)
    assert isinstance(verdict(found, "other.example"), Allow)
    assert verdict(found, "mine.example") == Deny(Reason.NO_MATCH)


def test_a_broken_profile_of_the_user_is_not_replaced_by_the_shipped_one(folder: Path) -> None:
    (folder / "profiles" / "github.yaml").write_text("domain: [github.com]\n")
    found = loaded(folder)
    assert found.policy is None
    assert "github" not in found.profiles


def test_no_folder_beside_the_configuration_is_needed(tmp_path: Path) -> None:
    (tmp_path / "proxyfw.yaml").write_text(CONFIG.replace(", mine", ""))
    found = loaded(tmp_path)
    assert found.problems == []
    assert isinstance(verdict(found, "github.com"), Allow)


def test_a_warning_does_not_refuse_the_policy(folder: Path) -> None:
    (folder / "profiles" / "mine.yaml").write_text('domains: ["*.mine.example"]\n')
    found = loaded(folder)
    assert [(problem.warning, problem.where.line) for problem in found.problems] == [(True, 1)]
    assert isinstance(verdict(found, "a.mine.example"), Allow)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        pytest.param(
            "profiles/mine.yaml",
            "description: mine\ndomains:\n  - good.example\n  - 192.0.2.1\n",
            'profiles/mine.yaml:4: error: "192.0.2.1": an address, not a name; write it under networks:',
            id="a profile with an address among its domains",
        ),
        pytest.param(
            "profiles/mine.yaml",
            "domains: [mine.example]\ninclude:\n  - githup\n",
            'profiles/mine.yaml:3: error: profile "mine" includes "githup", which does not exist; write "github"',
            id="a profile that includes one which does not exist",
        ),
        pytest.param(
            "profiles/my own.yaml",
            MINE,
            'profiles/my own.yaml: error: "my own" cannot be the name of a profile; '
            "rename the file: letters, digits, -, _ and . (a letter or digit first), then .yaml",
            id="a profile whose file name is no profile's",
        ),
        pytest.param(
            "profiles/other.yaml",
            "a: b\n  c\n: - [",
            "profiles/other.yaml:",
            id="a profile that is not YAML",
        ),
        pytest.param(
            "proxyfw.yaml",
            CONFIG + "clint: {}\n",
            'proxyfw.yaml:4: error: unknown key "clint"',
            id="a wrong key in the configuration",
        ),
        pytest.param(
            "proxyfw.yaml",
            CONFIG.replace("github", "githup"),
            'proxyfw.yaml:2: error: client "work": no profile is named "githup"; write "github"',
            id="a client's profile that does not exist",
        ),
    ],
)
def test_a_mistake_refuses_the_policy_and_says_where(folder: Path, file: str, text: str, problem: str) -> None:
    (folder / file).write_text(text)
    assert any(found.startswith(problem) for found in problems(folder)), problems(folder)


def test_every_mistake_is_named_in_one_run(folder: Path) -> None:
    (folder / "profiles" / "one.yaml").write_text("domains: ['*']\n")
    (folder / "profiles" / "two.yaml").write_text("\nnetworks: [x.example]\n")
    (folder / "proxyfw.yaml").write_text(CONFIG + "unlisted: maybe\n")
    places = [line.partition(": ")[0] for line in problems(folder)]
    assert places == ["proxyfw.yaml:4", "profiles/one.yaml:1", "profiles/two.yaml:2"]


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert problems(tmp_path) == [
        "proxyfw.yaml: error: No such file or directory; "
        "write one (see `proxyfw check --help`), or give another with -c FILE"
    ]


def test_a_configuration_that_is_not_utf_8(folder: Path) -> None:
    (folder / "proxyfw.yaml").write_bytes(b"clients:\n  b\xfccher: [github]\n")
    assert problems(folder) == ["proxyfw.yaml:2: error: this line is not UTF-8"]


def test_a_profile_that_is_not_utf_8(folder: Path) -> None:
    (folder / "profiles" / "other.yaml").write_bytes(b"# a\n# b\n# \xe4\n")
    assert problems(folder) == ["profiles/other.yaml:3: error: this line is not UTF-8"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("absent", "No such file or directory", id="that is not there"),
        pytest.param("proxyfw.yaml", "Not a directory", id="that is a file"),
    ],
)
def test_a_folder_of_profiles(folder: Path, name: str, why: str) -> None:
    (folder / "proxyfw.yaml").write_text(CONFIG + f"profiles: [{folder}/{name}]\n")
    assert problems(folder) == [f"{name}: error: the folder of profiles cannot be read: {why}"]


def test_a_folder_in_place_of_a_profile(folder: Path) -> None:
    (folder / "profiles" / "other.yaml").mkdir()
    assert problems(folder) == ["profiles/other.yaml: error: this is not a file"]


def test_the_resolvers_of_the_system_are_used_where_the_configuration_names_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    monkeypatch.setattr(files, "RESOLV_CONF", folder / "resolv.conf")
    (folder / "proxyfw.yaml").write_text(CONFIG.replace("dns:", "# dns:"))
    found = loaded(folder)
    assert found.policy is not None
    assert found.policy.upstream == ((ip_address("192.0.2.53"), 53),)


def test_without_any_resolver_there_is_no_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RESOLV_CONF", folder / "absent")
    (folder / "proxyfw.yaml").write_text(CONFIG.replace("dns:", "# dns:"))
    assert problems(folder) == [
        "proxyfw.yaml: error: no resolver is known: /etc/resolv.conf names none; write dns: {upstream: [10.139.1.1]}"
    ]


def test_a_broken_profile_that_is_used_is_one_error_not_two(folder: Path) -> None:
    (folder / "profiles" / "mine.yaml").write_text('domains: ["*"]\n')
    (folder / "profiles" / "other.yaml").write_text("description: x\ndomains: [a.example]\ninclude: [mine]\n")
    (folder / "proxyfw.yaml").write_text(CONFIG.replace("github", "mine"))
    found = problems(folder)
    assert len(found) == 1
    assert found[0].startswith("profiles/mine.yaml:1: error: ")


def test_the_shipped_profiles_alone_have_no_problem() -> None:
    problems_of_ours: list[object] = []
    found, broken = load_profiles([files.shipped("profiles")], problems_of_ours)  # type: ignore[arg-type]
    assert problems_of_ours == []
    assert broken == set()
    assert "github" in found


def test_the_default_configuration_is_the_first_that_exists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent, there, last = folder / "absent.yaml", folder / "proxyfw.yaml", folder / "last.yaml"
    monkeypatch.setattr(module, "DEFAULTS", (absent, there, last))
    assert module.default_config() == there
    monkeypatch.setattr(module, "DEFAULTS", (absent, last))
    assert module.default_config() == last


def test_a_clients_file_beside_the_configuration_adds_its_clients(folder: Path) -> None:
    config = folder / "proxyfw.yaml"
    config.write_text(config.read_text() + "clients_file: clients\n")
    assert problems(folder)[0].startswith("clients: error: No such file or directory; write one line for each qube")
    (folder / "clients").write_text("programming github pypi\n")
    found = loaded(folder)
    assert found.config is not None
    assert found.config.clients["programming"].profiles == ("github", "pypi")
    assert [str(problem).partition(": ")[0] for problem in found.problems] == [f"{folder}/clients:1"]  # no address
    (folder / "clients").write_text("\nprogramming githib\n")
    assert problems(folder)[0].startswith('clients:2: error: client "programming": no profile is named "githib"')


def allow(folder: Path, text: str, client: str = "work") -> None:
    (folder / "allowed").mkdir(exist_ok=True)
    (folder / "allowed" / f"{client}.yaml").write_text(text)


def test_what_was_allowed_to_a_client_is_its_own_alone(folder: Path) -> None:
    (folder / "proxyfw.yaml").write_text(
        CONFIG.replace("dns:", "  study: {profiles: [mine], address: 10.137.0.12}\ndns:")
    )
    allow(folder, "domains: [own.example]\n")
    found = loaded(folder)
    assert found.policy is not None
    assert found.policy.clients["work"].profiles == ("github", "mine", "allowed/work")
    assert found.policy.clients["study"].profiles == ("mine",)
    assert verdict(found, "own.example") == Allow(
        Reason.DOMAIN, "allowed/work: own.example", f"{folder}/allowed/work.yaml:1", by_name=True
    )


def test_a_mistake_in_what_was_allowed(folder: Path) -> None:
    allow(folder, "domains: [x y]\n")
    allow(folder, "domains: [own.example]\n", client="not a qube")
    allow(folder, "domains: [own.example]\n", client="10.137.0.12")  # of a client that is known by its address
    assert problems(folder) == [
        'allowed/not a qube.yaml: error: "not a qube" is not the name of a qube; '
        "write a letter, then letters, digits, -, _ and ., at most 31 characters in all",
        'allowed/work.yaml:1: error: "x y": only letters, digits, hyphens, underscores and dots may be in a name; '
        "write a name such as www.example.com; addresses go under networks:",
    ]


def test_a_grant_for_a_while_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: NOON - 1)
    allow(
        folder,
        "temporary:\n"
        '- {grant: own.example, until: "2026-01-31T12:00:00Z"}\n'
        '- {grant: later.example, until: "2026-01-31T12:00:10Z"}\n'
        '- {grant: over.example, until: "2026-01-31T11:00:00Z"}\n',
    )
    found = loaded(folder)
    assert found.expires == NOON
    assert verdict(found, "over.example") == Deny(Reason.NO_MATCH)
    assert isinstance(verdict(found, "own.example"), Allow)
    assert found.at(NOON - 0.5) is found
    for now, own, later, expires in (
        (NOON, Deny, Allow, NOON + 10),
        (NOON + 10, Deny, Deny, math.inf),
        (NOON - 1, Deny, Deny, math.inf),  # a clock that goes back opens nothing
    ):
        found = found.at(now).within(World())
        assert found.expires == expires
        assert type(verdict(found, "own.example")) is own
        assert type(verdict(found, "later.example")) is later


def test_a_python_feed_without_its_file(folder: Path) -> None:
    (folder / "profiles" / "mine.yaml").write_text(f"{MINE}feeds:\n- python: ours\n")
    assert problems(folder) == ['profiles/mine.yaml:3: error: "ours": there is no file feeds/ours.py; write it']
    (folder / "feeds").mkdir()
    (folder / "feeds" / "ours.py").write_text("def refresh(current): return []\n")
    assert loaded(folder).problems == []
