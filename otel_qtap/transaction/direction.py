"""Qtap's ``direction`` of a connection, from its role and its remote address."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from otel_qtap.events import Role
from otel_qtap.transaction.model import Direction

__all__ = ["direction_of"]

# What Go's IP.IsPrivate knows, which Qtap asks: RFC 1918 and RFC 4193. Loopback,
# link-local and 100.64/10 are not among them, so they count as external.
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)


def direction_of(role: Role, remote_address: str) -> Direction:
    """Return the label of a connection whose other end is at ``remote_address``."""
    if role is Role.SERVER:
        return Direction.INGRESS
    return Direction.EGRESS_INTERNAL if _is_private(remote_address) else Direction.EGRESS_EXTERNAL


@lru_cache(maxsize=4096)
def _is_private(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in _PRIVATE if network.version == parsed.version)
