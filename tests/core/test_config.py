"""proxyfw.yaml: both forms of a client, the settings and their defaults, every mistake with its line and the fix."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.config import Config, check_addresses, check_profiles, is_for_listen, parse_config
from proxyfw.core.problem import Problem, Where

WHOLE = """\
clients:
  programming:
    profiles: [github, pypi]
    address: [10.137.0.11, "fd09:24ef:4179::a89:b"]
  studying:
    profiles: [wikipedia]
    mode: observe                          # enforce (default) | observe: allow, but log what would be denied
    address: 10.137.0.12
unlisted: deny                             # attached but not listed: deny (default)
profiles: [/rw/config/proxyfw/profiles]    # more folders of profiles
dns: {upstream: [10.139.1.1, 10.139.1.2]}  # default: resolv.conf
log: {keep: 12h, max_size: 1GiB}
downstream_group: 3                        # interface group of the client side (Qubes: 2)
state_dir: /rw/proxyfw
"""

DESIGN = """\
clients:
  programming: [github, pypi]              # short form: its profiles
  studying:
    profiles: [wikipedia]
    mode: observe                          # enforce (default) | observe: allow, but log what would be denied
    address: [10.137.0.12]                 # only where names cannot be looked up (no dom0 policy needed then)
    dns: profile                           # profile (default): only permitted names resolve | all
  "tag:research": [arxiv]                  # every attached qube with that Qubes tag
unlisted: qubes                            # attached but not listed: deny (default) | qubes
clients_file: clients                      # optional: dynamic-firewall's format, "qube  profile profile", # comments
profiles: [/rw/config/proxyfw/profiles]    # more folders of profiles
dns: {upstream: [10.139.1.1, 10.139.1.2]}  # default: resolv.conf
explicit: {port: 3128}                     # SOCKS4/4a/5 and HTTP proxy on one port, for clients that want one
upstream_proxy: socks5://10.137.0.5:9050   # optional: leave through another proxy, names resolved there
log: {keep: 30d, max_size: 512MiB}
downstream_group: 2                        # interface group of the client side (Qubes: 2)
state_dir: /var/lib/proxyfw
"""

CLIENT = "clients: {work: {profiles: [a], address: 10.137.0.9}}\n"


def config(text: str) -> Config:
    parsed, problems = parse_config("proxyfw.yaml", text)
    assert parsed is not None, problems
    return parsed


def check_one_problem(text: str, line: int, message: str, fix: str, warning: bool) -> None:
    parsed, problems = parse_config("proxyfw.yaml", text)
    assert (parsed is not None) == warning
    assert len(problems) == 1, problems
    assert problems[0].where == Where("proxyfw.yaml", line)
    assert problems[0].warning == warning
    assert message in problems[0].message
    assert fix in problems[0].fix


def test_a_whole_configuration() -> None:
    parsed, problems = parse_config("proxyfw.yaml", WHOLE)
    assert parsed is not None
    assert problems == []
    assert list(parsed.clients) == ["programming", "studying"]
    programming, studying = parsed.clients.values()
    assert (programming.name, programming.profiles, programming.observe) == ("programming", ("github", "pypi"), False)
    assert programming.addresses == (ip_address("10.137.0.11"), ip_address("fd09:24ef:4179::a89:b"))
    assert (programming.where.line, [where.line for where in programming.profiles_where]) == (2, [3, 3])
    assert (studying.name, studying.profiles, studying.observe) == ("studying", ("wikipedia",), True)
    assert studying.addresses == (ip_address("10.137.0.12"),)
    assert parsed.profile_folders == ("/rw/config/proxyfw/profiles",)
    assert parsed.upstream == ((ip_address("10.139.1.1"), 53), (ip_address("10.139.1.2"), 53))
    assert (parsed.log_keep, parsed.log_max_size) == (12 * 3600, 2**30)
    assert (parsed.downstream_group, parsed.state_dir) == (3, "/rw/proxyfw")


def test_everything_that_there_is() -> None:
    parsed, problems = parse_config("proxyfw.yaml", DESIGN)
    assert parsed is not None, problems
    assert problems == []
    assert (parsed.explicit_port, parsed.listen) == (3128, None)
    assert str(parsed.upstream_proxy) == "socks5://10.137.0.5:9050"


def test_an_upstream_proxy_of_a_client_and_one_of_all() -> None:
    parsed = config(
        "clients:\n  work: {profiles: [a], upstream_proxy: 'http://me:p%40ss@192.0.2.1:3128'}\n  study: [a]\n"
        "  'tag:far': {profiles: [a], upstream_proxy: 'socks4a://[::1]:1080'}\nupstream_proxy: socks5://127.0.0.1:9050\n"
    )
    assert str(parsed.upstream_proxy) == "socks5://127.0.0.1:9050"
    work, study, far = parsed.clients["work"], parsed.clients["study"], parsed.tags["far"]
    assert work.upstream_proxy is not None
    assert (str(work.upstream_proxy), work.upstream_proxy.password) == ("http://192.0.2.1:3128", "p@ss")
    assert study.upstream_proxy is None
    assert str(far.upstream_proxy) == "socks4a://[::1]:1080"
    assert "p@ss" not in repr(parsed)


TAGS = """\
clients:
  "tag:research": [arxiv]
  work: [github]
  "tag:watched": {profiles: [github, pypi], mode: observe, dns: all}
"""


def test_clients_by_tag_stand_apart_from_those_by_name() -> None:
    parsed, problems = parse_config("proxyfw.yaml", TAGS)
    assert parsed is not None
    assert problems == []
    assert list(parsed.clients) == ["work"]
    assert list(parsed.tags) == ["research", "watched"]
    research, watched = parsed.tags.values()
    assert (research.name, research.profiles, research.observe, research.where.line) == (
        "tag:research", ("arxiv",), False, 2,
    )  # fmt: skip
    assert (watched.name, watched.profiles, watched.observe, watched.dns_all) == (
        "tag:watched", ("github", "pypi"), True, True,
    )  # fmt: skip
    assert (watched.addresses, watched.where.line) == ((), 4)


def test_defaults() -> None:
    parsed = config(CLIENT)
    assert (parsed.profile_folders, parsed.upstream) == ((), ())
    assert (parsed.log_keep, parsed.log_max_size) == (30 * 24 * 3600, 512 * 1024 * 1024)
    assert (parsed.downstream_group, parsed.state_dir) == (2, "/var/lib/proxyfw")
    assert parsed.clients["work"].observe is False


def test_a_client_in_the_short_form() -> None:
    client = config("clients:\n  work:\n    - a\n    - b\n").clients["work"]
    assert (client.profiles, client.addresses, client.observe) == (("a", "b"), (), False)
    assert [where.line for where in client.profiles_where] == [3, 4]


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        pytest.param("log: {keep: 45s}", "log_keep", 45, id="seconds"),
        pytest.param("log: {keep: 10m}", "log_keep", 600, id="minutes"),
        pytest.param("log: {keep: 12h}", "log_keep", 43200, id="hours"),
        pytest.param("log: {keep: 30d}", "log_keep", 2592000, id="days"),
        pytest.param("log: {max_size: 1MiB}", "log_max_size", 1048576, id="the smallest log"),
        pytest.param("log: {max_size: 100MB}", "log_max_size", 100_000_000, id="megabytes"),
        pytest.param("log: {max_size: 2GiB}", "log_max_size", 2**31, id="gibibytes"),
        pytest.param("log: {max_size: 3GB}", "log_max_size", 3 * 10**9, id="gigabytes"),
        pytest.param("log: {max_size: 2048KiB}", "log_max_size", 2**21, id="kibibytes"),
        pytest.param("log: {}", "log_keep", 2592000, id="log with nothing in it"),
        pytest.param("downstream_group: 4294967295", "downstream_group", 2**32 - 1, id="the last group"),
        pytest.param("profiles: []", "profile_folders", (), id="no more folders"),
        pytest.param(
            "dns: {upstream: ['10.139.1.1:5353']}",
            "upstream",
            ((ip_address("10.139.1.1"), 5353),),
            id="resolver and port",
        ),
        pytest.param(
            "dns: {upstream: ['[2001:db8::53]:54']}",
            "upstream",
            ((ip_address("2001:db8::53"), 54),),
            id="IPv6 resolver and port",
        ),
        pytest.param(
            "dns: {upstream: ['[2001:db8::53]', '2001:db8::54']}",
            "upstream",
            ((ip_address("2001:db8::53"), 53), (ip_address("2001:db8::54"), 53)),
            id="IPv6 resolvers without a port",
        ),
        pytest.param("clients_file: clients", "clients_file", "clients", id="a file of clients"),
        pytest.param("explicit: {port: 3128}", "explicit_port", 3128, id="a port for clients that ask"),
        pytest.param(
            "explicit: {listen: '127.0.0.1:3128'}", "listen", (ip_address("127.0.0.1"), 3128), id="without a netvm"
        ),
        pytest.param("explicit: {listen: '[::1]:1080'}", "listen", (ip_address("::1"), 1080), id="the same, IPv6"),
        pytest.param("unlisted: deny", "unlisted_qubes", False, id="unlisted deny"),
        pytest.param("unlisted: qubes", "unlisted_qubes", True, id="unlisted qubes"),
        pytest.param("", "unlisted_qubes", False, id="nothing said of the unlisted"),
    ],
)
def test_settings(lines: str, field: str, value: object) -> None:
    parsed, problems = parse_config("proxyfw.yaml", CLIENT + lines)
    assert problems == []
    assert getattr(parsed, field) == value


@pytest.mark.parametrize(
    ("lines", "message", "fix"),
    [
        pytest.param("client: {}", 'unknown key "client"', 'write "clients"', id="a key nearly right"),
        pytest.param("log: {keep: 30d}\nlog: {keep: 3d}", "stands twice", "the first is on line 2", id="a key twice"),
        pytest.param("unlisted: allow", '"allow" does not exist', "write deny or qubes", id="unlisted allow"),
        pytest.param("unlisted: [qubes]", "this is a list", "one value", id="unlisted in brackets"),
        pytest.param("clients_file: [c]", "this is a list", "one value", id="clients_file in brackets"),
        pytest.param("explicit: {}", "takes either port or listen", "{port: 3128}", id="explicit with nothing in it"),
        pytest.param(
            "explicit: {port: 1, listen: '127.0.0.1:2'}",
            "takes either port or listen",
            "{port: 3128}",
            id="explicit twice",
        ),
        pytest.param(
            "upstream_proxy: http://127.0.0.1:3128\nexplicit: {listen: '127.0.0.1:3128'}",
            "upstream_proxy is this very proxy",
            "another",
            id="upstream_proxy in a circle",
        ),
        pytest.param(
            "upstream_proxy: http://127.0.0.1:3128\nexplicit: {listen: '0.0.0.0:3128'}",
            "upstream_proxy is this very proxy",
            "another",
            id="upstream_proxy in a circle, of any address",
        ),
        pytest.param("explicit: {port: 0}", "not a port", "1 to 65535", id="explicit at port 0"),
        pytest.param("explicit: {port: 70000}", "not a port", "1 to 65535", id="explicit at no port"),
        pytest.param("explicit: {port: 53}", "port 53 is the relay's", "3128", id="explicit at the relay's port"),
        pytest.param("explicit: {listen: 3128}", "not an address with a port", "127.0.0.1:3128", id="listen at a port"),
        pytest.param("explicit: {listen: localhost:1}", "not an address with a port", "[::1]", id="listen at a name"),
        pytest.param("explicit: {listen: '::1'}", "not an address with a port", "[::1]", id="listen without a port"),
        pytest.param("upstream_proxy: tor", "upstream_proxy: this is not the URL", "socks5://", id="upstream_proxy"),
        pytest.param("upstream_proxy: {a: b}", "this is a mapping", "one value", id="upstream_proxy as a mapping"),
        pytest.param("profiles: /p", "a list is wanted, this is a string", "write [/p]", id="one folder"),
        pytest.param("profiles: [p]", '"p" is not a full path', "begin it with /", id="a folder without a slash"),
        pytest.param("profiles: [~/p]", "is not a full path", "begin it with /", id="a folder from home"),
        pytest.param("state_dir: var", '"var" is not a full path', "begin it with /", id="state_dir without a slash"),
        pytest.param("state_dir:", "there is nothing here", "remove the key", id="state_dir with nothing"),
        pytest.param("dns: {}", "names no server", "upstream: [10.139.1.1]", id="dns with nothing in it"),
        pytest.param("dns: {upstream: []}", "names no server", "remove dns:", id="no resolver"),
        pytest.param("dns: [10.139.1.1]", "a mapping is wanted, this is a list", "key: value", id="dns as a list"),
        pytest.param("dns: {upstream: 10.139.1.1}", "a list is wanted", "write [10.139.1.1]", id="one resolver"),
        pytest.param("dns: {upstream: [dns.org]}", "not a DNS server's address", "10.139.1.1:5353", id="a name"),
        pytest.param("dns: {upstream: ['10.0.0.1:0']}", "not a DNS server's address", "10.139.1.1:5353", id="port 0"),
        pytest.param("dns: {upstream: ['1.1.1.1:65536']}", "not a DNS server's", "10.139.1.1:5353", id="port 65536"),
        pytest.param("dns: {upstream: ['[10.0.0.1']}", "not a DNS server's", "10.139.1.1:5353", id="half a bracket"),
        pytest.param("dns: {upstream: [0.0.0.0]}", "not a DNS server's", "10.139.1.1", id="the unspecified address"),
        pytest.param("dns: {upstream: [224.0.0.251]}", "not a DNS server's", "10.139.1.1", id="multicast DNS"),
        pytest.param("log: {kep: 3d}", 'unknown key "kep"', 'write "keep"', id="a log key nearly right"),
        pytest.param("log: 30d", "a mapping is wanted, this is a string", "key: value", id="log as a string"),
        pytest.param("log: {keep: 30}", '"30": not a duration', "as in 30d", id="a duration without a unit"),
        pytest.param("log: {keep: 0d}", '"0d": not a duration', "as in 30d", id="no duration at all"),
        pytest.param("log: {keep: 1h30m}", "not a duration", "as in 30d", id="two units"),
        pytest.param("log: {keep: -1d}", "not a duration", "as in 30d", id="a duration below zero"),
        pytest.param("log: {max_size: 512}", "not a size", "as in 512MiB", id="a size without a unit"),
        pytest.param("log: {max_size: 5mb}", "not a size", "kB, MB, GB, KiB, MiB, GiB", id="a size in small letters"),
        pytest.param("log: {max_size: 1MB}", "too small", "write 1MiB or more", id="a log too small"),
        pytest.param("downstream_group: 0", "every interface that has no group", "write 2", id="group 0"),
        pytest.param("downstream_group: 1", "the uplink on Qubes", "write 2", id="group 1"),
        pytest.param("downstream_group: 4294967296", "not an interface group", "4294967295", id="a group too large"),
        pytest.param("downstream_group: -1", "not an interface group", "from 2", id="a group below zero"),
        pytest.param("downstream_group: 02", "not an interface group", "from 2", id="a group with a leading zero"),
        pytest.param("downstream_group: '٣'", "not an interface group", "from 2", id="a digit of another script"),
    ],
)
def test_errors_in_the_settings_name_the_line_and_the_fix(lines: str, message: str, fix: str) -> None:
    check_one_problem(CLIENT + lines, 2 + lines.count("\n"), message, fix, warning=False)


ADDRESS = "clients:\n  work:\n    profiles: [a]\n    address: "


@pytest.mark.parametrize(
    ("text", "line", "message", "fix"),
    [
        pytest.param("", 1, "the file is empty", "write at least one key", id="an empty file"),
        pytest.param("clients:\n\twork: [a]", 2, "not valid YAML", "spaces in place of tabs", id="a tab"),
        pytest.param("clients:\n", 1, "there is nothing here", "remove the key", id="clients with nothing"),
        pytest.param("clients: [work]", 1, "a mapping is wanted, this is a list", "key: value", id="clients as a list"),
        pytest.param("clients:\n  'tag:': [a]", 2, '"tag:" is not a Qubes tag', "as in tag:research", id="no tag"),
        pytest.param(
            "clients:\n  'tag:1x': [a]", 2, "not a Qubes tag", "a letter, then", id="a tag with a digit first"
        ),
        pytest.param("clients:\n  'tag: x': [a]", 2, "not a Qubes tag", "a letter, then", id="a tag with a space"),
        pytest.param("clients:\n  'tag:x.y': [a]", 2, "not a Qubes tag", "a letter, then", id="a tag with a dot"),
        pytest.param(
            "clients:\n  'tag:x': {address: 10.0.0.1}", 2, "a tag has no address", "by name", id="a tag with an address"
        ),
        pytest.param(
            "clients:\n  'tag:x': {address: []}",
            2,
            "a tag has no address",
            "remove address:",
            id="a tag with an empty list of addresses",
        ),
        pytest.param("clients:\n  'tag:x': [a]\n  'tag:x': [b]", 3, '"tag:x" stands twice', "line 2", id="a tag twice"),
        pytest.param("clients:\n  1work: [a]", 2, "not the name of a qube", "a letter, then", id="a digit first"),
        pytest.param("clients:\n  my work: [a]", 2, "not the name of a qube", "a letter, then", id="a space"),
        pytest.param("clients:\n  " + "a" * 32 + ": [a]", 2, "not the name", "at most 31", id="32 characters"),
        pytest.param("clients:\n  é: [a]", 2, "not the name of a qube", "a letter, then", id="a letter beyond ASCII"),
        pytest.param(
            "clients:\n  a: {address: 10.0.0.1}\n  a: {address: 10.0.0.2}",
            3,
            '"a" stands twice',
            "line 2",
            id="a client twice",
        ),
        pytest.param(ADDRESS + "10.0.0.1\n    mod: x", 5, 'unknown key "mod"', 'write "mode"', id="a key nearly right"),
        pytest.param(ADDRESS + "10.0.0.1\n    dns: none", 5, 'dns "none"', "profile or all", id="an unknown dns"),
        pytest.param(ADDRESS + "10.0.0.1\n    mode: off", 5, 'mode "off"', "enforce or observe", id="an unknown mode"),
        pytest.param(
            ADDRESS + "10.0.0.1\n    mode: [observe]", 5, "this is a list", "one value", id="a mode in brackets"
        ),
        pytest.param("clients:\n  w: {profiles: a, address: 10.0.0.1}", 2, "a list is wanted", "[a]", id="one profile"),
        pytest.param(ADDRESS + "work.lan", 4, "is not an address", "10.137.0.12", id="a name as the address"),
        pytest.param(ADDRESS + "10.137.0.0/24", 4, "is not an address", "10.137.0.12", id="a network as the address"),
        pytest.param(ADDRESS + "fe80::1%eth0", 4, "is not an address", "fd09::12", id="a zone"),
        pytest.param(ADDRESS + "127.0.0.2", 4, "is loopback, not a qube's", "the qube's own", id="loopback"),
        pytest.param(ADDRESS + "'::1'", 4, "is loopback, not a qube's", "the qube's own", id="IPv6 loopback"),
        pytest.param(ADDRESS + "224.0.0.1", 4, "is multicast, not a qube's", "the qube's own", id="multicast"),
        pytest.param(ADDRESS + "'::'", 4, "is unspecified, not a qube's", "the qube's own", id="unspecified"),
        pytest.param(ADDRESS + "169.254.1.1", 4, "is link-local, not a qube's", "the qube's own", id="link-local"),
        pytest.param(ADDRESS + "::ffff:10.0.0.1", 4, "an IPv4 address in IPv6", "write 10.0.0.1", id="IPv4 in IPv6"),
        pytest.param(ADDRESS + "{a: b}", 4, "this is a mapping", "write [a, b]", id="a mapping as the address"),
        pytest.param(ADDRESS, 4, "there is nothing here", "remove the key", id="an address key with nothing"),
        pytest.param(
            ADDRESS + "10.0.0.1\n  play:\n    address: [10.0.0.2, 10.0.0.1]",
            6,
            '10.0.0.1 is the address of "work" already (proxyfw.yaml:4)',
            "to one client",
            id="one address for two clients",
        ),
        pytest.param(
            ADDRESS + "['fd09::1', 'FD09:0::1']",
            4,
            'fd09::1 is the address of "work" already',
            "once",
            id="address twice",
        ),
    ],
)
def test_errors_in_the_clients_name_the_line_and_the_fix(text: str, line: int, message: str, fix: str) -> None:
    check_one_problem(text, line, message, fix, warning=False)


@pytest.mark.parametrize(
    ("text", "line", "message", "fix"),
    [
        pytest.param("clients: {}", 1, "no client is listed", "work: [github]", id="no client"),
        pytest.param("state_dir: /s", 1, "no client is listed", "work: [github]", id="no clients key"),
    ],
)
def test_warnings_name_the_line_and_the_fix(text: str, line: int, message: str, fix: str) -> None:
    check_one_problem(text, line, message, fix, warning=True)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("clients: {'tag:x': [a]}", id="a tag"),
        pytest.param("unlisted: qubes", id="those that are not listed"),
        pytest.param("clients_file: clients", id="a file of clients"),
        pytest.param("clients: {work: [a]}", id="a client whose address is to be looked up"),
        pytest.param("clients: {work: {profiles: [a], address: []}}", id="a client with an empty list of addresses"),
    ],
)
def test_no_warning_where_somebody_may_connect(text: str) -> None:
    parsed, problems = parse_config("proxyfw.yaml", text)
    assert parsed is not None
    assert problems == []


def test_outside_qubes_os_whoever_would_have_to_be_looked_up_is_warned_of() -> None:
    parsed = config("clients:\n  a: [x]\n  b: {address: 10.0.0.1}\n  c: {address: []}\n  'tag:d': [x]\n")
    problems = check_addresses(parsed)
    assert all(problem.warning for problem in problems)
    give = "give address: [10.137.0.12]"
    assert [(problem.where.line, problem.message, problem.fix) for problem in problems] == [
        (2, '"a": its address is looked up on Qubes OS alone: here the client stays refused', give),
        (4, '"c": its address is looked up on Qubes OS alone: here the client stays refused', give),
        (5, '"tag:d": tags are looked up on Qubes OS alone: here nobody has it', ""),
    ]
    assert check_addresses(config(CLIENT)) == []


@pytest.mark.parametrize("tag", ["x", "_x", "Research-2", "a" * 64])
def test_names_of_tags(tag: str) -> None:
    assert list(config(f"clients:\n  'tag:{tag}': [a]\n").tags) == [tag]


@pytest.mark.parametrize("name", ["work", "Work-2", "sys_net.x", "a" * 31, "no", "on"])
def test_names_of_qubes(name: str) -> None:
    assert list(config(f"clients:\n  {name}: [a]\n").clients) == [name]


def test_a_profile_that_a_client_names_and_that_does_not_exist() -> None:
    parsed = config("clients:\n  work:\n    - github\n    - wikipdia\n  play: [zzz]\n  'tag:x': [pypi]\n")
    assert check_profiles(parsed, ["github", "wikipedia"]) == [
        Problem(Where("proxyfw.yaml", 4), 'client "work": no profile is named "wikipdia"', 'write "wikipedia"'),
        Problem(Where("proxyfw.yaml", 5), 'client "play": no profile is named "zzz"', "known: github, wikipedia"),
        Problem(Where("proxyfw.yaml", 6), 'client "tag:x": no profile is named "pypi"', "known: github, wikipedia"),
    ]


def test_the_fix_for_an_unknown_profile_lists_only_some_of_many() -> None:
    fix = check_profiles(config("clients: {work: [zzz]}"), [f"p{number:02}" for number in range(30)])[0].fix
    assert fix == "known: p00, p01, p02, p03, p04, p05, p06, p07, p08, p09, p10, p11, ..."


def test_no_profile_at_all() -> None:
    assert check_profiles(config("clients: {work: [a]}"), [])[0].fix == "remove it: there is none"


def test_profiles_that_exist_are_no_problem() -> None:
    assert check_profiles(config(CLIENT), {"a": 1, "b": 2}) == []


words = st.sampled_from(
    ["clients", "profiles", "address", "mode", "dns", "upstream", "log", "keep", "10.0.0.1", "30d", ""]
)
trees = st.recursive(
    words,
    lambda below: (
        st.lists(below, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(words, below), max_size=3).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
        )
    ),
    max_leaves=8,
)


@given(
    st.text(st.sampled_from("ab:-[]{}*&!\"'\n\t #|>%"), max_size=30) | trees | trees.map("clients: {{work: {}}}".format)
)
def test_any_text_is_a_configuration_or_errors_with_line_and_fix(text: str) -> None:
    parsed, problems = parse_config("proxyfw.yaml", text)
    assert (parsed is None) == any(not problem.warning for problem in problems)
    assert all(problem.where.line and problem.message and problem.fix for problem in problems)


def test_programs_of_this_machine_are_clients_where_there_is_no_netvm() -> None:
    text = "clients: {me: {profiles: [a], address: [127.0.0.1, '::1']}}\n"
    assert len(config(text + "explicit: {listen: '127.0.0.1:3128'}\n").clients["me"].addresses) == 2
    parsed, problems = parse_config("proxyfw.yaml", text + "explicit: {port: 3128}\n")
    assert parsed is None
    assert [problem.message for problem in problems] == [
        '"127.0.0.1" is loopback, not a qube\'s address',
        '"::1" is loopback, not a qube\'s address',
    ]


@pytest.mark.parametrize(
    ("text", "local"),
    [
        pytest.param("explicit: {listen: '127.0.0.1:3128'}", True, id="listen"),
        pytest.param("explicit: {listen: '127.0.0.1:3128'}\nnonsense: 1\n", True, id="with an error elsewhere"),
        pytest.param("explicit: {listen: nowhere}", True, id="listen that cannot be read"),
        pytest.param("explicit: {listen: '127.0.0.1:1', port: 2}", False, id="both"),
        pytest.param("explicit: 3128", False, id="neither"),
        pytest.param("explicit: {port: 3128}", False, id="a port of a netvm"),
        pytest.param("", False, id="nothing"),
        pytest.param("\t{", False, id="no YAML"),
    ],
)
def test_in_doubt_it_is_a_netvm(text: str, local: bool) -> None:
    assert is_for_listen(text) is local
