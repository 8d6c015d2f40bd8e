"""Every body that passed HAProxy is captured byte for byte, on both of its sides."""

from __future__ import annotations

import hashlib

import pytest
from traffic.client import ClientPlan, run_client

SIZES = (0, 1, 4096, 65536, 1024 * 1024)

# What is captured waits in bounded queues, so bursts stay well below these.
BURST_BYTES = 1024 * 1024


@pytest.mark.parametrize("chunk_size", [0, 7000], ids=["content-length", "chunked"])
@pytest.mark.parametrize("size", SIZES)
def test_captured_bodies_are_the_ones_that_were_sent(
    world, haproxy, agent, token, size, chunk_size
) -> None:
    """SHA-256 as the client took it of what it sent and got, in both transactions."""
    requests = max(1, min(3, BURST_BYTES // max(1, size)))
    plan = ClientPlan(
        port=8085,
        requests=requests,
        method="POST",
        target=f"{token}?n={{n}}&size={size}&seed={{n}}&chunked={chunk_size}",
        body_size=size,
        chunk_size=chunk_size,
    )
    exchanges = run_client(world, plan).exchanges
    assert {exchange.outcome for exchange in exchanges} == {"complete"}
    assert len({exchange.received_sha256 for exchange in exchanges}) in (1, requests)

    seen = agent.wait_for(2 * requests, token, process_id=haproxy.worker_pid)

    assert sum(one.is_ingress for one in seen) == requests
    for one in seen:
        sent = exchanges[one.number]
        assert (one.ending, one.status, one.is_truncated) == ("complete", 200, False)
        assert (one.request_size, one.response_size) == (size, size)
        assert hashlib.sha256(one.request_body).hexdigest() == sent.sent_sha256
        assert hashlib.sha256(one.response_body).hexdigest() == sent.received_sha256
