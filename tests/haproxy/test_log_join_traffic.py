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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A HAProxy of its own, what it is asked, and how it logs."""

    traffic: Callable[[World], object]
    lines: int
    """How many lines there are at least, once it has answered."""
    servers: tuple[Server, ...] = BACKEND
    defaults_lines: tuple[str, ...] = ("log global", "option httplog")


def end_badly(world: World) -> None:
    """Clients and servers that leave at any point."""
    for abort in ("request_head", "request_body", "request_end", "response_body"):
        for reset in (False, True):
            plan = ClientPlan(
                requests=4, abort=abort, reset=reset, target="/a?size=100000&delay_ms=50",
                body_size=20000 if abort == "request_body" else 0,
            )  # fmt: skip
            run_client(world, plan)
    run_client(world, ClientPlan(requests=4, target="/x?close=mid&size=10000"))
    run_client(world, ClientPlan(requests=4, target="/x?status=503"))


def ask_for_chunks(world: World) -> None:
    target = "/x?n={n}&size=200000&chunked=1000"
    run_client(world, ClientPlan(requests=20, connections=5, target=target))


OTHER_WAYS = {
    "early": (("log global", "option httplog", "option logasap"), 20),
    "clf": (("log global", "option httplog clf"), 20),
    "two-targets": (
        ("log global", "log 127.0.0.1:5514 len 200 format rfc5424 local1", "option httplog"),
        40,
    ),
    "ring": (("log ring@to-tcp local0", "option httplog"), 20),
}
SCENARIOS = {
    # The first is there before the agent has found out anything about HAProxy.
    "equal": Scenario(
        traffic=lambda world: run_load(world, requests=6000, connections=16, path="/same"),
        lines=6000,
        servers=SINK,
    ),
    "numbered": Scenario(
        traffic=lambda world: run_load(
            world, requests=3000, connections=4, pipeline=8, path="/n", numbered=True
        ),
        lines=3000,
        servers=SINK,
    ),
    "bad": Scenario(traffic=end_badly, lines=40),
    "dropped": Scenario(
        traffic=lambda world: run_client(
            world, ClientPlan(requests=40, target="/x?close=before")
        ),
        lines=20,
    ),
} | {
    name: Scenario(traffic=ask_for_chunks, lines=lines, defaults_lines=options)
    for name, (options, lines) in OTHER_WAYS.items()
}  # fmt: skip


def perform(
    world: World, binary: Path, directory: Path, scenario: Scenario
) -> tuple[int, list[merging.Written]]:
    """Return which process served the traffic, and what it wrote."""
    directory.mkdir()
    receiver = world.start("log", log_receiver.command(5514, 6514, str(directory / "unix")))
    world.wait_for_ports([6514], [receiver])
    haproxy = HAProxySettings(
        nbthread=2,
        global_lines=("log 127.0.0.1:5514 format raw local0",),
        extra_sections=RING,
        servers=scenario.servers,
        defaults_lines=scenario.defaults_lines,
    )
    with HAProxy(world, directory / "haproxy", haproxy, binary=binary) as proxy:
        pid = proxy.worker_pid
        scenario.traffic(world)
        wait_until(lambda: count_lines(receiver) >= scenario.lines, 20, f"{scenario.lines} lines")
        time.sleep(0.3)  # in case there are more
    receiver.stop()
    return pid, written(receiver, pid)


@pytest.fixture(scope="module")
def play(world, binary, tmp_path_factory) -> Callable[[str], merging.Played]:
    """``play(name)`` returns what the joiner makes of a scenario; one agent records them all."""
    directory = tmp_path_factory.mktemp("recorded")
    raw = directory / "recording"
    performed = {}
    with RunningAgent(directory, qtap_file(tap=only(str(binary))), command=("record", str(raw))):
        for name, scenario in SCENARIOS.items():
            performed[name] = perform(world, binary, directory / name, scenario)
    recording = Recording(raw)
    played = merging.play(recording, [each for _, lines in performed.values() for each in lines])
    recording.close()

    def play_it(name: str) -> merging.Played:
        pid, lines = performed[name]
        known = {
            result: played[pid].lines(result)
            for result in ("joined", "no_request", "duplicate", "late", "ambiguous", "unmatched")
        }
        expected = sum(len(split_lines(each.data)) for each in lines)
        assert known["joined"] + known["no_request"] + known["duplicate"] == expected, known
        return played[pid]

    return play_it


def served(played: merging.Played) -> list[merging.Joined]:
    return [each for each in played.joined if each.transaction.direction.is_ingress]


def test_equal_requests_at_full_speed_each_have_their_line(play) -> None:
    """Sixteen connections, thousands of requests that differ in nothing but time."""
    played = play("equal")

    assert played.lines("joined") == played.transactions("joined") == 6000
    assert played.transactions("without_line") == played.lines("unmatched") == 0
    for transaction, line in served(played):
        assert line is not None
        assert line.client_port == transaction.remote.port
        # HAProxy's clock stands still while it works: what it measures is about the same.
        assert abs(line.active_ms - transaction.timings.duration_ns / 1e6) < 100


def test_numbered_requests_have_the_line_with_their_number(play) -> None:
    """Pipelined, so that many of them arrive in one call."""
    played = play("numbered")

    assert played.lines("joined") == 3000
    assert all(line and line.target == t.request.target for t, line in served(played))
    assert len({line.target for _, line in served(played) if line}) == 3000


def test_requests_that_end_badly_have_lines_too(play) -> None:
    """Clients and servers that leave at any point; what HAProxy does not log is told apart."""

    played = play("bad")
    states = Counter(line.termination_state[:2] for _, line in served(played) if line)

    assert played.lines("no_request") == 8  # those that left in the head
    assert played.lines("joined") == played.transactions("joined") == 32
    assert played.transactions("without_line") == 0
    assert states["--"] >= 4
    assert states["SD"] == 4
    assert sum(states.values()) == 32


def test_a_request_that_haproxy_drops_without_a_word_is_no_loss(play) -> None:
    """The second request of a connection whose server closes gets neither answer nor line."""
    played = play("dropped")

    assert len(served(played)) == 40
    assert played.transactions("joined") + played.transactions("closed_silently") == 40
    assert all(
        transaction.response is None and transaction.index
        for transaction, line in served(played)
        if line is None
    )


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_other_ways_to_log_are_joined_as_well(play, name) -> None:
    """Before the end of a long answer, to the second only, everything twice, and by a ring."""
    played = play(name)

    assert played.lines("joined") == 20
    assert played.lines("duplicate") == SCENARIOS[name].lines - 20
    assert all(line and line.target == t.request.target for t, line in served(played))
