"""Records of the kernel side, byte by byte; the numbers are those of ``bpf/events.h``."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import get_args

import pytest
from conversations import encode
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.events import (
    CloseEvent,
    CloseStep,
    DataEvent,
    Event,
    Flow,
    OpenEvent,
    ProcessEvent,
    ProcessStep,
    Role,
)
from otel_qtap.receiver.programs import bpf_directory
from otel_qtap.receiver.wire import LOST_REASONS, WIRE_VERSION, WireError, decode

DATA = bytes.fromhex(
    "02 01 02 01 db030000 15cd5b0700000000 4d00000000000000"  # data, send, client, turned
    "0010000000000000 05000000 dc030000"  # offset, size, thread
) + b"hel"  # fmt: skip
OPEN = bytes.fromhex(
    "01 00 01 01 db030000 0100000000000000 4d00000000000000"  # open, server, late
    "0200000000000000 0300000000000000"
    "7f000001000000000000000000000000 c0000207000000000000000000000000"
    "5000 c822 00000000"
)


def test_a_data_record_is_read_field_by_field() -> None:
    """The size is that of the call, whatever was copied."""
    assert decode(DATA) == DataEvent(
        connection_id=77, timestamp_ns=123456789, process_id=987, thread_id=988,
        flow=Flow.SEND, offset=4096, size=5, turned=True, data=b"hel",
    )  # fmt: skip


def test_an_open_record_is_read_field_by_field() -> None:
    """The local port is in host byte order, the remote one in that of the network."""
    assert decode(OPEN) == OpenEvent(
        connection_id=77, timestamp_ns=1, process_id=987, role=Role.SERVER,
        local_address="127.0.0.1", local_port=80,
        remote_address="192.0.2.7", remote_port=51234,
        connect_started_ns=2, established_ns=3, joined_late=True,
    )  # fmt: skip


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
_EVENTS = st.one_of(
    st.builds(
        OpenEvent, _IDS, _TIMES, _PIDS, st.sampled_from(Role), _ADDRESSES, _PORTS, _ADDRESSES,
        _PORTS, _TIMES, _TIMES, st.booleans(),
    ),
    st.builds(
        DataEvent, _IDS, _TIMES, _PIDS, _PIDS, st.sampled_from(Flow), _TIMES, _PIDS,
        st.booleans(), st.binary(max_size=50),
    ),
    st.builds(CloseEvent, _IDS, _TIMES, _PIDS, st.sampled_from(CloseStep), _PIDS),
    st.builds(
        ProcessEvent, _TIMES, _PIDS, st.sampled_from(ProcessStep), _PIDS,
        st.text(max_size=20).filter(lambda t: "\0" not in t),
    ),
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
    pytest.param(b"\x05" + b"\0" * 80, id="kind-of-another-version"),
    pytest.param(DATA[:39], id="data-too-short"),
    pytest.param(OPEN[:-1], id="open-too-short"),
    pytest.param(b"\x02\x02" + DATA[2:], id="unknown-flow"),
    pytest.param(OPEN[:2] + b"\x09" + OPEN[3:], id="unknown-role"),
    pytest.param(b"\x03\x63" + b"\0" * 30, id="unknown-step"),
    pytest.param(b"\x04\x63" + b"\0" * 30, id="unknown-process-step"),
    pytest.param(b"\x03\x01" + b"\0" * 29, id="close-too-short"),
]


@pytest.mark.parametrize("record", _BROKEN)
def test_a_record_that_cannot_be_read_is_one_error(record) -> None:
    """The caller counts it; the capture goes on."""
    with pytest.raises(WireError):
        decode(record)


@given(st.binary(max_size=120))
def test_no_bytes_break_the_decoder(record) -> None:
    """They are an event or a ``WireError``, nothing else."""
    with contextlib.suppress(WireError):
        assert type(decode(record)) in get_args(Event)


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
