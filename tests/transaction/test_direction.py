"""Qtap's word for who opened a connection, and to where."""

from __future__ import annotations

import pytest

from otel_qtap.events import Role
from otel_qtap.transaction.direction import direction_of
from otel_qtap.transaction.model import Direction

_REMOTE = [
    ("10.0.0.1", "egress-internal"),
    ("10.255.255.255", "egress-internal"),
    ("11.0.0.0", "egress-external"),
    ("172.15.255.255", "egress-external"),
    ("172.16.0.0", "egress-internal"),
    ("172.31.255.255", "egress-internal"),
    ("172.32.0.0", "egress-external"),
    ("192.168.0.1", "egress-internal"),
    ("192.169.0.1", "egress-external"),
    ("100.64.0.1", "egress-external"),
    ("127.0.0.1", "egress-external"),
    ("169.254.1.1", "egress-external"),
    ("8.8.8.8", "egress-external"),
    ("fc00::1", "egress-internal"),
    ("fdff::1", "egress-internal"),
    ("fe80::1", "egress-external"),
    ("::1", "egress-external"),
    ("2001:db8::1", "egress-external"),
]


@pytest.mark.parametrize(("address", "expected"), _REMOTE)
def test_egress_is_internal_to_private_addresses_alone(address, expected) -> None:
    """RFC 1918 and fc00::/7; loopback, link-local and carrier NAT count as external."""
    assert direction_of(Role.CLIENT, address).value == expected


@pytest.mark.parametrize("address", ["10.0.0.1", "8.8.8.8", "::1"])
def test_what_was_accepted_is_ingress(address) -> None:
    """From wherever it came."""
    direction = direction_of(Role.SERVER, address)

    assert direction is Direction.INGRESS
    assert direction.value == "ingress"
    assert direction.is_ingress
