"""The clients file of dynamic-firewall's documentation, as it is: by name, with the policy that proxyfw asks for."""

import pytest

from lab.qubes_world import GITHUB4, World, soon
from proxyfw.demo.internet import ADDRESS_OF_EVIL

CLIENTS_FILE = """\
# qube-name       profiles
programming       github  pypi
studying          wikipedia
"""
WIKIPEDIA4 = "198.51.100.30"
NAMES = {"programming": "tagged", "studying": "guest"}  # and whose network namespace they have


@pytest.fixture
def dynamic(netvm: World) -> World:
    """That file in the configuration, and these two qubes attached; and what `proxyfw qubes-policy` prints, in dom0."""
    (netvm.lab.folder / "clients").write_text(CLIENTS_FILE)
    for name, namespace in NAMES.items():
        netvm.qubesd.remove(namespace)
        netvm.later(netvm.qubesd.add, namespace, *netvm.addresses(namespace))
        netvm.qubesd.add(name, *netvm.addresses(namespace))
        netvm.later(netvm.qubesd.remove, name)
    netvm.configure({}, clients_file="clients")
    before = netvm.qubesd.policy
    netvm.qubesd.policy = netvm.lab.ask("qubes-policy", "--policy", "--netvm", "sys-fw").stdout
    netvm.later(setattr, netvm.qubesd, "policy", before)
    netvm.ask("reload")
    return netvm


def test_each_reaches_what_its_profiles_name_and_nothing_else(dynamic, netvm_log):
    assert soon(lambda: dynamic.tls("tagged", GITHUB4, "github.com"))
    netvm_log.expect(client="programming", name="github.com", verdict="allow")
    assert soon(lambda: dynamic.tls("guest", WIKIPEDIA4, "en.wikipedia.org"))
    netvm_log.expect(client="studying", name="en.wikipedia.org", verdict="allow")

    assert not dynamic.tls("tagged", WIKIPEDIA4, "en.wikipedia.org")
    netvm_log.expect(client="programming", name="en.wikipedia.org", verdict="deny", reason="no-match")
    assert not dynamic.tls("guest", GITHUB4, "github.com")
    netvm_log.expect(client="studying", name="github.com", verdict="deny", reason="no-match")
    assert not dynamic.tls("guest", ADDRESS_OF_EVIL, "evil.example")


def test_a_line_that_is_added_is_in_force_after_a_reload(dynamic):
    (dynamic.lab.folder / "clients").write_text(CLIENTS_FILE.replace("studying  ", "studying github "))

    assert dynamic.ask("reload")["ok"]

    assert soon(lambda: dynamic.tls("guest", GITHUB4, "github.com"))
    assert dynamic.client("studying")["profiles"] == ["github", "wikipedia"]
