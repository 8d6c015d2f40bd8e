"""A recording gives transactions without a kernel, and the same ones every time."""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from configs import stack_config
from conversations import Script, encode
from messages import GET, OK
from recorded import STATUSES, write_recording

from otel_qtap.config import Config
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import LostEvent, Role
from otel_qtap.pipeline import PipelineOptions
from otel_qtap.receiver.recording import (
    AddressName,
    RecordedProcess,
    Recording,
    RecordingError,
    RecordingWriter,
)
from otel_qtap.replay import RecordedFacts, recorded_transactions, replay


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


def test_what_stands_before_the_damage_is_told(configure, tmp_path) -> None:
    """And then that the file is damaged."""
    content = gzip.decompress(_record(tmp_path / "r").read_bytes())
    path = tmp_path / "damaged"
    path.write_bytes(gzip.compress(content[:-40] + b"\xff" * 200))
    stdout, recording = io.BytesIO(), Recording(path)

    with pytest.raises(RecordingError):
        replay(recording, configure(), CounterSet(), stdout, PipelineOptions())
    assert stdout.getvalue().count(b"=== HTTP Transaction ===") >= 3


def test_a_replay_goes_by_the_time_of_the_recording(tmp_path) -> None:
    """Connections are reported on when they were due then, though a replay takes a moment."""
    config = stack_config("- type: http_metrics", services="event_stores: [{type: stdout}]")
    path = write_recording(tmp_path / "r", pause_ns=4_000_000_000)
    with _log_level(logging.DEBUG):  # at which connections are printed
        output, _ = _replay(path, config)

    events = [json.loads(line)["event"] for line in output.splitlines()]
    begun_ns = {}
    parts = []
    for event in events:
        begun = begun_ns.setdefault(event["meta"]["connectionId"], event["createdAt"])
        age_s = (_time(event["timestamp"]) - _time(begun)).total_seconds()
        parts.append((event.get("part", 0), event["finalized"], int(age_s)))
    assert parts == 2 * [(0, False, 0), (1, False, 10), (2, True, 12)]
    # Nothing is said of the machine that replays.
    assert {event["system"]["hostname"] for event in events} == {""}
    assert {key for event in events for key in event["tags"]} == {"bin", "protocol", "strategy"}


@contextmanager
def _log_level(level: int) -> Iterator[None]:
    log = logging.getLogger("otel_qtap")
    before = log.level
    log.setLevel(level)
    yield
    log.setLevel(before)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text[:26] + "+00:00")


def test_the_transactions_of_a_recording_can_be_had_as_they_were(tmp_path) -> None:
    """All of them, nothing redacted, for whoever asks a rule about them."""
    recording = Recording(write_recording(tmp_path / "r"))
    found = list(recorded_transactions(recording))
    recording.close()

    assert [t.response and t.response.status for t in found] == [*STATUSES, *STATUSES]
    assert {t.request.header("authorization") for t in found} == {"Bearer hidden"}
    assert {t.remote_name for t in found if not t.direction.is_ingress} == {"backend-api-1"}


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
