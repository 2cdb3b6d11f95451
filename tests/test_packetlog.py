"""What the packet layer tells of a packet, as a row: with the name that its client was told for the destination."""

from ipaddress import ip_address

import pytest

from proxyfw.core.config import parse_config
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.edge.nflog import Reported
from proxyfw.packetlog import row_of


def policy() -> Policy:
    profile, problems = parse_profile("p", "p.yaml", 'domains: [".time.example:123/udp", web.example]\n')
    assert profile is not None, problems
    config, _ = parse_config("proxyfw.yaml", "clients: {work: {profiles: [p], address: 10.137.0.11}}\n")
    assert config is not None
    return build(config, link({"p": profile})[0], ())


@pytest.mark.parametrize(
    ("prefix", "protocol", "port", "names", "row"),
    [
        pytest.param("no-name", "udp", 123, [], ("work", "deny", "no-name", "", "", ""), id="nothing is known of it"),
        pytest.param("no-name", "udp", 124, ["a.time.example"],
                     ("work", "deny", "no-match", "a.time.example", "pin", "granted on 123/udp"), id="another port"),
        pytest.param("no-name", "udp", 443, ["web.example"],
                     ("work", "deny", "no-name", "web.example", "pin", "granted on 80/tcp, 443/tcp"), id="QUIC"),
        pytest.param("no-name", "icmp", 0, ["evil.example"],
                     ("work", "deny", "no-match", "evil.example", "pin", ""), id="ping"),
        pytest.param("no-name", "ip-47", 0, ["evil.example"], ("work", "deny", "no-name", "", "", ""),
                     id="a protocol that no pattern can name"),
        pytest.param("allow pin", "udp", 123, ["evil.example", "a.time.example"],
                     ("work", "allow", "pin", "a.time.example", "pin", ""), id="an open port"),
        pytest.param("allow pin", "udp", 124, ["a.time.example"],
                     ("work", "allow", "pin", "", "", ""), id="an open port that was dropped since"),
        pytest.param("no-name", "udp", 123, ["a.time.example"],
                     ("work", "deny", "no-name", "", "", ""), id="a port that was opened since"),
        pytest.param("observe no-name", "udp", 9, [], ("work", "observe", "no-name", "", "", ""), id="observe mode"),
        pytest.param("internal-address", "udp", 9, ["evil.example"],
                     ("work", "deny", "internal-address", "", "", ""), id="an internal address"),
        pytest.param("unknown-client", "udp", 9, ["evil.example"], ("", "deny", "unknown-client", "", "", ""),
                     id="a client's address from the wrong interface"),
        pytest.param("proxy-down", "tcp", 443, ["web.example"], ("work", "deny", "proxy-down", "", "", ""),
                     id="nobody takes connections"),
    ],
)  # fmt: skip
def test_the_row(prefix: str, protocol: str, port: int, names: list[str], row: tuple[str, ...]) -> None:
    reported = Reported(prefix, ip_address("10.137.0.11"), ip_address("192.0.2.1"), protocol, port)
    told = [Hostname(name) for name in names]
    found = row_of(reported, policy(), lambda client, address: told)
    assert (found.client, found.verdict, found.reason, found.name, found.name_source, found.detail) == row
    assert (found.address, found.destination, found.port, found.protocol) == (
        "10.137.0.11",
        "192.0.2.1",
        port,
        protocol,
    )
