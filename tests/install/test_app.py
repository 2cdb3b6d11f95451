"""`./setup.sh qubes` in an AppVM netvm: the service in place of qubes-firewall, at once and after each boot."""

import json
import shutil
from pathlib import Path

import pytest

from install import stock
from install.conftest import Boot
from install.machine import copy
from install.netvm import CONFIG, GRANTED, OTHER, REFUSED, Netvm, configure

READY = "proxyfw: ready: "
LOG = "/rw/bind-dirs/var/lib/proxyfw/log.sqlite"
FORWARDING = "forwarding begins; proxyfw's table is in force"


def without_the_system_package(upper: Path) -> None:
    """Hides what was installed into the system, and so is gone after a boot: python3-nftables."""
    for folder in ("usr/lib/python3/dist-packages", *_site_packages()):
        hidden = upper / folder / "nftables"
        hidden.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_text("")  # no package


def _site_packages() -> list[str]:
    return [str(path.relative_to("/")) for path in Path("/usr/lib").glob("python3.*/site-packages")]


@pytest.fixture(scope="module")
def again(boot: Boot, rw: Path) -> Netvm:
    """The netvm after a boot."""
    netvm = boot("again", rw, prepare=without_the_system_package)
    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active"), netvm.said()
    return netvm


def refused(netvm: Netvm) -> bool:
    return netvm.reaches_both() == [REFUSED, REFUSED]


def test_it_is_in_force_at_once(fresh):
    assert fresh.state("proxyfw") == "active"
    assert refused(fresh)  # there is no client in the first configuration
    assert LOG in fresh.files("/rw/bind-dirs")


def test_it_says_what_is_left_to_do_in_dom0(fresh):
    assert "qvm-prefs CLIENT netvm sys-proxyfw" in fresh.told
    assert "proxyfw qubes-policy" in fresh.told


def test_its_command_is_there_and_the_first_configuration_is_good(fresh):
    assert fresh.ok("proxyfw", "check")


def test_it_runs_as_a_user_of_its_own_with_two_capabilities(fresh):
    status = fresh.read(f"/proc/{fresh.state('proxyfw', 'MainPID')}/status").splitlines()
    facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)

    user = fresh.run("id", "-u", "proxyfw").stdout.strip()
    assert facts["Uid"].split() == [user] * 4
    assert {facts[key] for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {f"{1 << 10 | 1 << 12:016x}"}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


def test_another_installation_changes_nothing_that_is_the_users(fresh):
    fresh.run("sh", "-c", "echo '# mine' >> /rw/config/proxyfw/proxyfw.yaml")
    before = fresh.files("/rw")

    fresh.setup("qubes")

    assert fresh.read("/rw/config/proxyfw/proxyfw.yaml").endswith("# mine")
    assert {path for path in fresh.files("/rw") ^ before if "/bind-dirs/" not in path} == set()
    assert fresh.state("proxyfw") == "active"


def test_at_boot_the_fail_safe_is_in_force_before_forwarding_begins(again):
    lines = again.journal()

    failsafe = next(n for n, line in enumerate(lines) if "the fail-safe ruleset is in force" in line)
    assert FORWARDING in lines
    assert failsafe < lines.index(FORWARDING)
    assert again.forwards()


def test_only_after_it_is_ready_qubes_firewall_goes(again):
    assert again.eventually(lambda: again.state("qubes-firewall", "LoadState") == "masked")
    lines = again.journal()
    ready = next(n for n, line in enumerate(lines) if line.startswith(READY))
    assert ready < next(n for n, line in enumerate(lines) if "in the place of qubes-firewall" in line)
    assert again.tables() == {"ip qubes", "inet proxyfw"}
    assert again.run("systemctl", "--failed", "--no-legend").stdout == ""
    assert "Error" not in again.said("qubes-firewall")


def test_what_the_configuration_grants_is_reached_and_nothing_else(again):
    assert again.reaches(GRANTED) == "hello"
    assert again.reaches(OTHER) != "hello"


def test_the_log_lasts(again):
    assert LOG in again.files("/rw/bind-dirs")


def test_a_service_that_dies_is_started_again_and_nothing_opens_meanwhile(again):
    pid = again.state("proxyfw", "MainPID")
    again.run("kill", "-KILL", pid)

    assert again.reaches(OTHER) != "hello"
    assert again.eventually(lambda: again.state("proxyfw") == "active" and again.state("proxyfw", "MainPID") != pid)


def test_a_mistake_in_the_configuration_is_told_and_all_is_refused_until_it_is_mended(boot, rw):
    def mistaken(upper: Path) -> None:
        (upper / "rw/config/proxyfw/proxyfw.yaml").write_text(CONFIG.replace("profiles", "profils"))

    netvm = boot("mistaken", rw, prepare=mistaken)
    where = "/rw/config/proxyfw/proxyfw.yaml:3: error: "

    assert netvm.eventually(lambda: where in netvm.said("proxyfw"))
    assert netvm.eventually(lambda: where in netvm.machine.console)
    assert netvm.forwards()
    assert refused(netvm)
    assert netvm.state("qubes-firewall") == "active"

    configure(netvm.machine.upper / "rw")

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active")
    assert netvm.reaches(GRANTED) == "hello"


def test_an_environment_of_another_python_is_told_and_all_is_refused_until_it_is_made_anew(boot, rw):
    def upgraded(upper: Path) -> None:
        (packages,) = (upper / "rw/proxyfw/venv/lib").glob("python3.*")
        packages.rename(packages.with_name("python3.2"))

    netvm = boot("upgraded", rw, prepare=upgraded)
    advice = "sudo ./setup.sh qubes"

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "failed")
    assert advice in netvm.said("proxyfw")
    assert netvm.eventually(lambda: advice in netvm.machine.console)
    assert netvm.state("proxyfw", "NRestarts") == "0"  # it would not help
    assert refused(netvm)

    netvm.setup("qubes")

    assert netvm.state("proxyfw") == "active"
    assert netvm.reaches(GRANTED) == "hello"


def test_without_its_folder_nothing_is_forwarded_and_why_is_told(boot, rw):
    netvm = boot("gone", rw, prepare=lambda upper: shutil.rmtree(upper / "rw/proxyfw"))
    advice = "sudo ./setup.sh qubes mends it"

    assert advice in netvm.said("qubes-firewall")
    assert advice in netvm.machine.console
    assert netvm.forwards()
    assert netvm.reaches_both() == ["nothing", "nothing"]


def test_uninstalling_gives_everything_back(boot, rw, untouched):
    stock_files = untouched.files("/rw", "/usr/local")
    netvm = boot("leaving", rw)
    assert netvm.eventually(lambda: netvm.state("qubes-firewall", "LoadState") == "masked")
    custom = ("chain", "ip", "qubes", "custom-input")
    netvm.run("nft", "add", "rule", *custom[1:], "meta", "mark", "8", "accept", "comment", '"mine"')
    assert '"proxyfw"' in netvm.run("nft", "list", *custom).stdout
    assert netvm.reaches(OTHER) != "hello"

    told = netvm.setup("uninstall")

    assert netvm.state("qubes-firewall") == "active"
    assert netvm.tables() == {"ip qubes", "ip qubes-firewall", "ip6 qubes-firewall"}
    assert netvm.reaches(OTHER) == "hello"
    kept = netvm.run("nft", "list", *custom).stdout
    assert '"mine"' in kept
    assert '"proxyfw"' not in kept
    assert "7300" not in netvm.run("ip", "rule").stdout
    assert not netvm.ok("id", "proxyfw")
    assert not netvm.ok("systemctl", "cat", "proxyfw")
    left = netvm.files("/rw", "/usr/local") - stock_files
    assert {path.rsplit("/", 1)[0] for path in left} == {
        "/rw/config/proxyfw",
        "/rw/config/proxyfw/profiles",
        "/rw/bind-dirs/var/lib/proxyfw",
    }
    assert "kept: /rw/config/proxyfw" in told
    assert "kept: /rw/bind-dirs/var/lib/proxyfw" in told

    netvm.setup("uninstall")
    assert netvm.reaches(OTHER) == "hello"


def test_uninstalling_half_an_installation(boot, rw):
    def half(upper: Path) -> None:
        for path in ("proxyfw/venv/bin/python", "proxyfw/proxyfw-takeover", "config/rc.local.d/50-proxyfw.rc"):
            (upper / "rw" / path).unlink()

    netvm = boot("half", rw, prepare=half)
    assert refused(netvm)

    netvm.setup("uninstall")

    assert netvm.tables() == {"ip qubes", "ip qubes-firewall", "ip6 qubes-firewall"}
    assert netvm.reaches(OTHER) == "hello"
    assert not netvm.ok("test", "-e", "/rw/proxyfw")


def test_uninstalling_that_stops_half_way_says_so_and_goes_on_when_it_is_run_again(boot, rw):
    def soon_given_up(upper: Path) -> None:
        folder = upper / "etc/systemd/system/qubes-firewall.service.d"
        folder.mkdir(parents=True)
        (folder / "pause.conf").write_text("[Service]\nRestartSec=200ms\n")  # between its attempts to start

    netvm = boot("stuck", rw, prepare=soon_given_up)
    assert netvm.eventually(lambda: netvm.state("qubes-firewall", "LoadState") == "masked")
    netvm.run("mv", "/usr/bin/qubes-firewall", "/usr/bin/qubes-firewall.away")

    told = netvm.setup("uninstall", check=False)

    assert "qubes-firewall does not start" in told
    assert "NOT complete" in told
    assert "sudo ./setup.sh uninstall once more" in told
    assert netvm.reaches(OTHER) != "hello"

    netvm.run("mv", "/usr/bin/qubes-firewall.away", "/usr/bin/qubes-firewall")
    netvm.run("systemctl", "reset-failed", "qubes-firewall")
    told = netvm.setup("uninstall")

    assert "NOT complete" not in told
    assert netvm.reaches(OTHER) == "hello"
    assert not netvm.ok("test", "-e", "/rw/proxyfw")


def test_with_an_agent_that_does_not_know_rc_local_d_it_is_started_from_rc_local(boot, rw):
    def old(upper: Path) -> None:
        program = upper / "usr/lib/qubes/init/misc-post.sh"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n[ ! -x /rw/config/rc.local ] || /rw/config/rc.local\n")
        program.chmod(0o755)

    def old_and_used(upper: Path) -> None:
        old(upper)
        (upper / "rw/config/rc.local.d/50-proxyfw.rc").unlink()
        (upper / "rw/config/rc.local").write_text("#!/bin/sh\necho mine\nexit 0\n")

    netvm = boot("old", rw, prepare=old_and_used)
    netvm.setup("qubes")
    netvm.setup("qubes")
    lines = netvm.read("/rw/config/rc.local").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "/rw/proxyfw/proxyfw-boot" in lines[1]
    assert lines[2:] == ["echo mine", "exit 0"]

    later = boot("old-later", netvm.machine.upper / "rw", prepare=old)
    assert later.eventually(lambda: later.state("proxyfw") == "active")
    assert later.reaches(GRANTED) == "hello"

    later.run("cp", "-a", "/rw/proxyfw/venv", "/root/venv")
    later.setup("uninstall")
    assert later.read("/rw/config/rc.local").splitlines() == ["#!/bin/sh", "echo mine", "exit 0"]

    later.run("truncate", "-s", "0", "/rw/config/rc.local")
    later.run("mkdir", "/rw/proxyfw")
    later.run("mv", "/root/venv", "/rw/proxyfw")  # it takes long to make
    later.setup("qubes")
    assert later.read("/rw/config/rc.local").splitlines() == lines[:2]


def test_where_the_service_qubes_firewall_is_off_the_missing_fail_safe_is_told(boot, rw):
    services = tuple(name for name in stock.NETVM if name != "qubes-firewall")

    netvm = boot("unprotected", rw, services)

    assert netvm.eventually(lambda: netvm.state("proxyfw") == "active")
    assert "no fail-safe ruleset was loaded at boot" in netvm.said("qubes-misc-post")
    assert "no fail-safe ruleset was loaded at boot" in netvm.machine.console
    assert netvm.reaches(OTHER) != "hello"


DYNAMIC_CLIENTS = """\
# qube-name       profiles
programming       github  pypi
studying          wikipedia
"""


def with_dynamic_firewall(upper: Path) -> None:
    """The netvm of a user of dynamic-firewall, with the clients of its documentation."""
    folder = upper / "rw/dynamic-firewall"
    folder.mkdir(parents=True)
    (folder / "clients").write_text(DYNAMIC_CLIENTS)
    (upper / "rw/config").mkdir(exist_ok=True)
    (upper / "rw/config/rc.local").write_text("#!/bin/sh\n/rw/dynamic-firewall/install.sh\n")


def test_the_clients_of_dynamic_firewall_are_taken_over_as_they_are(boot, rw):
    def prepared(upper: Path) -> None:
        with_dynamic_firewall(upper)
        copy(rw / "proxyfw/venv", upper / "rw/proxyfw/venv")  # it takes long to make

    netvm = boot("dynamic", prepare=prepared)

    told = netvm.setup("qubes")

    assert "dynamic-firewall is started here too" in told
    assert netvm.read("/rw/dynamic-firewall/clients") + "\n" == DYNAMIC_CLIENTS
    clients = json.loads(netvm.run("proxyfw", "status", "--json").stdout)["clients"]
    assert {client["name"]: client["profiles"] for client in clients} == {
        "programming": ["github", "pypi"],
        "studying": ["wikipedia"],
    }
    allowed = netvm.run("proxyfw", "explain", "programming", "https://pypi.org").stdout
    assert allowed.startswith("allow: programming -> pypi.org port 443/tcp")
    assert "qvm-tags studying add proxyfw" in netvm.run("proxyfw", "qubes-policy").stdout.splitlines()
