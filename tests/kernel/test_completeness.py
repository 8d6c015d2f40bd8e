"""
Captured plus counted as lost is what was sent, at full speed and with a ring too small.

The agent's counters are to be about this HAProxy alone: every program but our copies of
HAProxy is filtered out, and so is loopback, because a filter finds a program that starts
while the agent stands still too late. All connections here have an address of their own.
"""

from __future__ import annotations

import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from kernel.agent import RunningAgent, qtap_file, wait_until
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.load import run_load, start_sink
from traffic.world import World

ADDRESS = "10.79.0.1"
REQUESTS = 20_000
CONNECTIONS = 64
STANDSTILL_REQUESTS = 2_000


@pytest.fixture(
    scope="module", params=[pytest.param(v, id=f"haproxy-{v}") for v in find_binaries()]
)
def each_proxy(request, binaries, tmp_path_factory):
    """A world, and HAProxy of each version in it before a cheap backend."""
    yield from proxies(binaries[request.param], tmp_path_factory)


@pytest.fixture(scope="module")
def proxy(any_binary, tmp_path_factory):
    """Only one version of HAProxy."""
    yield from proxies(any_binary, tmp_path_factory)


def proxies(binary, tmp_path_factory):
    directory = tmp_path_factory.mktemp("proxy")
    with World(directory / "world") as world:
        done = world.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"])
        assert done.returncode == 0, done.stderr
        start_sink(world, [(ADDRESS, 9001)])
        settings = HAProxySettings(
            servers=(Server("sink", ADDRESS, 9001),), frontend_lines=(f"bind {ADDRESS}:8085",)
        )
        with HAProxy(world, directory, settings, binary=binary) as haproxy:
            yield world, haproxy


@pytest.fixture
def config(only_haproxy):
    """``config(level)``: our HAProxy alone, at a level."""
    tap = f"ignore_loopback: true\n{only_haproxy}"
    return lambda level: qtap_file(level=level, tap=tap)


def transactions(agent: RunningAgent) -> int:
    return int(agent.total("otel_qtap_transactions_total"))


def test_everything_is_captured_at_full_speed(each_proxy, config, tmp_path, rung) -> None:
    """Two transactions for each request over 64 kept connections, and nothing lost."""
    world, _ = each_proxy
    with RunningAgent(tmp_path, config("none"), rung=rung) as agent:
        load = run_load(world, address=ADDRESS, requests=REQUESTS, connections=CONNECTIONS)
        assert (load.responses, load.errors) == (REQUESTS, 0)

        agent.wait_until(lambda: transactions(agent) >= 2 * REQUESTS, "all transactions")

        metrics = agent.metrics()
        for role in ("server", "client"):
            name = f'otel_qtap_transactions_total{{ending="complete",role="{role}"}}'
            assert metrics[name] == REQUESTS
        assert transactions(agent) == 2 * REQUESTS
        assert agent.total("otel_qtap_receiver_lost_total") == 0


def test_each_transaction_has_its_own_request(proxy, config, tmp_path, rung) -> None:
    """At a pace that the printing keeps up with, every number comes once on each side."""
    world, haproxy = proxy
    with RunningAgent(tmp_path, config("summary"), rung=rung) as agent:
        load = run_load(
            world, address=ADDRESS, requests=3000, connections=CONNECTIONS, numbered=True, rate=3000
        )
        assert (load.responses, load.errors) == (3000, 0)

        seen = agent.wait_for(6000, process_id=haproxy.worker_pid)

        assert {(one.ending, one.status) for one in seen} == {("complete", 200)}
        for is_ingress in (True, False):
            side = [one.number for one in seen if one.is_ingress == is_ingress]
            assert sorted(side) == list(range(3000))


def test_what_a_small_ring_loses_is_counted_exactly(proxy, config, tmp_path, rung) -> None:
    """An agent that stands still for a moment: each request is captured, or counted as lost."""
    world, haproxy = proxy
    with (
        RunningAgent(tmp_path, config("none"), "--ring-size=64kb", rung=rung) as agent,
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(
            run_load,
            Delayed(world),
            address=ADDRESS,
            requests=REQUESTS,
            connections=CONNECTIONS,
            rate=REQUESTS / 2,
        )
        agent.wait_until(lambda: transactions(agent) > 100, "the first transactions")
        agent.process.send_signal(signal.SIGSTOP)
        try:
            until = requests_of(haproxy) + STANDSTILL_REQUESTS
            wait_until(lambda: requests_of(haproxy) > until, 20, "traffic that nobody sees")
        finally:
            agent.process.send_signal(signal.SIGCONT)
        load = running.result()
        assert (load.responses, load.errors) == (REQUESTS, 0)
        agent.wait_until_idle()
        lost = agent.lost_when_settled("requests")
        assert agent.lost("missed_run") == agent.lost("read_fault") == 0
        agent.stop()

    # The last word counts what was let go at the end, too.
    said = re.search(r"stopped: (\d+) transactions seen", agent.errors())
    assert said is not None
    assert lost > STANDSTILL_REQUESTS
    assert int(said[1]) + lost == 2 * REQUESTS


class Delayed:
    """
    A world whose programs are known to the agent, and so left out, before they do anything.

    A filter applies to a new program a moment after its start; with a small ring the
    load program could lose requests of its own in that moment, which would be counted.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def run(self, command, **settings):
        return self._world.run(["sh", "-c", 'sleep 1; exec "$@"', "sh", *command], **settings)


def requests_of(haproxy: HAProxy) -> int:
    return int(haproxy.info()["CumReq"])
