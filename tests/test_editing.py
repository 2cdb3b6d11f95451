"""`allow` and `revoke` as they are typed: what is written, what is said, and when nothing is written at all."""

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxyfw import asking
from proxyfw.cli import main
from proxyfw.core.profileedit import HEADER
from proxyfw.edge import files
from proxyfw.load import load

CONFIG = """\
clients:
  work: {{profiles: [mine, github], address: 10.137.0.11}}
  study: {{profiles: [mine], address: 10.137.0.12}}
dns: {{upstream: [10.139.1.1]}}
state_dir: {folder}/state
"""
MINE = "domains:\n  - .mine.example\n  - only.example\nnetworks: [192.0.2.0/24]\n"
NOT_RUNNING = "  no proxyfw is running here: this takes effect when one starts"


class Place:
    """A configuration, and the commands on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.own = folder / "allowed" / "work.yaml"
        (folder / "profiles").mkdir()
        (folder / "profiles" / "mine.yaml").write_text(MINE)
        (folder / "proxyfw.yaml").write_text(CONFIG.format(folder=folder))

    def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """The exit code, the lines of standard output without the folder, and standard error."""
        code = main([*arguments, "-c", str(self.folder / "proxyfw.yaml")])
        told = self._capsys.readouterr()
        return code, told.out.replace(f"{self.folder}/", "").splitlines(), told.err.replace(f"{self.folder}/", "")

    def json(self, *arguments: str) -> dict[str, Any]:
        """What is said for programs."""
        _, lines, _ = self.run(*arguments, "--json")
        found: dict[str, Any] = json.loads("\n".join(lines))
        return found

    def write_own(self, text: str) -> None:
        """A file of grants of the client work."""
        self.own.parent.mkdir(exist_ok=True)
        self.own.write_text(text)

    def untouched(self) -> bool:
        """Whether nothing was written beside the configuration."""
        return sorted(os.listdir(self.folder)) == ["profiles", "proxyfw.yaml"]


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(asking, "available", lambda: False)  # of another test
    return Place(tmp_path, capsys)


class Service:
    """What answers at the control socket in place of the service."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {
            "world": {"ok": True, "world": None},
            "reload": {"ok": True, "problems": [], "closed": 0, "clients": 2},
        }
        self._socket = socket.socket(socket.AF_UNIX)
        (folder / "state").mkdir()
        self._socket.bind(str(folder / "state" / "control.sock"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                command = connection.recv(1000).decode().strip()
                self.asked.append(command)
                connection.sendall(json.dumps(self.answers[command]).encode() + b"\n")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.stop()


def until_of(place: Place) -> float:
    profile = load(place.folder / "proxyfw.yaml").profiles["allowed/work"]
    return profile.temporary[-1].until


def test_a_grant_is_written_and_in_force(place: Place, service: Service) -> None:
    assert place.run("allow", "work", "example.org") == (0, ["allowed: work -> example.org (allowed/work.yaml:4)"], "")
    assert place.own.read_text() == f"{HEADER}domains:\n  - example.org\n"
    assert service.asked == ["world", "reload"]


def test_without_a_service_it_takes_effect_when_one_starts(place: Place) -> None:
    code, lines, _ = place.run("allow", "work", "https://example.org/page")
    assert (code, lines) == (0, ["allowed: work -> example.org (allowed/work.yaml:4)", NOT_RUNNING])


def test_a_grant_for_a_while_says_until_when(place: Place, service: Service) -> None:
    before = datetime.now(UTC).timestamp()
    code, (line,), _ = place.run("allow", "work", "192.0.3.7:22", "--for", "10m")
    until = until_of(place)
    assert before + 600 <= until < before + 660
    end = datetime.fromtimestamp(until)
    day = "" if end.date() == datetime.fromtimestamp(before).date() else f"{end:%Y-%m-%d} "
    assert (code, line) == (
        0, f"allowed: work -> 192.0.3.7:22 (allowed/work.yaml:4), until {day}{end:%H:%M:%S} (10 min)")  # fmt: skip


def test_for_programs(place: Place, service: Service) -> None:
    told = place.json("allow", "work", "*.example.org", "--for", "30d")
    until = datetime.fromisoformat(told.pop("until"))
    assert until.timestamp() == until_of(place)
    assert told == {
        "ok": True,
        "changed": True,
        "client": "work",
        "grant": "*.example.org",
        "where": "allowed/work.yaml:4",
        "warnings": ['"*.example.org" does not grant "example.org" itself; write ".example.org" for both'],
        "refused": [],
        "running": True,
        "closed": 0,
    }
    service.answers["reload"]["closed"] = 2
    assert place.json("revoke", "work", "*.example.org") == {
        "ok": True,
        "changed": True,
        "client": "work",
        "grant": "*.example.org",
        "still": "",
        "running": True,
        "closed": 2,
    }
    assert place.json("revoke", "work", "*.example.org")["problems"] == ["work -> *.example.org is not granted"]


@pytest.mark.parametrize("more", [[], ["--for", "10m"]], ids=["for good", "for a while"])
@pytest.mark.parametrize(
    ("name", "by"),
    [
        pytest.param("only.example", "mine: only.example (profiles/mine.yaml:3)", id="the same name"),
        pytest.param("www.mine.example:443", "mine: .mine.example (profiles/mine.yaml:2)", id="a name below"),
        pytest.param("192.0.2.7:22", "mine: 192.0.2.0/24 (profiles/mine.yaml:4)", id="an address"),
    ],
)
def test_what_another_profile_grants_is_not_written(place: Place, name: str, by: str, more: list[str]) -> None:
    assert place.run("allow", "work", name, *more) == (0, [f"work -> {name} is granted already: {by}"], "")
    assert place.untouched()


def test_what_is_granted_for_good_is_not_granted_for_a_while(place: Place) -> None:
    place.run("allow", "work", "example.org")
    before = place.own.read_text()
    code, lines, _ = place.run("allow", "work", "Example.org", "--for", "10m")
    words = "work -> Example.org is granted already: allowed/work: example.org (allowed/work.yaml:4)"
    assert (code, lines) == (0, [words])
    assert place.own.read_text() == before


def test_a_grant_for_a_while_is_renewed_and_made_one_for_good(place: Place) -> None:
    place.run("allow", "work", "example.org", "--for", "10s")
    first = until_of(place)
    place.run("allow", "work", "example.org", "--for", "1h")
    assert until_of(place) >= first + 3590
    assert place.own.read_text().count("example.org") == 1
    place.run("allow", "work", "example.org")
    assert place.own.read_text() == f"{HEADER}temporary: []\ndomains:\n  - example.org\n"


def test_what_is_granted_for_a_while_elsewhere_is_granted_here(place: Place) -> None:
    until = "2999-01-01T00:00:00+00:00"
    (place.folder / "profiles" / "mine.yaml").write_text(f"temporary: [{{grant: a.example, until: '{until}'}}]\n")
    assert place.run("allow", "work", "a.example")[1][0] == "allowed: work -> a.example (allowed/work.yaml:4)"


def test_it_is_granted_to_that_client_alone(place: Place) -> None:
    place.run("allow", "work", "example.org")
    assert sorted(os.listdir(place.own.parent)) == ["work.yaml"]
    assert place.run("explain", "work", "example.org")[0] == 0
    assert place.run("explain", "study", "example.org")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["nobody", "a.example"], 'there is no client "nobody" in proxyfw.yaml (there: work, study)',
                     id="an unknown client"),
        pytest.param(["../work", "a.example"], 'there is no client "../work"', id="a path for a client"),
        pytest.param(["work", "*.com"], 'it grants everything under the public suffix "com"', id="a public suffix"),
        pytest.param(["work", "a b"], "only letters, digits, hyphens", id="no name"),
        pytest.param(["work", "a.example", "--for", "10"], '--for "10": write a number and s, m, h or d', id="no unit"),
        pytest.param(["work", "a.example", "--for", "31d"], "at most 30d", id="too long"),
        pytest.param(["work", "a.example", "--for", "0s"], '--for "0s"', id="no time at all"),
    ],
)  # fmt: skip
def test_a_mistake_writes_nothing(place: Place, arguments: list[str], words: str) -> None:
    code, lines, error = place.run("allow", *arguments)
    assert (code, lines) == (2, [])
    assert error.startswith("proxyfw: allow: ")
    assert words in error
    assert place.untouched()


def test_a_configuration_with_an_error_writes_nothing(place: Place) -> None:
    (place.folder / "profiles" / "other.yaml").write_text("domains: [b.example]\ndomain: [x]\n")
    code, lines, error = place.run("allow", "work", "a.example")
    assert (code, lines) == (2, [])
    assert error.splitlines() == [
        'profiles/other.yaml:2: error: unknown key "domain"; write "domains"',
        "proxyfw: allow: the configuration has errors; nothing was written",
    ]
    assert place.untouched()


def test_without_a_configuration_nothing_is_written(place: Place) -> None:
    (place.folder / "proxyfw.yaml").unlink()
    code, _, error = place.run("allow", "work", "a.example")
    assert (code, "proxyfw.yaml: there is no such file; write one" in error) == (2, True)
    assert os.listdir(place.folder) == ["profiles"]


def test_a_file_that_cannot_be_edited_is_left_as_it_is(place: Place) -> None:
    place.write_own("domains: &names\n  - a.example\n")
    code, _, error = place.run("allow", "work", "b.example")
    assert code == 2
    assert error == (
        'proxyfw: allow: allowed/work.yaml:1: error: write each entry of domains: as "- entry" on a line of its own; '
        "write it by hand: - b.example under domains:\n"
    )
    assert place.own.read_text() == "domains: &names\n  - a.example\n"


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC], ids=["a read-only disk", "a full disk"])
def test_where_it_cannot_be_written_nothing_is_lost(
    place: Place, service: Service, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    place.write_own("domains: [a.example]\n")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    done, lines, error = place.run("allow", "work", "b.example")
    assert (done, lines) == (2, [])
    assert error == f"proxyfw: allow: allowed/work.yaml: {os.strerror(code)}; nothing was written\n"
    assert (place.own.read_text(), os.listdir(place.own.parent)) == ("domains: [a.example]\n", ["work.yaml"])
    assert service.asked == ["world"]


def test_a_folder_that_another_program_has_locked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyfw.edge.files.time.monotonic", iter([0.0, 0.0, 11.0, 22.0]).__next__)
    monkeypatch.setattr("proxyfw.edge.files.time.sleep", lambda _: None)
    with files.locked(place.folder):
        code, _, error = place.run("allow", "work", "a.example")
    assert (code, "another program has locked this folder" in error) == (2, True)
    assert place.untouched()


def test_many_at_once_lose_nothing(place: Place) -> None:
    names = [f"n{number}.example" for number in range(8)]
    config = str(place.folder / "proxyfw.yaml")
    threads = [threading.Thread(target=main, args=(["allow", "work", name, "-c", config],)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.text for each in load(Path(config)).profiles["allowed/work"].domains) == names


def test_a_reload_that_is_refused_is_told(place: Place, service: Service) -> None:
    service.answers["reload"] = {"ok": False, "problems": ["profiles/mine.yaml:1: error: x"]}
    code, lines, _ = place.run("allow", "work", "a.example")
    assert (code, lines) == (1, [
        "allowed: work -> a.example (allowed/work.yaml:4)",
        "profiles/mine.yaml:1: error: x",
        "the file is written, and NOT in force: the last good policy stays",
    ])  # fmt: skip
    assert "a.example" in place.own.read_text()
    assert place.json("revoke", "work", "a.example")["ok"] is False


@pytest.mark.parametrize(
    ("name", "note"),
    [
        pytest.param("*.github.io", '  warning: "*.github.io": anyone can have a name under', id="a public suffix"),
        pytest.param("0.0.0.0/0", '  warning: "0.0.0.0/0" grants every address', id="every address"),
        pytest.param("10.137.0.12", "  but: it is refused all the same: internal-address", id="another client"),
        pytest.param("mask.icloud.com", "  but: its name does not resolve: canary", id="a canary"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", [[], ["--for", "10m"]], ids=["for good", "for a while"])
def test_a_doubt_is_told(place: Place, name: str, note: str, more: list[str]) -> None:
    code, lines, _ = place.run("allow", "work", name, *more)
    assert code == 0
    assert lines[1].startswith(note)


def test_a_grant_is_revoked(place: Place, service: Service) -> None:
    place.run("allow", "work", "a.example")
    place.run("allow", "work", "a.example:22", "--for", "10m")
    service.answers["reload"]["closed"] = 1
    words = "revoked: work -> A.example (allowed/work.yaml); 1 connection closed"
    assert place.run("revoke", "work", "A.example") == (0, [words], "")
    service.answers["reload"]["closed"] = 0
    words = "revoked: work -> a.example:22 (allowed/work.yaml); 0 connections closed"
    assert place.run("revoke", "work", "a.example:22") == (0, [words], "")
    assert place.own.read_text() == f"{HEADER}domains: []\ntemporary: []\n"
    assert load(place.folder / "proxyfw.yaml").problems == []


def test_what_is_revoked_and_granted_elsewhere_too_is_told(place: Place) -> None:
    place.write_own("domains: [only.example, www.mine.example]\n")
    assert place.run("revoke", "work", "www.mine.example")[1] == [
        "revoked: work -> www.mine.example (allowed/work.yaml)",
        "  but: it is granted still: mine: .mine.example (profiles/mine.yaml:2)",
        NOT_RUNNING,
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("only.example", "is not a grant of allowed/work.yaml; it is granted by mine: only.example "
                     "(profiles/mine.yaml:3); take it out there", id="of another profile"),
        pytest.param("www.wide.test", "is not a grant of allowed/work.yaml; it is granted by allowed/work: "
                     ".wide.test (allowed/work.yaml:1); proxyfw revoke work .wide.test", id="of a wider entry"),
        pytest.param("trakcer.example", "is not granted; near it: tracker.example", id="misspelt"),
        pytest.param("192.0.9.9", "is not granted", id="nothing near"),
    ],
)  # fmt: skip
def test_what_cannot_be_revoked(place: Place, name: str, words: str) -> None:
    text = "domains: [.wide.test, tracker.example]\n"
    place.write_own(text)
    assert place.run("revoke", "work", name) == (1, [f"work -> {name} {words}"], "")
    assert place.own.read_text() == text


def test_what_a_client_has_that_is_not_there_just_now_can_be_revoked(place: Place) -> None:
    place.write_own("domains: [a.example]\n")
    (place.own.parent / "gone.yaml").write_text("domains: [a.example]\n")
    assert place.run("revoke", "gone", "a.example")[0] == 0
    assert place.run("allow", "gone", "a.example")[0] == 2
    assert (place.own.parent / "gone.yaml").read_text() == "domains: []\n"


def attached(service: Service, address: str, *rules: str) -> None:
    """What the service knows from Qubes OS: one qube is attached, with these firewall rules."""
    entries = {f"/qubes-firewall/{address}/{number:04}": rule for number, rule in enumerate(rules)}
    entries |= {
        "/connected-ips": address,
        f"/qubes-firewall/{address}": "",
        f"/qubes-firewall/{address}/policy": "drop",
    }
    service.answers["world"]["world"] = {"qubesdb": entries}


def test_a_qube_that_is_not_listed_has_no_profile_to_write(place: Place, service: Service) -> None:
    config = place.folder / "proxyfw.yaml"
    config.write_text(config.read_text() + "unlisted: qubes\n")
    attached(service, "10.137.0.13")
    code, _, error = place.run("allow", "10.137.0.13", "a.example")
    assert code == 2
    assert error == (
        'proxyfw: allow: "10.137.0.13" is not listed: it gets what its Qubes firewall rules say, and no profile of it '
        "is looked at; list it under clients: in proxyfw.yaml first\n"
    )
    assert not place.own.parent.exists()


def test_a_qubes_firewall_rule_that_refuses_it_all_the_same_is_told(place: Place, service: Service) -> None:
    attached(service, "10.137.0.11", "action=drop dsthost=a.example")
    assert place.run("allow", "work", "a.example")[1][1:] == [
        "  but: it is refused all the same: qubes-rule (a Qubes firewall rule of this client says so); "
        "qubes 0000: action=drop dsthost=a.example",
        "  but: change the rule in dom0 (qvm-firewall work list)",
    ]
