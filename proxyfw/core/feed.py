"""Feeds: the entries of a profile's `feeds`, address lists that their owner publishes and proxyfw refreshes."""

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from yaml.nodes import MappingNode, Node, SequenceNode

from proxyfw.core.duration import DURATION_FIX, parse_duration
from proxyfw.core.feedformats import Format, selector_problem
from proxyfw.core.hostname import HostnameError, normalise
from proxyfw.core.pattern import Port, PortError, parse_port
from proxyfw.core.problem import Where
from proxyfw.core.upstreamproxy import UpstreamProxy
from proxyfw.core.yamltext import Document, Text

_KEYS = ("url", "format", "select", "python", "ports", "every")
_PYTHON = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_URL = re.compile(r"[!-~]{1,2048}")
DAY = 86400
MIN_EVERY, MAX_EVERY = 600, 90 * DAY
_PORTS_FIX = 'write ports: [22, "123/udp"]'


@dataclass(frozen=True, slots=True)
class Source:
    """Where a list comes from, and how it is read. Those that are equal are one list, fetched once.

    `python`: the name of a file in the folder `feeds`, in place of all the rest.
    """

    url: str = ""
    format: Format | None = None
    select: tuple[str, ...] = ()
    python: str = ""

    @property
    def id(self) -> str:
        """A name for files and nftables sets, the same in every run."""
        told = json.dumps([self.url, self.format, self.select, self.python])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return " ".join((self.url, *self.select)) if self.url else f"feeds/{self.python}.py"


@dataclass(frozen=True, slots=True)
class Feed:
    """One entry of a profile's `feeds`. `ports` empty: every port and every protocol. `every`: seconds.

    `through`: by which proxy the list is fetched, as the policy knows it; None: by none.
    """

    source: Source
    ports: tuple[Port, ...]
    every: int
    where: Where
    profile: str
    through: UpstreamProxy | None = None

    @property
    def text(self) -> str:
        """As the log has it."""
        return f"feed {self.source}"

    def covers(self, transport: str, port: int) -> bool:
        """Whether the grant is for this port."""
        return not self.ports or any(each.transport == transport and each.number == port for each in self.ports)


def parse_feeds(document: Document, node: Node | None, profile: str) -> tuple[Feed, ...]:
    """The feeds of a profile; what is wrong with any of them is added to the document's problems."""
    if node is None:
        return ()
    if not isinstance(node, SequenceNode):
        document.error(document.where(node), "a list of feeds is wanted", 'write one "- url: ..." for each')
        return ()
    found: dict[tuple[Source, tuple[Port, ...]], Feed] = {}
    for item in node.value:
        feed = _feed(document, item, profile)
        if feed is not None:
            first = found.setdefault((feed.source, feed.ports), feed)
            if first is not feed:
                document.warn(feed.where, "this feed stands twice", f"remove it: it stands on line {first.where.line}")
    return tuple(found.values())


def _feed(document: Document, node: Node, profile: str) -> Feed | None:
    where = document.where(node)
    if not isinstance(node, MappingNode):
        document.error(where, "a feed is a mapping", "write url: and format:, or python:")
        return None
    fields = document.fields(node, _KEYS)
    ports = tuple(port for text in document.texts(fields.get("ports")) if (port := _port(document, text)))
    every = _every(document, document.text(fields.get("every")))
    source = _python(document, fields) if "python" in fields else _web(document, fields, where)
    return None if source is None else Feed(source, tuple(dict.fromkeys(ports)), every, where, profile)


def _python(document: Document, fields: dict[str, Node]) -> Source | None:
    for key in ("url", "format", "select"):
        if key in fields:
            document.error(document.where(fields[key]), f"{key}: does not go with python:", "keep one of the two")
    text = document.text(fields["python"])
    if text is None or _PYTHON.fullmatch(text.value):
        return Source(python=text.value) if text else None
    fix = "write NAME for a file feeds/NAME.py beside proxyfw.yaml (letters, digits, - and _)"
    document.error(text.where, f'"{text.value}" is not the name of a Python feed', fix)
    return None


def _web(document: Document, fields: dict[str, Node], where: Where) -> Source | None:
    for key, fix in (
        ("url", "write url: https://..., or python: NAME"),
        ("format", f"write format: {' or '.join(Format)}"),
    ):
        if key not in fields:
            document.error(where, f"a feed without {key}:", fix)
    url, form = document.text(fields.get("url")), document.text(fields.get("format"))
    if form is not None and form.value not in list(Format):
        document.error(form.where, f'format "{form.value}" does not exist', f"write {' or '.join(Format)}")
        form = None
    select = document.texts(fields.get("select"))
    for text in select if form is not None else ():
        wrong = selector_problem(Format(form.value), text.value) if form is not None else ""
        if wrong:
            document.error(text.where, f'"{text.value}": {wrong}', "see select: in the README")
    if url is None or form is None or not _good_url(document, url):
        return None
    return Source(url.value, Format(form.value), tuple(text.value for text in select))


def _good_url(document: Document, text: Text) -> bool:
    try:
        parts: SplitResult | None = urlsplit(text.value) if _URL.fullmatch(text.value) else None
        port = parts.port if parts else None
        host = normalise(parts.hostname or "") if parts else None
    except (ValueError, HostnameError):
        parts, port, host = None, None, None
    if parts is None or host is None or parts.scheme != "https" or port == 0:
        document.error(text.where, f'"{text.value}" is not an https URL', "write url: https://host/path")
    elif "@" in parts.netloc:
        document.error(text.where, f'"{host}": a user name or password in the URL', "write the URL without it")
    elif parts.fragment:
        document.error(text.where, f'"{text.value}": what follows # is never fetched', "remove it")
    else:
        return True
    return False


def _port(document: Document, text: Text) -> Port | None:
    try:
        return parse_port(text.value)
    except PortError as error:
        document.error(text.where, str(error), _PORTS_FIX)
        return None


def _every(document: Document, text: Text | None) -> int:
    seconds = parse_duration(text.value) if text else DAY
    if seconds is None or not MIN_EVERY <= seconds <= MAX_EVERY:
        assert text is not None
        document.error(text.where, f'every "{text.value}"', f"{DURATION_FIX}, from 10m to 90d")
        return DAY
    return seconds
