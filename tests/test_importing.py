"""A folder of dynamic-firewall becomes a configuration: all of it or nothing, and nothing of it is run here."""

import os
import re
from pathlib import Path

import pytest

from proxyfw.cli import main
from proxyfw.core.feed import Source
from proxyfw.edge import files
from proxyfw.feedworker import run_python
from proxyfw.load import load

MAIN = """\
options_defaults = {"clients_path": "clients", "min_wait_sec": 15}
from utils import *
from sites import *
raise SystemExit("this is never run")
"""
UTILS = """\
import re
def is_address(text):
    return bool(re.fullmatch("[0-9./]+", text))
"""
SITES = """\
from utils import *

def refresh_github(current):
    return ["140.82.112.0/20"]

def refresh_office(current):
    if current:
        return False
    return [each for each in ("192.0.2.0/24", "not an address") if is_address(each)]

site_profiles = {
    "github": {"refresh": refresh_github, "refreshIntervalMins": 60*24*5, "aliases": ["hub"]},
    "office": {"refresh": refresh_office, "refreshIntervalMins": 60*36, "aliases": ["desk"]},
}
"""
CLIENTS = """\
# qube-name       profiles
programming       github  pypi

studying          wikipedia desk
working           office hub
idle
"""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "resolv.conf").write_text("nameserver 10.139.1.1\n")
    monkeypatch.setattr(files, "RESOLV_CONF", tmp_path / "resolv.conf")
    folder = tmp_path / "old"
    folder.mkdir()
    for name, text in (("main.py", MAIN), ("utils.py", UTILS), ("sites.py", SITES), ("clients", CLIENTS)):
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


class Taken:
    """What the command said."""

    def __init__(self, old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.code = main(["import", str(old), "-o", str(new)])
        told = capsys.readouterr()
        self.lines = told.out.replace(f"{old}/", "").replace(f"{new}/", "").splitlines()
        self.error = told.err.replace(f"{old}/", "").replace(f"{new}/", "")


def written(new: Path) -> dict[str, str]:
    return {str(path.relative_to(new)): path.read_text() for path in new.rglob("*") if path.is_file()}


def test_a_folder_is_taken_over(old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = Taken(old, new, capsys)
    assert taken.code == 0, taken.error
    texts = written(new)
    assert sorted(texts) == [
        *("feeds/office.py", "profiles/desk.yaml", "profiles/hub.yaml", "profiles/office.yaml", "proxyfw.yaml")
    ]
    assert texts["proxyfw.yaml"] == (
        f"# Taken over from {old} (dynamic-firewall) by `proxyfw import`.\n"
        "clients:\n"
        "  # qube-name       profiles\n"
        "  programming: [github, pypi]\n"
        "  studying: [wikipedia, desk]\n"
        "  working: [office, hub]\n"
        "  idle: []\n"
    )
    assert texts["profiles/office.yaml"] == (
        f"# Taken over from dynamic-firewall: {old}/sites.py:13\n"
        "description: the addresses that feeds/office.py returns\n"
        "feeds:\n  - {python: office, every: 36h}\n"
    )
    assert texts["profiles/hub.yaml"] == "description: another name of github\ninclude: [github]\n"


def test_it_says_what_it_did_and_what_comes_next(old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in Taken(old, new, capsys).lines if "looked up on Qubes OS alone" not in line]
    assert lines[:9] == [
        "written: profiles/office.yaml",
        "written: feeds/office.py",
        "written: profiles/hub.yaml",
        "written: profiles/desk.yaml",
        "written: proxyfw.yaml",
        "taken over: 4 clients",
        "by name, with the profiles of proxyfw: github, pypi, wikipedia",
        "as Python feeds, to be read before they run: office",
        "as other names: hub of github, desk of office",
    ]
    assert "next:" in lines
    assert "  proxyfw check -c proxyfw.yaml" in lines


def test_what_it_makes_grants_what_was_granted(old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Taken(old, new, capsys)
    loaded = load(new / "proxyfw.yaml")
    assert loaded.policy is not None, loaded.problems
    assert all("looked up on Qubes OS alone" in problem.message for problem in loaded.problems)
    for client in ("studying", "working"):
        (feed,) = (feed for feed in loaded.policy.clients[client].feeds if feed.source.python)
        assert (feed.source, feed.every, feed.ports) == (Source(python="office"), 36 * 3600, ())
    text = (new / "feeds" / "office.py").read_text()
    found = run_python("office.py", text, [])
    assert found is not None
    assert [str(network) for network in found.networks()] == ["192.0.2.0/24"]
    assert run_python("office.py", text, ["192.0.2.0/24"]) is None


@pytest.mark.parametrize(
    ("refresh", "why"),
    [
        pytest.param(
            "make_refresh()", 'it is not known here what "make_refresh" is', id="a function that is not there"
        ),
        pytest.param("lambda c: open(__file__)", 'it is not known here what "__file__" is', id="its own path"),
        pytest.param("utils.refresh", '"utils" is a module of the program', id="a module of the program"),
    ],
)
def test_what_cannot_be_taken_over_is_an_error_until_it_is_written(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str], refresh: str, why: str
) -> None:
    profile = f'"more": {{"refresh": {refresh}, "refreshIntervalMins": 1}},\n}}'
    (old / "sites.py").write_text("import utils\n" + SITES.rstrip().removesuffix("}") + profile)
    taken = Taken(old, new, capsys)
    assert taken.code == 0
    message = f'sites.py:15: warning: the refresh of "more" cannot be taken over: {why}'
    assert taken.lines[0].startswith(message)
    assert taken.lines[0].endswith("; write it into feeds/more.py")
    text = (new / "feeds" / "more.py").read_text()
    assert "# TODO: " in text
    with pytest.raises(Exception, match=r"^more\.py:\d+: NotImplementedError: feeds/more\.py is still to be written: "):
        run_python("more.py", text, [])
    assert "every: 10m" in (new / "profiles" / "more.yaml").read_text()


def test_what_a_refresh_imports_and_is_not_here_is_told(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "utils.py").write_text("import no_such_module\n" + UTILS.replace("re.full", "no_such_module.full"))
    lines = Taken(old, new, capsys).lines
    assert lines[0] == (
        'sites.py:13: warning: the refresh of "office" imports no_such_module, which is not installed here; '
        "install it where proxyfw runs, or write the feed without it"
    )


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        pytest.param("clients", CLIENTS + "more offic\n",
                     'clients:7: error: client "more": no profile is named "offic"; write "office"', id="a profile"),
        pytest.param("clients", CLIENTS + "working office\n",
                     'clients:7: error: "working" is listed already (clients:5)', id="a qube twice"),
        pytest.param("clients", CLIENTS + "9to5 office\n", 'clients:7: error: "9to5" is not the name of a qube',
                     id="no qube"),
        pytest.param("sites.py", "def f(:\n", "sites.py:1: error: this is no Python", id="no Python"),
        pytest.param("sites.py", SITES.replace('"office"', '"my/office"'),
                     'sites.py:13: error: "my/office" cannot be the name of a profile', id="no name of a profile"),
    ],
)  # fmt: skip
def test_an_error_writes_nothing(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, line: str
) -> None:
    (old / file).write_text(text)
    taken = Taken(old, new, capsys)
    assert taken.code == 2
    assert any(each.startswith(line) for each in taken.lines), taken.lines
    assert re.fullmatch(r"proxyfw: import: \d+ errors?; nothing was written\n", taken.error)
    assert not new.exists()


@pytest.mark.parametrize("there", ["proxyfw.yaml", "profiles/office.yaml", "feeds/office.py"])
def test_nothing_is_overwritten(old: Path, new: Path, capsys: pytest.CaptureFixture[str], there: str) -> None:
    (new / there).parent.mkdir(parents=True)
    (new / there).write_text("mine\n")
    taken = Taken(old, new, capsys)
    assert (taken.code, taken.lines) == (2, [])
    words = f"proxyfw: import: {there}: this file is there already, and is not overwritten; nothing was written\n"
    assert taken.error == words
    assert written(new) == {there: "mine\n"}


def test_what_is_missing_is_named(old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old / "clients").unlink()
    taken = Taken(old, new, capsys)
    assert (taken.code, taken.error) == (2, "proxyfw: import: clients: No such file or directory\n")
    assert main(["import", str(old / "none"), "-o", str(new)]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_the_folder_of_the_configuration_is_the_default(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(old), "-c", str(new / "mine.yaml")]) == 0
    assert sorted(os.listdir(new)) == ["feeds", "mine.yaml", "profiles"]
    capsys.readouterr()


def test_clients_alone_need_no_python(old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in old.glob("*.py"):
        path.unlink()
    (old / "clients").write_text("programming github\n")
    assert Taken(old, new, capsys).code == 0
    assert list(written(new)) == ["proxyfw.yaml"]


def test_what_the_result_lacks_is_told(old: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (new / "profiles").mkdir(parents=True)
    (new / "profiles" / "broken.yaml").write_text("domain: [x]\n")
    taken = Taken(old, new, capsys)
    assert taken.code == 1
    assert 'profiles/broken.yaml:1: error: unknown key "domain"; write "domains"' in taken.lines
    assert taken.lines[-1] == "1 error: correct this, and then: proxyfw check -c proxyfw.yaml"
