"""The agent never shows its own traffic, on neither end of it."""

from __future__ import annotations

import pytest
from haproxy_demo.receiver import Receiver
from kernel.agent import PYTHON, only, qtap_file, wait_until
from traffic.client import ClientPlan, run_client

REQUESTS = 5


@pytest.mark.skipif(not Receiver.is_available(), reason="no wheel of rotel for this machine")
def test_exporting_and_being_scraped_leave_no_trace(
    world, any_haproxy, start_agent, token, tmp_path
) -> None:
    """Spans go to a collector on this host, counters to a scraper: both stay invisible."""
    receiver = Receiver(tmp_path)
    try:
        receiver.wait_until_ready()
        services = (
            "  event_stores:\n"
            f"    - {{type: otel, protocol: http, endpoint: '{receiver.endpoint}'}}"
        )
        config = qtap_file(services=services, tap=only(PYTHON, "/.*/rotel-agent"))
        with start_agent(config) as agent:
            for n in range(3):  # exports in between would be traffic of the next round
                plan = ClientPlan(port=8086, requests=REQUESTS, target=f"{token}{n}?n={{n}}")
                run_client(world, plan)
                # The client and the backend: HAProxy is filtered out here.
                agent.wait_for(2 * REQUESTS, f"{token}{n}")
                wait_until(
                    lambda n=n: receiver.program.output().count(f"{token}{n}") >= REQUESTS,
                    15,
                    "spans at the collector",
                )
                agent.metrics()
            agent.stop()
    finally:
        receiver.program.stop()

    seen = agent.seen()
    # rotel runs beside us, and other programs may talk to theirs: look at these two.
    assert [s.url for s in seen if s.process_id in (agent.pid, receiver.program.pid)] == []
    assert len([s for s in seen if token in s.url]) == 3 * 2 * REQUESTS
