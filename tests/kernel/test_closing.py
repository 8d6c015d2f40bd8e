"""Connections that end at any point, and HAProxy workers that are replaced: nothing is mixed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from kernel.agent import qtap_file
from traffic.backend import payload
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server
from traffic.load import run_load, start_sink

BODY = 2000
LONG = 12_000_000  # more than the socket buffers between two processes hold


def assert_paired(seen) -> None:
    """A request has the body of its number, and a whole answer echoes it."""
    for one in seen:
        assert one.request_body == payload(BODY, one.number)
        if one.ending == "complete" and one.status == 200:
            assert one.response_body == one.request_body


def echo(token: str, port: int, **settings) -> ClientPlan:
    target = f"{token}{'&' if '?' in token else '?'}echo=1&n={{n}}"
    return ClientPlan(port=port, target=target, body_size=BODY, **settings)


def test_reloads_under_load(world, any_binary, agent, token, tmp_path) -> None:
    """Three workers in turn serve 400 numbered requests: each is seen once on each side."""
    settings = HAProxySettings(
        servers=(Server("a", "backend-a", 8001), Server("b", "backend-b", 8002)), port=8095
    )
    with (
        HAProxy(world, tmp_path, settings, binary=any_binary) as haproxy,
        ThreadPoolExecutor() as pool,
    ):
        workers = {haproxy.worker_pid}
        plan = echo(f"{token}?delay_ms=30", 8095, requests=400, connections=4, new_connection=True)
        running = pool.submit(run_client, world, plan)
        for _ in range(2):
            agent.wait_until(
                lambda: any(s.process_id == haproxy.worker_pid for s in agent.seen(token)),
                "a transaction of the present worker",
            )
            haproxy.reload()
            workers.add(haproxy.worker_pid)
        assert running.result().outcomes == {"complete": 400}

        seen = agent.wait_for(800, token)

    assert_paired(seen)
    for is_ingress in (True, False):
        assert sorted(s.number for s in seen if s.is_ingress == is_ingress) == list(range(400))
    served = {one.process_id for one in seen}
    assert served <= workers
    assert len(served) >= 2


def test_a_thousand_short_connections_a_second(
    world, any_binary, only_haproxy, token, start_agent, tmp_path, rung
) -> None:
    """For three seconds: each request once on each side, each on a connection of its own."""
    start_sink(world, [("127.0.2.1", 9001)])
    settings = HAProxySettings(servers=(Server("s", "127.0.2.1", 9001),), port=8096)
    with (
        start_agent(qtap_file(level="summary", tap=only_haproxy), rung=rung) as agent,
        HAProxy(world, tmp_path / "short", settings, binary=any_binary) as haproxy,
    ):
        load = run_load(
            world,
            port=8096,
            requests=3000,
            connections=32,
            path=token,
            numbered=True,
            rate=1000,
            new_connection=True,
        )
        assert (load.responses, load.connections) == (3000, 3000)

        seen = agent.wait_for(6000, token, process_id=haproxy.worker_pid)

    assert {(one.ending, one.status) for one in seen} == {("complete", 200)}
    served = [one for one in seen if one.is_ingress]
    assert sorted(one.number for one in served) == list(range(3000))
    assert len({one.connection_id for one in served}) == 3000
    assert sorted(one.number for one in seen if not one.is_ingress) == list(range(3000))


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize(
    ("point", "endings"),
    [
        pytest.param("request_head", set(), id="in-the-request-head"),
        pytest.param("request_body", {"client_closed"}, id="in-the-request-body"),
        # HAProxy answers who has only stopped sending; it has no way to know more.
        pytest.param("request_end", {"complete"}, id="before-the-response"),
        # Closing with unread data is a reset, RFC 9293 section 3.10.4.
        pytest.param("response_body", {"reset"}, id="in-the-response-body"),
    ],
)
def test_a_client_that_leaves(world, haproxy, agent, token, point, endings, reset) -> None:
    """HAProxy's ingress tells how it ended, and the next client's exchange is its own."""
    query = {
        "request_end": "echo=1&delay_ms=300",
        "response_body": f"size={LONG}",
    }.get(point, "echo=1")
    plan = ClientPlan(
        requests=3,
        target=f"{token}?{query}&n={{n}}",
        body_size=BODY,
        abort=point,
        reset=reset,
    )
    worker = haproxy.worker_pid
    assert run_client(world, plan).outcomes == {"aborted": 3}
    assert run_client(world, echo(f"{token}-next", 8085)).outcomes == {"complete": 1}
    following = agent.wait_for(2, f"{token}-next", process_id=worker)
    assert_paired(following)
    assert {one.ending for one in following} == {"complete"}

    if reset:
        endings = {"reset" for _ in endings}
    agent.wait_until(
        lambda: len(ingress(agent, token, worker)) >= (3 if endings else 0), "three ingresses"
    )
    seen = ingress(agent, token, worker)
    assert len(seen) == (3 if endings else 0)
    assert {one.ending for one in seen} == endings
    if point != "request_body":
        assert sorted(one.number for one in seen) == ([0, 1, 2] if endings else [])
        assert all(one.request_body == payload(BODY, one.number) for one in seen)


def ingress(agent, token, worker):
    seen = agent.seen(f"{token}?", process_id=worker)
    return [one for one in seen if one.is_ingress]


@pytest.mark.parametrize(
    ("query", "egress", "ingress"),
    [
        pytest.param("close=before", ("server_closed", 499), ("complete", 502), id="before"),
        pytest.param("reset=1", ("reset", 499), ("complete", 502), id="reset"),
        pytest.param("close=mid&size=100000", ("server_closed", 200), None, id="mid"),
        pytest.param("close=mid&size=100000&reset=1", ("reset", 200), None, id="mid-reset"),
        pytest.param("close=after&echo=1", ("complete", 200), ("complete", 200), id="after"),
    ],
)
def test_a_backend_that_leaves(world, haproxy, agent, token, query, egress, ingress) -> None:
    """HAProxy's egress tells that the server ended it; its ingress what the client was told."""
    plan = ClientPlan(
        requests=3, target=f"{token}?{query}&n={{n}}", body_size=BODY, new_connection=True
    )
    run_client(world, plan)

    seen = agent.wait_for(6, token, process_id=haproxy.worker_pid)

    assert_paired(seen)
    sides = {True: [], False: []}
    for one in seen:
        sides[one.is_ingress].append((one.ending, one.status))
    assert sides[False] == [egress] * 3
    if ingress is not None:
        assert sides[True] == [ingress] * 3
    else:  # cut short by HAProxy, in its turn
        assert {status for _, status in sides[True]} == {200}
        assert {ending for ending, _ in sides[True]} == {"server_closed"}
    assert sorted(one.number for one in seen) == [0, 0, 1, 1, 2, 2]
