"""
What fields and literals hold while a rule is evaluated.

Text, numbers and truth values are Python's own; addresses are those of ``ipaddress``.
``None`` is no value: it stands for a field that is missing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from otel_qtap.rules.regex import Regex

__all__ = [
    "Address",
    "HexString",
    "Mac",
    "Network",
    "Value",
    "cast_text",
    "is_nonzero",
    "parse_address",
    "parse_network",
    "text_of",
]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}(?:(?::[0-9A-Fa-f]{2}){2})?")
_NETWORK = re.compile(r"([0-9A-Fa-f:.]+)/[0-9]{1,3}")
_MAPPED_PREFIX = 96  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2


@dataclass(frozen=True, slots=True)
class Mac:
    """A hardware address: six or eight octets; case does not count."""

    text: str
    """As written."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mac) and self.text.lower() == other.text.lower()

    def __hash__(self) -> int:
        return hash(self.text.lower())


@dataclass(frozen=True, slots=True)
class HexString:
    """Octets written as pairs of hex digits: ``47:45:54``; compared with the octets of text."""

    text: str

    @property
    def octets(self) -> bytes:
        """The octets that the digits stand for."""
        return bytes.fromhex(self.text.replace(":", ""))


Value: TypeAlias = (
    bool
    | int
    | float
    | str
    | Address
    | Network
    | Mac
    | HexString
    | Regex
    | list["Value"]
    | tuple["Value", ...]
)
"""A list is one that the expression holds, a tuple one that a field holds."""


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """
    Return the address that ``text`` is, ``None`` if it is none.

    An IPv4 address in IPv6 clothes (``::ffff:10.1.2.3``) is the IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def parse_network(text: str) -> Network | None:
    """Return the network that ``text`` (``10.1.2.3/8``) lies in, ``None`` if it is none."""
    if not _NETWORK.fullmatch(text):
        return None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_PREFIX))
    return network


def cast_text(text: str) -> str | Address | Network | Mac:
    """Return the value of quoted text: an address, network or MAC where it looks like one."""
    if "." in text or ":" in text:
        address = None if "%" in text else parse_address(text)
        found: Address | Network | Mac | None = address or parse_network(text)
        if found is None and _MAC.fullmatch(text):
            found = Mac(text)
        if found is not None:
            return found
    return text


def is_nonzero(value: Value) -> bool:
    """Whether a value that stands alone as a condition holds."""
    if isinstance(value, bool | int | float | str | list | tuple):
        return bool(value)
    return True


def text_of(value: Value) -> str:  # noqa: PLR0911 - one for each kind
    """Return a value as the text that functions on text see."""
    if isinstance(value, str):  # nearly always
        return value
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case Mac() | HexString():
            return value.text
        case Regex():
            return value.pattern
        case list() | tuple():
            return f"[{' '.join(text_of(item) for item in value)}]"
        case _:
            return str(value)
