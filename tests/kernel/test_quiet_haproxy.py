"""HAProxy that answers no request by itself: it only checks servers, or passes bytes on."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from kernel.agent import RUNGS, RunningAgent, qtap_file
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries

from otel_qtap.receiver.recording import Recording
from otel_qtap.replay import recorded_transactions
from otel_qtap.transaction.link import LinkMethod
from otel_qtap.transaction.model import Transaction

VERSIONS = list(find_binaries())
SERVERS = (Server("a", "backend-a", 8001), Server("b", "backend-b", 8002))
CHECKED = tuple(replace(server, options="check inter 100ms") for server in SERVERS)


def transactions_of(process_id: int, record: Path) -> list[Transaction]:
    """Return what the agent makes of what one process did."""
    return [t for t in recorded_transactions(Recording(record)) if t.process.pid == process_id]


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_health_check_is_counted(
    world, binaries, only_haproxy, tmp_path, rung, version
) -> None:
    """
    Though nobody has asked this HAProxy anything yet.

    The agent hears of a new program when it starts; until it has looked at it, some
    milliseconds later, each server may have been checked once.
    """
    settings = HAProxySettings(
        servers=CHECKED, nbthread=2, defaults_lines=("option httpchk GET /health",)
    )
    record = tmp_path / "recording"
    with RunningAgent(
        tmp_path, qtap_file(tap=only_haproxy), rung=rung, command=("record", str(record))
    ) as agent:
        with HAProxy(world, tmp_path / "haproxy", settings, binary=binaries[version]) as proxy:
            pid = proxy.worker_pid
            time.sleep(2.0)
        agent.stop()

    made = transactions_of(pid, record)
    assert len(made) >= 20
    assert all(t.is_health_check for t in made[len(CHECKED) :])


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_only_passed_on_is_linked(
    world, binaries, only_haproxy, tmp_path, rung, version
) -> None:
    """``mode tcp``: all requests are alike, and four clients ask at the same time."""
    settings = HAProxySettings(servers=SERVERS, nbthread=2, mode="tcp")
    plan = ClientPlan(requests=80, connections=4, target="/same", port=settings.port)
    record = tmp_path / "recording"
    with (
        RunningAgent(
            tmp_path, qtap_file(tap=only_haproxy), rung=rung, command=("record", str(record))
        ) as agent,
        HAProxy(world, tmp_path / "haproxy", settings, binary=binaries[version]) as proxy,
    ):
        pid = proxy.worker_pid
        time.sleep(0.5)  # the agent has looked at the new program by then
        assert run_client(world, plan).outcomes == {"complete": 80}
        time.sleep(0.5)
        agent.stop()

    transactions = transactions_of(pid, record)
    by_id = {t.request_id: t for t in transactions}
    sent = [t for t in transactions if not t.direction.is_ingress]
    assert len(sent) == 80
    parents, methods = set(), Counter[LinkMethod]()
    for transaction in sent:
        assert transaction.link is not None
        methods[transaction.link.method] += 1
        parent = by_id[transaction.link.parent_id]
        parents.add(parent.request_id)
        assert parent.response is not None
        assert transaction.response is not None
        assert parent.response.headers == transaction.response.headers
        assert parent.timings.request_start_ns <= transaction.timings.request_start_ns
        assert parent.timings.response_end_ns >= transaction.timings.response_end_ns
    assert len(parents) == 80
    assert methods == {LinkMethod.STREAM: 80}
