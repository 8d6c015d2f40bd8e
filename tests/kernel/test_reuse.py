"""Whatever numbers the machine gives out again, two connections are never mixed."""

from __future__ import annotations

import subprocess
from collections import defaultdict

from kernel import peers
from kernel.peers import Plan, body_of

PORT = 7002


def assert_paired(seen, size: int) -> None:
    """Each transaction is whole, and its answer is the one to its request."""
    for one in seen:
        assert (one.ending, one.status) == ("complete", 200)
        assert one.request_body == one.response_body == body_of(one.number, size)


def numbers(seen, *, is_ingress: bool) -> list[int]:
    return sorted(one.number for one in seen if one.is_ingress == is_ingress)


def test_a_descriptor_and_a_socket_are_used_again_at_once(world, python_agent, token) -> None:
    """Two hundred connections one after the other share a descriptor, yet each has its own id."""
    plan = Plan(port=PORT, path=token, exchanges=200, body_size=20, new_connection=True)
    assert world.run(peers.command(plan)).returncode == 0

    seen = python_agent.wait_for(400, token)

    assert_paired(seen, 20)
    assert numbers(seen, is_ingress=True) == numbers(seen, is_ingress=False) == list(range(200))
    assert len({one.connection_id for one in seen}) == 400


def test_a_connection_may_wander_between_threads(world, python_agent, token) -> None:
    """A message that one thread begins and another ends is one message."""
    plan = Plan(port=PORT, path=token, serve="relay", exchanges=4)
    assert world.run(peers.command(plan)).returncode == 0

    seen = python_agent.wait_for(8, token)

    assert_paired(seen, plan.body_size)
    assert len({one.connection_id for one in seen}) == 2


def test_a_child_that_serves_is_the_one_that_is_named(world, python_agent, token) -> None:
    """The parent accepts, a child for each connection talks: the child's pid is told."""
    plan = Plan(port=PORT, path=token, serve="fork", exchanges=5, new_connection=True)
    assert world.run(peers.command(plan)).returncode == 0

    seen = python_agent.wait_for(10, token)

    assert_paired(seen, plan.body_size)
    servers = {one.process_id for one in seen if one.is_ingress}
    assert len(servers) == 5
    assert servers.isdisjoint({one.process_id for one in seen if not one.is_ingress})


def test_short_lived_processes_do_not_inherit_each_others_traffic(
    world, python_agent, token
) -> None:
    """Forty processes that live for one exchange, eight at a time, each under its own path."""
    by_pid = defaultdict(set)
    for first in range(0, 40, 8):
        batch = [
            subprocess.Popen(
                [
                    *world.entrance,
                    *peers.command(Plan(port=7100 + n, path=f"{token}{n}", exchanges=1)),
                ]
            )
            for n in range(first, first + 8)
        ]
        for n, process in enumerate(batch, first):
            assert process.wait(20) == 0
            by_pid[process.pid].add(n)

    seen = python_agent.wait_for(80, token)

    assert_paired(seen, 3000)
    for one in seen:
        name = one.url.partition("?")[0].rpartition("-t")[2]
        assert int(name) in by_pid[one.process_id]


def test_a_process_is_called_by_the_program_it_has_become(world, python_agent, token) -> None:
    """The pid stays, the executable does not."""
    plan = Plan(port=PORT, path=token, exchanges=1)
    done = world.run(["sh", "-c", 'exec "$@"', "sh", *peers.command(plan)])
    assert done.returncode == 0

    seen = python_agent.wait_for(2, token)

    assert {one.executable.rpartition("/")[2][:6] for one in seen} == {"python"}
