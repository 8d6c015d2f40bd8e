"""
The marks on events, judged by snapshots of what the thread had in hand meanwhile.

A snapshot says what a mark should have been, whatever the offsets by which the kernel side
made it.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from otel_qtap.events import (
    NO_MARK,
    CloseEvent,
    DataEvent,
    OpenEvent,
    SnapshotEvent,
    StreamMark,
    StreamState,
)
from otel_qtap.haproxy.layout import Layout, Offsets, StreamSource

__all__ = [
    "Marked",
    "is_outside_streams",
    "mark_of",
    "marked_ns",
    "put_right",
    "seen_with",
    "tells_apart",
    "without_mark",
]

Marked: TypeAlias = DataEvent | OpenEvent | CloseEvent
"""Events that carry a mark."""

_UNREADABLE = StreamMark(StreamState.UNREADABLE, 0, 0)


def marked_ns(event: Marked) -> int:
    """Return since when the mark may be there: that of an opening since before the first bytes."""
    if isinstance(event, OpenEvent):
        return event.connect_started_ns or event.established_ns or event.timestamp_ns
    return event.timestamp_ns


def is_outside_streams(event: Marked) -> bool:
    """Whether the mark says that HAProxy was working on something else than a stream."""
    mark = event.connecting if isinstance(event, OpenEvent) else event.stream
    return mark.state in (StreamState.NONE, StreamState.OTHER)


def without_mark(event: Marked) -> Marked:
    """Return the event as if no HAProxy had caused it."""
    if isinstance(event, OpenEvent):
        return event._replace(connecting=NO_MARK)
    return event._replace(stream=NO_MARK)


def put_right(event: Marked, snapshot: SnapshotEvent | None, layout: Layout) -> Marked:
    """Return the event with the mark that ``layout`` would have given it, if that can be told."""
    if isinstance(event, OpenEvent):
        return event._replace(connecting=_righted(event.connecting, snapshot, layout))
    return event._replace(stream=_righted(event.stream, snapshot, layout))


def _righted(mark: StreamMark, snapshot: SnapshotEvent | None, layout: Layout) -> StreamMark:
    if mark.state is StreamState.NOT_ASKED:
        return mark
    if snapshot is None or layout.source is not StreamSource.THREAD:
        return _UNREADABLE
    return mark_of(snapshot, layout)


def tells_apart(event: Marked, snapshot: SnapshotEvent, layout: Layout, other: Layout) -> bool:
    """Whether the mark of an event shows that it was made by ``layout``, not by the ``other``."""
    return (
        isinstance(event, DataEvent)
        and event.stream.state is StreamState.KNOWN
        and event.stream == mark_of(snapshot, layout) != mark_of(snapshot, other)
    )


def mark_of(snapshot: SnapshotEvent, layout: Layout) -> StreamMark:
    """Return the mark that ``layout`` gives; ``bpf/haproxy.h: read_running_task`` in Python."""
    current, process, serial = layout.offsets
    task = snapshot.context[current // 8]
    if not task:
        return StreamMark(StreamState.NONE, 0, 0)
    function, argument = struct.unpack_from("<QQ", snapshot.targets[current // 8], process)
    if function != layout.process_stream:
        return StreamMark(StreamState.OTHER, 0, 0, task)
    if not argument:
        return StreamMark(StreamState.ENDING, 0, 0, task)
    if snapshot.stream_address != argument:
        return _UNREADABLE
    (number,) = struct.unpack_from("<I", snapshot.stream, serial)
    return StreamMark(StreamState.KNOWN, argument, number, task)


def seen_with(snapshot: SnapshotEvent, offsets: Offsets) -> SnapshotEvent:
    """Return a snapshot as it would have been taken with these offsets, if it can be told."""
    task = snapshot.context[offsets.current // 8]
    _, argument = struct.unpack_from("<QQ", snapshot.targets[offsets.current // 8], offsets.process)
    if argument == snapshot.stream_address:
        return snapshot._replace(task=task)
    return snapshot._replace(task=0, stream_address=0)
