"""
Ring-buffer records to events: the user-space twin of ``bpf/events.h``.

A recording keeps these bytes as they are, so a change of the layout raises
``WIRE_VERSION`` on both sides.
"""

from __future__ import annotations

import struct
from socket import AF_INET, AF_INET6, inet_ntop

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

__all__ = ["LOST_REASONS", "WIRE_VERSION", "WireError", "decode"]

WIRE_VERSION = 2

LOST_REASONS = (
    "ring_full",
    "requests",
    "read_fault",
    "unreadable",
    "over_limit",
    "connections_full",
)
"""Names of ``enum lost_reason``, in its order."""

_KIND_OPEN, _KIND_DATA, _KIND_CLOSE, _KIND_PROCESS, _KIND_SNAPSHOT, _KIND_LOG = 1, 2, 3, 4, 5, 6
_DATA = struct.Struct("<xBxBIQQQIIIxxxxQQII")  # header, offset, size, copied, tid, stream
_DATA_SIZE = _DATA.size
_OPEN = struct.Struct("<BBBBIQQQQ16s16sHHIQQII")
_CLOSE = struct.Struct("<BBBBIQQIIQQQQII")
_PROCESS = struct.Struct("<BBBBIQQII")
_LOG = struct.Struct("<xxxxIQxxxxxxxxIxxxx")  # header, tid
_SNAPSHOT_WORDS, _SNAPSHOT_TARGET, _SNAPSHOT_STREAM = 16, 64, 1024
_SNAPSHOT = struct.Struct(
    f"<BBBBIQQQ{_SNAPSHOT_WORDS}Q{_SNAPSHOT_WORDS * _SNAPSHOT_TARGET}sQQ{_SNAPSHOT_STREAM}s"
)
_SNAPSHOT_CONNECT = 2
_TURNED = 1
_JOINED_LATE = 1
_IPV6 = 2
_FLOWS = (Flow.RECEIVE, Flow.SEND)
_STATES = tuple(StreamState)

# What a named tuple's own constructor calls, which is Python code and takes twice as long.
_new = tuple.__new__


class WireError(Exception):
    """A record that this version cannot read."""


def decode(record: memoryview | bytes) -> Event:
    """Return the event that ``record`` holds; raises ``WireError`` if it is not one."""
    try:
        kind = record[0]
        if kind == _KIND_DATA:
            (flow, flags, tgid, timestamp, connection, offset, size, copied, tid,
             address, task, serial, state) = _DATA.unpack_from(record)  # fmt: skip
            return _new(DataEvent, (
                connection, timestamp, tgid, tid, _FLOWS[flow], offset, size,
                flags == _TURNED, bytes(record[_DATA_SIZE : _DATA_SIZE + copied]),
                _new(StreamMark, (_STATES[state], address, serial, task)) if state else NO_MARK,
            ))  # fmt: skip
        return _decode_other(kind, record)
    except (IndexError, ValueError, struct.error):
        raise WireError("a record of an unknown kind or of the wrong length") from None


def _decode_other(kind: int, record: memoryview | bytes) -> Event:
    if kind == _KIND_OPEN:
        (_, _, role, flags, tgid, timestamp, connection, connect_started, established,
         local, remote, local_port, remote_port, namespace,
         address, task, serial, state) = _OPEN.unpack_from(record)  # fmt: skip
        return OpenEvent(
            connection_id=connection,
            timestamp_ns=timestamp,
            process_id=tgid,
            role=Role(role),
            local_address=_address(local, flags),
            local_port=local_port,
            remote_address=_address(remote, flags),
            remote_port=(remote_port & 0xFF) << 8 | remote_port >> 8,
            connect_started_ns=connect_started,
            established_ns=established,
            joined_late=bool(flags & _JOINED_LATE),
            namespace=namespace,
            connecting=StreamMark(_STATES[state], address, serial, task),
        )
    if kind == _KIND_CLOSE:
        (_, step, _, _, tgid, timestamp, connection, error, _, received, sent,
         address, task, serial, state) = _CLOSE.unpack_from(record)  # fmt: skip
        mark = StreamMark(_STATES[state], address, serial, task) if state else NO_MARK
        return CloseEvent(
            connection, timestamp, tgid, CloseStep(step), error, mark, (received, sent)
        )
    if kind == _KIND_PROCESS:
        _, step, _, _, tgid, timestamp, _, parent, _ = _PROCESS.unpack_from(record)
        executable = bytes(record[_PROCESS.size :]).decode(errors="replace")
        return ProcessEvent(timestamp, tgid, ProcessStep(step), parent, executable)
    if kind == _KIND_LOG:
        tgid, timestamp, tid = _LOG.unpack_from(record)
        return LogEvent(timestamp, tgid, tid, bytes(record[_LOG.size :]))
    if kind == _KIND_SNAPSHOT:
        _, detail, role, _, tgid, timestamp, connection, where, *rest = _SNAPSHOT.unpack_from(
            record
        )
        *words, targets, task, address, stream = rest
        size = _SNAPSHOT_TARGET
        return SnapshotEvent(
            connection, timestamp, tgid, Role(role), where, tuple(words),
            tuple(targets[i : i + size] for i in range(0, len(targets), size)),
            task, address, stream, detail == _SNAPSHOT_CONNECT,
        )  # fmt: skip
    raise ValueError(kind)


def _address(raw: bytes, flags: int) -> str:
    """Text of an address; one flag serves both ends, since a socket has one family."""
    if flags & _IPV6:
        return inet_ntop(AF_INET6, raw)
    return inet_ntop(AF_INET, raw[:4])
