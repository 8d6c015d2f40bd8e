"""
Who talked to whom, in the words of the semantic conventions.

``network.*`` are the ends of the TCP connection; ``client.*`` and ``server.*`` are the
logical ends, which proxies in between hide and forwarding headers reveal again.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from otel_qtap.transaction.model import Request, Transaction, split_target
from otel_qtap.transaction.readable import readable_text

__all__ = ["Endpoint", "client_end", "full_url", "original_scheme", "server_end", "target_end"]

_DEFAULT_PORTS = {"http": 80, "https": 443}

# Programs that pass the Host header of their client on, so that on their egress side
# it names the front and not the server that was chosen.
_HOST_PASSING_PROXIES = frozenset({"caddy", "envoy", "haproxy", "traefik", "varnishd"})

# RFC 7239, section 4: name=token or name="quoted string", in elements parted by commas.
_FORWARDED_PAIR = re.compile(r'\s*([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;,\s]*)\s*(;|,|$)')


class Endpoint(NamedTuple):
    """A logical end; ``port`` is ``None`` where nobody said it."""

    address: str
    port: int | None


def client_end(transaction: Transaction, *, trusts_forwarded: bool) -> Endpoint:
    """
    Return the client of a served request.

    The leftmost of Forwarded and X-Forwarded-For, else what a PROXY protocol header
    said, else the peer of the connection.
    """
    if trusts_forwarded:
        named = _forwarded(transaction.request, "for")
        forwarded_for = transaction.request.header("x-forwarded-for")
        if named is None and forwarded_for is not None:
            named = forwarded_for.partition(",")[0].strip()
        if named and (end := _ip_endpoint(named)) is not None:
            return end
    peer = transaction.proxied_source or transaction.remote
    return Endpoint(peer.address, peer.port)


def original_scheme(transaction: Transaction, *, trusts_forwarded: bool) -> str:
    """Return the scheme that the client used, also where TLS ended in front of this process."""
    if trusts_forwarded:
        named = _forwarded(transaction.request, "proto") or _first_element(
            transaction.request.header("x-forwarded-proto")
        )
        if named and named.lower() in _DEFAULT_PORTS:
            return named.lower()
    return transaction.scheme


def server_end(transaction: Transaction, scheme: str, *, trusts_forwarded: bool) -> Endpoint:
    """Return the host that the client of a served request asked for, else the local end."""
    authority = ""
    if trusts_forwarded:
        authority = (
            _forwarded(transaction.request, "host")
            or _first_element(transaction.request.header("x-forwarded-host"))
            or ""
        )
    end = _authority(authority) or _authority(transaction.authority)
    if end is None:
        return Endpoint(transaction.local.address, transaction.local.port)
    return _with_default_port(end, scheme)


def target_end(transaction: Transaction) -> Endpoint:
    """
    Return the logical server of a request that the process sent.

    The name under which the process knows the remote end; else the host of an
    absolute target or of the Host header, provided that it can mean this connection:
    the program is no proxy that passes its client's Host on, and the ports agree.
    Else the address.
    """
    remote = transaction.remote
    if transaction.remote_name:
        return Endpoint(transaction.remote_name, remote.port)
    if transaction.process.name not in _HOST_PASSING_PROXIES:
        absolute = _authority(split_target(transaction.request.target)[0])
        if absolute is not None:  # through a forward proxy: the ports need not agree
            return _with_default_port(absolute, transaction.scheme)
        end = _authority(transaction.authority)
        if end is not None:
            end = _with_default_port(end, transaction.scheme)
            if end.port == remote.port or transaction.request.method == "CONNECT":
                return end
    return Endpoint(remote.address, remote.port)


def full_url(transaction: Transaction, server: Endpoint) -> str:
    """Return the absolute URL of a sent request; the port only where it is not the usual one."""
    scheme = transaction.scheme
    host = f"[{server.address}]" if ":" in server.address else server.address
    has_port = server.port is not None and server.port != _DEFAULT_PORTS.get(scheme)
    authority = f"{host}:{server.port}" if has_port else host
    if transaction.request.method == "CONNECT":
        return f"{scheme}://{authority}"
    _, path, query = split_target(transaction.request.target)
    path = "" if path == "*" else path
    return readable_text(f"{scheme}://{authority}{path}" + (f"?{query}" if query else ""))


def _with_default_port(end: Endpoint, scheme: str) -> Endpoint:
    return end if end.port is not None else Endpoint(end.address, _DEFAULT_PORTS.get(scheme))


def _authority(authority: str) -> Endpoint | None:
    """Return host and port of ``host:port``, ``[address]:port`` or a part of them."""
    authority = readable_text(authority.rpartition("@")[2].strip())
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        port = rest.removeprefix(":")
    elif authority.count(":") > 1:  # an IPv6 address without its brackets
        host, port = authority, ""
    else:
        host, _, port = authority.partition(":")
    if not host:
        return None
    return Endpoint(host, _port(port))


def _ip_endpoint(node: str) -> Endpoint | None:
    """Return the end that a forwarding header names; ``None`` for names and hidden ones."""
    end = _authority(node)
    if end is None:
        return None
    try:
        address = ipaddress.ip_address(end.address)
    except ValueError:  # "unknown", "_hidden", or something made up
        return None
    return Endpoint(str(address), end.port)


def _forwarded(request: Request, name: str) -> str | None:
    """Return parameter ``name`` of the first element of the Forwarded header."""
    header = request.header("forwarded")
    if header is None:
        return None
    for match in _FORWARDED_PAIR.finditer(header):
        if match[1].lower() == name:
            value = match[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            return value
        if match[3] != ";":
            break
    return None


def _first_element(header: str | None) -> str | None:
    return header.partition(",")[0].strip() if header else None


def _port(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    return int(text) if is_number and int(text) <= 0xFFFF else None
