"""Which traffic a Qtap file asks for."""

from __future__ import annotations

import pytest

from otel_qtap.config.tap import EndpointConfig, HealthChecks, LinkMode, TapConfig


def test_an_empty_tap_looks_at_everything() -> None:
    """Qtap's defaults; health checks are counted, and linking does what it can."""
    tap = TapConfig()

    assert (tap.direction.value, tap.ignore_loopback, tap.audit_include_dns) == (
        "all",
        False,
        False,
    )
    assert (tap.health_checks, tap.link) == (HealthChecks.COUNT, LinkMode.AUTO)


@pytest.mark.parametrize("domain", ["localhost", "api.example.com", "a_b.example.", "10.0.0.1"])
def test_the_domain_of_an_endpoint_is_a_host_name(domain) -> None:
    """Names of containers and addresses too: what a Host header may say."""
    assert EndpointConfig(domain=domain).domain == domain
