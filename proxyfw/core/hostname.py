"""Host names, normalised once at the door: lower case, no trailing dot, IDNs as A-labels.

RFC 1123 section 2.1 and RFC 1034 section 3.5 for the shape, UTS 46 for the mapping of IDNs. Underscores are accepted:
real hosts have them. An address is not a host name.
"""

import re
from functools import lru_cache
from typing import NewType

import idna

Hostname = NewType("Hostname", str)
"""A normalised host name. Only `normalise` makes one."""

MAX_NAME = 253  # characters, RFC 1035 section 2.3.4 less the length octets
MAX_LABEL = 63

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


class HostnameError(ValueError):
    """The text is not a host name; the message says why, without repeating the text."""


@lru_cache(maxsize=4096)
def normalise(text: str) -> Hostname:
    """The one form in which a name is compared. Raises HostnameError."""
    name = text.lower() if text.isascii() else _a_labels(text)
    name = name.removesuffix(".")
    if not name:
        raise HostnameError("the name is empty")
    if len(name) > MAX_NAME:
        raise HostnameError(f"the name is longer than {MAX_NAME} characters")
    if not _NAME.fullmatch(name):
        raise HostnameError(_what_is_wrong(name))
    # The URL standard reads a name whose last label is a number as an IPv4 address (1.2.3.4, 127.1, 0x7f.1).
    last = name.rpartition(".")[2]
    if _NUMERIC.fullmatch(last):
        raise HostnameError("it is an address, not a name")
    return Hostname(name)


def _a_labels(text: str) -> str:
    try:
        return idna.encode(text, uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as error:
        raise HostnameError(f"not a valid international name ({error})") from None


def _what_is_wrong(name: str) -> str:
    for label in name.split("."):
        if not label:
            return "a label is empty (two dots in a row, or a dot at the start)"
        if len(label) > MAX_LABEL:
            return f"a label is longer than {MAX_LABEL} characters"
        if label.startswith("-") or label.endswith("-"):
            return "a label begins or ends with a hyphen"
    return "only letters, digits, hyphens, underscores and dots may be in a name"
