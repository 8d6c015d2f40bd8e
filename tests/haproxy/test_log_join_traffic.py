"""
Real traffic, the real agent and the log of the same HAProxy: every line finds its request.

The agent records; a syslog server takes the lines with the time at which HAProxy sent
them; both then go through the joiner in the order of time, as the agent would see them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from haproxy import log_receiver, merging
from kernel.agent import RunningAgent, only, qtap_file
from kernel.conftest import reason_to_skip
from traffic import backend
from traffic.backend import Listener
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.load import run_load, start_sink
from traffic.world import Program, World, wait_until

from otel_qtap.haproxy import split_lines
from otel_qtap.receiver.recording import Recording

REASON = reason_to_skip()
pytestmark = [
    pytest.mark.kernel,
    *([pytest.mark.skip(reason=REASON)] if REASON else []),
]

BACKEND = (Server("a", "127.0.1.1", 8001),)
SINK = (Server("s", "127.0.2.1", 9001),)
RING = """\
ring to-tcp
    format rfc5424
    size 65536
    timeout connect 5s
    timeout server 10s
    server log 127.0.0.1:6514 log-proto octet-count
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as world:
        program = world.start("backend", backend.command([Listener("a", "127.0.1.1", 8001)]))
        world.wait_for_ports([8001], [program])
        start_sink(world, [("127.0.2.1", 9001)], size=100)
        yield world


@pytest.fixture(scope="module", params=find_binaries())
def binary(request, tmp_path_factory) -> Path:
    """A copy of HAProxy that nobody else on this machine runs."""
    original = find_binaries()[request.param]
    copy = tmp_path_factory.mktemp("program") / "haproxy"
    shutil.copy(original, copy)
    if (libraries := original.with_name("lib")).is_dir():
        copy.with_name("lib").symlink_to(libraries)
    return copy


def written(receiver: Program, pid: int) -> list[merging.Written]:
    """Return what a syslog server was sent."""
    whole = receiver.output().rpartition("\n")[0]
    notes = map(json.loads, whole.splitlines())
    return [
        merging.Written(note["time_ns"], pid, note["data"].encode("latin-1"), note["by"] == "tcp")
        for note in notes
    ]


def count_lines(receiver: Program) -> int:
    return sum(len(split_lines(each.data)) for each in written(receiver, 0))


@pytest.fixture
def play(world, binary, tmp_path):
    """``play(traffic, lines, …)`` returns what the joiner makes of it, once so many lines came."""

    def play_it(traffic: Callable[[], object], lines: int, **settings) -> merging.Played:
        raw = tmp_path / "recording"
        receiver = world.start("log", log_receiver.command(5514, 6514, str(tmp_path / "unix")))
        world.wait_for_ports([6514], [receiver])
        haproxy = HAProxySettings(
            nbthread=2,
            global_lines=("log 127.0.0.1:5514 format raw local0",),
            extra_sections=RING,
            **({"defaults_lines": ("log global", "option httplog")} | settings),
        )
        with (
            RunningAgent(tmp_path, qtap_file(tap=only(str(binary))), command=("record", str(raw))),
            HAProxy(world, tmp_path / "haproxy", haproxy, binary=binary) as proxy,
        ):
            pid = proxy.worker_pid
            traffic()
            wait_until(lambda: count_lines(receiver) >= lines, 20, f"{lines} lines")
            time.sleep(0.3)  # in case there are more
        receiver.stop()
        recording = Recording(raw)
        played = merging.play(recording, written(receiver, pid))
        recording.close()
        known = sum(map(played.lines, ("joined", "no_request", "duplicate")))
        assert known == count_lines(receiver)
        played.joined = [each for each in played.joined if each.transaction.process.pid == pid]
        return played

    return play_it


def served(played: merging.Played) -> list[merging.Joined]:
    return [each for each in played.joined if each.transaction.direction.is_ingress]


def test_equal_requests_at_full_speed_each_have_their_line(world, play) -> None:
    """Sixteen connections, thousands of requests that differ in nothing but time."""
    played = play(
        lambda: run_load(world, requests=6000, connections=16, path="/same"), 6000, servers=SINK
    )

    assert played.lines("joined") == played.transactions("joined") == 6000
    assert played.transactions("without_line") == played.lines("unmatched") == 0
    for transaction, line in served(played):
        assert line is not None
        assert line.client_port == transaction.remote.port
        # HAProxy's clock stands still while it works: what it measures is about the same.
        assert abs(line.active_ms - transaction.timings.duration_ns / 1e6) < 100


def test_numbered_requests_have_the_line_with_their_number(world, play) -> None:
    """Pipelined, so that many of them arrive in one call."""
    played = play(
        lambda: run_load(world, requests=3000, connections=4, pipeline=8, path="/n", numbered=True),
        3000,
        servers=SINK,
    )

    assert played.lines("joined") == 3000
    assert all(line and line.target == t.request.target for t, line in served(played))
    assert len({line.target for _, line in served(played) if line}) == 3000


def test_requests_that_end_badly_have_lines_too(world, play) -> None:
    """Clients and servers that leave at any point; what HAProxy does not log is told apart."""

    def traffic() -> None:
        for abort in ("request_head", "request_body", "request_end", "response_body"):
            for reset in (False, True):
                plan = ClientPlan(
                    requests=4, abort=abort, reset=reset, target="/a?size=100000&delay_ms=50",
                    body_size=20000 if abort == "request_body" else 0,
                )  # fmt: skip
                run_client(world, plan)
        run_client(world, ClientPlan(requests=4, target="/x?close=mid&size=10000"))
        run_client(world, ClientPlan(requests=4, target="/x?status=503"))

    played = play(traffic, 40, servers=BACKEND)
    states = Counter(line.termination_state[:2] for _, line in served(played) if line)

    assert played.lines("no_request") == 8  # those that left in the head
    assert played.lines("joined") == played.transactions("joined") == 32
    assert played.transactions("without_line") == 0
    assert states["--"] >= 4
    assert states["SD"] == 4
    assert sum(states.values()) == 32


def test_a_request_that_haproxy_drops_without_a_word_is_no_loss(world, play) -> None:
    """The second request of a connection whose server closes gets neither answer nor line."""
    played = play(
        lambda: run_client(world, ClientPlan(requests=40, target="/x?close=before")),
        20,
        servers=BACKEND,
    )

    assert len(served(played)) == 40
    assert played.transactions("joined") + played.transactions("closed_silently") == 40
    assert all(
        transaction.response is None and transaction.index
        for transaction, line in served(played)
        if line is None
    )


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        pytest.param(("log global", "option httplog", "option logasap"), 20, id="early"),
        pytest.param(("log global", "option httplog clf"), 20, id="clf"),
        pytest.param(
            ("log global", "log 127.0.0.1:5514 len 200 format rfc5424 local1", "option httplog"),
            40,
            id="two-targets",
        ),
        pytest.param(("log ring@to-tcp local0", "option httplog"), 20, id="ring"),
    ],
)
def test_other_ways_to_log_are_joined_as_well(world, play, options, lines) -> None:
    """Before the end of a long answer, to the second only, everything twice, and by a ring."""
    target = "/x?n={n}&size=200000&chunked=1000"
    played = play(
        lambda: run_client(world, ClientPlan(requests=20, connections=5, target=target)),
        lines,
        servers=BACKEND,
        defaults_lines=options,
    )

    assert played.lines("joined") == 20
    assert played.lines("duplicate") == lines - 20
    assert all(line and line.target == t.request.target for t, line in served(played))
