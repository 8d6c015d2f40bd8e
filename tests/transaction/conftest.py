"""Fixtures for the tests of conversations."""

from __future__ import annotations

import pytest

from otel_qtap.events import Role


@pytest.fixture(params=[Role.SERVER, Role.CLIENT], ids=["server", "client"])
def role(request: pytest.FixtureRequest) -> Role:
    """Which end of the connection is watched: every story is told from both."""
    end: Role = request.param
    return end
