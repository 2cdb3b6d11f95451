"""What the command line takes, and its help."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from proxyfw import __version__
from proxyfw.core.config import MAX_PORT

_MAX_DIGITS = 9

Command = Callable[[argparse.Namespace], int]

_DESCRIPTION = """\
proxyfw permits or refuses each connection of a Qubes OS qube by name (TLS SNI, HTTP Host), against that
qube's profiles. Nothing is decrypted."""

_EPILOG = """\
From a refusal to an allowance:
  sudo proxyfw log --verdict deny --client work     what was refused, and why
  sudo proxyfw explain work https://example.org     what the policy says of it, and which line says so
  sudo proxyfw allow work example.org               to this client, at once; --for 10m: for a while
  proxyfw profiles example.org                      which profiles grant it

run, log, status, reload, refresh, allow, revoke and demo are for root; so is explain, where a service is running.
Exit codes: 0 yes or done; 1 no (denied, errors found, not running); 2 the command could not be carried out."""


def build(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser. `commands`: what each command runs; it is in the result as `run`."""
    parser = argparse.ArgumentParser(
        "proxyfw", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"proxyfw {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=text, description=text, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=commands[name])
        return sub

    run = command("run", "run the service in the foreground (root)", _RUN_MORE)
    check = command("check", "validate the configuration and every profile, offline", _CHECK_MORE)
    explain = command("explain", "say what the policy decides, and which line decides it", _EXPLAIN_MORE)
    log = command("log", "show the decisions (root)", _LOG_MORE)
    status = command("status", "show what the running service does (root)")
    reload = command("reload", "have the running service read its files anew: all, or nothing changes (root)")
    refresh = command("refresh", "have the running service fetch all lists of feeds now (root)", _REFRESH_MORE)
    allow = command("allow", "grant a name or an address to one client, at once (root)", _ALLOW_MORE)
    revoke = command("revoke", "take away what allow granted (root)", _REVOKE_MORE)
    profiles = command("profiles", "list the profiles, search them, or show what one grants", _PROFILES_MORE)
    importing = command("import", "turn a folder of dynamic-firewall into a proxyfw.yaml", _IMPORT_MORE)
    qubes = command("qubes-policy", "print what to do in dom0 for this configuration", _QUBES_MORE)
    demo = command("demo", "show it at work in a network of namespaces (root)", _DEMO_MORE)

    for sub in (run, check, explain, log, status, reload, refresh, allow, revoke, profiles, importing, qubes):
        sub.add_argument(
            "-c",
            "--config",
            metavar="FILE",
            type=Path,
            help="proxyfw.yaml (default: /rw/config/proxyfw/, /etc/proxyfw/)",
        )
    for sub in (check, explain, log, status, reload, refresh, allow, revoke, profiles):
        sub.add_argument("--json", action="store_true", help="for programs: JSON on standard output")
    run.add_argument(
        "--engine",
        choices=["proxyfw", "mitmproxy"],
        default="proxyfw",
        help="what connections go through: proxyfw's own proxy (default), or mitmproxy, without a packet layer",
    )
    run.add_argument(
        "--mode",
        metavar="MODE",
        type=_text,
        action="append",
        help="of mitmproxy, may be repeated: regular, socks5, transparent or wireguard, and @HOST:PORT",
    )
    run.add_argument("--web", metavar="HOST:PORT", type=_host_port, help="mitmproxy's web view of flows")
    explain.add_argument("client", metavar="CLIENT", type=_text, help="a client of the configuration")
    explain.add_argument(
        "target", metavar="TARGET", type=_text, help="a URL, host, host:port, address:port or [IPv6]:port"
    )
    log.add_argument("--client", metavar="NAME", type=_text, help="of this client only")
    log.add_argument("--verdict", choices=["allow", "deny", "observe"], help="of this verdict only")
    log.add_argument("--name", metavar="HOST", type=_text, help="of this host name; * stands for any characters")
    log.add_argument("--since", metavar="WHEN", type=_text, help="10m, 2h, 3d, today, or 2026-01-31 12:00")
    log.add_argument(
        "-n", "--limit", metavar="N", type=_count, help="the last N rows (default: 200, or all with --since; 0: all)"
    )
    log.add_argument("-f", "--follow", action="store_true", help="go on showing what is decided")
    refresh.add_argument("--accept", action="store_true", help="take the lists that were held back")
    for sub in (allow, revoke):
        sub.add_argument("client", metavar="CLIENT", type=_text, help="a client of the configuration")
        sub.add_argument(
            "name", metavar="NAME", type=_text, help="a pattern, an address or network, or an http or https URL"
        )
    allow.add_argument(
        "--for", dest="duration", metavar="TIME", type=_text, help="for a while: 45s, 10m, 2h, up to 30d"
    )
    profiles.add_argument(
        "name", metavar="WORD", type=_text, nargs="?", help="a profile, a word to look for, or a host name or address"
    )
    importing.add_argument("folder", metavar="DIR", type=_text, help="where main.py, sites.py and clients are")
    importing.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=_text,
        help="where to write (default: the folder of the configuration)",
    )
    qubes.add_argument(
        "--netvm", metavar="NAME", type=_text, help="the name of this netvm, where Qubes OS does not say"
    )
    only = qubes.add_mutually_exclusive_group()
    only.add_argument("--policy", action="store_true", help="only the policy file")
    only.add_argument("--commands", action="store_true", help="only the commands")
    demo.add_argument("--keep", action="store_true", help="leave it running, and say how to enter a client")
    return parser


_RUN_MORE = """\
  sudo proxyfw run
Everything starts closed: before the files are read, a fail-safe ruleset refuses all clients, unless rules of
proxyfw are in force already. If the configuration has an error, the service ends with exit code 2, and
whatever was in force stays. SIGHUP reloads, SIGTERM stops. After a stop, the packet layer stays in force:
what addresses decide goes on, what names decide is refused.
  proxyfw run --engine mitmproxy --mode regular@127.0.0.1:3128
  proxyfw run --engine mitmproxy --mode wireguard@0.0.0.0:51820 --web 127.0.0.1:8081
The same policy and the same log, with mitmproxy in place of the proxy: nothing is decrypted, and nothing is done to
packets. Needs mitmproxy: see README.md."""

_CHECK_MORE = """\
The smallest configuration:
  clients:
    work:
      profiles: [github, pypi]
      address: [10.137.0.12]
Profiles are the shipped ones (proxyfw profiles) and NAME.yaml files in a folder `profiles` beside the
configuration; yours replaces a shipped one of the same name:
  description: what works with it
  domains:
    - example.org          # exactly this name, ports 80 and 443
    - "*.example.org"      # every name below it
    - .example.net         # both
  networks: ["192.0.2.0/24:22"]
Exit codes: 0 valid (warnings may be shown), 1 errors."""

_EXPLAIN_MORE = """\
Examples:
  sudo proxyfw explain work https://api.github.com/meta
  sudo proxyfw explain work example.org:8443
  sudo proxyfw explain work github.com:22
  sudo proxyfw explain work 0.pool.ntp.org:123/udp
  sudo proxyfw explain work 192.0.2.7:22
It asks the same function that decides for the service, with the files as they are now. From a running service, which
answers root alone, it takes who the clients are just now, and the pins: what this client was told of names and their
addresses.
Exit codes: 0 allowed, 1 denied, 2 the question could not be answered."""

_LOG_MORE = """\
Examples:
  sudo proxyfw log --verdict deny --since 10m
  sudo proxyfw log --client work --name '*.example.org' --json
  sudo proxyfw log -f"""

_REFRESH_MORE = """\
Each list is fetched now, due or not; after a minute at most it is shown what came of it. A list that is tenfold as long
as before, or has tenfold as many addresses, is held back: the last good one stays in force. Look at it where its owner
publishes it; if it is right,
  sudo proxyfw refresh --accept
takes what was held back. A list that is empty, or has private addresses or far too wide networks, is never taken.
Exit codes: 0 all lists are good, 1 one of them has an error or no service is running."""

_ALLOW_MORE = """\
Examples:
  sudo proxyfw allow work example.org               ports 80 and 443
  sudo proxyfw allow work '*.example.org'           every name below it; .example.org: both
  sudo proxyfw allow work https://example.org/page  a pasted URL: its host
  sudo proxyfw allow work github.com:22             another port; :123/udp for UDP
  sudo proxyfw allow work 192.0.2.7:22              an address or network
  sudo proxyfw allow work example.org --for 10m     then it ends by itself, with its connections
It writes allowed/CLIENT.yaml beside the configuration, a profile that this client has besides its others, and has the
running service read its files anew. Comments and order of that file stay; where it is a symbolic link, the file that it
leads to is written. An entry that is there for a while is renewed by --for, and made one for good without it.
Exit codes: 0 granted, or granted already; 1 it is written, and the service does not take its files; 2 nothing was
written."""

_REVOKE_MORE = """\
  sudo proxyfw revoke work example.org
Whether it was granted for good or for a while; connections that nothing else permits are closed. What another profile
grants is not touched: it is said where that stands.
Exit codes: 0 taken away; 1 it is no such grant, or the service does not take its files; 2 nothing was written."""

_PROFILES_MORE = """\
Examples:
  proxyfw profiles                            all, with how much each grants
  proxyfw profiles github                     what one grants, with what it includes
  proxyfw profiles git                        those with this word in name, description or domains
  proxyfw profiles files.pythonhosted.org     those that grant this host name, or an address
Exit codes: 0 found, 2 there is none."""

_IMPORT_MORE = """\
  sudo proxyfw import /rw/dynamic-firewall
Its clients come into proxyfw.yaml. Profiles that proxyfw ships are taken by name; of those that are the user's own in
sites.py, each becomes a profile with a Python feed, feeds/NAME.py, that has what its refresh needs. The Python is read
and not run; what cannot be taken over is named, and its feed says so until it is written. Nothing is overwritten: all
files are written, or none.
Exit codes: 0 done, 1 written, and the result has errors, 2 nothing was written."""

_QUBES_MORE = """\
It prints a script for a terminal of dom0, to be read before it is run there: a policy file, by which this netvm may
ask for the names, addresses and tags of its clients and for nothing else, and the commands that make the qubes of
this configuration its clients. Nothing of it is needed where every client has its address in the configuration."""

_DEMO_MORE = """\
Two clients, the netvm with proxyfw, and an internet with a resolver, TLS and HTTP servers, each in a network
namespace of its own: the machine's own network is not touched. Real curls are made from each client."""


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise argparse.ArgumentTypeError(f"a whole number of at most {_MAX_DIGITS} digits is wanted, 0 or more")
    return int(text)


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= _MAX_DIGITS else 0
    if not host or not host.isprintable() or not 0 < number <= MAX_PORT:
        raise argparse.ArgumentTypeError("write it as in 127.0.0.1:8081")
    return host.removeprefix("[").removesuffix("]"), number


def _text(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError("this has characters that no name has")
    return text
