"""What a person wants to allow: a pattern, an address or network, or a pasted URL; and what grants it already."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from proxyfw.core.pattern import Form, Index, Pattern
from proxyfw.core.problem import Where
from proxyfw.core.profile import NetworkGrant, Profile, parse_grant
from proxyfw.core.target import TargetError, parse_target

Grant = Pattern | NetworkGrant

_DEFAULT = {"http": 80, "https": 443}
_NOWHERE = Where("")


class WantedError(ValueError):
    """The text is nothing that can be granted; the message says why, and what to write instead."""


def parse_wanted(text: str, profile: str) -> Grant:
    """What the text asks for, as an entry of this profile. Of a URL it is the host, and the port where that is not the
    one of its scheme; an address in a URL always has its port. Raises WantedError.
    """
    found = parse_grant(_of_url(text) if "://" in text else text, _NOWHERE, profile)
    if isinstance(found, Grant):
        return found
    raise WantedError(f"{found.message}; {found.fix}" if found.fix else found.message)


def _of_url(text: str) -> str:
    scheme = text.partition("://")[0].lower()
    if scheme not in _DEFAULT:
        raise WantedError(f'"{text}": of URLs, only http and https say what to allow; write host:port')
    try:
        target = parse_target(text)
        given = urlsplit(text).port
    except TargetError as error:
        raise WantedError(f'"{text}": {error}') from None
    if not isinstance(target.host, str):
        host = f"[{target.host}]" if target.host.version == 6 else str(target.host)
        return f"{host}:{target.port}"
    return target.host if given in (None, _DEFAULT[scheme]) else f"{target.host}:{given}"


def same(one: Grant, other: Grant) -> bool:
    """Whether both grant the same, however they are written."""
    if isinstance(one, Pattern) and isinstance(other, Pattern):
        return (one.form, one.name, one.ports) == (other.form, other.name, other.ports)
    if isinstance(one, NetworkGrant) and isinstance(other, NetworkGrant):
        return (one.network, one.port) == (other.network, other.port)
    return False


def for_good(profile: Profile) -> list[Grant]:
    """What a profile grants without an end."""
    return [*profile.domains, *profile.networks]


def granted_by(wanted: Grant, grants: Iterable[Grant]) -> Grant | None:
    """One of the grants, where together they grant all that is wanted; None: they do not, or not for certain."""
    others = list(grants)
    if isinstance(wanted, NetworkGrant):
        return next((each for each in others if isinstance(each, NetworkGrant) and _holds(each, wanted)), None)
    patterns = [each for each in others if isinstance(each, Pattern) and _names(each, wanted)]
    found = [next((each for each in patterns if port in each.ports), None) for port in wanted.ports]
    whole = next((each for each in patterns if set(wanted.ports) <= set(each.ports)), None)
    return whole or (found[0] if all(found) else None)


def _holds(grant: NetworkGrant, wanted: NetworkGrant) -> bool:
    if grant.network.version != wanted.network.version or grant.port not in (None, wanted.port):
        return False
    first, last = wanted.network[0], wanted.network[-1]
    return first in grant.network and last in grant.network


def _names(grant: Pattern, wanted: Pattern) -> bool:
    """Whether every name of `wanted` is one of `grant`, whatever the ports."""
    if wanted.form is Form.EXACT:
        return bool(Index([grant]).ports_of(wanted.fixed))
    if grant.form is Form.IN_LABEL:
        return wanted.form is Form.IN_LABEL and grant.name == wanted.name
    if grant.form is Form.EXACT:
        return False
    below = wanted.fixed.endswith(f".{grant.name}")
    if wanted.form is Form.NAME_AND_BELOW:
        return below or (grant.form is Form.NAME_AND_BELOW and wanted.fixed == grant.name)
    return below or wanted.fixed == grant.name
