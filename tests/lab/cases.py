"""What a client may try, what comes of it, and the row it leaves: one table for every way in.

A way in is how a client's connections come to proxyfw: by themselves (transparent), by SOCKS, by HTTP CONNECT, by
HTTP requests to a proxy, or through the mitmproxy engine. Each case is one command of a real curl; a way adds its own
options. Where ways differ, the case says how.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRANSPARENT, SOCKS5, SOCKS4A, CONNECT, FORWARD = "transparent", "socks5", "socks4a", "connect", "forward"
TUNNELS = (SOCKS5, SOCKS4A, CONNECT)
"""The ways in by which a client asks for a connection to a name, before it says a word to the server."""

_OPTIONS = {
    TRANSPARENT: (),
    SOCKS5: ("--socks5-hostname", "{proxy}"),
    SOCKS4A: ("--socks4a", "{proxy}"),
    CONNECT: ("-p", "-x", "http://{proxy}"),
    FORWARD: ("-x", "http://{proxy}"),
}

REFUSED = ""
"""What arrives where nothing does."""


def options(way: str, proxy: str) -> list[str]:
    """What curl is told for this way in; `proxy`: host and port."""
    return [option.format(proxy=proxy) for option in _OPTIONS[way]]


@dataclass(frozen=True)
class Case:
    """`words`: what the client does, with `arguments` of curl. `reached`: the server's words, or REFUSED.

    `row`: what the log has of it, of the first row with its verdict. `asked`: the row where a client is refused what it
    asks for, by SOCKS or CONNECT, before it can say more (protocol and name_source are the way's). `page`: what an HTTP
    client is told. `inside_of`: the name that was asked for, where the row tells of both. `not_by`: the ways in
    that have no such thing. `otherwise`: by way in, a result of its own.
    """

    words: str
    arguments: tuple[str, ...]
    reached: str
    row: Mapping[str, Any]
    asked: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    client: str = "work"
    inside_of: str = ""
    not_by: tuple[str, ...] = ()
    otherwise: Mapping[str, "Case"] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.words

    def check(self, way: str, stdout: str, stderr: str) -> dict[str, Any]:
        """Asserts what the client got, and tells what row there is to be."""
        tunnelled = way in TUNNELS or (way == FORWARD and any(word.startswith("https:") for word in self.arguments))
        word = "socks" if way in (SOCKS5, SOCKS4A) else "connect"
        row = {"client": self.client, **self.row}
        if tunnelled and self.asked:  # curl tunnels TLS through a proxy in any case
            named = {"name_source": word} if self.asked.get("name") else {}
            row = {"client": self.client, "protocol": word, **named, **self.asked}
        elif self.page:
            assert self.page in stdout
        if tunnelled and self.inside_of:
            row["detail"] = f"asked by {word} for {self.inside_of}"
        if self.reached == REFUSED:
            assert "reached" not in stdout
        else:
            assert self.reached in stdout, stderr
            assert stdout.count("reached") == 1
        return row


GITHUB, GITHUB6, PYPI, EVIL = "198.51.100.10", "2001:db8:1::10", "198.51.100.20", "198.51.100.66"

_TLS = {"protocol": "tls", "name_source": "sni"}
_HTTP = {"protocol": "http", "name_source": "host"}
_ALLOW = {"verdict": "allow", "reason": "domain"}


def _deny(reason: str) -> dict[str, Any]:
    return {"verdict": "deny", "reason": reason, "bytes_up": 0, "bytes_down": 0}


CASES = (
    Case(
        "a permitted name over TLS",
        ("https://github.com/",),
        "reached github.com",
        {**_TLS, **_ALLOW, "name": "github.com", "port": 443},
    ),
    Case(
        "a refused name over TLS",
        ("--resolve", f"evil.example:443:{EVIL}", "https://evil.example/"),
        REFUSED,
        {**_TLS, **_deny("no-match"), "name": "evil.example", "port": 443},
        asked={**_deny("no-match"), "name": "evil.example", "port": 443},
    ),
    Case(
        "a permitted name in plain HTTP",
        ("http://github.com/",),
        "reached github.com",
        {**_HTTP, **_ALLOW, "name": "github.com", "port": 80},
    ),
    Case(
        "a refused name in plain HTTP",
        ("--resolve", f"evil.example:80:{EVIL}", "http://evil.example/"),
        REFUSED,
        {**_HTTP, **_deny("no-match"), "name": "evil.example", "port": 80},
        asked={**_deny("no-match"), "name": "evil.example", "port": 80},
        page="reason: no-match",
    ),
    Case(
        "a permitted name in upper case, with a dot at its end",
        ("https://GitHub.com./",),
        "SNI github.com)",
        {**_TLS, **_ALLOW, "name": "github.com"},
    ),
    Case(
        "a permitted name at a refused one's address",
        ("--resolve", f"github.com:443:{EVIL}", "https://github.com/"),
        "reached github.com",
        {**_TLS, **_ALLOW, "name": "github.com"},
    ),
    Case(
        "a refused name inside a connection to a permitted one",
        ("--connect-to", "evil.example:443:github.com:443", "https://evil.example/"),
        REFUSED,
        {**_TLS, **_deny("no-match"), "name": "evil.example"},
        inside_of="github.com",
    ),
    Case(
        "a permitted name inside a connection to a refused one",
        ("--connect-to", "github.com:443:evil.example:443", "https://github.com/"),
        REFUSED,
        {},
        asked={**_deny("no-match"), "name": "evil.example", "port": 443},
        not_by=(TRANSPARENT,),  # there it is the case of a permitted name at a refused one's address
    ),
    Case(
        "two permitted names that differ",
        ("--connect-to", "github.com:443:pypi.org:443", "https://github.com/"),
        "reached github.com",
        {**_TLS, **_ALLOW, "name": "github.com"},
    ),
    Case(
        "a refused Host inside a connection to a permitted name",
        ("-H", "Host: evil.example", "http://github.com/"),
        REFUSED,
        {**_HTTP, **_deny("no-match"), "name": "evil.example"},
        page="reason: no-match",
        otherwise={
            FORWARD: Case(
                "a Host that is not the URL's",
                ("-H", "Host: evil.example", "http://github.com/"),
                REFUSED,
                {"protocol": "http", "verdict": "deny", "reason": "ambiguous"},
                page="Host and the URL name different hosts",
            )
        },
    ),
    Case(
        "an address without a name",
        (f"https://{EVIL}/", "-k"),
        REFUSED,
        {"protocol": "tls", **_deny("no-name"), "name": None, "destination": EVIL},
        asked={**_deny("no-name"), "name": None, "destination": EVIL, "port": 443},
    ),
    Case(
        "an address of this netvm",
        ("https://10.137.0.5/", "-k"),
        REFUSED,
        {},
        asked={**_deny("internal-address"), "destination": "10.137.0.5"},
        not_by=(TRANSPARENT,),  # the packet layer refuses it
    ),
    Case(
        "a permitted name that leads to a private address",
        ("--resolve", f"private.lab.example:443:{GITHUB}", "https://private.lab.example/"),
        REFUSED,
        {**_TLS, **_deny("private-address"), "name": "private.lab.example"},
        asked={**_deny("private-address"), "name": "private.lab.example"},
    ),
    Case(
        "a permitted name that does not exist",
        ("--resolve", f"nothing.lab.example:443:{GITHUB}", "https://nothing.lab.example/"),
        REFUSED,
        {**_TLS, **_deny("unresolvable"), "name": "nothing.lab.example"},
        asked={**_deny("unresolvable"), "name": "nothing.lab.example"},
    ),
    Case(
        "a permitted name at whose address nobody listens",
        ("--resolve", f"dead.lab.example:80:{GITHUB}", "http://dead.lab.example/"),
        REFUSED,
        {**_HTTP, **_deny("unreachable"), "name": "dead.lab.example"},
        asked={**_deny("unreachable"), "name": "dead.lab.example"},
        page="reason: unreachable",
    ),
    Case(
        "a port that no pattern names",
        ("--resolve", f"github.com:8443:{GITHUB}", "https://github.com:8443/"),
        REFUSED,
        {**_TLS, **_deny("no-match"), "name": "github.com", "port": 8443},
        asked={**_deny("no-match"), "name": "github.com", "port": 8443},
    ),
    Case(
        "two requests on one connection, the second for a refused host",
        ("--resolve", f"evil.example:80:{GITHUB}", "http://github.com/", "http://evil.example/"),
        "reached github.com",
        {**_HTTP, **_deny("no-match"), "name": "evil.example"},
        asked={**_deny("no-match"), "name": "evil.example", "port": 80},
        page="reason: no-match",
    ),
    Case(
        "a client in observe mode and a name that nothing grants",
        ("--resolve", f"evil.example:443:{EVIL}", "https://evil.example/"),
        "reached evil.example",
        {**_TLS, "verdict": "observe", "reason": "no-match", "name": "evil.example"},
        client="watched",
    ),
    Case(
        "a qube that is not listed",
        ("--resolve", f"github.com:443:{GITHUB}", "https://github.com/"),
        REFUSED,
        {"verdict": "deny", "reason": "unknown-client", "client": None},
        client="stranger",
    ),
)
