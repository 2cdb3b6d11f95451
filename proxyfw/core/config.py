"""proxyfw.yaml: the clients and the settings of the service."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from yaml.nodes import MappingNode, Node

from proxyfw.core.address import IPAddress
from proxyfw.core.duration import DURATION_FIX, parse_duration
from proxyfw.core.problem import Problem, Where
from proxyfw.core.qubes_rules import DNS_PORT
from proxyfw.core.upstreamproxy import UpstreamProxy, UpstreamProxyError, parse_upstream_proxy
from proxyfw.core.yamltext import Document, Text, suggestion

_KEYS = (
    "clients",
    "clients_file",
    "unlisted",
    "profiles",
    "feeds",
    "dns",
    "explicit",
    "upstream_proxy",
    "log",
    "downstream_group",
    "state_dir",
)
_CLIENT_KEYS = ("profiles", "mode", "address", "dns", "upstream_proxy")

TAG = "tag:"
"""How a client begins that stands for every attached qube with a Qubes tag."""

_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_QUBE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")
NAME_FIX = "write a letter, then letters, digits, -, _ and ., at most 31 characters in all"
_SIZE = re.compile(r"([1-9][0-9]{0,5})([kMG]B|[KMG]iB)")
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MIN_LOG = 2**20
MAX_PORT = 65535
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_GROUP = re.compile(r"0|[1-9][0-9]{0,9}")
_ADDRESS_PORT = re.compile(r"([0-9.]+|\[[0-9A-Fa-f:.]+\])(?::([1-9][0-9]{0,4}))?")


@dataclass(frozen=True, slots=True)
class Client:
    """One qube. `profiles_where`: the line of each.

    `observe`: what would be refused is logged, and let through. `dns_all`: every name resolves. `upstream_proxy`: its
    own, in place of everybody's; None: it has none of its own.
    """

    name: str
    profiles: tuple[str, ...]
    profiles_where: tuple[Where, ...]
    observe: bool
    addresses: tuple[IPAddress, ...]
    where: Where
    dns_all: bool = False
    upstream_proxy: UpstreamProxy | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """proxyfw.yaml, checked.

    `clients_file`: a path, from the folder of this file on. `clients` and, by Qubes tag, `tags` in the order written.
    `unlisted_qubes`: whoever is attached and not listed gets what sys-firewall would give. `feeds`: lists are
    fetched; else no feed grants anything. `upstream`: resolvers with their ports; empty: those of resolv.conf.
    `explicit_port`: where clients that ask for a proxy find one, at any address of the netvm; 0: nowhere. `listen`: the
    same without a netvm, at this address and port; then nothing else is done, and nothing is forwarded.
    `upstream_proxy`: by which every client leaves that has no other, and by which lists are fetched; None: by none.
    `log_keep` in seconds, `log_max_size` in bytes. `downstream_group`: the interface group of the client side.
    """

    clients: Mapping[str, Client]
    clients_file: str = ""
    tags: Mapping[str, Client] = field(default_factory=dict)
    unlisted_qubes: bool = False
    profile_folders: tuple[str, ...] = ()
    feeds: bool = True
    upstream: tuple[tuple[IPAddress, int], ...] = ()
    explicit_port: int = 0
    listen: tuple[IPAddress, int] | None = None
    upstream_proxy: UpstreamProxy | None = None
    log_keep: int = 30 * 86400
    log_max_size: int = 512 * 2**20
    downstream_group: int = 2
    state_dir: str = "/var/lib/proxyfw"


def parse_config(file: str, text: str) -> tuple[Config | None, list[Problem]]:
    """The configuration (None where there is an error), and all errors and warnings."""
    document = Document(file, text)
    fields = document.fields(document.root, _KEYS)
    defaults = Config({})
    log = document.fields(fields.get("log"), ("keep", "max_size"))
    explicit = _explicit(document, fields.get("explicit"))
    clients = _clients(document, fields.get("clients"), explicit.local)
    config = Config(
        clients={name: client for name, client in clients.items() if not name.startswith(TAG)},
        clients_file=_text(document, fields.get("clients_file")),
        tags={name.removeprefix(TAG): client for name, client in clients.items() if name.startswith(TAG)},
        unlisted_qubes=_chosen(document, fields.get("unlisted"), "unlisted", ("deny", "qubes")),
        profile_folders=tuple(
            text.value for text in document.texts(fields.get("profiles")) if _is_absolute(document, text)
        ),
        feeds=not _chosen(document, fields.get("feeds"), "feeds", ("on", "off")),
        upstream=_upstream(document, fields.get("dns")),
        explicit_port=explicit.port,
        listen=explicit.listen,
        upstream_proxy=_upstream_proxy(document, fields.get("upstream_proxy")),
        log_keep=_number(document, log.get("keep"), _duration, defaults.log_keep),
        log_max_size=_number(document, log.get("max_size"), _size, defaults.log_max_size),
        downstream_group=_number(document, fields.get("downstream_group"), _group, defaults.downstream_group),
        state_dir=_state_dir(document, fields.get("state_dir"), defaults.state_dir),
    )
    if document.failed:
        return None, document.problems
    if config.listen is not None:
        _check_listen(document, fields["explicit"], config, config.listen)
        if document.failed:
            return None, document.problems
    if not (config.clients or config.clients_file or config.tags or config.unlisted_qubes):
        fix = "list the qubes under clients:, as in work: [github]"
        document.warn(document.where(document.root), "no client is listed: every connection is refused", fix)
    return config, document.problems


def parse_state_dir(file: str, text: str) -> str:
    """The state folder, whatever else is wrong with the text; the default where it cannot be told."""
    document = Document(file, text)
    fields = document.fields(document.root, _KEYS)
    return _state_dir(document, fields.get("state_dir"), Config({}).state_dir)


def is_for_listen(text: str) -> bool:
    """Whether `explicit: listen:` stands there, whatever is wrong with the text: then there is no netvm to close."""
    document = Document("", text)
    fields = document.fields(document.root, _KEYS)
    return _explicit(document, fields.get("explicit")).local


def check_profiles(config: Config, library_names: Collection[str]) -> list[Problem]:
    """The profiles that clients name and that do not exist, each an error at its line."""
    return [
        Problem(where, f'client "{client.name}": no profile is named "{profile}"', suggestion(profile, library_names))
        for client in (*config.clients.values(), *config.tags.values())
        for profile, where in zip(client.profiles, client.profiles_where, strict=True)
        if profile not in library_names
    ]


def check_addresses(config: Config) -> list[Problem]:
    """Outside Qubes OS: the clients that nobody could look up, each a warning at its line."""
    message = "its address is looked up on Qubes OS alone: here the client stays refused"
    clients = [
        Problem(client.where, f'"{client.name}": {message}', "give address: [10.137.0.12]", warning=True)
        for client in config.clients.values()
        if not client.addresses
    ]
    message = "tags are looked up on Qubes OS alone: here nobody has it"
    return clients + [Problem(tag.where, f'"{tag.name}": {message}', warning=True) for tag in config.tags.values()]


def is_qube_name(text: str) -> bool:
    """Whether Qubes OS lets a qube have this name."""
    return bool(_QUBE.fullmatch(text))


def is_client_name(text: str) -> bool:
    """Whether a client may be called this: as a qube, or by its address, where its name is not known."""
    return is_qube_name(text) or parse_address(text) is not None


def parse_address(text: str) -> IPAddress | None:
    """The address; None where it is none, or has a zone."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def _clients(document: Document, node: Node | None, local: bool) -> dict[str, Client]:
    """`local`: programs of this machine may be clients."""
    clients: dict[str, Client] = {}
    owners: dict[IPAddress, tuple[str, Where]] = {}
    for key, value in document.entries(node):
        if key.value.startswith(TAG):
            if not _TAG.fullmatch(key.value.removeprefix(TAG)):
                fix = "write a letter, then letters, digits, - and _, as in tag:research"
                document.error(key.where, f'"{key.value}" is not a Qubes tag', fix)
            else:
                clients[key.value] = _client(document, key, value, owners, local)
        elif not is_qube_name(key.value):
            document.error(key.where, f'"{key.value}" is not the name of a qube', NAME_FIX)
        else:
            clients[key.value] = _client(document, key, value, owners, local)
    return clients


def _client(
    document: Document, key: Text, node: Node, owners: dict[IPAddress, tuple[str, Where]], local: bool
) -> Client:
    """Both forms: a list of profiles, or a mapping. `owners`: the addresses of the clients so far; added to."""
    fields = {"profiles": node}
    if isinstance(node, MappingNode):
        fields = document.fields(node, _CLIENT_KEYS)
    profiles = document.texts(fields.get("profiles"))
    addresses = []
    for text in document.texts(fields.get("address"), one=True):
        address = _client_address(document, text, local)
        if address is None:
            continue
        if address in owners:
            owner, where = owners[address]
            message = f'{address} is the address of "{owner}" already ({where})'
            document.error(text.where, message, "give each address once, to one client")
            continue
        owners[address] = (key.value, text.where)
        addresses.append(address)
    if key.value.startswith(TAG) and "address" in fields:
        document.error(key.where, f'"{key.value}": a tag has no address', "remove address:, or list the qube by name")
    return Client(
        name=key.value,
        profiles=tuple(profile.value for profile in profiles),
        profiles_where=tuple(profile.where for profile in profiles),
        observe=_chosen(document, fields.get("mode"), "mode", ("enforce", "observe")),
        addresses=tuple(addresses),
        where=key.where,
        dns_all=_chosen(document, fields.get("dns"), "dns", ("profile", "all")),
        upstream_proxy=_upstream_proxy(document, fields.get("upstream_proxy")),
    )


def _client_address(document: Document, text: Text, local: bool) -> IPAddress | None:
    address = parse_address(text.value)
    if address is None:
        document.error(text.where, f'"{text.value}" is not an address', "write it as in 10.137.0.12 or fd09::12")
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        document.error(text.where, f'"{text.value}" is an IPv4 address in IPv6', f"write {address.ipv4_mapped}")
        return None
    for kind in ("loopback", "multicast", "unspecified", "link_local"):
        if getattr(address, f"is_{kind}") and not (local and address.is_loopback):
            message = f'"{text.value}" is {kind.replace("_", "-")}, not a qube\'s address'
            document.error(text.where, message, "write the qube's own address, as dom0 shows it")
            return None
    return address


def _chosen(document: Document, node: Node | None, key: str, choices: tuple[str, str]) -> bool:
    """Whether the second of two words was chosen; the first is the default."""
    text = document.text(node)
    if text and text.value not in choices:
        document.error(text.where, f'{key} "{text.value}" does not exist', f"write {' or '.join(choices)}")
    return text is not None and text.value == choices[1]


def _upstream(document: Document, node: Node | None) -> tuple[tuple[IPAddress, int], ...]:
    if node is None:
        return ()
    servers = document.fields(node, ("upstream",)).get("upstream")
    if isinstance(node, MappingNode) and (servers is None or servers.value == []):
        fix = "write upstream: [10.139.1.1], or remove dns: to use the servers of resolv.conf"
        document.error(document.where(node), "dns: names no server", fix)
    return tuple(server for text in document.texts(servers) if (server := _server(document, text)))


def _server(document: Document, text: Text) -> tuple[IPAddress, int] | None:
    found = _with_port(text.value, DNS_PORT)
    if found is None or found[0].is_multicast or found[0].is_unspecified:
        fix = "write it as in 10.139.1.1, 10.139.1.1:5353 or [2001:db8::53]:53"
        document.error(text.where, f'"{text.value}" is not a DNS server\'s address', fix)
        return None
    return found


def _with_port(text: str, default: int) -> tuple[IPAddress, int] | None:
    """An address with or without a port. A bare IPv6 address has none; every other form is split at its last colon."""
    match = _ADDRESS_PORT.fullmatch(text)
    address = parse_address(match[1].strip("[]") if match else text)
    port = int(match[2]) if match and match[2] else default
    return None if address is None or port > MAX_PORT else (address, port)


class _Explicit(NamedTuple):
    """The port on a netvm (0: none), and where to listen without one (None: nowhere). `local`: that was meant."""

    port: int = 0
    listen: tuple[IPAddress, int] | None = None
    local: bool = False


def _explicit(document: Document, node: Node | None) -> _Explicit:
    if node is None:
        return _Explicit()
    fields = document.fields(node, ("port", "listen"))
    if len(fields) != 1:
        if isinstance(node, MappingNode):
            fix = "write {port: 3128} on a netvm, or {listen: 127.0.0.1:3128} for programs of this machine"
            document.error(document.where(node), "explicit: takes either port or listen", fix)
        return _Explicit()
    if "port" in fields:
        return _Explicit(_number(document, fields["port"], _port, 0))
    text = document.text(fields["listen"])
    found = _with_port(text.value, 0) if text is not None else None
    if text is not None and (found is None or not found[1] or found[0].is_multicast):
        fix = "write it as in 127.0.0.1:3128 or [::1]:3128"
        document.error(text.where, f'"{text.value}" is not an address with a port', fix)
    return _Explicit(0, found, local=True)


def _check_listen(document: Document, node: Node, config: Config, listen: tuple[IPAddress, int]) -> None:
    address, port = listen
    where = document.where(node)
    own = [config.upstream_proxy, *(c.upstream_proxy for c in (*config.clients.values(), *config.tags.values()))]
    anywhere = address.is_unspecified
    if any(each is not None and each.port == port and (anywhere or each.address == address) for each in own):
        fix = "write the address of another proxy, or listen at another port"
        document.error(where, "upstream_proxy is this very proxy", fix)
    elif not address.is_loopback:
        message = "explicit: listens for other machines, and only for them that ask: nothing else of theirs is judged"
        document.warn(where, message, "to judge all that a machine sends, make this its netvm: {port: 3128}")


def _upstream_proxy(document: Document, node: Node | None) -> UpstreamProxy | None:
    text = document.text(node)
    try:
        return parse_upstream_proxy(text.value) if text is not None else None
    except UpstreamProxyError as error:
        assert text is not None
        document.error(text.where, f"upstream_proxy: {error}", error.fix)
        return None


def _text(document: Document, node: Node | None) -> str:
    text = document.text(node)
    return text.value if text else ""


def _is_absolute(document: Document, text: Text) -> bool:
    if text.value.startswith("/"):
        return True
    document.error(text.where, f'"{text.value}" is not a full path', "begin it with /")
    return False


def _state_dir(document: Document, node: Node | None, default: str) -> str:
    text = document.text(node)
    return text.value if text and _is_absolute(document, text) else default


def _number(document: Document, node: Node | None, read: Callable[[str], int], default: int) -> int:
    text = document.text(node)
    if text is None:
        return default
    try:
        return read(text.value)
    except _Unreadable as unreadable:
        document.error(text.where, f'"{text.value}": {unreadable}', unreadable.fix)
        return default


class _Unreadable(Exception):
    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def _duration(text: str) -> int:
    seconds = parse_duration(text)
    if seconds is None:
        raise _Unreadable("not a duration", DURATION_FIX)
    return seconds


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise _Unreadable("not a size", f"write a number and one of {', '.join(_BYTES)}, as in 512MiB")
    size = int(match[1]) * _BYTES[match[2]]
    if size < _MIN_LOG:
        raise _Unreadable("too small for a log", "write 1MiB or more")
    return size


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > MAX_PORT:
        raise _Unreadable("not a port", "write a number from 1 to 65535, as in 3128")
    if int(text) == DNS_PORT:
        raise _Unreadable("port 53 is the relay's", "write another, as in 3128")
    return int(text)


def _group(text: str) -> int:
    if not _GROUP.fullmatch(text) or int(text) > 2**32 - 1:
        raise _Unreadable("not an interface group", "write a number from 2 to 4294967295")
    if text == "0":
        raise _Unreadable("group 0 is every interface that has no group", "write 2, the client side on Qubes")
    if text == "1":
        raise _Unreadable("group 1 is the uplink on Qubes", "write 2, the client side on Qubes")
    return int(text)
