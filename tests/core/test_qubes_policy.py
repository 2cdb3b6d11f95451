"""What dom0 is told: the policy is as narrow as the questions, and the rest can be pasted as it is."""

import shlex

import pytest

from proxyfw.core.qubes_policy import POLICY_FILE, commands, policy, render


def rules(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if not line.startswith("#")]


def arguments(text: str, service: str, target: str) -> set[str]:
    return {argument for name, argument, _, to, *_ in rules(text) if (name, to) == (service, target)}


def done(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_every_line_is_a_rule_of_five_columns_or_a_comment():
    for rule in rules(policy("sys-fw", ["research"])):
        assert len(rule) == 6
        assert rule[4:] == ["allow", "target=dom0"]


def test_only_this_netvm_may_ask():
    assert {rule[2] for rule in rules(policy("sys-fw", ["research"]))} == {"sys-fw"}


def test_it_can_only_read():
    services = {rule[0] for rule in rules(policy("sys-fw", ["research"]))}

    assert services == {"admin.vm.List", "admin.vm.property.Get", "admin.vm.tag.List", "admin.Events"}


def test_of_a_client_only_what_identifies_it_can_be_asked():
    text = policy("sys-fw", [])

    assert arguments(text, "admin.vm.List", "@tag:proxyfw") == {"+"}
    assert arguments(text, "admin.vm.tag.List", "@tag:proxyfw") == {"+"}
    assert arguments(text, "admin.vm.property.Get", "@tag:proxyfw") == {"+netvm", "+ip", "+ip6"}


def test_dom0_itself_answers_only_the_two_calls_for_all():
    text = policy("sys-fw", ["research"])

    assert [(rule[0], rule[1]) for rule in rules(text) if rule[3] == "@adminvm"] == [
        ("admin.vm.List", "+"),
        ("admin.Events", "+"),
    ]


def test_no_line_has_every_argument():
    assert all(rule[1] != "*" for rule in rules(policy("sys-fw", ["research"])))


@pytest.mark.parametrize(
    "event",
    [
        pytest.param("domain-start", id="it has started"),
        pytest.param("domain-shutdown", id="it has ended"),
        pytest.param("property-set:netvm", id="it has another netvm"),
        pytest.param("property-reset:netvm", id="it has the default netvm"),
        pytest.param("property-set:ip", id="it has another address"),
        pytest.param("property-reset:ip6", id="it has its usual IPv6 address again"),
        pytest.param("domain-tag-add:proxyfw", id="the netvm may know of it from now on"),
        pytest.param("domain-tag-add:research", id="it has got a tag of the configuration"),
        pytest.param("domain-tag-delete:research", id="it has lost a tag of the configuration"),
    ],
)
def test_what_changes_who_a_client_is_is_told(event):
    assert f"+{event.replace(':', '_')}" in arguments(policy("sys-fw", ["research"]), "admin.Events", "@tag:proxyfw")


@pytest.mark.parametrize(
    "event",
    [
        pytest.param("domain-tag-add:secret", id="a tag that the configuration does not name"),
        pytest.param("domain-feature-set:vm-config.key", id="a feature"),
        pytest.param("device-attach:usb", id="a device"),
        pytest.param("property-set:label", id="a property that does not matter"),
    ],
)
def test_what_else_happens_to_a_client_is_not_told(event):
    text = policy("sys-fw", ["research"])

    assert all(rule[1] != f"+{event.replace(':', '_')}" for rule in rules(text))


def test_that_a_client_has_lost_the_tag_or_is_gone_is_told_although_it_no_longer_has_the_tag():
    told = arguments(policy("sys-fw", ["research"]), "admin.Events", "@anyvm")

    assert told == {"+domain-tag-delete_proxyfw", "+domain-delete"}


def test_the_commands_are_for_exactly_the_configured_clients():
    assert done(commands("sys-fw", ["work", "study"], [])) == [
        ["qvm-service", "sys-fw", "proxyfw", "on"],
        ["qvm-tags", "work", "add", "proxyfw"],
        ["qvm-prefs", "work", "netvm", "sys-fw"],
        ["qvm-tags", "study", "add", "proxyfw"],
        ["qvm-prefs", "study", "netvm", "sys-fw"],
    ]


def test_for_a_tag_it_says_how_to_tag_and_does_nothing():
    text = commands("sys-fw", [], ["research"])

    assert done(text) == [["qvm-service", "sys-fw", "proxyfw", "on"]]
    assert "#   qvm-tags QUBE add research proxyfw\n" in text
    assert "#   qvm-prefs QUBE netvm sys-fw\n" in text


def test_it_says_how_to_hold_profiles_in_dom0():
    assert '#   qvm-features sys-fw vm-config.proxyfw-work "github pypi"\n' in commands("sys-fw", ["work"], [])


def test_the_whole_is_a_script_that_writes_the_policy_and_runs_the_commands():
    text = render("sys-fw", ["work"], ["research"])
    before, _, rest = text.partition("<<'END'\n")
    written, _, after = rest.partition("END\n\n")

    assert done(before) == [["sudo", "tee", POLICY_FILE, ">", "/dev/null"]]
    assert written == policy("sys-fw", ["research"])
    assert after == commands("sys-fw", ["work"], ["research"])


def test_nothing_is_tagged_with_the_tag_twice_where_the_configuration_names_it_too():
    text = policy("sys-fw", ["proxyfw"])

    assert text == policy("sys-fw", [])
