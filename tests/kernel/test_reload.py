"""The configuration read again while real connections are open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kernel.agent import COMMAND, RunningAgent, qtap_file
from traffic.client import ClientPlan, run_client
from traffic.world import Program, World, wait_until

KEPT = Path(__file__).with_name("kept.py")
CONNECTIONS = 4


def reload_config(agent: RunningAgent, config: str) -> subprocess.CompletedProcess[str]:
    """Replace the agent's file, and have it read again as an operator does."""
    (agent._directory / f"{agent._name}.yaml").write_text(config)
    return subprocess.run(
        [*COMMAND, "reload-config", f"--status-listen={agent._status}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def keep(world, tmp_path, token) -> Callable[[], Program]:
    """``keep()``: a client that has had an exchange on each connection, and waits for ``go``."""

    def keep(world: World = world) -> Program:
        command = [sys.executable, str(KEPT), "keep", "8086", token, str(tmp_path / "go")]
        program = world.start(f"kept-{tmp_path.name}", [*command, str(CONNECTIONS)])
        wait_until(lambda: "begun" in program.output(), 20, "the first half of the talk")
        return program

    return keep


@pytest.fixture
def go_on(tmp_path) -> Callable[[Program], None]:
    """``go_on(program)``: have it say the rest, on the same connections."""

    def go_on(program: Program) -> None:
        (tmp_path / "go").touch()
        wait_until(lambda: "done" in program.output(), 20, "the second half of the talk")

    return go_on


def test_levels_change_on_connections_that_stay_open(
    any_haproxy, start_agent, only_haproxy, token, keep, go_on, rung
) -> None:
    """No connection is lost or taken for a new one, and what follows is kept at the new level."""
    with start_agent(qtap_file(level="headers", tap=only_haproxy), rung=rung) as agent:
        client = keep()
        before = agent.wait_for(2 * CONNECTIONS, token)
        done = reload_config(agent, qtap_file(level="full", tap=only_haproxy))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"process {agent.pid} has reloaded its configuration\n"
        go_on(client)
        seen = agent.wait_for(4 * CONNECTIONS, token)
        after = [one for one in seen if one not in before]
        lost = agent.total("otel_qtap_receiver_lost_total")
        log = agent.errors()

    def connections(seen) -> set[str]:  # HAProxy is free to open others to its backends
        return {one.connection_id for one in seen if one.is_ingress}

    assert connections(before) == connections(after)
    assert len(connections(after)) == CONNECTIONS
    assert {one.request_body for one in before} == {b""}
    assert all(one.request_headers and one.request_size for one in before)
    for one in after:
        assert (one.ending, one.status) == ("complete", 200)
        assert one.request_body == one.response_body == b"second-%d" % one.number
    assert lost == 0
    assert "stacks.capture.plugins.0.config.level" in log


def test_a_file_that_cannot_be_used_changes_nothing(
    any_haproxy, start_agent, only_haproxy, token, keep, go_on
) -> None:
    """The command says so, the log says why, and the agent goes on as it was."""
    good = qtap_file(level="full", tap=only_haproxy)
    with start_agent(good) as agent:
        client = keep()
        agent.wait_for(2 * CONNECTIONS, token)
        done = reload_config(agent, good.replace("level: full", "level: fulll"))
        assert done.returncode == 1
        assert "keeps its old configuration" in done.stderr
        assert "did you mean 'full'?" in agent.errors()
        go_on(client)
        after = agent.wait_for(4 * CONNECTIONS, token)
        assert sum(one.response_body.startswith(b"second-") for one in after) == 2 * CONNECTIONS

        assert reload_config(agent, good).returncode == 0  # and the next good one is taken


def test_a_filter_that_goes_shows_connections_that_are_open(
    world, any_haproxy, any_binary, start_agent, only_haproxy, token, keep, go_on
) -> None:
    """A process that was left out is captured from its next message on, and the reverse."""
    without = "filters: {custom: [{exe: /, strategy: prefix}]}"
    with start_agent(qtap_file(tap=without)) as agent:
        client = keep()
        assert reload_config(agent, qtap_file(tap=only_haproxy)).returncode == 0
        go_on(client)
        seen = agent.wait_for(2 * CONNECTIONS, token)
        assert {one.response_body[:7] for one in seen} == {b"second-"}
        assert {one.executable for one in seen} == {str(any_binary)}

        assert reload_config(agent, qtap_file(tap=without)).returncode == 0
        run_client(world, ClientPlan(port=8086, target=f"{token}-late"))
        agent.wait_until_idle()
        agent.stop()
    assert agent.seen(f"{token}-late", process_id=any_haproxy.worker_pid) == []


def test_a_direction_holds_for_connections_that_are_open(
    any_haproxy, start_agent, only_haproxy, token, keep, go_on
) -> None:
    """Both sides of a request are seen, then one, on the same connections."""
    with start_agent(qtap_file(tap=only_haproxy)) as agent:
        client = keep()
        agent.wait_for(2 * CONNECTIONS, token)
        tap = f"direction: ingress\n{only_haproxy}"
        assert reload_config(agent, qtap_file(tap=tap)).returncode == 0
        go_on(client)
        agent.wait_until(
            lambda: sum(one.is_ingress for one in agent.seen(token)) == 2 * CONNECTIONS,
            "the second half of the talk",
        )
        agent.stop()
    assert sum(not one.is_ingress for one in agent.seen(token)) == CONNECTIONS


def test_reloading_under_load_loses_nothing(
    world, any_haproxy, start_agent, only_haproxy, token
) -> None:
    """Every request is seen once on each side, at the one level or the other."""
    requests = 3000
    files = [qtap_file(level=level, tap=only_haproxy) for level in ("full", "summary")]
    plan = ClientPlan(
        port=8086, requests=requests, connections=8, target=f"{token}?n={{n}}&size=100&delay_ms=20"
    )
    with start_agent(files[0]) as agent, ThreadPoolExecutor() as pool:
        running = pool.submit(run_client, world, plan)
        reloads = 0
        while not running.done():
            reloads += 1
            assert reload_config(agent, files[reloads % 2]).returncode == 0
        assert running.result().outcomes == {"complete": requests}
        seen = agent.wait_for(2 * requests, token)
        metrics = agent.metrics()
    assert reloads > 1
    assert metrics['otel_qtap_config_reloads_total{result="done"}'] == reloads
    assert metrics['otel_qtap_config_reloads_total{result="failed"}'] == 0
    assert {bool(one.response_body) for one in seen} == {True, False}
    for is_ingress in (True, False):
        side = sorted(one.number for one in seen if one.is_ingress == is_ingress)
        assert side == list(range(requests))
