"""The profiles of a dynamic-firewall, read out of its Python without running it."""

import pytest

from proxyfw.core.oldfirewall import OldFirewall, read_old, used_modules

MAIN = """\
options_defaults = {"workdir_path": "work", "clients_path": "people", "min_wait_sec": 15}
from utils import *
from sites import *
import os
raise SystemExit("this is never run")
"""
SITES = """\
import requests
from utils import *

def addresses_of(url):
    def refresh(current):
        return [each for each in requests.get(url).json() if is_address(each)]
    return refresh

def refresh_ours(current):
    return ["192.0.2.0/24"]

site_profiles = {
    "github": {"refresh": addresses_of("https://api.example/meta"), "refreshIntervalMins": 60*24*5},
    "ours": {
        'refresh': refresh_ours,
        'refreshIntervalMins': (60 * 2),
        'aliases': ["office", "desk"],  # two
    },
}
"""
UTILS = "import re\n\ndef is_address(text):\n    return re.fullmatch('[0-9.]+', text)\n"


def read(sites: str, main: str = MAIN, **more: str) -> OldFirewall:
    sources = {"main": main, "sites": sites, "utils": UTILS, **more}
    return read_old(sources.get, lambda module: f"{module}.py")


def test_its_profiles() -> None:
    old = read(SITES)
    assert old.problems == []
    assert old.clients_file == "people"
    ours = old.profiles["ours"]
    assert (str(ours.where), ours.minutes, ours.aliases, ours.why) == ("sites.py:14", 120, ("office", "desk"), "")
    assert ours.program == 'def refresh_ours(current):\n    return ["192.0.2.0/24"]\n\n\nrefresh = refresh_ours\n'
    github = old.profiles["github"]
    assert (github.minutes, github.aliases) == (7200, ())
    assert github.program.endswith("refresh = addresses_of('https://api.example/meta')\n")
    assert list(used_modules(github.program)) == ["re", "requests"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param('site_profiles["new"] = {"refresh": refresh_ours, "refreshIntervalMins": 60}', id="a key"),
        pytest.param(
            'site_profiles.update({"new": {"refresh": refresh_ours, "refreshIntervalMins": 60}})', id="update"
        ),
        pytest.param(
            "site_profiles.update(new=dict(refresh=refresh_ours, refreshIntervalMins=60))", id="update by name"
        ),
        pytest.param('site_profiles |= {"new": {"refresh": refresh_ours, "refreshIntervalMins": 60.0}}', id="|="),
        pytest.param(
            'site_profiles["new"] = {"refresh": refresh_ours}\nsite_profiles["new"]["refreshIntervalMins"] = 60',
            id="a field of its own",
        ),
    ],
)
def test_a_profile_that_is_added(more: str) -> None:
    old = read(f"{SITES}\n{more}\n")
    assert old.problems == []
    assert list(old.profiles) == ["github", "ours", "new"]
    assert (old.profiles["new"].minutes, old.profiles["new"].program) == (60, old.profiles["ours"].program)


def test_a_profile_that_another_module_adds() -> None:
    main = MAIN.replace("import os", "import extra")
    old = read(SITES, main, extra="from sites import *\nsite_profiles['x'] = {'refresh': refresh_ours, "
               "'refreshIntervalMins': 1}\n")  # fmt: skip
    assert old.problems == []
    assert old.profiles["x"].program == old.profiles["ours"].program


_UNKNOWN = "what this does to site_profiles is not known here"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        pytest.param("site_profiles = {n: 1 for n in 'ab'}", _UNKNOWN, id="made"),
        pytest.param("site_profiles.update(load())", _UNKNOWN, id="update"),
        pytest.param("site_profiles.pop('ours')", _UNKNOWN, id="pop"),
        pytest.param("del site_profiles['ours']", _UNKNOWN, id="del"),
        pytest.param("for n in 'ab': site_profiles[n] = 1", _UNKNOWN, id="loop"),
        pytest.param("site_profiles['x'] = make()", _UNKNOWN, id="a call"),
        pytest.param(
            "site_profiles['ours']['refreshIntervalMins'] = 2 ** 3", "how often ours is refreshed", id="a power"
        ),
        pytest.param(
            "site_profiles['ours']['refreshIntervalMins'] = 1 / 0", "how often ours is refreshed", id="by zero"
        ),
        pytest.param(
            "site_profiles['ours']['aliases'] = names()", "the aliases of ours are not known here", id="aliases"
        ),
    ],
)
def test_what_is_not_known_is_named(more: str, problem: str) -> None:
    found = read(f"{SITES}{more}\n").problems
    assert found
    assert all(each.warning for each in found)
    assert str(found[0]).startswith(f"sites.py:{SITES.count(chr(10)) + 1}: warning: {problem}")


@pytest.mark.parametrize(
    ("refresh", "why"),
    [
        pytest.param("{}", "it has no refresh that can be read (sites.py:20)", id="none"),
        pytest.param("{'refresh': nope}", 'it is not known here what "nope" is (sites.py:20)', id="an unknown name"),
        pytest.param(
            "make()", "it has no refresh that can be read (sites.py:20)", id="a profile that a function makes"
        ),
    ],
)
def test_a_refresh_that_cannot_be_taken_over_says_why(refresh: str, why: str) -> None:
    profile = read(f"{SITES}site_profiles['x'] = {refresh}\n").profiles["x"]
    assert (profile.program, profile.why) == ("", why)


def test_what_is_no_python_is_an_error_at_its_line() -> None:
    old = read("x = 1\ndef f(:\n")
    assert [(str(each.where), each.warning) for each in old.problems] == [("sites.py:2", False)]
    assert old.profiles == {}


def test_without_main_the_sites_are_read() -> None:
    old = read_old({"sites": SITES, "utils": UTILS}.get, str)
    assert (list(old.profiles), old.clients_file) == (["github", "ours"], "clients")


def test_without_any_python_there_are_no_profiles() -> None:
    assert read_old(lambda _: None, str) == OldFirewall()
