"""A ruleset in generations: what is built, what leads there, and what is taken away."""

import pytest

from proxyfw.core.generations import KEPT, feed_sets, following, generation_of, leftovers, named, stages

TEXT = """\
table inet proxyfw {
	map clients4 { type ipv4_addr : verdict; }
	set never4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
	set flood { type iface_index; flags dynamic; }
	counter unlogged { comment "refused packets" }
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		ip daddr @never4 goto refuse
		ip saddr vmap @clients4
		meta mark set meta mark | 0x20000000
		update @flood { iif limit rate over 50/second } counter name unlogged jump client-0
	}
	chain refuse {
		reject
	}
	# refuse
	chain client-0 {
		accept
	}
}
add element inet proxyfw clients4 { 10.137.0.11 : goto client-0 }
"""
BUILT = """\
table inet proxyfw {
	map clients4.3 { type ipv4_addr : verdict; }
	set never4.3 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
	set flood { type iface_index; flags dynamic; }
	counter unlogged { comment "refused packets" }
	chain prerouting.3 {
		ip daddr @never4.3 goto refuse.3
		ip saddr vmap @clients4.3
		meta mark set meta mark | 0x20000000
		update @flood { iif limit rate over 50/second } counter name unlogged jump client-0.3
	}
	chain refuse.3 {
		reject
	}
	# refuse
	chain client-0.3 {
		accept
	}
}
add element inet proxyfw clients4.3 { 10.137.0.11 : goto client-0.3 }
"""


def test_a_generation_is_built_beside_the_one_in_force_and_then_led_to() -> None:
    staged = stages(TEXT, ".3")
    assert staged.build == BUILT
    assert staged.flip.splitlines() == [
        "add chain inet proxyfw prerouting { type filter hook prerouting priority raw; policy accept; }",
        "flush chain inet proxyfw prerouting",
        "add rule inet proxyfw prerouting goto prerouting.3",
    ]


def test_elements_are_of_the_generation_in_force_but_for_those_that_are_kept() -> None:
    assert named("pins4", ".3") == "pins4.3"
    assert named("flood", ".3") == "flood"
    assert named("feed-0123456789abcdef-4", ".3") == "feed-0123456789abcdef-4"


def test_sets_of_feeds_are_of_no_generation() -> None:
    text = "table inet proxyfw {\n\tset feed-a-4 { }\n\tchain client-0 {\n\t\tip daddr @feed-a-4 accept\n\t}\n}\n"
    assert stages(text, ".3").build == text.replace("client-0", "client-0.3")
    assert feed_sets(text) == {"feed-a-4"}


@pytest.mark.parametrize(
    ("names", "generation"),
    [
        ([], ".1"),
        (["forward", "client-0"], ".1"),
        (["forward", "client-0.9", "client-0.10", "rules-0-4.2"], ".11"),
    ],
)
def test_the_next_generation_is_nobodys(names: list[str], generation: str) -> None:
    assert following(names) == generation
    assert generation_of(f"client-0{generation}") == generation
    assert generation_of("client-0") == ""


def test_what_is_of_another_generation_goes_rules_first() -> None:
    chains = ["forward", "forward.1", "client-0.1", "client-0.2", "of-an-older-version"]
    sets = [("map", "clients4.1"), ("set", "never4.2"), ("set", "pins4"), *(("set", name) for name in KEPT)]
    sets += [("set", "feed-a-4"), ("set", "feed-b-4")]
    assert leftovers(chains, sets, ["forward"], ".2", ["feed-b-4"]).splitlines() == [
        "flush chain inet proxyfw forward.1",
        "flush chain inet proxyfw client-0.1",
        "flush chain inet proxyfw of-an-older-version",
        "delete map inet proxyfw clients4.1",
        "delete set inet proxyfw pins4",
        "delete set inet proxyfw feed-a-4",
        "delete chain inet proxyfw forward.1",
        "delete chain inet proxyfw client-0.1",
        "delete chain inet proxyfw of-an-older-version",
    ]
