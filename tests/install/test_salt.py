"""The Salt formula for dom0 does what `proxyfw qubes-policy` says."""

from pathlib import Path

import pytest
import yaml

from proxyfw.core.qubes_policy import POLICY_FILE, policy

jinja2 = pytest.importorskip("jinja2", reason="Salt's own template language is needed to read the formula")

SALT = Path(__file__).parents[2] / "qubes" / "salt"


def rendered(name: str, **values: object) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(SALT), undefined=jinja2.StrictUndefined)
    return environment.get_template(name).render(**values)


def states() -> dict[str, dict[str, dict[str, object]]]:
    """State name to function to its arguments."""
    loaded = yaml.safe_load(rendered("init.sls"))
    return {
        name: {function: {key: value for each in arguments for key, value in each.items()} for function, arguments in
               state.items()}
        for name, state in loaded.items()
    }  # fmt: skip


def of(function: str) -> list[dict[str, object]]:
    return [state[function] for state in states().values() if function in state]


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_the_top_file_applies_it_to_dom0_alone():
    assert yaml.safe_load((SALT / "proxyfw.top").read_text()) == {"base": {"dom0": ["proxyfw"]}}


def test_the_policy_file_is_the_one_that_the_command_prints():
    (managed,) = states()[POLICY_FILE].values()
    template = str(managed["source"]).removeprefix("salt://proxyfw/")

    for tags in ([], ["research", "lab"]):
        written = rendered(template, netvm="sys-fw", tags=tags)
        assert sorted(lines(written)) == sorted(lines(policy("sys-fw", tags)))


def test_the_template_of_the_policy_gets_all_that_it_asks_for():
    assert states()[POLICY_FILE]["file.managed"]["context"] == {"netvm": "sys-proxyfw", "tags": []}


def test_each_client_is_tagged_and_is_behind_the_netvm():
    assert of("qvm.tags") == [{"name": client, "add": ["proxyfw"]} for client in ("programming", "studying")]
    assert of("qvm.prefs") == [{"name": client, "netvm": "sys-proxyfw"} for client in ("programming", "studying")]


def test_the_service_is_switched_on():
    assert of("qvm.service") == [{"name": "sys-proxyfw", "enable": ["proxyfw"]}]
