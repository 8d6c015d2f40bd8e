"""
The harness itself: what its client, backends and HAProxy report is what happened.

All of it runs in network namespaces of its own, which takes root but no eBPF.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from traffic import backend
from traffic.backend import Listener, payload
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.load import run_load, run_wrk, start_sink
from traffic.world import World, WorldError

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

LISTENERS = (Listener("a", "127.0.1.1", 8001), Listener("b", "127.0.1.2", 8002))
SERVERS = (Server("a", "backend-a", 8001), Server("b", "backend-b", 8002))
HOSTS = {"backend-a": "127.0.1.1", "backend-b": "127.0.1.2"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world"), HOSTS) as world:
        program = world.start("backend", backend.command(LISTENERS))
        world.wait_for_ports([8001, 8002], [program])
        yield world


@pytest.fixture(scope="module")
def haproxy(world, tmp_path_factory):
    with HAProxy(world, tmp_path_factory.mktemp("haproxy"), HAProxySettings(servers=SERVERS)) as it:
        yield it


def test_ports_of_a_world_are_its_own(world, tmp_path) -> None:
    """Two worlds use the same port at once, and names resolve to what each was given."""
    with World(tmp_path / "other", {"backend-a": "127.0.9.9"}) as other:
        program = other.start("backend", backend.command([Listener("x", "127.0.1.1", 8001)]))
        other.wait_for_ports([8001], [program])

        assert other.run(["getent", "hosts", "backend-a"]).stdout.split()[0] == b"127.0.9.9"
        assert world.run(["getent", "hosts", "backend-a"]).stdout.split()[0] == b"127.0.1.1"
        assert other.listening_ports() == {8001}
        pid = program.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_program_that_ends_early_is_reported_with_its_last_words(world) -> None:
    """Waiting for a port does not take its time when nobody is left to open it."""
    program = world.start("broken", ["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(WorldError, match="broken ended with status 3: no such thing"):
        world.wait_for_ports([9999], [program])


@pytest.mark.parametrize("chunk_size", [0, 1000], ids=["content-length", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 1_000_000])
def test_bodies_arrive_as_they_were_sent(world, haproxy, size, chunk_size) -> None:
    """The digests that client and backend take of the same body agree, both ways."""
    report = run_client(
        world,
        ClientPlan(requests=4, target="/x?echo=1", body_size=size, chunk_size=chunk_size),
    )

    assert report.outcomes == {"complete": 4}
    for exchange in report.exchanges:
        assert exchange.headers["x-request-sha256"] == exchange.sent_sha256
        assert exchange.received_sha256 == exchange.sent_sha256
        assert exchange.received_size == size


def test_backend_makes_the_body_that_was_asked_for(world, haproxy) -> None:
    """Size, seed, chunks and status are the query's; every server of the pool serves."""
    plan = ClientPlan(requests=6, target="/x?size=50000&seed={n}&chunked=7000&status=404")
    report = run_client(world, plan)

    assert {exchange.status for exchange in report.exchanges} == {404}
    assert Counter(exchange.headers["x-backend"] for exchange in report.exchanges) == {
        "a": 3,
        "b": 3,
    }
    assert all("transfer-encoding" in exchange.headers for exchange in report.exchanges)
    assert len({exchange.received_sha256 for exchange in report.exchanges}) == 6
    assert len(payload(50000, 3)) == report.exchanges[3].received_size


def test_client_counts_connections_and_places(world, haproxy) -> None:
    """Pipelined requests share connections; with ``new_connection`` none do."""
    pipelined = run_client(world, ClientPlan(requests=20, connections=2, pipeline=5))
    single = run_client(world, ClientPlan(requests=20, connections=2, new_connection=True))

    assert pipelined.outcomes == single.outcomes == {"complete": 20}
    assert len({exchange.local_port for exchange in pipelined.exchanges}) == 2
    assert max(exchange.index for exchange in pipelined.exchanges) >= 9
    assert len({exchange.local_port for exchange in single.exchanges}) == 20
    assert {exchange.index for exchange in single.exchanges} == {0}


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("point", ["request_head", "request_body", "request_end", "response_body"])
def test_client_leaves_where_the_plan_says(world, haproxy, point, reset) -> None:
    """Every exchange ends as planned, and HAProxy serves the next client as if nothing was."""
    plan = ClientPlan(
        requests=3,
        target="/x?size=100000&delay_ms=50" if point == "request_end" else "/x?size=100000",
        body_size=20000 if point == "request_body" else 0,
        abort=point,
        reset=reset,
    )
    report = run_client(world, plan)

    assert report.outcomes == {"aborted": 3}
    assert len({exchange.connection for exchange in report.exchanges}) == 3
    assert run_client(world, ClientPlan()).outcomes == {"complete": 1}


@pytest.mark.parametrize(
    ("query", "outcome", "status"),
    [
        pytest.param("close=before", "complete", 502, id="before"),
        pytest.param("reset=1", "complete", 502, id="reset"),
        pytest.param("close=mid&size=100000", "IncompleteReadError", 0, id="mid"),
        pytest.param("close=mid&size=100000&reset=1", "IncompleteReadError", 0, id="mid-reset"),
        pytest.param("close=after&size=1000", "complete", 200, id="after"),
    ],
)
def test_backend_leaves_where_the_query_says(world, haproxy, query, outcome, status) -> None:
    """HAProxy answers 502 for a server that said nothing and cuts what was cut."""
    (exchange,) = run_client(world, ClientPlan(target=f"/x?{query}")).exchanges

    assert exchange.outcome.replace("ConnectionResetError", "IncompleteReadError") == outcome
    assert exchange.status == status


def test_load_sends_exactly_what_it_was_told(world, haproxy, tmp_path) -> None:
    """Requests, HAProxy's own count of them and the sink's answers are one number."""
    start_sink(world, [("127.0.2.1", 9001), ("127.0.2.2", 9002)], size=100)
    servers = (Server("s1", "127.0.2.1", 9001), Server("s2", "127.0.2.2", 9002))
    settings = HAProxySettings(servers=servers, port=8090, nbthread=2, http_reuse="always")
    with HAProxy(world, tmp_path / "haproxy", settings) as proxy:
        before = proxy.cpu_time_ns()
        kept = run_load(world, port=8090, requests=5000, connections=32)
        short = run_load(world, port=8090, requests=500, connections=8, new_connection=True)
        posted = run_load(
            world,
            port=8090,
            requests=500,
            connections=4,
            body_size=30000,
            pipeline=4,
            numbered=True,
        )
        paced = run_load(world, port=8090, requests=200, connections=4, rate=1000)

        assert (kept.responses, kept.status_2xx, kept.errors) == (5000, 5000, 0)
        assert (kept.connections, kept.body_bytes) == (32, 500_000)
        assert (short.responses, short.connections) == (500, 500)
        assert posted.responses == 500
        assert 0.19 < paced.seconds < 2
        assert 0 < kept.p50_us <= kept.p99_us <= kept.max_us
        front = next(row for row in proxy.stats() if row["svname"] == "FRONTEND")
        assert int(front["req_tot"]) == 6200
        assert proxy.cpu_time_ns() > before


def test_load_reports_what_was_not_answered(world) -> None:
    """A port that nobody listens on gives errors, one for each request."""
    report = run_load(world, port=9, requests=10, connections=2)
    assert (report.responses, report.errors) == (0, 10)


def test_wrk_reports_its_requests(world, haproxy) -> None:
    """wrk keeps HAProxy busy for the time asked."""
    start_sink(world, [("127.0.2.3", 9003)])
    report = run_wrk(world, "http://127.0.2.3:9003/", connections=4, duration_s=1)
    assert report.requests > 100
    assert report.errors == 0
    assert 0.9 < report.seconds < 3


@pytest.mark.parametrize("version", [pytest.param(v, id=v) for v in find_binaries()])
def test_reload_replaces_the_worker_under_load(world, tmp_path, version) -> None:
    """A client that opens connections all the time loses no request over two reloads."""
    settings = HAProxySettings(servers=SERVERS, port=8095, nbthread=2)
    plan = ClientPlan(port=8095, requests=300, connections=4, new_connection=True)
    with (
        HAProxy(world, tmp_path, settings, binary=find_binaries()[version]) as proxy,
        ThreadPoolExecutor() as pool,
    ):
        assert proxy.info()["Version"].startswith(version)
        workers = [proxy.worker_pid]
        running = pool.submit(run_client, world, plan)
        for _ in range(2):
            proxy.reload()
            workers.append(proxy.worker_pid)

        assert running.result().outcomes == {"complete": 300}
        assert len(set(workers)) == 3
        master = proxy.program.pid
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in [master, *workers])
