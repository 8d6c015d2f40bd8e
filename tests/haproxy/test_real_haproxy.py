"""
HAProxy itself, in each version of this machine: what it says of itself is understood.

Its log as it arrives, its names as they are when it has been reloaded or changed its root,
its health checks as it counts them. No eBPF; network namespaces of their own.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from haproxy import check_backend, log_receiver
from traffic import backend
from traffic.backend import Listener
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.world import World, wait_until

from otel_qtap.counters import CounterSet
from otel_qtap.haproxy import (
    CheckedServer,
    HaproxyNames,
    HealthCheck,
    HealthChecks,
    NameTables,
    ServerName,
    parse_line,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

LISTENERS = (Listener("a", "127.0.1.1", 8001), Listener("b", "127.0.1.2", 8002))
SERVERS = (Server("a", "backend-a", 8001), Server("b", "backend-b", 8002))
HOSTS = {"backend-a": "127.0.1.1", "backend-b": "127.0.1.2"}
LOG_PORT, LOG_TCP_PORT = 5514, 6514
LOGGING = ("log global", "option httplog")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world"), HOSTS) as world:
        program = world.start("backend", backend.command(LISTENERS))
        world.wait_for_ports([8001, 8002], [program])
        yield world


@pytest.fixture(params=[pytest.param(v, id=f"haproxy-{v}") for v in find_binaries()])
def binary(request) -> Path:
    return find_binaries()[request.param]


@pytest.fixture
def receiver(world, tmp_path):
    """A syslog server on port 5514."""
    program = world.start(
        "log", log_receiver.command(LOG_PORT, LOG_TCP_PORT, str(tmp_path / "log"))
    )
    world.wait_for_ports([LOG_TCP_PORT], [program])
    yield program
    program.stop()


def wait_for_lines(read, amount: int) -> list[bytes]:
    """Return what ``read`` returns once it is as much."""
    wait_until(lambda: len(read()) >= amount, 5, f"{amount} lines")
    return read()


def served_by_plans(world) -> list:
    """Play requests of several kinds; return what the client knows of each."""
    exchanges = []
    for plan in (
        ClientPlan(requests=40, connections=4, target="/x?n={n}&size=2000"),
        ClientPlan(requests=12, connections=2, pipeline=3, target="/p?n={n}"),
        ClientPlan(requests=4, target="/s?n={n}&status=404", new_connection=True),
        ClientPlan(requests=3, target="/d?n={n}&delay_ms=40", method="POST"),
    ):
        exchanges += run_client(world, plan).exchanges
    return exchanges


@pytest.mark.parametrize("kind", ["stdout", "udp"])
def test_each_request_has_its_line(world, binary, receiver, tmp_path, kind) -> None:
    """As many lines as requests, with the ports, states and servers that the client saw."""
    where = {"stdout": "stdout format raw", "udp": f"127.0.0.1:{LOG_PORT}"}[kind]
    settings = HAProxySettings(
        servers=SERVERS, nbthread=2, defaults_lines=LOGGING, global_lines=(f"log {where} local0",)
    )
    with HAProxy(world, tmp_path / "haproxy", settings, binary=binary) as proxy:
        exchanges = served_by_plans(world)

        def lines() -> list[bytes]:
            if kind == "stdout":
                return proxy.program.stdout.read_bytes().splitlines()
            notes = map(json.loads, receiver.output().splitlines())
            return [note["data"].encode("latin-1") for note in notes]

        parsed = list(filter(None, map(parse_line, wait_for_lines(lines, len(exchanges)))))

    assert Counter(
        (line.client_port, line.status, line.backend, line.server) for line in parsed
    ) == Counter(
        (each.local_port, each.status, "back", each.headers["x-backend"]) for each in exchanges
    )
    assert {line.frontend for line in parsed} == {"front"}
    assert {line.termination_state for line in parsed} == {"----"}
    assert all(line.response_ms >= 40 for line in parsed if line.method == "POST")


def look(names: HaproxyNames, pid: int) -> HaproxyNames:
    names.follow(pid)
    names.refresh()
    return names


def test_names_are_those_of_the_running_process(world, binary, tmp_path) -> None:
    """Over its runtime socket, which the configuration file names; host names included."""
    settings = HAProxySettings(
        servers=(Server("a", "backend-a", 8001, "check inter 100ms rise 3 fall 4"), SERVERS[1]),
        frontend_lines=("bind :8099",),
    )
    counters = CounterSet()
    with HAProxy(world, tmp_path, settings, binary=binary) as proxy:
        pid = proxy.worker_pid
        wait_until(lambda: "L4OK" in str(proxy.stats()), 5, "a health check")
        names = look(HaproxyNames(counters), pid)

        row = next(row for row in proxy.stats() if row["svname"] == "a")
        a = ServerName("back", "a", int(row["iid"]), int(row["sid"]))
        assert names.server_of(pid, "127.0.1.1", 8001) == a
        assert names.server_of(pid, "backend-b", 8002) == names.server_of(pid, "127.0.1.2", 8002)
        assert names.server_of(pid, "127.0.1.1", 8002) is None
        assert names.checked_server_of(pid, "127.0.1.1", 8001) == CheckedServer(a, 3, 4, 6)
        assert names.checked_server_of(pid, "127.0.1.2", 8002) is None
        assert names.frontend_of(pid, 8085) == names.frontend_of(pid, 8099) == "front"

        proxy.runtime("set server back/a addr 127.0.1.7 port 8007")
        names.refresh()
        assert names.server_of(pid, "127.0.1.7", 8007) == a
        assert names.server_of(pid, "127.0.1.1", 8001) is None
    assert counters.total("otel_qtap.haproxy.names.failures") == 0


def test_names_follow_a_reload(world, binary, tmp_path) -> None:
    """The new worker has the new names; the old one, while it lasts, those it was read with."""
    names = HaproxyNames(CounterSet())
    with HAProxy(world, tmp_path, HAProxySettings(servers=SERVERS), binary=binary) as proxy:
        old = proxy.worker_pid
        look(names, old)
        with open_request(world):
            proxy.reload(HAProxySettings(servers=(Server("new", "backend-a", 8001),)))
            new = proxy.worker_pid
            look(names, new)

            assert Path(f"/proc/{old}/exe").exists()
            found = [names.server_of(pid, "127.0.1.1", 8001) for pid in (old, new)]
            assert [each and each.service_name for each in found] == ["a", "new"]


@contextmanager
def open_request(world: World) -> Iterator[None]:
    """A client that waits for an answer, so that HAProxy's worker of now stays."""
    client = world.start("waiting", ["curl", "-s", "http://127.0.0.1:8085/?delay_ms=8000"])
    table = Path(f"/proc/{world.pid}/net/tcp")

    def has_reached_a_server() -> bool:
        rows = (line.split() for line in table.read_text().splitlines()[1:])
        ports = {row[2].rpartition(":")[2] for row in rows if row[3] == "01"}  # established
        return bool(ports & {f"{8001:04X}", f"{8002:04X}"})

    wait_until(has_reached_a_server, 5, "the waiting request")
    yield
    client.stop()


@pytest.mark.parametrize("has_socket", [True, False], ids=["socket", "configuration-only"])
def test_names_are_found_from_outside_of_a_changed_root(
    world, binary, tmp_path, has_socket
) -> None:
    """``chroot`` and another user, as distributions configure it."""
    (tmp_path / "empty").mkdir()
    settings = HAProxySettings(
        servers=(Server("a", "127.0.1.1", 8001),),
        global_lines=(f"chroot {tmp_path / 'empty'}", "user nobody"),
    )
    counters = CounterSet()
    with HAProxy(world, tmp_path, settings, binary=binary) as proxy:
        pid = proxy.worker_pid
        assert os.listdir(f"/proc/{pid}/root") == []  # noqa: PTH208 - the root of a process
        if not has_socket:
            (tmp_path / "stats.sock").unlink()
        names = look(HaproxyNames(counters, settling_s=0), pid)

        name = names.server_of(pid, "127.0.1.1", 8001)
        assert name is not None
        assert name[:2] == ("back", "a")
        assert bool(name.proxy_id) is has_socket
        assert names.frontend_of(pid, 8085) == "front"
    assert counters.value("otel_qtap.haproxy.names.failures", reason="socket_missing") == int(
        not has_socket
    )


PLANS = [
    pytest.param((2, 3), "503 " * 8 + "200 " * 5, id="down-and-up"),
    pytest.param((3, 2), "200 503 200 503 503 200 503 200 200 503 200 200 200 200", id="flapping"),
    pytest.param((1, 1), "200 404 302 500 200 200", id="every-result"),
    pytest.param(
        (2, 2), " ".join(random.Random(7).choices(["200", "503"], k=60)) + " 200",  # noqa: S311
        id="random",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "plan"), PLANS)
def test_transitions_are_those_of_haproxy(world, binary, receiver, tmp_path, limits, plan) -> None:
    """HAProxy logs each time that a server goes up or down; so many were counted from checks."""
    statuses = [int(status) for status in plan.split()]
    rise, fall = limits
    checks_backend = world.start("checks", check_backend.command("127.0.1.8", 8010, statuses))
    world.wait_for_ports([8010], [checks_backend])
    settings = HAProxySettings(
        servers=(Server("a", "127.0.1.8", 8010, f"check inter 10ms rise {rise} fall {fall}"),),
        global_lines=(f"log 127.0.0.1:{LOG_PORT} local0",),
        defaults_lines=("log global",),
        backend_lines=("option httpchk GET /health",),
    )
    counters = CounterSet()
    with HAProxy(world, tmp_path / "haproxy", settings, binary=binary) as proxy:
        wait_until(
            lambda: len(checks_backend.output().split()) >= len(statuses) + 5, 20, "the checks"
        )
        assert proxy.stats()[1]["status"] == "UP"
        names = look(HaproxyNames(counters), proxy.worker_pid)
        checked = names.checked_server_of(proxy.worker_pid, "127.0.1.8", 8010)
    checks_backend.stop()

    assert checked == CheckedServer(
        ServerName("back", "a", checked.name.proxy_id, checked.name.service_id),
        rise, fall, rise + fall - 1,
    )  # fmt: skip
    started = checked._replace(health=rise)  # as HAProxy begins: up, but on trial
    tables = NameTables(checked={("127.0.1.8", 8010): started})
    health = HealthChecks(counters, lambda _: tables)
    for status in map(int, checks_backend.output().split()):
        health.consume(HealthCheck(1, "127.0.1.8", 8010, status))
    said = Counter(
        word
        for note in map(json.loads, receiver.output().splitlines())
        for word in ("UP", "DOWN")
        if f"Server back/a is {word}" in note["data"]
    )
    assert said["DOWN"] >= 1
    counted = {
        word: counters.value(
            "otel_qtap.haproxy.health_transitions",
            to=word.lower(), backend="back", server="a",
        )
        for word in ("UP", "DOWN")
    }  # fmt: skip
    assert counted == {"UP": said["UP"], "DOWN": said["DOWN"]}
