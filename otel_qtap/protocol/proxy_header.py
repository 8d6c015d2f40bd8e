"""
The PROXY protocol: who a connection really comes from, told in front of its first request.

Two forms: a line of text (version 1) and a binary block (version 2), as HAProxy's
``doc/proxy-protocol.txt`` has them.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from otel_qtap.protocol.events import ParseError, ProxyHeader

__all__ = ["read_proxy_header"]

_LINE_STARTS = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
_MAX_LINE_SIZE = 107
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_SIZE = 16
_ADDRESS_SIZES = {0x10: 4, 0x20: 16}  # AF_INET, AF_INET6

Found = tuple[ProxyHeader | None, int]
"""A header with the position after it, or ``None`` with the position that was asked about."""


def read_proxy_header(data: bytes, position: int) -> Found | None:
    """
    Tell a PROXY protocol header at ``position`` from the beginning of a request, and read it.

    Returns ``None`` when that takes more bytes; raises ``ParseError`` if it is malformed.
    """
    beginning = data[position:]
    if beginning.startswith(_SIGNATURE):
        return _read_block(data, position)
    if beginning.startswith(_LINE_STARTS):
        return _read_line(data, position)
    if any(mark.startswith(beginning) for mark in (_SIGNATURE, *_LINE_STARTS)):
        return None
    return None, position


def _read_line(data: bytes, position: int) -> Found | None:
    end = data.find(b"\n", position, position + _MAX_LINE_SIZE) + 1
    if end:
        return _version_1(data[position:end].decode("latin-1").rstrip("\r\n")), end
    if len(data) - position >= _MAX_LINE_SIZE:
        raise ParseError("PROXY protocol line has no end")
    return None


def _read_block(data: bytes, position: int) -> Found | None:
    start = position + _FIXED_SIZE
    if len(data) < start:
        return None
    end = start + int.from_bytes(data[start - 2 : start])
    if data[start - 4] not in (0x20, 0x21):  # version 2, LOCAL or PROXY
        raise ParseError("unknown version or command of the PROXY protocol")
    if len(data) < end:
        return None
    is_local = data[start - 4] == 0x20
    return _version_2(0 if is_local else data[start - 3], data[start:end]), end


def _version_1(line: str) -> ProxyHeader:
    words = line.split(" ")
    if words[1] == "UNKNOWN":
        return ProxyHeader(1, "", 0, "", 0)
    if len(words) != 6:
        raise ParseError("malformed PROXY protocol line")
    family = IPv4Address if words[1] == "TCP4" else IPv6Address
    source, destination = _address(family, words[2]), _address(family, words[3])
    ports = [int(word) if word.isdecimal() and len(word) <= 5 else 65536 for word in words[4:]]
    if not source or not destination or max(ports) > 65535:
        raise ParseError("malformed PROXY protocol line")
    return ProxyHeader(1, source, ports[0], destination, ports[1])


def _address(family: type[IPv4Address | IPv6Address], text: str) -> str:
    """Return the address in its canonical form, or nothing if it is none."""
    try:
        return str(family(text))
    except ValueError:
        return ""


def _version_2(family: int, block: bytes) -> ProxyHeader:
    size = _ADDRESS_SIZES.get(family & 0xF0)
    if size is None:  # no addresses, or those of Unix sockets
        return ProxyHeader(2, "", 0, "", 0)
    if len(block) < 2 * size + 4:
        raise ParseError("PROXY protocol header is too short for its addresses")
    address = IPv4Address if size == 4 else IPv6Address
    return ProxyHeader(
        2,
        str(address(block[:size])),
        int.from_bytes(block[2 * size : 2 * size + 2]),
        str(address(block[size : 2 * size])),
        int.from_bytes(block[2 * size + 2 : 2 * size + 4]),
    )
