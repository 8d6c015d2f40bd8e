"""Records of the kernel side, byte by byte; the numbers are those of ``bpf/events.h``."""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import get_args

import pytest
from conversations import encode
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.events import (
    NO_MARK,
    CloseEvent,
    CloseStep,
    DataEvent,
    Event,
    Flow,
    LogEvent,
    OpenEvent,
    ProcessEvent,
    ProcessStep,
    Role,
    SnapshotEvent,
    StreamMark,
    StreamState,
)
from otel_qtap.receiver import wire
from otel_qtap.receiver.programs import bpf_directory
from otel_qtap.receiver.wire import LOST_REASONS, WIRE_VERSION, WireError, decode

MARK = "00e1f50500000000 00c2eb0b00000000 2a000000 02000000"  # address, task, serial, known
DATA = bytes.fromhex(
    "02 01 02 01 db030000 15cd5b0700000000 4d00000000000000"  # data, send, client, turned
    "0010000000000000 05000000 03000000 dc030000 00000000"  # offset, size, copied, thread
    + MARK
) + b"hel"  # fmt: skip
OPEN = bytes.fromhex(
    "01 00 02 01 db030000 0100000000000000 4d00000000000000"  # open, client, late
    "0200000000000000 0300000000000000"
    "7f000001000000000000000000000000 c0000207000000000000000000000000"
    "5000 c822 d8000040" + MARK  # local port, remote port, namespace
)
CLOSE = bytes.fromhex(
    "03 05 01 00 db030000 0100000000000000 4d00000000000000"  # close, a call failed, server
    "68000000 00000000"  # error
    "e803000000000000 d007000000000000"  # bytes received and sent until then
    + MARK
)  # fmt: skip
KNOWN = StreamMark(StreamState.KNOWN, 100_000_000, 42, 200_000_000)


def test_a_data_record_is_read_field_by_field() -> None:
    """The size is that of the call, whatever was copied."""
    assert decode(DATA) == DataEvent(
        connection_id=77, timestamp_ns=123456789, process_id=987, thread_id=988,
        flow=Flow.SEND, offset=4096, size=5, turned=True, data=b"hel", stream=KNOWN,
    )  # fmt: skip


def test_an_open_record_is_read_field_by_field() -> None:
    """The local port is in host byte order, the remote one in that of the network."""
    assert decode(OPEN) == OpenEvent(
        connection_id=77, timestamp_ns=1, process_id=987, role=Role.CLIENT,
        local_address="127.0.0.1", local_port=80,
        remote_address="192.0.2.7", remote_port=51234,
        connect_started_ns=2, established_ns=3, joined_late=True,
        namespace=0x400000D8, connecting=KNOWN,
    )  # fmt: skip


def test_a_close_record_is_read_field_by_field() -> None:
    """An error counts up from 0, as in errno."""
    assert decode(CLOSE) == CloseEvent(
        77, 1, 987, CloseStep.CALL_FAILED, 104, KNOWN, passed=(1000, 2000)
    )


def test_a_snapshot_record_is_read_field_by_field() -> None:
    """What the words of the thread's context point to stays in their order."""
    targets = [bytes([n]) * 64 for n in range(16)]
    record = b"".join((
        bytes.fromhex("05 01 01 00 db030000 15cd5b0700000000 4d00000000000000"),
        struct.pack("<17Q", 5000, *range(100, 116)), *targets,
        struct.pack("<QQ", 6000, 7000), b"stream".ljust(1024, b"."),
    ))  # fmt: skip

    assert decode(record) == SnapshotEvent(
        connection_id=77, timestamp_ns=123456789, process_id=987, role=Role.SERVER,
        context_address=5000, context=tuple(range(100, 116)), targets=tuple(targets),
        task=6000, stream_address=7000, stream=b"stream".ljust(1024, b"."),
    )  # fmt: skip


def test_a_log_record_is_read_field_by_field() -> None:
    """Its bytes reach to the end of the record."""
    record = bytes.fromhex(
        "06 00 00 00 db030000 15cd5b0700000000 0000000000000000 dc030000 00000000"
    )
    assert decode(record + b"<134>haproxy: a line\n") == LogEvent(
        timestamp_ns=123456789, process_id=987, thread_id=988, data=b"<134>haproxy: a line\n"
    )


def test_a_record_may_be_longer_than_its_payload() -> None:
    """The kernel side has records of a few sizes only; what fills them up means nothing."""
    event = decode(DATA + b"rubbish of an earlier record")

    assert isinstance(event, DataEvent)
    assert event.data == b"hel"


def test_without_a_stream_there_is_no_mark() -> None:
    """Whatever else the field holds: the state alone says whether it means something."""
    record = DATA[:-7] + bytes(4) + DATA[-3:]

    event = decode(record)
    end = decode(CLOSE[:-4] + bytes(4))

    assert isinstance(event, DataEvent)
    assert isinstance(end, CloseEvent)
    assert event.stream is end.stream is NO_MARK


def test_data_is_a_copy() -> None:
    """The ring's memory is given back to the kernel as soon as the record is decoded."""
    ring = bytearray(DATA)
    event = decode(memoryview(ring))
    ring[-3:] = b"xxx"

    assert isinstance(event, DataEvent)
    assert event.data == b"hel"


_TIMES = st.integers(0, 2**63)
_PIDS = st.integers(0, 2**32 - 1)
_IDS = st.integers(0, 2**64 - 1)
_PORTS = st.integers(0, 65535)
_ADDRESSES = st.ip_addresses(v=4).map(str)
_MARKED = [state for state in StreamState if state is not StreamState.NOT_ASKED]
_MARKS = st.just(NO_MARK) | st.builds(StreamMark, st.sampled_from(_MARKED), _IDS, _PIDS, _IDS)
_EVENTS = st.one_of(
    st.builds(
        OpenEvent, _IDS, _TIMES, _PIDS, st.sampled_from(Role), _ADDRESSES, _PORTS, _ADDRESSES,
        _PORTS, _TIMES, _TIMES, st.booleans(), _PIDS, _MARKS,
    ),
    st.builds(
        DataEvent, _IDS, _TIMES, _PIDS, _PIDS, st.sampled_from(Flow), _TIMES, _PIDS,
        st.booleans(), st.binary(max_size=50), _MARKS,
    ),
    st.builds(
        CloseEvent, _IDS, _TIMES, _PIDS, st.sampled_from(CloseStep), _PIDS, _MARKS,
        st.tuples(_TIMES, _TIMES),
    ),
    st.builds(
        SnapshotEvent, _IDS, _TIMES, _PIDS, st.sampled_from(Role), _IDS,
        st.tuples(*[_IDS] * 16), st.tuples(*[st.binary(min_size=64, max_size=64)] * 16),
        _IDS, _IDS, st.just(bytes(range(256)) * 4), st.booleans(),
    ),
    st.builds(
        ProcessEvent, _TIMES, _PIDS, st.sampled_from(ProcessStep), _PIDS,
        st.text(max_size=20).filter(lambda t: "\0" not in t),
    ),
    st.builds(LogEvent, _TIMES, _PIDS, _PIDS, st.binary(max_size=50)),
)  # fmt: skip


@given(_EVENTS)
def test_every_event_comes_out_as_it_went_in(event) -> None:
    """All kinds, all values."""
    assert decode(encode(event)) == event
    assert type(decode(encode(event))) is type(event)
    assert type(event) in get_args(Event)


def test_addresses_can_be_ipv6() -> None:
    """One flag for both ends: a socket has one family."""
    event = decode(OPEN)
    assert isinstance(event, OpenEvent)
    event = event._replace(local_address="2001:db8::1", remote_address="::1", joined_late=False)

    assert decode(encode(event)) == event


def test_an_executable_that_is_no_text_is_still_shown() -> None:
    """A path is bytes."""
    record = encode(ProcessEvent(1, 2, ProcessStep.EXECUTED, 0, "")) + b"/opt/\xff"

    event = decode(record)

    assert isinstance(event, ProcessEvent)
    assert event.executable == "/opt/\ufffd"


_BROKEN = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\0" * 64, id="kind-0"),
    pytest.param(b"\x07" + b"\0" * 80, id="kind-of-another-version"),
    pytest.param(DATA[:-4], id="data-too-short"),
    pytest.param(OPEN[:-1], id="open-too-short"),
    pytest.param(b"\x02\x02" + DATA[2:], id="unknown-flow"),
    pytest.param(DATA[:-7] + b"\x06" + DATA[-6:], id="unknown-state-of-the-stream"),
    pytest.param(OPEN[:-4] + b"\x06" + OPEN[-3:], id="unknown-state-at-connect"),
    pytest.param(OPEN[:2] + b"\x09" + OPEN[3:], id="unknown-role"),
    pytest.param(b"\x03\x63" + CLOSE[2:], id="unknown-step"),
    pytest.param(b"\x04\x63" + b"\0" * 30, id="unknown-process-step"),
    pytest.param(CLOSE[:-1], id="close-too-short"),
    pytest.param(b"\x05" + b"\0" * 2200, id="snapshot-too-short"),
    pytest.param(b"\x06" + b"\0" * 30, id="log-too-short"),
]


@pytest.mark.parametrize("record", _BROKEN)
def test_a_record_that_cannot_be_read_is_one_error(record) -> None:
    """The caller counts it; the capture goes on."""
    with pytest.raises(WireError):
        decode(record)


@given(st.integers(0, 7), st.binary(max_size=120))
def test_no_bytes_break_the_decoder(kind, rest) -> None:
    """They are an event or a ``WireError``, nothing else."""
    with contextlib.suppress(WireError):
        assert type(decode(bytes([kind]) + rest)) in get_args(Event)


# The header ---------------------------------------------------------------------------


def _header_enum(name: str) -> dict[str, int]:
    text = (bpf_directory() / "events.h").read_text()
    body = re.search(rf"enum {name} {{(.*?)}};", text, re.DOTALL)
    assert body is not None
    return {n: int(v) for n, v in re.findall(r"(\w+) = (\d+)", body[1])}


@pytest.mark.parametrize(
    ("name", "prefix", "members"),
    [
        ("flow", "FLOW_", Flow),
        ("role", "ROLE_", Role),
        ("process_step", "PROCESS_", ProcessStep),
        ("stream_state", "STREAM_", StreamState),
    ],
)
def test_numbers_are_those_of_the_header(name, prefix, members) -> None:
    """Both sides name the same things."""
    assert _header_enum(name) == {prefix + member.name: member.value for member in members}


def test_close_steps_and_losses_are_those_of_the_header() -> None:
    """The same numbers in the same order; the last of the reasons is their count."""
    assert list(_header_enum("close_step").values()) == [step.value for step in CloseStep]
    reasons = _header_enum("lost_reason")
    assert reasons.pop("LOST_REASONS") == len(LOST_REASONS)
    names = [
        n.removeprefix("LOST_").lower() for n, _ in sorted(reasons.items(), key=lambda i: i[1])
    ]
    assert tuple(names) == LOST_REASONS


def test_both_sides_have_the_same_version() -> None:
    """A recording says which one wrote it."""
    text = Path(bpf_directory() / "events.h").read_text()
    assert f"#define WIRE_VERSION {WIRE_VERSION}\n" in text


_STRUCTURES = {
    "data_record": wire._DATA,
    "open_record": wire._OPEN,
    "close_record": wire._CLOSE,
    "process_record": wire._PROCESS,
    "snapshot_record": wire._SNAPSHOT,
    "log_record": wire._LOG,
}
_PROGRAM = """
#include <stdint.h>
#include <stdio.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
#include "events.h"
int main(void)
{
    %s
    return 0;
}
"""


@pytest.fixture(scope="module")
def sizes(tmp_path_factory) -> dict[str, int]:
    """Sizes of the structures in ``bpf/events.h``, in bytes, by this machine's compiler."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed to test bpf/events.h: apt-get install gcc"
    program = tmp_path_factory.mktemp("sizes") / "sizes"
    lines = (f'printf("{name} %zu\\n", sizeof(struct {name}));' for name in _STRUCTURES)
    subprocess.run(
        [
            compiler, f"-I{bpf_directory()}", "-Wall", "-Wextra", "-Wpadded", "-Werror",
            "-xc", "-", "-o", str(program),
        ],
        input=_PROGRAM % "\n    ".join(lines), text=True, check=True,
    )  # fmt: skip
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return {name: int(size) for name, size in map(str.split, said.splitlines())}


@pytest.mark.parametrize(("name", "format_"), _STRUCTURES.items(), ids=_STRUCTURES.keys())
def test_a_record_is_as_long_as_its_structure(sizes, name, format_) -> None:
    """And the compiler has put no padding into it."""
    assert format_.size == sizes[name]
