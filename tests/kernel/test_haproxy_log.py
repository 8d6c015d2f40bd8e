"""
HAProxy's own account of real traffic: lines of its log, names of its servers, its checks.

Each line that HAProxy writes is about one request that it served, whatever becomes of the
line. So the lines, the transactions and the requests of the client are as many.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from haproxy_demo.receiver import Receiver, Span, read_telemetry
from kernel.agent import RunningAgent, qtap_file
from kernel.conftest import SERVERS
from traffic import backend
from traffic.backend import Listener
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.world import wait_until

PORT = 8088
REQUESTS = 60
LOG = "otel_qtap_haproxy_log"
CHECKED = Server("checked", "127.0.1.5", 8005, "check inter 100ms rise 2 fall 3")


@pytest.fixture(params=[pytest.param(v, id=f"haproxy-{v}") for v in find_binaries()])
def binary(request, binaries) -> Path:
    """HAProxy of each version of this machine."""
    return binaries[request.param]


@pytest.fixture
def start_haproxy(world, tmp_path):
    """``start_haproxy(binary, log, …)``: one that logs there; for a ``with`` block."""

    def start(binary: Path, log: str, **settings) -> HAProxy:
        settings = {"servers": SERVERS, "port": PORT, "nbthread": 2, **settings}
        if log:
            settings["global_lines"] = (f"log {log} local0",)
            settings["defaults_lines"] = ("log global", "option httplog")
        return HAProxy(world, tmp_path / "haproxy", HAProxySettings(**settings), binary=binary)

    return start


class Counted(NamedTuple):
    """What the agent says of lines and of transactions on listeners that log."""

    lines: dict[str, float]
    transactions: dict[str, float]

    @classmethod
    def by(cls, agent: RunningAgent) -> Counted:
        metrics = agent.metrics()
        lines, transactions = (
            _by_result(metrics, f"{LOG}_{what}") for what in ("lines", "transactions")
        )
        # Of a HAProxy that the filters leave out: someone else's on this machine.
        lines.pop("filtered", None)
        return cls(lines, transactions)

    def since(self, before: Counted) -> Counted:
        return Counted(*(
            {name: now[name] - then[name] for name in now if now[name] != then[name]}
            for now, then in zip(self, before, strict=True)
        ))  # fmt: skip

    @property
    def matched(self) -> float:
        """Lines whose transaction is known, even if it had not waited long enough."""
        return self.lines.get("joined", 0) + self.lines.get("late", 0)


def _by_result(metrics: dict[str, float], name: str) -> dict[str, float]:
    prefix = f'{name}_total{{result="'
    return {
        key.removeprefix(prefix).removesuffix('"}'): value
        for key, value in metrics.items()
        if key.startswith(prefix)
    }


def wait_until_it_logs(world, agent: RunningAgent, token: str) -> Counted:
    """Send requests until the agent has learned of the log, and all of them are accounted for."""
    sent = 0

    def is_known() -> bool:
        nonlocal sent
        before = Counted.by(agent)
        run_client(world, ClientPlan(port=PORT, requests=4, target=f"{token}-first"))
        sent += 4
        agent.wait_for(2 * sent, f"{token}-first")
        return Counted.by(agent).since(before).lines == {"joined": 4}

    agent.wait_until(is_known, "the first lines")
    return Counted.by(agent)


@contextmanager
def _unread(path: Path) -> Iterator[str]:
    """A log socket whose reader does not read: it is full soon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        path.chmod(0o777)
        yield str(path)


@pytest.mark.parametrize(
    "log",
    [
        "127.0.0.1:5599",  # nobody listens there
        "{directory}/nobody format rfc5424",
        "{directory}/full len 4096",
        "stdout format raw",
        "stderr",
    ],
    ids=["udp", "unix-missing", "unix-full", "stdout", "stderr"],
)
def test_as_many_lines_as_transactions(
    world, agent, binary, start_haproxy, token, tmp_path, log
) -> None:
    """And each of them at its transaction, whether or not somebody reads the log."""
    with (
        _unread(tmp_path / "full"),
        start_haproxy(binary, log.format(directory=tmp_path)),
    ):
        before = wait_until_it_logs(world, agent, token)
        plan = ClientPlan(
            port=PORT, requests=REQUESTS, connections=6, pipeline=2, target=f"{token}?n={{n}}"
        )
        assert len(run_client(world, plan).exchanges) == REQUESTS
        agent.wait_for(2 * REQUESTS, f"{token}?")
        agent.wait_until(
            lambda: Counted.by(agent).since(before).matched >= REQUESTS, "all of the lines"
        )
        counted = Counted.by(agent).since(before)

    assert counted.lines.keys() <= {"joined", "late"}
    assert sum(counted.transactions.values()) == counted.matched == REQUESTS
    assert counted.transactions["joined"] >= REQUESTS * 0.9  # "late" on a machine that is busy


@pytest.fixture
def receiver(tmp_path) -> Iterator[Receiver]:
    """An OTLP receiver."""
    if not Receiver.is_available():
        pytest.skip("no wheel of rotel for this machine")
    receiver = Receiver(tmp_path)
    receiver.wait_until_ready()
    yield receiver
    receiver.program.stop()


def test_spans_say_what_haproxy_says(
    world, binary, start_haproxy, start_agent, receiver, only_haproxy, token
) -> None:
    """Frontend, backend, server, times and termination state; each attempt has its server."""
    services = (
        "  event_stores:\n"
        f"    - {{type: otel, protocol: http, endpoint: '{receiver.endpoint}'}}"
    )  # fmt: skip
    config = qtap_file(services=services, tap=only_haproxy, level="summary")
    with start_agent(config) as agent, start_haproxy(binary, "127.0.0.1:5599"):
        wait_until_it_logs(world, agent, token)
        plan = ClientPlan(
            port=PORT, requests=20, connections=2, target=f"{token}?n={{n}}&delay_ms=20"
        )
        servers = [each.headers["x-backend"] for each in run_client(world, plan).exchanges]
        agent.wait_for(2 * 20, f"{token}?")
    wait_until(
        lambda: sum(token in str(span.attributes) for span in _spans(receiver)) >= 40, 10, "spans"
    )
    spans = [span for span in _spans(receiver) if f"{token}" in str(span.attributes)]
    served = [span for span in spans if span.kind == "SERVER" and _is_ours(span)]
    sent = [span for span in spans if span.kind == "CLIENT" and _is_ours(span)]

    ours = "otel_qtap.haproxy."
    assert len(served) == len(sent) == 20
    assert sorted(span.attributes[ours + "server"] for span in served) == sorted(servers)
    for span in served:
        said = span.attributes
        assert (said[ours + "frontend"], said[ours + "backend"]) == ("front", "back")
        assert said[ours + "termination_state"] == "----"
        assert (said["haproxy.proxy_name"], said["haproxy.service_name"]) == ("front", "FRONTEND")
        times = {
            name: float(said[f"{ours}{name}_time"])
            for name in ("request", "queue", "connect", "response", "active")
        }
        assert 0.02 <= times["response"] <= times["active"] + 0.001
        # HAProxy counts in milliseconds, and its clock stands still while it works.
        assert abs(times["active"] - (span.end_ns - span.start_ns) / 1e9) < 0.1
    assert {span.attributes["haproxy.proxy_name"] for span in sent} == {"back"}
    assert sorted(span.attributes["haproxy.service_name"] for span in sent) == sorted(servers)


def _spans(receiver: Receiver) -> list[Span]:
    return read_telemetry(receiver.program.output())[0]


def _is_ours(span: Span) -> bool:
    return "&delay_ms=20" in str(span.attributes)


def test_a_backend_that_dies_goes_down_and_not_before(
    world, agent, binary, start_haproxy, token
) -> None:
    """Failed checks, then one transition, as HAProxy itself has it; and back up again."""
    listeners = (Listener("checked", CHECKED.address, CHECKED.port),)
    server = world.start("checked", backend.command(listeners))
    world.wait_for_ports([CHECKED.port], [server])
    settings = {"servers": (CHECKED,), "backend_lines": ("option httpchk GET /health",)}
    with start_haproxy(binary, "", **settings) as haproxy:
        # What HAProxy is working on is known for certain after a few requests.
        plan = ClientPlan(port=PORT, requests=300, connections=4, target=f"{token}?n={{n}}")
        run_client(world, plan)
        agent.wait_for(600, f"{token}?")
        before = Health.by(agent)
        agent.wait_until(lambda: Health.by(agent).since(before).passed >= 5, "checks that succeed")
        assert Health.by(agent).since(before)[1:4] == (0, 0, 0)
        assert Health.by(agent).is_up == 1

        server.stop()
        agent.wait_until(lambda: Health.by(agent).is_up == 0, "the server's end")
        assert haproxy.stats()[1]["status"] in ("DOWN", "DOWN 1/2")
        down = Health.by(agent).since(before)
        assert (down.downs, down.ups) == (1, 0)
        assert down.failed >= 3

        server = world.start("checked-again", backend.command(listeners))
        agent.wait_until(lambda: Health.by(agent).is_up == 1, "the server's return")
        up = Health.by(agent).since(before)
        assert (up.downs, up.ups) == (1, 1)
        assert haproxy.stats()[1]["status"].startswith("UP")
    server.stop()


class Health(NamedTuple):
    """What the agent says of the checked server."""

    passed: float
    failed: float
    downs: float
    ups: float
    is_up: float

    @classmethod
    def by(cls, agent: RunningAgent) -> Health:
        metrics = agent.metrics()
        server = 'backend="back",{}server="checked"{}'

        def value(name: str, before: str = "", after: str = "") -> float:
            labels = server.format(before, after)
            return metrics.get(f"otel_qtap_haproxy_{name}{{{labels}}}", 0)

        return cls(
            value("health_checks_total", 'result="passed",'),
            value("health_checks_total", 'result="failed",'),
            value("health_transitions_total", after=',to="down"'),
            value("health_transitions_total", after=',to="up"'),
            value("server_up"),
        )

    def since(self, before: Health) -> Health:
        counts = (now - then for now, then in zip(self[:4], before[:4], strict=True))
        return Health(*counts, self.is_up)


def test_stdout_is_watched_only_while_somebody_logs_there(
    world, any_binary, start_haproxy, start_agent, only_haproxy, token
) -> None:
    """The first way of seeing sockets costs other system calls nothing."""
    with start_agent(qtap_file(tap=only_haproxy), rung="sockets") as agent:
        with start_haproxy(any_binary, "127.0.0.1:5599"):
            wait_until_it_logs(world, agent, token)
            assert _tracepoints(agent) == 0
        with start_haproxy(any_binary, "stdout"):
            wait_until_it_logs(world, agent, f"{token}-again")
            assert _tracepoints(agent) == 1
        agent.wait_until(lambda: _tracepoints(agent) == 0, "the end of watching")


def _tracepoints(agent: RunningAgent) -> int:
    """Return how many system calls the agent watches; raw tracepoints are not perf events."""
    found = []
    for link in Path(f"/proc/{agent.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found.count("anon_inode:[perf_event]")
