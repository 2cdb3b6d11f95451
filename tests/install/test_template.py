"""`./setup.sh qubes` in a template: it is in every netvm made from it, and runs where dom0 has switched it on."""

from pathlib import Path

import pytest

from install import stock
from install.conftest import Boot
from install.netvm import GRANTED, OTHER, REFUSED, TEMPLATE, Netvm, configure

ON = (*stock.NETVM, "proxyfw")
FORWARDING = "forwarding begins; proxyfw's table is in force"
LAYER = ("template/upper",)


@pytest.fixture(scope="module")
def template(boot: Boot) -> Netvm:
    """The template, after ./setup.sh qubes; a layer of the machines that are made from it."""
    netvm = boot("template", services=("updates-proxy-setup",), values=TEMPLATE)
    # Qubes' updates proxy is the only way out of a template; here the packages come from a folder.
    netvm.told = netvm.setup("qubes")
    return netvm


@pytest.fixture(scope="module")
def on(template: Netvm, boot: Boot) -> Netvm:
    """A netvm made from it, in which dom0 has switched it on, with a client in its own configuration."""
    netvm = boot("on", services=ON, layers=LAYER, prepare=configured)
    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active"), netvm.said()
    return netvm


def configured(upper: Path) -> None:
    (upper / "rw/config/proxyfw").mkdir(parents=True)
    configure(upper / "rw")


def test_in_the_template_it_is_enabled_and_does_not_run(template):
    assert template.run("systemctl", "is-enabled", "proxyfw", "proxyfw-failsafe").stdout.split() == ["enabled"] * 2
    assert template.state("proxyfw") == "inactive"
    assert "inet proxyfw" not in template.tables()


def test_it_says_what_is_left_to_do_in_dom0(template):
    assert "qvm-service NETVM proxyfw on" in template.told
    assert "qvm-prefs CLIENT netvm NETVM" in template.told
    assert "come through the updates proxy" in template.told


def test_the_preset_comes_before_the_one_of_qubes(template):
    presets = template.run("systemd-analyze", "--no-pager", "cat-config", "systemd/system-preset").stdout
    assert "enable proxyfw.service" in presets
    assert template.run("systemctl", "preset", "proxyfw", "proxyfw-failsafe").returncode == 0
    assert template.run("systemctl", "is-enabled", "proxyfw").stdout.strip() == "enabled"


def test_the_fail_safe_is_in_force_before_forwarding_begins(on):
    lines = on.journal()

    failsafe = next(n for n, line in enumerate(lines) if "the fail-safe ruleset is in force" in line)
    assert failsafe < lines.index(FORWARDING)
    assert on.state("proxyfw-failsafe") == "active"
    assert on.forwards()


def test_it_takes_the_place_of_qubes_firewall(on):
    assert on.eventually(lambda: on.state("qubes-firewall", "LoadState") == "masked")
    assert on.tables() == {"ip qubes", "inet proxyfw"}
    assert on.reaches(GRANTED) == "hello"
    assert on.reaches(OTHER) != "hello"


def test_the_log_of_the_netvm_lasts(on):
    assert "/rw/bind-dirs/var/lib/proxyfw/log.sqlite" in on.files("/rw/bind-dirs")


FEED = f"""
def refresh(current):
    lines = open("/proc/self/status").read().splitlines()
    rights = {{line.split()[1] for line in lines if line.startswith(("CapPrm", "CapEff", "CapAmb"))}}
    assert rights == {{"0" * 16}}, rights
    try:
        with open("/var/lib/proxyfw/written", "w") as file:
            file.write("x")
    except OSError:
        return ["{OTHER}"]
    raise AssertionError("it can write")
"""


def test_a_list_is_read_by_a_process_without_rights(on):
    files = "mkdir -p feeds profiles && cat > feeds/ours.py && echo 'feeds: [{python: ours}]' > profiles/nets.yaml"
    on.machine.run("sh", "-c", f"cd /rw/config/proxyfw && {files}", input=FEED)
    on.run("proxyfw", "reload")

    status = on.run("proxyfw", "refresh").stdout
    assert on.reaches(OTHER) == "hello", status + on.said("proxyfw")
    assert on.reaches(GRANTED) != "hello"


def test_without_a_configuration_of_its_own_the_netvm_has_the_templates(template, boot):
    netvm = boot("plain", services=ON, layers=LAYER)

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active"), netvm.said("proxyfw")
    assert "/etc/proxyfw/proxyfw.yaml" in netvm.run("proxyfw", "status").stdout
    assert netvm.reaches(OTHER) != "hello"


def test_where_dom0_has_not_switched_it_on_nothing_is_different(template, boot):
    netvm = boot("off", layers=LAYER)

    assert netvm.state("proxyfw") == netvm.state("proxyfw-failsafe") == "inactive"
    assert netvm.state("qubes-firewall") == "active"
    assert netvm.tables() == {"ip qubes", "ip qubes-firewall", "ip6 qubes-firewall"}
    assert netvm.reaches(OTHER) == "hello"
    assert not netvm.ok("test", "-e", "/rw/bind-dirs/var/lib/proxyfw")


def test_where_the_fail_safe_cannot_be_loaded_nothing_is_forwarded_and_why_is_told(template, boot):
    def spoilt(upper: Path) -> None:
        configured(upper)
        ruleset = upper / "usr/lib/proxyfw/fail-safe.nft"
        ruleset.parent.mkdir(parents=True)
        ruleset.write_text("table inet proxyfw { nonsense }\n")

    netvm = boot("spoilt", services=ON, layers=LAYER, prepare=spoilt)
    why = "the fail-safe ruleset could not be loaded"

    assert why in netvm.said("proxyfw-failsafe")
    assert netvm.eventually(lambda: why in netvm.machine.console)
    assert netvm.state("qubes-network") == "inactive"
    assert not netvm.forwards()
    assert "hello" not in netvm.reaches_both()


def test_where_the_environment_is_gone_all_is_refused_and_why_is_told(template, boot):
    def gone(upper: Path) -> None:
        configured(upper)
        python = upper / "usr/lib/proxyfw/venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text("")

    netvm = boot("gone-from-template", services=ON, layers=LAYER, prepare=gone)

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "failed")
    assert "sudo ./setup.sh qubes" in netvm.said("proxyfw")
    assert netvm.eventually(lambda: "sudo ./setup.sh qubes" in netvm.machine.console)
    assert netvm.reaches_both() == [REFUSED, REFUSED]


def test_where_both_are_there_and_the_templates_is_off_the_netvms_own_runs(template, rw, boot):
    netvm = boot("both-off", rw, layers=LAYER)

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active")
    assert "/rw/proxyfw/" in netvm.state("proxyfw", "ExecStart")
    assert netvm.reaches(GRANTED) == "hello"


def test_where_both_are_there_and_the_templates_is_on_it_runs(template, rw, boot):
    netvm = boot("both-on", rw, services=ON, layers=LAYER)

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active")
    assert "/usr/lib/proxyfw/" in netvm.state("proxyfw", "ExecStart")
    assert "the template's proxyfw is used" in netvm.said("qubes-misc-post")
    assert netvm.ok("proxyfw", "status")
    assert netvm.reaches(GRANTED) == "hello"


def test_uninstalling_in_the_netvm_leaves_the_templates_alone(template, rw, boot):
    netvm = boot("both-leaving", rw, services=ON, layers=LAYER)
    assert netvm.eventually(lambda: netvm.state("qubes-firewall", "LoadState") == "masked")

    told = netvm.setup("uninstall")

    assert "the template has proxyfw too" in told
    assert netvm.ok("test", "-x", "/usr/lib/proxyfw/proxyfw-run")
    assert not netvm.ok("test", "-e", "/rw/proxyfw")
    assert netvm.state("qubes-firewall") == "active"
    assert netvm.reaches(OTHER) == "hello"


def test_in_a_standalone_netvm_it_runs_at_once(template, boot):
    standalone = {"/qubes-vm-persistence": "full", "/type": "StandaloneVM", "/name": "sys-alone"}
    netvm = boot("standalone", values=standalone, services=ON, layers=LAYER)

    told = netvm.setup("qubes")

    assert "qvm-prefs CLIENT netvm sys-alone" in told
    assert netvm.state("proxyfw") == netvm.state("proxyfw-failsafe") == "active"
    assert netvm.eventually(lambda: netvm.state("qubes-firewall", "LoadState") == "masked")
    assert netvm.reaches(OTHER) != "hello"

    netvm.setup("uninstall")

    assert netvm.forwards()
    assert netvm.reaches(OTHER) == "hello"


def test_uninstalling_in_the_template_takes_it_all_away(template, boot):
    before = boot("template-untouched", values=TEMPLATE, services=()).files(
        "/etc", "/usr/lib/systemd", "/usr/lib/qubes"
    )
    netvm = boot("template-leaving", values=TEMPLATE, services=(), layers=LAYER)

    told = netvm.setup("uninstall")

    after = netvm.files("/etc", "/usr/lib/systemd", "/usr/lib/qubes", "/usr/lib/proxyfw", "/usr/lib/qubes-bind-dirs.d")
    changed = {path for path in after ^ before if not path.endswith("-")}  # passwd- and such: copies of useradd
    assert changed == {"/etc/proxyfw/proxyfw.yaml"}
    assert not netvm.ok("id", "proxyfw")
    assert not netvm.ok("test", "-e", "/usr/bin/proxyfw")
    assert "kept: /etc/proxyfw" in told

    netvm.setup("uninstall")
