"""The agent's own decisions: its pace, what it asks of the kernel side, and replay."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conversations import Script, encode

from otel_qtap import agent
from otel_qtap.agent import Pace, RecordedFacts, epoch_offset_ns, kernel_settings, replay
from otel_qtap.config import Config, load_config
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import LostEvent, Role
from otel_qtap.pipeline import PipelineOptions
from otel_qtap.receiver.kernel import KernelSettings
from otel_qtap.receiver.recording import (
    AddressName,
    RecordedProcess,
    Recording,
    RecordingWriter,
)

RING = 1024 * 1024
GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

_CONFIG = """\
version: 2
services:
  object_stores: [{{type: stdout}}]
stacks:
  s:
    plugins:
      - type: http_capture
        config: {{level: {level}, format: text}}
tap:
  direction: {direction}
  ignore_loopback: {loopback}
  http: {{stack: s}}
"""


@pytest.fixture
def configure(tmp_path) -> Callable[..., Config]:
    def make(level: str = "full", direction: str = "all", loopback: str = "false") -> Config:
        path: Path = tmp_path / "qtap.yaml"
        path.write_text(_CONFIG.format(level=level, direction=direction, loopback=loopback))
        return load_config(path).config

    return make


# Time --------------------------------------------------------------------------------


def test_the_offset_turns_the_kernels_clock_into_the_worlds() -> None:
    """To well under a millisecond, where nobody adjusts the clock meanwhile."""
    offset = epoch_offset_ns()

    assert abs(time.monotonic_ns() + offset - time.time_ns()) < 50_000_000
    assert abs(epoch_offset_ns() - offset) < 50_000_000


def test_the_offset_is_that_of_the_least_disturbed_reading(monkeypatch) -> None:
    """One reading during which the thread was paused does not spoil it."""
    monotonic = iter([0, 1000, 10, 20, 2000, 9000, 10000, 19000, 20000, 29000])
    epoch = iter([1, 115, 3, 4, 5])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(time, "time_ns", lambda: next(epoch))

    assert epoch_offset_ns() == 100


# What the kernel side is asked for -----------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "wants"),
    [
        ("all", (True, True, True)),
        ("ingress", (True, False, False)),
        ("egress", (False, True, True)),
        ("egress-internal", (False, True, False)),
        ("egress-external", (False, False, True)),
    ],
)
def test_the_kernel_side_hands_over_only_the_directions_that_are_wanted(
    configure, direction, wants
) -> None:
    """What is not handed over costs nothing."""
    settings = kernel_settings(configure(direction=direction), 1000)

    assert (settings.ingress, settings.egress_internal, settings.egress_external) == wants


@pytest.mark.parametrize(("level", "bodies"), [("full", 5000), ("headers", 0), ("summary", 0)])
def test_bodies_are_copied_only_if_some_level_can_want_them(configure, level, bodies) -> None:
    """A head always fits: HAProxy takes none of more than 16 KiB."""
    assert kernel_settings(configure(level=level), 5000).turn_limit == 16384 + bodies


@pytest.mark.parametrize("loopback", ["true", "false"])
def test_loopback_is_left_out_in_the_kernel(configure, loopback) -> None:
    """As the file says."""
    assert kernel_settings(configure(loopback=loopback), 0).ignore_loopback is (loopback == "true")


def test_settings_are_packed_as_the_kernel_side_reads_them() -> None:
    """``struct settings`` of ``bpf/maps.h``: eight words."""
    settings = KernelSettings(
        egress_internal=False, ignore_loopback=True, turn_limit=0x1234, beyond_limit=9
    )
    packed = settings.pack(generation=7, exclusions=3)
    words = [int.from_bytes(packed[at : at + 4], "little") for at in range(0, 32, 4)]

    assert len(packed) == 32
    assert words[:5] == [7, 0b101, 1, 0x1234, 9]
    assert words[5] == 1 << 1 | 1 << 2 | 1 << 4  # HTTP/1 both ways, PROXY protocol
    assert words[6] == 3


# Pace --------------------------------------------------------------------------------


class Thread:
    """Stands for the thread whose priority and sleep are watched."""

    def __init__(self, monkeypatch, *, may_renice: bool = True) -> None:
        self.nice = 0
        self.slept: list[float] = []
        self._may_renice = may_renice
        monkeypatch.setattr(agent.time, "sleep", self.slept.append)
        monkeypatch.setattr(os, "getpriority", lambda *_: self.nice)
        monkeypatch.setattr(os, "setpriority", self._renice)

    def _renice(self, which: int, thread: int, nice: int) -> None:
        assert (which, thread) == (os.PRIO_PROCESS, threading.get_native_id())
        if not self._may_renice:
            raise PermissionError
        self.nice = nice


@pytest.fixture
def thread(monkeypatch) -> Thread:
    return Thread(monkeypatch)


def test_an_idle_tap_sleeps_longer_and_longer(thread, counters) -> None:
    """Up to a bound, and short again as soon as there was something to do."""
    pace = Pace(RING, counters, may_hurry=True)
    for _ in range(20):
        pace.rest(0, worked=False)
    pace.rest(0, worked=True)

    assert thread.slept[:20] == sorted(thread.slept[:20])
    assert thread.slept[19] == 0.05
    assert thread.slept[20] == 0.002


def test_a_tap_with_much_to_do_does_not_sleep(thread, counters) -> None:
    """What waits in the ring is more important."""
    Pace(RING, counters, may_hurry=True).rest(64 * 1024, worked=True)

    assert thread.slept == []


def test_a_filling_ring_makes_the_tap_hurry_until_it_is_nearly_empty(thread, counters) -> None:
    """In between nothing changes, so that it does not flutter; hurries are counted."""
    pace = Pace(RING, counters, may_hurry=True)
    above, below = Pace.HURRY_ABOVE, Pace.RELAX_BELOW
    between = (above + below) / 2
    seen = []
    for share in (between, above * 1.1, 0.9, between, below * 0.9, between, above * 1.1):
        pace.rest(int(RING * share), worked=True)
        seen.append(thread.nice)

    assert 0 < below < above < 0.5
    assert seen == [0, -5, -5, -5, 0, 0, -5]
    assert counters.value("otel_qtap.receiver.hurries") == 2


def test_a_priority_that_was_chosen_comes_back(thread, counters) -> None:
    """And one that is higher than that of a hurry is kept."""
    thread.nice = 10
    pace = Pace(RING, counters, may_hurry=True)
    pace.rest(RING // 2, worked=True)
    assert thread.nice == -5
    pace.rest(0, worked=True)
    assert thread.nice == 10

    thread.nice = -15
    pace.rest(RING // 2, worked=True)
    assert thread.nice == -15


def test_a_tap_that_may_not_hurry_does_not(thread, counters) -> None:
    """``--no-hurry``."""
    Pace(RING, counters, may_hurry=False).rest(RING, worked=True)

    assert thread.nice == 0
    assert counters.value("otel_qtap.receiver.hurries") == 0


def test_a_tap_without_the_privilege_goes_on_as_it_is(monkeypatch, counters) -> None:
    """It asks once."""
    thread = Thread(monkeypatch, may_renice=False)
    pace = Pace(RING, counters, may_hurry=True)
    for _ in range(3):
        pace.rest(RING, worked=True)

    assert thread.nice == 0
    assert counters.value("otel_qtap.receiver.hurries") == 0


def test_destinations_wait_while_the_tap_is_behind(thread, counters) -> None:
    """Capture comes before delivery."""
    pace = Pace(RING, counters, may_hurry=True)
    seen = []
    for share in (Pace.BEHIND_ABOVE / 2, Pace.BEHIND_ABOVE * 2, Pace.BEHIND_ABOVE / 2):
        pace.rest(int(RING * share), worked=True)
        seen.append(pace.tap_first.is_behind)

    assert seen == [False, True, False]


# Replay ------------------------------------------------------------------------------


def _record(path: Path, *, rubbish: bool = False) -> Path:
    writer = RecordingWriter(path, epoch_offset_ns=1_788_000_000 * 10**9, limit_bytes=10**9)
    writer.write_process(Process(pid=987, executable="/usr/sbin/haproxy"), None)
    writer.write_name(AddressName(987, "172.18.0.3", "backend-api-1"))
    for number, role in enumerate((Role.SERVER, Role.CLIENT)):
        script = Script(role, connection_id=number)
        for _ in range(3):
            script.ask(GET)
            script.answer(OK)
        script.ask(GET)
        for event in script.events:
            writer.write_record(encode(event))
            if rubbish:
                writer.write_record(b"\x63rubbish")
    writer.write_loss(LostEvent(5, "ring_full", 4))
    writer.write_loss(LostEvent(6, "ring_full", 2))
    writer.close("stopped")
    return path


def _replay(path: Path, config: Config) -> tuple[bytes, CounterSet]:
    stdout, counters = io.BytesIO(), CounterSet()
    recording = Recording(path)
    assert replay(recording, config, counters, stdout, PipelineOptions())
    recording.close()
    return stdout.getvalue(), counters


def test_the_same_recording_gives_the_same_output(configure, tmp_path) -> None:
    """Byte for byte, ids included."""
    path = _record(tmp_path / "r")

    first, second = (_replay(path, configure())[0] for _ in range(2))

    assert first == second
    assert first.count(b"=== HTTP Transaction ===") == 8


def test_a_replay_asks_the_recording_and_not_the_machine(configure, tmp_path) -> None:
    """Process and name are those of the recorded machine; times are of its clock."""
    text = _replay(_record(tmp_path / "r"), configure())[0].decode()

    assert "haproxy (PID: 987" in text
    assert "http://backend-api-1:8001/a" in text


def test_a_replay_ends_what_was_running(configure, tmp_path) -> None:
    """The recording stops in the middle of two exchanges."""
    _, counters = _replay(_record(tmp_path / "r"), configure())

    value = counters.value
    for role in ("server", "client"):
        assert value("otel_qtap.transactions", role=role, ending="complete") == 3
        assert value("otel_qtap.transactions", role=role, ending="unfinished") == 1


def test_a_replay_counts_what_was_lost_and_what_it_cannot_read(configure, tmp_path) -> None:
    """The rest is not disturbed by it."""
    output, counters = _replay(_record(tmp_path / "r", rubbish=True), configure())

    assert counters.value("otel_qtap.receiver.lost", reason="ring_full") == 6
    assert counters.value("otel_qtap.receiver.undecodable") == 16
    assert output == _replay(_record(tmp_path / "clean"), configure())[0]


def test_a_long_replay_loses_nothing(configure, tmp_path) -> None:
    """A file is faster than any destination, whose queue is bounded: so it waits for it."""
    path = tmp_path / "long"
    writer = RecordingWriter(path, epoch_offset_ns=0, limit_bytes=10**9)
    body = b"x" * 60_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n" + body
    script = Script()
    for _ in range(600):  # 36 MB, twice what the queue holds
        script.ask(GET)
        script.answer(answer)
    for event in script.events:
        writer.write_record(encode(event))
    writer.close("stopped")

    output, _ = _replay(path, configure())

    assert output.count(b"=== HTTP Transaction ===") == 600


def test_recorded_facts_know_what_they_learned(make_process, make_container) -> None:
    """And say of everything else that it is unknown."""
    facts = RecordedFacts()
    process, container = make_process(), make_container()
    facts.learn(RecordedProcess(process, container))
    facts.learn(RecordedProcess(Process(pid=5), None))
    facts.learn(AddressName(5, "10.0.0.1", "db"))

    assert facts.process(process.pid) == process
    assert facts.container(process) == container
    assert facts.container(facts.process(5)) is None
    assert facts.process(6) == Process(pid=6)
    assert facts.name_of(5, "10.0.0.1") == "db"
    assert facts.name_of(6, "10.0.0.1") == ""
