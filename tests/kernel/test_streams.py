"""
The stream of HAProxy that each event belongs to, read out of real HAProxy in every way there is.

For each rung and way one recording is made of HAProxy in all versions: some of them run before
the agent starts, some are started after it and reloaded. The tests read the marks as the
kernel side made them; what they are worth shows in the requests, which carry numbers.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kernel.agent import RUNGS, RunningAgent, qtap_file
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.world import World, wait_until

from otel_qtap.events import CloseEvent, DataEvent, Flow, OpenEvent, Role, StreamMark, StreamState
from otel_qtap.receiver.recording import Recording
from otel_qtap.receiver.wire import decode
from otel_qtap.replay import recorded_transactions
from otel_qtap.transaction.model import Transaction

KNOWN = StreamState.KNOWN
VERSIONS = list(find_binaries())
WAYS = ("fast", "probe")
_REQUEST = re.compile(rb"(?:GET|POST) /(\S*)[?&]n=(\d+)")
_SERVERS = (
    Server("a", "backend-a", 8001, "check inter 100ms"),
    Server("b", "backend-b", 8002, "check inter 100ms"),
)
PLANS = {
    "kept": ClientPlan(requests=60, connections=4),
    "pipelined": ClientPlan(requests=18, connections=2, pipeline=3),
    "new": ClientPlan(requests=20, connections=2, new_connection=True),
    "posted": ClientPlan(requests=6, connections=2, body_size=20_000),
}
LEFT = ClientPlan(requests=3, new_connection=True, abort="request_end", reset=True)
"""Clients that leave while a backend thinks; HAProxy gives them up."""


@dataclass
class Sent:
    """One request to a backend, or one answer to a client."""

    process_id: int
    plan: str
    number: int
    mark: StreamMark


@dataclass
class Seen:
    """A recording, read for one HAProxy."""

    requests: list[Sent] = field(default_factory=list)
    answers: list[Sent] = field(default_factory=list)
    checks: list[tuple[StreamMark, StreamMark]] = field(default_factory=list)
    """Marks of the connect and of what was sent."""


@dataclass
class Scene:
    """What was recorded, and by whom it was done."""

    path: Path
    log: str
    workers: dict[str, list[int]]
    """Of HAProxy by version: before the agent, after it, after a reload."""

    def seen(self, pid: int) -> Seen:
        """Return what one worker did."""
        seen = Seen()
        opened: dict[int, OpenEvent] = {}
        asked: dict[int, list[tuple[str, int]]] = {}
        for item in Recording(self.path):
            event = decode(item) if isinstance(item, bytes) else None
            if isinstance(event, OpenEvent):
                opened[event.connection_id] = event
            elif isinstance(event, DataEvent) and event.process_id == pid:
                connection = opened[event.connection_id]
                if connection.role is Role.SERVER:
                    _read_client(event, asked, seen)
                elif event.flow is Flow.SEND:
                    _read_backend(event, connection, seen)
        return seen

    def transactions(self, *pids: int) -> list[Transaction]:
        """Return what the agent makes of all that."""
        found = recorded_transactions(Recording(self.path))
        return [t for t in found if t.process.pid in pids]


def _read_client(event: DataEvent, asked: dict[int, list[tuple[str, int]]], seen: Seen) -> None:
    waiting = asked.setdefault(event.connection_id, [])
    if event.flow is Flow.RECEIVE:
        waiting += [(m[1].decode(), int(m[2])) for m in _REQUEST.finditer(event.data)]
    elif event.data.startswith(b"HTTP/1."):
        seen.answers.append(Sent(event.process_id, *waiting.pop(0), event.stream))


def _read_backend(event: DataEvent, connection: OpenEvent, seen: Seen) -> None:
    found = _REQUEST.match(event.data)
    if found:
        is_first = event.offset == 0 and not connection.joined_late
        mark = connection.connecting if is_first else event.stream
        seen.requests.append(Sent(event.process_id, found[1].decode(), int(found[2]), mark))
    elif event.data.startswith(b"GET /health"):
        seen.checks.append((connection.connecting, event.stream))


@pytest.fixture(scope="module", params=list(itertools.product(RUNGS, WAYS)), ids="-".join)
def scene(request, world, binaries, only_haproxy, tmp_path_factory) -> Scene:
    """All versions, before and after the start of the agent, and reloaded."""
    rung, way = request.param
    tap = f"{only_haproxy}\nlink: {way}"
    return play(world, binaries, tmp_path_factory.mktemp("scene"), rung, tap)


def play(world: World, binaries: dict[str, Path], directory: Path, rung: str, tap: str) -> Scene:
    """Record the same requests through each HAProxy."""
    ports = itertools.count(8201)
    scene = Scene(directory / "all.qtaprec", "", {version: [] for version in binaries})
    record = RunningAgent(
        directory, qtap_file(tap=tap), rung=rung, command=("record", str(scene.path))
    )

    def start(version: str) -> tuple[HAProxy, int]:
        port = next(ports)
        settings = HAProxySettings(
            servers=_SERVERS, port=port, nbthread=2, http_reuse="always",
            defaults_lines=("option httpchk GET /health",),
        )  # fmt: skip
        haproxy = HAProxy(world, directory / str(port), settings, binary=binaries[version])
        return haproxy.__enter__(), port

    def ask(version: str, haproxy: HAProxy, port: int) -> None:
        scene.workers[version].append(haproxy.worker_pid)
        for name, plan in PLANS.items():
            run_plan(world, name, plan, port)
        run_plan(world, "left?delay_ms=150", LEFT, port)

    running = [(version, *start(version)) for version in binaries]
    try:
        with record as agent:
            for each in running:
                ask(*each)
            for version in binaries:
                haproxy, port = start(version)
                running.append((version, haproxy, port))
                ask(version, haproxy, port)
                haproxy.reload()
                ask(version, haproxy, port)
            # The last clients that left are given up when HAProxy has noticed it, at the
            # latest when it gets the answer that it still waits for.
            wait_until(lambda: all(idle(h) for _, h, _ in running), 10, "the end of the clients")
            time.sleep(0.5)
        scene.log = agent.errors()
    finally:
        for _, haproxy, _ in running:
            haproxy.stop()
    return scene


def run_plan(world: World, name: str, plan: ClientPlan, port: int) -> None:
    """Ask for paths that begin with the plan's name and say the number of each request."""
    path = name + ("&" if "?" in name else "?")
    changes = {field: getattr(plan, field) for field in plan.__dataclass_fields__}
    done = run_client(world, ClientPlan(**changes | {"port": port, "target": f"/{path}n={{n}}"}))
    outcome = "aborted" if plan.abort else "complete"
    assert done.outcomes == {outcome: plan.requests}


def idle(haproxy: HAProxy) -> bool:
    """Whether only the connection that asks this is open."""
    return int(haproxy.info()["CurrConns"]) <= 1


each_version = pytest.mark.parametrize("version", VERSIONS)
each_worker = pytest.mark.parametrize("worker", [0, 1, 2], ids=["before", "after", "reloaded"])


@each_version
@each_worker
def test_every_answer_and_every_request_has_its_stream(scene, version, worker) -> None:
    """Known from the first on; the same for what belongs together, and for nothing else."""
    seen = scene.seen(scene.workers[version][worker])

    amounts = Counter({name: plan.requests for name, plan in PLANS.items()})
    assert Counter(s.plan for s in seen.answers) == amounts
    assert {s.mark.state for s in (*seen.answers, *seen.requests)} == {KNOWN}
    streams = {(s.plan, s.number): s.mark for s in seen.answers}
    assert len(set(streams.values())) == len(seen.answers)
    sent = {(s.plan, s.number): s.mark for s in seen.requests if s.plan in PLANS}
    assert sent == streams


@each_version
@each_worker
def test_health_checks_belong_to_no_stream(scene, version, worker) -> None:
    """HAProxy was in another task, or in none; and it was looked."""
    checks = scene.seen(scene.workers[version][worker]).checks

    states = [(connect.state, sent.state) for connect, sent in checks]
    marked = [each for each in states if StreamState.NOT_ASKED not in each]
    assert marked
    assert {state for each in marked for state in each} <= {StreamState.NONE, StreamState.OTHER}
    # The first may be older than the agent, or come before it knows of a new worker; probes
    # take a second to attach, that is twenty checks.
    assert len(states) - len(marked) <= 30


@each_version
@each_worker
def test_every_request_is_linked_to_its_client(scene, version, worker) -> None:
    """Also those of clients that left before they were answered."""
    transactions = scene.transactions(scene.workers[version][worker])
    by_id = {t.request_id: t for t in transactions}

    sent = [t for t in transactions if not t.direction.is_ingress and t.path != "/health"]
    assert len(sent) == sum(plan.requests for plan in (*PLANS.values(), LEFT))
    for transaction in sent:
        assert transaction.link is not None, transaction.url
        parent = by_id[transaction.link.parent_id]
        assert (parent.path, parent.query) == (transaction.path, transaction.query)
        assert not transaction.is_health_check


def test_the_log_says_how_requests_are_linked(scene, request) -> None:
    """With its process; not again and again, as it is the same for all that run the file."""
    way = request.node.callspec.params["scene"][1]
    said = {
        "fast": "backend requests are linked by its streams (fast)",
        "probe": "backend requests are linked by probes on its streams",
    }
    told = [json.loads(line)["message"] for line in scene.log.splitlines()]
    about = [message for message in told if "requests are linked" in message]

    assert about
    assert all(said[way] in message for message in about)
    for workers in scene.workers.values():
        named = [m for m in about if set(map(str, workers)) & set(re.findall(r"\d+", m))]
        assert len(named) <= (len(workers) if way == "fast" else 1)


@pytest.mark.parametrize("way", ["passive", "off"])
def test_nothing_is_read_where_nothing_may(world, binaries, only_haproxy, tmp_path, way) -> None:
    """``tap.link``: neither the memory of HAProxy nor a probe on it."""
    version = VERSIONS[0]
    scene = play(world, {version: binaries[version]}, tmp_path, "", f"{only_haproxy}\nlink: {way}")

    marks = []
    for item in Recording(scene.path):
        event = decode(item) if isinstance(item, bytes) else None
        if isinstance(event, DataEvent | CloseEvent):
            marks.append(event.stream)
        elif isinstance(event, OpenEvent):
            marks.append(event.connecting)
    assert len(marks) > 100
    assert {mark.state for mark in marks} == {StreamState.NOT_ASKED}
    assert "linked" not in scene.log
