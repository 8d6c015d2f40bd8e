"""HAProxy processes are found, and the kernel side is told how to tell their streams."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from traffic.haproxy import find_binaries
from traffic.world import wait_until

from otel_qtap.config.model import LinkMode
from otel_qtap.counters import CounterSet
from otel_qtap.events import ProcessEvent, ProcessStep
from otel_qtap.haproxy import probes, watch
from otel_qtap.haproxy.binary import read_binary
from otel_qtap.haproxy.calibration import Verdict
from otel_qtap.haproxy.layout import DEFAULT_OFFSETS, Layout, Offsets, StreamSource
from otel_qtap.haproxy.watch import HaproxyWatch

BINARY = next(iter(find_binaries().values()), Path("/usr/sbin/haproxy"))
"""HAProxy of one version, where the version does not matter."""

_CONFIG = """\
global
    nbthread 1
defaults
    mode http
    timeout client 1s
    timeout server 1s
    timeout connect 1s
frontend front
    bind unix@{socket}
"""


class Receiver:
    """What the kernel side was told, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.layouts: dict[int, Layout] = {}
        self.snapshots: dict[int, int] = {}
        self.assigned: dict[int, int] = {}
        self.attached: list[tuple[bytes, int, int, int]] = []
        self.refusal = ""
        self.before_attaching: Callable[[], object] = lambda: None

    def write_layout(self, layout: Layout, snapshots: int = 0) -> None:
        self.told.append(("layout", layout.number))
        self.layouts[layout.number] = layout
        self.snapshots[layout.number] = snapshots

    def assign_layout(self, process_id: int, number: int) -> bool:
        self.told.append(("assign", process_id, number))
        self.assigned[process_id] = number
        return True

    def attach_probes(
        self, executable: Path, process_stream: int, stream_free: int, leaving_poll: int = 0
    ) -> str:
        self.before_attaching()
        places = (process_stream, stream_free, leaving_poll)
        self.attached.append((executable.read_bytes(), *places))
        return self.refusal

    def learn(self, process_id: int, layout: Layout) -> None:
        self.told.append(("learn", process_id, layout.number))

    def layout_of(self, process_id: int) -> Layout:
        return self.layouts[self.assigned[process_id]]


class Watched:
    """A watch, and what it told whom."""

    def __init__(self, mode: LinkMode) -> None:
        self.receiver = Receiver()
        self.counters = CounterSet()
        self.learned: list[tuple[int, Layout]] = []
        self.watch = HaproxyWatch(self.receiver, self._learn, self.counters, mode=mode)

    def _learn(self, process_id: int, layout: Layout) -> None:
        self.receiver.learn(process_id, layout)
        self.learned.append((process_id, layout))

    def event(self, pid: int, step: ProcessStep, parent: int = 0) -> None:
        self.watch.follow(ProcessEvent(1, pid, step, parent, ""))

    def decide(self, pid: int, verdict: Verdict, reason: str = "", **changes: object) -> Layout:
        """Bring a verdict about the layout of a process; returns what is in force in the end."""
        layout = replace(self.receiver.layout_of(pid), **changes)
        if verdict is Verdict.REFUTED:
            layout = replace(layout, source=StreamSource.NOTHING)
        self.watch.decide(layout, verdict, reason)
        self.finish()
        return self.receiver.layout_of(pid)

    def finish(self) -> None:
        """Let probes be attached, if any are on their way."""
        self.watch.wait_for_probes()

    def processes(self) -> dict[str, float]:
        """Return how many processes are linked in which way."""
        return {
            dict(sample.labels)["method"]: sample.value
            for sample in self.counters.samples()
            if sample.name == "otel_qtap.link.processes"
        }


@pytest.fixture
def watched() -> Callable[..., Watched]:
    """``watched(mode) -> Watched``."""

    def make(mode: LinkMode = LinkMode.AUTO) -> Watched:
        return Watched(mode)

    return make


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., int]]:
    """
    ``start(binary, in_place=…) -> pid`` of a HAProxy that listens on a Unix socket.

    The kernel puts it where it likes, unless ``in_place`` is asked for.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def run(binary: Path = BINARY, *, in_place: bool = False) -> int:
        directory = tmp_path / f"haproxy-{len(processes)}"
        directory.mkdir()
        config = directory / "haproxy.cfg"
        config.write_text(_CONFIG.format(socket=directory / "socket"))
        before = ["setarch", "-R"] if in_place else []
        process = subprocess.Popen([*before, str(binary), "-db", "-f", str(config)])
        processes.append(process)
        wait_until((directory / "socket").exists, 10, "HAProxy")
        return process.pid

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that is no HAProxy."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def mapping_of(pid: int, address: int) -> str:
    """Return the line of ``/proc/PID/maps`` that holds an address."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        assert found
        if int(found[1], 16) <= address < int(found[2], 16):
            return line
    return ""


# Finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(find_binaries()))
def test_a_haproxy_that_runs_is_found(watched, start, sleeper, version) -> None:
    """Its function lies in its code, its contexts lie in its data, and others are left alone."""
    pid = start(find_binaries()[version])
    each = watched()

    each.watch.find()

    layout = each.receiver.layout_of(pid)
    assert (layout.source, layout.offsets) == (StreamSource.THREAD, DEFAULT_OFFSETS)
    assert " r-xp " in mapping_of(pid, layout.process_stream)
    last = layout.contexts + layout.contexts_size - 1
    assert " rw-p " in mapping_of(pid, layout.contexts)
    assert " rw-p " in mapping_of(pid, last)
    assert (pid, layout) in each.learned
    assert each.receiver.snapshots[layout.number] == 1024
    assert sleeper not in each.receiver.assigned
    assert each.watch.method_of(pid) == "fast"
    assert each.watch.method_of(sleeper) == "passive"


def test_what_a_process_has_is_known_before_it_comes_into_force(watched, start) -> None:
    """No mark can come of a layout that nobody has heard of."""
    pid = start()
    each = watched()

    each.watch.inspect(pid)
    each.watch.inspect(pid)

    number = each.receiver.assigned[pid]
    assert each.receiver.told == [
        ("layout", number),
        ("learn", pid, number),
        ("assign", pid, number),
    ]


def test_processes_in_the_same_place_have_one_layout(watched, start) -> None:
    """As forked ones are, or all of a program without ``-pie``: what is verified holds for all."""
    pids = [start(in_place=True) for _ in range(2)]
    each = watched()

    for pid in pids:
        each.watch.inspect(pid)
    layout = each.decide(pids[0], Verdict.VERIFIED)

    assert [each.receiver.layout_of(pid) for pid in pids] == [layout, layout]
    assert each.processes() == {"fast": 2, "probe": 0, "passive": 0}


def test_each_start_has_a_layout_of_its_own(watched, start) -> None:
    """The kernel puts a program elsewhere each time."""
    first, second = start(), start()
    each = watched()

    each.watch.inspect(first)
    each.watch.inspect(second)

    one, other = map(each.receiver.layout_of, (first, second))
    assert one.number != other.number
    assert one.process_stream != other.process_stream
    assert one.process_stream - one.contexts == other.process_stream - other.contexts


def _run_twice(each: Watched, program: Path) -> dict[str, float]:
    """Start two processes of a program that sleeps; return how processes are linked."""
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen([program, "60"])) for _ in range(2)]
        for process in processes:
            stack.callback(process.kill)
            each.watch.inspect(process.pid)
        counted = each.processes()
        for process in processes:
            each.event(process.pid, ProcessStep.EXITED)
    assert not each.receiver.told
    assert sum(each.processes().values()) == 0
    return counted


def test_a_program_that_is_only_called_after_haproxy_is_none(watched, tmp_path, caplog) -> None:
    """As exporters and controllers are; its traffic is captured as that of any program."""
    shutil.copy("/bin/sleep", tmp_path / "haproxy_exporter")

    counted = _run_twice(watched(), tmp_path / "haproxy_exporter")

    assert counted == {"fast": 0, "probe": 0, "passive": 0}
    assert caplog.records == []


def test_a_haproxy_that_was_stripped_of_its_names_is_told_once(watched, tmp_path, caplog) -> None:
    """With what it lacks; it is linked by what its traffic shows."""
    stripped = tmp_path / "haproxy"
    stripped.write_bytes(Path("/bin/sleep").read_bytes() + b"process_stream\0")
    stripped.chmod(0o755)

    counted = _run_twice(watched(), stripped)

    assert counted == {"fast": 0, "probe": 0, "passive": 2}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "was stripped of the names of its functions: " in record.getMessage()


def test_more_programs_than_there_is_room_for_go_without(watched, start, monkeypatch) -> None:
    """Until one of the others ends."""
    monkeypatch.setattr(watch, "_LAYOUT_NUMBERS", 3)
    pids = [start() for _ in range(3)]
    each = watched()
    for pid in pids:
        each.watch.inspect(pid)
    assert sorted(each.receiver.assigned.values()) == [1, 2]

    each.event(pids[0], ProcessStep.EXITED)
    each.watch.inspect(pids[2])

    assert each.receiver.assigned[pids[2]] == each.receiver.assigned[pids[0]]


# Following -----------------------------------------------------------------------------------


def test_a_process_becomes_a_haproxy_and_something_else_again(watched, tmp_path) -> None:
    """A service starts as a shell; the kernel side forgets by itself what it was."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(_CONFIG.format(socket=tmp_path / "socket"))
    script = (
        f"import os; input(); os.execv({str(BINARY)!r}, ['haproxy', '-db', '-f', {str(config)!r}])"
    )
    each = watched()
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        each.watch.inspect(process.pid)
        assert not each.receiver.assigned
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_until((tmp_path / "socket").exists, 10, "HAProxy")
        each.event(process.pid, ProcessStep.EXECUTED)
        assert process.pid in each.receiver.assigned
        assert each.processes()["fast"] == 1
        process.kill()
        process.wait()
        each.event(process.pid, ProcessStep.EXECUTED)  # whatever it was, it is no HAProxy now

    assert each.processes()["fast"] == 0


def test_a_fork_is_looked_at_if_its_parent_is_known(watched, start) -> None:
    """Others fork all the time."""
    parent, child = start(), start()
    each = watched()
    each.event(child, ProcessStep.FORKED, parent)
    assert not each.receiver.told

    each.watch.inspect(parent)
    each.event(child, ProcessStep.FORKED, parent)
    assert child in each.receiver.assigned


def test_the_child_of_a_process_that_ended_before_it_was_seen_is_looked_at(watched, start) -> None:
    """As with ``-D``: who was started ends at once, and the agent may be behind."""
    worker = start()
    starter, daemon = _ended(), _ended()
    each = watched()

    each.event(starter, ProcessStep.EXECUTED)
    each.event(daemon, ProcessStep.FORKED, starter)
    each.event(starter, ProcessStep.EXITED)
    each.event(worker, ProcessStep.FORKED, daemon)

    assert each.watch.method_of(worker) == "fast"


def test_what_has_ended_is_forgotten_once_its_end_is_told(watched, start) -> None:
    """Its number may be another's by then."""
    other, ended = start(), _ended()
    each = watched()

    each.event(ended, ProcessStep.EXECUTED)
    each.event(ended, ProcessStep.EXITED)
    each.event(other, ProcessStep.FORKED, ended)

    assert not each.receiver.told


def _ended() -> int:
    """Return the number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_a_layout_lasts_as_long_as_one_of_its_processes(watched, start) -> None:
    """After a reload the old worker goes on for a while."""
    old, new = (start(in_place=True) for _ in range(2))
    each = watched()
    each.watch.inspect(old)
    each.watch.inspect(new)

    each.event(old, ProcessStep.EXITED)
    assert each.decide(new, Verdict.CHANGED, offsets=Offsets(40, 8, 4)).offsets.current == 40

    each.event(new, ProcessStep.EXITED)
    before = list(each.receiver.told)
    each.decide(new, Verdict.VERIFIED)
    each.watch.tick(1000)
    assert each.receiver.told == before  # of a layout that nobody has any more


# Verdicts ------------------------------------------------------------------------------------


def test_a_verified_layout_is_left_alone(watched, start, caplog) -> None:
    """No more snapshots; the log says so once, with the process."""
    caplog.set_level(logging.INFO)
    pid = start()
    each = watched()
    each.watch.inspect(pid)
    each.watch.tick(10)
    assert each.receiver.snapshots == {each.receiver.assigned[pid]: 1024}  # asked for again

    layout = each.decide(pid, Verdict.VERIFIED)
    each.watch.tick(11)

    assert layout.source is StreamSource.THREAD
    assert each.receiver.snapshots == {layout.number: 0}
    assert [record.getMessage() for record in caplog.records] == [
        f"HAProxy (PID {pid}): backend requests are linked by its streams (fast)"
    ]


def test_other_offsets_come_into_force_and_are_verified_in_turn(watched, start) -> None:
    """With as many snapshots as at first."""
    pid = start()
    each = watched()
    each.watch.inspect(pid)
    each.receiver.write_layout(each.receiver.layout_of(pid), 3)

    layout = each.decide(pid, Verdict.CHANGED, offsets=Offsets(40, 8, 4))
    each.watch.tick(10)

    assert layout.offsets == each.receiver.layout_of(pid).offsets == Offsets(40, 8, 4)
    assert each.receiver.snapshots[layout.number] == 1024


def test_the_next_process_of_a_program_begins_with_what_was_found_for_the_last(
    watched, start
) -> None:
    """After a reload nothing is lost to a guess that was wrong before; it is verified again."""
    old, new = start(), start()
    each = watched()
    each.watch.inspect(old)
    each.decide(old, Verdict.CHANGED, offsets=Offsets(40, 8, 4))
    each.decide(old, Verdict.VERIFIED)
    each.event(old, ProcessStep.EXITED)

    each.watch.inspect(new)

    layout = each.receiver.layout_of(new)
    assert layout.offsets == Offsets(40, 8, 4)
    assert each.receiver.snapshots[layout.number] == 1024


def test_what_was_only_guessed_is_not_remembered(watched, start) -> None:
    """Until it has explained all that was seen."""
    old, new = start(), start()
    each = watched()
    each.watch.inspect(old)
    each.decide(old, Verdict.CHANGED, offsets=Offsets(40, 8, 4))

    each.watch.inspect(new)

    assert each.receiver.layout_of(new).offsets == DEFAULT_OFFSETS


def test_a_program_whose_contexts_cannot_be_found_gets_probes_at_once(
    watched, start, caplog, monkeypatch
) -> None:
    """As one built without threads: there is nothing to try before."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(
        watch, "read_binary",
        lambda path: replace(read_binary(path), obstacle="it does not name th_ctx"),
    )  # fmt: skip
    pid = start()
    each = watched()

    each.watch.inspect(pid)
    each.finish()

    layout = each.receiver.layout_of(pid)
    assert layout.source is StreamSource.PROBE
    assert each.receiver.snapshots[layout.number] == 0
    (record,) = caplog.records
    assert record.getMessage().endswith("by probes on its streams (it does not name th_ctx)")


def test_what_cannot_be_read_is_told_by_probes(watched, start, caplog) -> None:
    """At the places of the file; every process of the layout hears of it."""
    caplog.set_level(logging.INFO)
    pid = start()
    each = watched()
    each.watch.inspect(pid)

    layout = each.decide(pid, Verdict.REFUTED, "nothing fits")

    facts = read_binary(BINARY)
    places = (facts.process_stream_probe, facts.stream_free_probe, facts.leaving_poll_probe)
    assert all(places)
    assert each.receiver.attached == [(BINARY.read_bytes(), *places)]
    assert layout.source is StreamSource.PROBE
    learned = each.learned[-1][1]
    assert each.learned[-1] == (pid, replace(layout, since_ns=learned.since_ns))
    assert each.processes() == {"fast": 0, "probe": 1, "passive": 0}
    assert caplog.records[-1].getMessage() == (
        f"HAProxy (PID {pid}): backend requests are linked by probes on its streams (nothing fits)"
    )
    each.watch.tick(100)
    assert each.receiver.snapshots[layout.number] == 0


def test_marks_made_before_the_probes_can_be_told_from_theirs(watched, start) -> None:
    """They wait in the ring, and they are worthless."""
    pid = start()
    each = watched()
    each.watch.inspect(pid)
    times = [time.monotonic_ns()]
    each.receiver.before_attaching = lambda: times.append(time.monotonic_ns())

    each.decide(pid, Verdict.REFUTED, "nothing fits")

    assert times[0] < times[1] < each.learned[-1][1].since_ns < time.monotonic_ns()


def test_nobody_waits_while_probes_are_being_attached(watched, start) -> None:
    """The tap has a ring to drain; every process of the file hears of it afterwards."""
    first, second = start(), start()
    each = watched()
    each.watch.inspect(first)
    may_go_on = threading.Event()
    each.receiver.before_attaching = may_go_on.wait
    each.watch.decide(each.receiver.layout_of(first), Verdict.REFUTED, "nothing fits")
    each.watch.inspect(second)
    each.watch.decide(each.receiver.layout_of(second), Verdict.REFUTED, "nothing fits")
    each.watch.tick(10)
    assert each.processes() == {"fast": 0, "probe": 0, "passive": 2}

    may_go_on.set()
    wait_until(lambda: each.receiver.attached, 10, "probes")
    wait_until(
        lambda: each.watch.look_after_probes() or each.processes()["probe"] == 2, 10, "the news"
    )
    assert len(each.receiver.attached) == 1
    assert {pid for pid, layout in each.learned if layout.source is StreamSource.PROBE} == {
        first, second,
    }  # fmt: skip


def test_a_process_may_end_while_it_waits_for_probes(watched, start) -> None:
    """Then there is nothing more to say about it."""
    pid = start()
    each = watched()
    each.watch.inspect(pid)
    each.receiver.before_attaching = lambda: time.sleep(0.2)
    each.watch.decide(each.receiver.layout_of(pid), Verdict.REFUTED, "nothing fits")
    each.event(pid, ProcessStep.EXITED)
    before = list(each.receiver.told)

    each.finish()

    assert each.receiver.told == before
    assert each.processes()["probe"] == 0


def test_what_goes_wrong_while_attaching_is_a_reason_like_any_other(watched, start, caplog) -> None:
    """Whatever it is, HAProxy must not wait for probes for ever."""
    pid = start()
    each = watched(LinkMode.PROBE)

    def fail() -> None:
        raise RuntimeError("out of paper")

    each.receiver.before_attaching = fail
    each.watch.inspect(pid)
    each.finish()

    assert each.processes()["passive"] == 1
    assert "RuntimeError: out of paper" in caplog.records[-1].getMessage()


def test_a_file_without_the_right_functions_is_not_probed(watched, start, monkeypatch) -> None:
    """Nothing is attached then."""
    monkeypatch.setattr(
        watch, "read_binary", lambda p: replace(read_binary(p), stream_free_probe=0)
    )
    pid = start()
    each = watched(LinkMode.PROBE)
    each.watch.inspect(pid)
    each.finish()

    assert not each.receiver.attached
    assert each.processes()["passive"] == 1


def test_a_function_that_is_called_by_a_pointer_has_no_other_end(
    watched, start, monkeypatch
) -> None:
    """Where it returns to does not say what was called then; only its return would do."""
    monkeypatch.setattr(probes, "is_called_directly", lambda *_: False)
    each = watched(LinkMode.PROBE)
    each.watch.inspect(start())
    each.finish()

    ((_, *_, leaving_poll),) = each.receiver.attached
    assert leaving_poll == 0


def test_the_log_says_once_for_each_file_how_it_is_linked(watched, start, caplog) -> None:
    """However often it is started or reloaded."""
    caplog.set_level(logging.INFO)
    each = watched(LinkMode.PROBE)
    for _ in range(3):
        each.watch.inspect(start())
        each.finish()

    assert len([r for r in caplog.records if "linked by probes" in r.getMessage()]) == 1


def test_nothing_is_marked_while_probes_are_being_attached(watched, start) -> None:
    """That takes a second, and the marks of the old way are known to be worthless."""
    pid = start()
    each = watched()
    each.watch.inspect(pid)
    sources: list[StreamSource] = []
    each.receiver.before_attaching = lambda: sources.append(each.receiver.layout_of(pid).source)

    each.decide(pid, Verdict.REFUTED, "nothing fits")

    assert sources == [StreamSource.NOTHING]


@pytest.mark.parametrize(
    ("mode", "refusal", "why", "attached"),
    [
        (LinkMode.AUTO, "this kernel refuses probes", "nothing fits; this kernel refuses", 1),
        (LinkMode.FAST, "", "nothing fits; tap.link is fast", 0),
    ],
)
def test_without_probes_the_traffic_itself_has_to_do(
    watched, start, caplog, mode, refusal, why, attached
) -> None:
    """A warning says why, both times."""
    pid = start()
    each = watched(mode)
    each.receiver.refusal = refusal
    each.watch.inspect(pid)

    layout = each.decide(pid, Verdict.REFUTED, "nothing fits")

    assert len(each.receiver.attached) == attached
    assert layout.source is StreamSource.NOTHING
    assert each.processes() == {"fast": 0, "probe": 0, "passive": 1}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert why in record.getMessage()
    assert str(pid) in record.getMessage()


def test_probes_are_attached_once_for_each_file(watched, start) -> None:
    """They are hit by every process that runs it, and stay when one ends."""
    each = watched(LinkMode.PROBE)
    for _ in range(3):
        each.watch.inspect(start())
    each.finish()

    assert len(each.receiver.attached) == 1
    assert {layout.source for layout in each.receiver.layouts.values()} == {StreamSource.PROBE}


def test_a_process_that_ends_while_probes_are_attached_does_no_harm(watched, start) -> None:
    """``haproxy -c`` before a start: the file stays open until the probes are on it."""
    pid = start()
    each = watched(LinkMode.PROBE)

    def end() -> None:
        subprocess.run(["kill", "-KILL", str(pid)], check=True)
        wait_until(lambda: _is_dead(pid), 5, "the end of HAProxy")

    each.receiver.before_attaching = end
    each.watch.inspect(pid)
    each.finish()

    assert each.receiver.attached[0][0] == BINARY.read_bytes()


def _is_dead(pid: int) -> bool:
    try:
        Path(f"/proc/{pid}/exe").readlink()
    except OSError:
        return True
    return False


def test_a_process_that_ended_before_is_not_the_last_word_on_its_file(watched, start) -> None:
    """The next one that runs it is probed."""
    first = start()
    each = watched()
    each.watch.inspect(first)
    subprocess.run(["kill", "-KILL", str(first)], check=True)
    wait_until(lambda: _is_dead(first), 5, "the end of HAProxy")
    assert each.decide(first, Verdict.REFUTED, "nothing fits").source is StreamSource.NOTHING
    assert not each.receiver.attached

    second = start()
    each.watch.inspect(second)
    assert each.decide(second, Verdict.REFUTED, "nothing fits").source is StreamSource.PROBE


# Modes ---------------------------------------------------------------------------------------

_MODES = [
    (LinkMode.AUTO, StreamSource.THREAD, "fast"),
    (LinkMode.FAST, StreamSource.THREAD, "fast"),
    (LinkMode.PROBE, StreamSource.PROBE, "probe"),
    (LinkMode.PASSIVE, StreamSource.NOTHING, "passive"),
]


@pytest.mark.parametrize(("mode", "source", "method"), _MODES)
def test_a_mode_is_where_the_ladder_begins(watched, start, mode, source, method) -> None:
    """``tap.link``."""
    pid = start()
    each = watched(mode)
    each.watch.inspect(pid)
    each.finish()

    assert each.receiver.layout_of(pid).source is source
    assert each.watch.method_of(pid) == method
    assert each.processes()[method] == 1
    wants_snapshots = source is StreamSource.THREAD
    assert bool(each.receiver.snapshots[each.receiver.assigned[pid]]) is wants_snapshots
    each.watch.tick(10)
    assert bool(each.receiver.snapshots[each.receiver.assigned[pid]]) is wants_snapshots


def test_linking_can_be_switched_off(watched, start) -> None:
    """Then nobody looks for HAProxy at all."""
    pid = start()
    each = watched(LinkMode.OFF)

    each.watch.inspect(pid)
    each.event(pid, ProcessStep.EXECUTED)
    each.watch.find()

    assert not each.receiver.told


# Doubts ---------------------------------------------------------------------------------------


def _doubted(each: Watched, pid: int, now_s: float, check: str = "two_clients") -> Layout:
    """Let marks of now contradict each other, and return what is in force afterwards."""
    each.watch.doubt(pid, check, time.monotonic_ns())
    each.watch.tick(now_s)
    each.finish()
    return each.receiver.layout_of(pid)


def _verified(each: Watched, pid: int) -> None:
    """Bring the verdict that all is as it was believed."""
    each.watch.inspect(pid)
    each.decide(pid, Verdict.VERIFIED)


def _counted(each: Watched) -> dict[str, int]:
    """Return how often there were doubts, by check."""
    return {
        dict(sample.labels)["check"]: int(sample.value)
        for sample in each.counters.samples()
        if sample.name == "otel_qtap.link.doubts" and sample.value
    }


def test_what_is_verified_is_looked_at_every_minute(watched, start) -> None:
    """By some snapshots, of no other than those that are read."""
    pid, probed = start(), start()
    each = watched()
    each.watch.inspect(probed)
    each.decide(probed, Verdict.REFUTED, "nothing fits")
    _verified(each, pid)
    number = each.receiver.assigned[pid]
    each.watch.tick(10)
    each.receiver.snapshots[number] = 0

    for now_s in range(11, 70):
        each.watch.tick(now_s)
    assert each.receiver.snapshots[number] == 0
    each.watch.tick(70)

    assert each.receiver.snapshots == {number: 96, each.receiver.assigned[probed]: 0}


def test_the_first_contradiction_has_everything_verified_anew(watched, start, caplog) -> None:
    """What was marked before is worth nothing; a warning says why."""
    pid = start()
    each = watched()
    _verified(each, pid)
    before_ns = time.monotonic_ns()
    caplog.clear()

    layout = _doubted(each, pid, 10)

    assert layout.source is StreamSource.THREAD
    assert each.receiver.snapshots[layout.number] == 1024
    who, learned = each.learned[-1]
    assert (who, learned.number) == (pid, layout.number)
    assert learned.since_ns > before_ns
    assert _counted(each) == {"two_clients": 1}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"(PID {pid})" in record.getMessage()
    assert "two_clients" in record.getMessage()


def test_a_doubt_is_acted_on_later(watched, start) -> None:
    """It comes while events are being passed on: nothing may be changed under their feet."""
    pid = start()
    each = watched()
    _verified(each, pid)
    before = list(each.receiver.told)

    each.watch.doubt(pid, "thread", time.monotonic_ns())

    assert each.receiver.told == before


def test_many_contradictions_at_once_are_one(watched, start) -> None:
    """The same cause brings them; those that come of older marks do not count at all."""
    pid = start()
    each = watched()
    _verified(each, pid)
    old_ns = time.monotonic_ns()
    for check in ("thread", "eligible", "answered"):
        each.watch.doubt(pid, check, old_ns)
    each.watch.tick(10)
    each.watch.doubt(pid, "answered", old_ns)  # while it is being verified anew
    each.decide(pid, Verdict.VERIFIED, since_ns=each.learned[-1][1].since_ns)
    each.watch.doubt(pid, "answered", old_ns)
    each.watch.tick(11)

    assert _counted(each) == {"thread": 1}
    assert each.watch.method_of(pid) == "fast"


_LADDER = [
    # tap.link, the ways that follow each other
    (LinkMode.AUTO, ["fast", "probe", "passive"]),
    (LinkMode.FAST, ["fast", "passive"]),
    (LinkMode.PROBE, ["probe", "passive"]),
]


@pytest.mark.parametrize(("mode", "ways"), _LADDER)
def test_the_third_contradiction_within_ten_minutes_changes_the_way(
    watched, start, caplog, mode, ways
) -> None:
    """With a warning that names all of them."""
    pid = start()
    each = watched(mode)
    each.watch.inspect(pid)
    each.finish()
    now_s = 0.0
    for way, following in zip(ways, [*ways[1:], ways[-1]], strict=True):
        for number in range(3):
            assert each.watch.method_of(pid) == way
            if way == "fast":
                since_ns = each.learned[-1][1].since_ns
                each.decide(pid, Verdict.VERIFIED, since_ns=since_ns)
            caplog.clear()
            now_s += 200
            _doubted(each, pid, now_s, "two_clients" if number else "snapshot")
        assert each.watch.method_of(pid) == following
        if way != "passive":
            first = caplog.records[0]
            assert first.levelno == logging.WARNING
            assert "(two_clients; snapshot: 1, two_clients: 2 within 10 min" in first.getMessage()
    assert each.processes()["passive"] == 1


def test_contradictions_that_are_rare_change_nothing(watched, start) -> None:
    """One in five minutes is verified away each time."""
    pid = start()
    each = watched()
    _verified(each, pid)

    for number in range(10):
        _doubted(each, pid, 10 + 300 * number)
        each.decide(pid, Verdict.VERIFIED, since_ns=each.learned[-1][1].since_ns)

    assert each.watch.method_of(pid) == "fast"
    assert _counted(each) == {"two_clients": 10}


def test_what_is_not_verified_the_second_time_takes_the_next_way(watched, start) -> None:
    """At once: two looks agree then."""
    pid = start()
    each = watched()
    _verified(each, pid)
    _doubted(each, pid, 10, "snapshot")

    assert each.decide(pid, Verdict.REFUTED, "nothing fits").source is StreamSource.PROBE


def test_another_image_of_the_same_file_begins_anew(watched, start) -> None:
    """After a reload the worker is fast again, whatever the old one was."""
    old, new = start(), start()
    each = watched()
    _verified(each, old)
    for number in range(3):
        _doubted(each, old, 10 + number)
        each.decide(old, Verdict.VERIFIED, since_ns=each.learned[-1][1].since_ns)
    assert each.watch.method_of(old) == "probe"

    each.watch.inspect(new)

    assert each.watch.method_of(new) == "fast"


@pytest.mark.parametrize("mode", [LinkMode.PASSIVE, LinkMode.OFF])
def test_nobody_is_doubted_of_whom_nothing_was_believed(watched, start, sleeper, mode) -> None:
    """Nor a process that is no HAProxy."""
    pid = start()
    each = watched(mode)
    each.watch.inspect(pid)
    each.watch.doubt(pid, "thread", time.monotonic_ns())
    each.watch.doubt(sleeper, "thread", time.monotonic_ns())
    each.watch.tick(10)

    assert _counted(each) == {}


# After a loss ------------------------------------------------------------------------------


def test_a_haproxy_whose_start_was_lost_is_found(watched, start) -> None:
    """Soon, but not with every loss: one look is enough for all that was lost until then."""
    each = watched()
    pid = start()
    each.watch.tick(10.0)
    each.watch.lose(10.0)
    each.watch.lose(14.0)
    each.watch.tick(14.0)
    assert pid not in each.receiver.assigned

    each.watch.tick(15.0)

    assert pid in each.receiver.assigned
    assert [p for p, _ in each.learned].count(pid) == 1


def test_what_is_known_stays_known_after_a_loss(watched, start) -> None:
    """Verified once; the kernel side is only told again whose layout it is."""
    each = watched()
    pid = start()
    each.watch.inspect(pid)
    each.decide(pid, Verdict.VERIFIED)
    before, told = each.receiver.layout_of(pid), list(each.learned)

    each.watch.lose(10.0)
    each.receiver.assigned.clear()
    each.watch.tick(20.0)

    assert each.receiver.layout_of(pid) == before
    assert each.learned == told


def test_a_haproxy_whose_end_was_lost_is_forgotten(watched, start) -> None:
    """Its number may be another program's by now."""
    each = watched()
    pid = start()
    each.watch.inspect(pid)
    assert each.processes()["fast"] == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    each.watch.lose(10.0)
    each.watch.tick(20.0)

    assert each.processes()["fast"] == 0
