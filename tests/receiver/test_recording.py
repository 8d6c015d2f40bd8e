"""What goes into a recording comes out of it, and a bad file is one clear message."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest

from otel_qtap.events import LostEvent
from otel_qtap.haproxy import CheckedServer, NameTables, ServerName
from otel_qtap.haproxy.layout import Layout, Offsets, StreamSource
from otel_qtap.receiver.recording import (
    FORMAT_VERSION,
    AddressName,
    RecordedLayout,
    RecordedNames,
    RecordedProcess,
    Recording,
    RecordingError,
    RecordingWriter,
)
from otel_qtap.receiver.wire import WIRE_VERSION

LAYOUT = Layout(
    number=3, process_stream=0x5555_0000_1000, thread_context=-96, contexts=0x5555_0010_0000,
    contexts_size=32768, source=StreamSource.THREAD, offsets=Offsets(40, 16, 4),
)  # fmt: skip
NAMES = NameTables(
    servers={("10.0.0.1", 80): ServerName("back", "a", 3, 1), ("10.0.0.2", 80): None},
    checked={("10.0.0.1", 81): CheckedServer(ServerName("back", "a"), 2, 3, None)},
    frontends={("", 443): "front", ("10.1.1.1", 80): None},
    hosts={("10.0.0.1", 80): "db"},
    asked_ns=1_788_000_000_000_000_001,
    has_log=True,
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "some.qtaprec"


def _write(path: Path, *records: bytes, limit: int = 10**9, reason: str | None = "stopped") -> None:
    writer = RecordingWriter(path, epoch_offset_ns=42, limit_bytes=limit)
    for record in records:
        writer.write_record(record)
    if reason is not None:
        writer.close(reason)


def _rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


def test_everything_comes_out_in_order(path, make_process, make_container) -> None:
    """Records, facts, names, layouts and losses, as they were written."""
    writer = RecordingWriter(path, epoch_offset_ns=42, limit_bytes=10**9)
    process = make_process(arguments=("haproxy", "--password=x"), environment=(("A", "b"),))
    container = make_container(labels=(("a", "b"),), addresses=(("10.0.0.1", "net"),))
    writer.write_process(process, container)
    writer.write_process(make_process(pid=5), None)
    writer.write_name(AddressName(5, "10.0.0.1", "db"))
    writer.write_layout(5, LAYOUT)
    writer.write_names(5, NAMES)
    writer.write_record(b"one")
    writer.write_record(memoryview(b"two"))
    writer.write_loss(LostEvent(7, "ring_full", 3))
    writer.close("stopped")

    recording = Recording(path)

    assert list(recording) == [
        RecordedProcess(make_process(arguments=(), environment=(("A", "b"),)), container),
        RecordedProcess(make_process(pid=5, arguments=()), None),
        AddressName(5, "10.0.0.1", "db"),
        RecordedLayout(5, LAYOUT),
        RecordedNames(5, NAMES),
        b"one",
        b"two",
        LostEvent(7, "ring_full", 3),
    ]
    assert (recording.is_complete, recording.stop_reason) == (True, "stopped")
    assert (recording.epoch_offset_ns, writer.records) == (42, 2)
    recording.close()


def test_a_recording_holds_a_bounded_number_of_names(path) -> None:
    """A HAProxy can have more servers than fit into a frame."""
    many = {("10.0.0.1", port): ServerName("b" * 200, f"s{port}") for port in range(20_000)}
    writer = RecordingWriter(path, epoch_offset_ns=42, limit_bytes=10**9)
    writer.write_names(5, NameTables(servers=many))
    writer.close("stopped")

    (names,) = Recording(path)
    assert isinstance(names, RecordedNames)
    assert len(names.tables.servers) == 2000
    assert names.tables.servers.items() <= many.items()


def test_a_command_line_is_not_recorded(path, make_process) -> None:
    """It may hold secrets."""
    writer = RecordingWriter(path, epoch_offset_ns=0, limit_bytes=10**9)
    writer.write_process(make_process(arguments=("haproxy", "--password=x")), None)
    writer.close("stopped")

    assert b"password" not in gzip.decompress(path.read_bytes())


def test_only_its_owner_can_read_a_recording(path) -> None:
    """Traffic as it was; so the rights of a file that was there before do not stay."""
    path.write_text("old")
    path.chmod(0o666)
    _write(path, b"one")

    assert path.stat().st_mode & 0o777 == 0o600
    assert list(Recording(path)) == [b"one"]


def test_a_recording_that_never_began_leaves_the_file_that_was_there(path, tmp_path) -> None:
    """And makes none where there was none."""
    path.write_text("precious")
    RecordingWriter(path, epoch_offset_ns=0, limit_bytes=100).discard()
    assert path.read_text() == "precious"

    other = tmp_path / "other"
    RecordingWriter(other, epoch_offset_ns=0, limit_bytes=100).discard()
    assert not other.exists()


def test_a_recording_stops_at_its_limit(path) -> None:
    """What was written until then is whole; nothing follows it."""
    writer = RecordingWriter(path, epoch_offset_ns=0, limit_bytes=1000)
    for _ in range(30):
        writer.write_record(b"x" * 100)
    assert writer.is_full
    writer.write_record(b"y")
    writer.close("the size limit was reached")

    recording = Recording(path)
    records = list(recording)

    assert len(records) == 9
    assert set(records) == {b"x" * 100}
    assert recording.stop_reason == "the size limit was reached"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_recording_that_was_cut_is_read_as_far_as_it_goes(path, share) -> None:
    """Of a killed agent, say; it says that it has no end."""
    records = [struct.pack("<I", n * 2654435761 & 0xFFFFFFFF) * 100 for n in range(400)]
    _write(path, *records)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

    recording = Recording(path)
    read = list(recording)

    assert read == records[: len(read)]
    assert not recording.is_complete
    assert 0 < len(read) < 400


def test_an_agent_that_is_killed_leaves_most_of_its_recording(path) -> None:
    """The file is brought up to date as it grows, not only at its end."""
    writer = RecordingWriter(path, epoch_offset_ns=0, limit_bytes=10**9)
    record = bytes(range(256)) * 256
    for _ in range(40):
        writer.write_record(record)
    left = path.read_bytes()
    writer.close("stopped")
    path.write_bytes(left)

    read = list(Recording(path))

    assert len(read) >= 30
    assert set(read) == {record}


def _header(**changes: object) -> bytes:
    header = {
        "format": "otel-qtap recording", "version": FORMAT_VERSION, "wire_version": WIRE_VERSION,
        "agent": "9.9", "epoch_offset_ns": 0,
    }  # fmt: skip
    return json.dumps(header | changes).encode() + b"\n"


_NOT_RECORDINGS = [
    pytest.param(b"", "not a recording", id="empty"),
    pytest.param(b"plain text", "not a gzip file", id="text"),
    pytest.param(gzip.compress(b"text"), "not a recording", id="other-gzip"),
    pytest.param(gzip.compress(b"[1]\n"), "not a recording", id="other-json"),
    pytest.param(gzip.compress(b'{"format": "x"}\n'), "not a recording", id="other-format"),
    pytest.param(gzip.compress(b"x" * 99)[:-12], "not a recording", id="cut-in-header"),
    pytest.param(
        gzip.compress(_header(version=1, wire_version=1)),
        r"made by otel-qtap 9\.9 in format 1\.1; this is .*, which reads 2\.2",
        id="older",
    ),
    pytest.param(gzip.compress(_header(version=3)), r"in format 3\.2", id="newer"),
    pytest.param(gzip.compress(_header(wire_version=9)), r"in format 2\.9", id="newer-records"),
    pytest.param(gzip.compress(_header(epoch_offset_ns="x")), "not a recording", id="bad-clock"),
]


@pytest.mark.parametrize(("content", "message"), _NOT_RECORDINGS)
def test_what_is_no_recording_is_refused(path, content, message) -> None:
    """With the name of the file and the reason."""
    path.write_bytes(content)

    with pytest.raises(RecordingError, match=message) as caught:
        Recording(path)
    assert str(path) in str(caught.value)


def _layout_frame(**changes: object) -> bytes:
    layout = {
        "number": 3, "process_stream": 1, "thread_context": 2, "contexts": 3, "contexts_size": 4,
        "source": "THREAD", "offsets": [32, 8, 12],
    }  # fmt: skip
    payload = json.dumps({"process_id": 5, "layout": layout | changes}).encode()
    return b"H" + struct.pack("<I", len(payload)) + payload


_DAMAGED = [
    pytest.param(b"R\xff\xff\xff\xff", id="endless-frame"),
    pytest.param(b"X\x02\0\0\0{}", id="unknown-kind"),
    pytest.param(b"P\x02\0\0\0{}", id="process-without-fields"),
    pytest.param(b"P\x02\0\0\0[]", id="process-that-is-a-list"),
    pytest.param(b"N\x03\0\0\0{x}", id="name-that-is-no-json"),
    pytest.param(b'L\x07\0\0\0{"a":1}', id="loss-with-other-fields"),
    pytest.param(b"H\x02\0\0\0{}", id="layout-without-fields"),
    pytest.param(_layout_frame(source="GUESS"), id="layout-from-an-unknown-source"),
    pytest.param(_layout_frame(offsets=[1, 2]), id="layout-without-all-offsets"),
    pytest.param(_layout_frame(more=1), id="layout-with-other-fields"),
    pytest.param(b"S\x02\0\0\0{}", id="names-without-fields"),
    pytest.param(b'S\x23\0\0\0{"process_id": 5, "tables": [1, 2]}', id="names-that-are-a-list"),
    pytest.param(b"E\x03\0\0\0{x}", id="end-that-is-no-json"),
    pytest.param(b"E\x02\0\0\0[]", id="end-that-is-a-list"),
]


@pytest.mark.parametrize("frame", _DAMAGED)
def test_a_damaged_recording_says_so_where_it_is_damaged(path, frame) -> None:
    """What stands before the damage is read."""
    _rewrite(path, _header() + b"R\x03\0\0\0one" + frame)
    items = iter(Recording(path))

    assert next(items) == b"one"
    with pytest.raises(RecordingError, match="is damaged"):
        next(items)


def test_a_file_that_is_not_there_is_one_message(tmp_path) -> None:
    """With the reason the system gives."""
    with pytest.raises(RecordingError, match="none: No such file or directory"):
        Recording(tmp_path / "none")


def test_a_place_that_cannot_be_written_is_one_message(tmp_path) -> None:
    """Before anything is captured."""
    with pytest.raises(RecordingError, match=r"cannot write the recording .*: Is a directory"):
        RecordingWriter(tmp_path, epoch_offset_ns=0, limit_bytes=1)
    with pytest.raises(RecordingError, match="No such file or directory"):
        RecordingWriter(tmp_path / "none" / "x", epoch_offset_ns=0, limit_bytes=1)


def test_a_full_disk_is_one_message() -> None:
    """Whenever it shows: while writing or at the end; and a device stays as it is."""
    mode = Path("/dev/full").stat().st_mode
    writer = RecordingWriter(Path("/dev/full"), epoch_offset_ns=0, limit_bytes=10**9)
    record = struct.pack("<4096Q", *(n * 0x9E3779B97F4A7C15 % 2**64 for n in range(4096)))
    with pytest.raises(RecordingError, match=r"cannot write .*: No space left on device"):
        _write_often(writer, record)

    writer = RecordingWriter(Path("/dev/full"), epoch_offset_ns=0, limit_bytes=10**9)
    writer.write_record(b"small")
    with pytest.raises(RecordingError, match=r"cannot finish .*: No space left on device"):
        writer.close("stopped")
    assert Path("/dev/full").stat().st_mode == mode


def _write_often(writer: RecordingWriter, record: bytes) -> None:
    for _ in range(100):
        writer.write_record(record)
