"""
What the kernel saw, as values.

The receiver turns ring-buffer records into these; a recording holds them; nothing
below this line knows whether a kernel or a file produced them. All times are
``CLOCK_MONOTONIC`` nanoseconds, as ``bpf_ktime_get_ns`` gives them.

Named tuples rather than frozen dataclasses: both are immutable and have named
fields, but a tuple is built in a third of the time and there are four of these per
proxied request (measured in ``tests/benchmarks/event_cost.py``).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

__all__ = [
    "NO_MARK",
    "CloseEvent",
    "CloseStep",
    "DataEvent",
    "Event",
    "Flow",
    "LogEvent",
    "LostEvent",
    "OpenEvent",
    "ProcessEvent",
    "ProcessStep",
    "Role",
    "SnapshotEvent",
    "StreamMark",
    "StreamState",
]


class Flow(IntEnum):
    """Which way bytes went, seen from the process that was captured."""

    RECEIVE = 0
    SEND = 1


class Role(IntEnum):
    """Which end of a connection the captured process is."""

    UNKNOWN = 0
    SERVER = 1
    """It accepted the connection: ingress."""
    CLIENT = 2
    """It opened the connection: egress."""


class CloseStep(IntEnum):
    """One step on the way of a connection to its end; several may come, in any order."""

    RECEIVED_END = 1
    """A receive call returned 0: the process has read all that the peer will ever send."""
    LOCAL_CLOSED = 2
    """The process closed its sending side first (FIN sent)."""
    REMOTE_CLOSED = 3
    """The peer closed its sending side first (FIN arrived, perhaps before it was read)."""
    RESET = 4
    """The connection ended without the exchange of FINs."""
    CALL_FAILED = 5
    """A send or receive call failed; ``error`` says how."""
    CONNECT_FAILED = 6
    """The connection never came to be."""
    DESTROYED = 7
    """The kernel frees the socket: nothing can follow."""
    LOCAL_CLOSED_TOO = 8
    """The process closed its sending side after the peer had (told of HAProxy only)."""


class StreamState(IntEnum):
    """What a HAProxy thread was working on when it sent bytes or opened a connection."""

    NOT_ASKED = 0
    """Not a HAProxy process, or an event that needs no stream."""
    NONE = 1
    """In no task: it was accepting or polling."""
    KNOWN = 2
    """Processing the stream that the mark names: on behalf of one client request."""
    OTHER = 3
    """In another task, such as a health check."""
    UNREADABLE = 4
    """Its memory could not be read; says nothing about the stream."""
    ENDING = 5
    """Freeing the stream that the task of the mark had been processing."""


class StreamMark(NamedTuple):
    """A HAProxy stream, which is one client request with all that is done for it."""

    state: StreamState
    address: int
    """
    Of the stream object in the process; used again once the stream is over.

    Where another task ran, and passed on to a client what it had just got from a server: the id of
    the server's connection.
    """
    serial: int
    """HAProxy's own number of the stream (``uniq_id``), or how often the address was freed."""
    task: int = 0
    """Address of the task that processes it, or that ran instead; used again, too."""


NO_MARK = StreamMark(StreamState.NOT_ASKED, 0, 0)
"""Of all events that no HAProxy caused."""


class ProcessStep(IntEnum):
    """What happened to a process."""

    EXECUTED = 1
    FORKED = 2
    EXITED = 3


class OpenEvent(NamedTuple):
    """A connection that is worth following; comes before its first ``DataEvent``."""

    connection_id: int
    """Unique while the machine is up; never reused, unlike the kernel's socket address."""
    timestamp_ns: int
    process_id: int
    role: Role
    local_address: str
    """IPv4 or IPv6 text; an IPv4-mapped IPv6 address is given as IPv4."""
    local_port: int
    remote_address: str
    remote_port: int
    connect_started_ns: int
    """When the process called ``connect``; 0 if it did not or nobody saw it."""
    established_ns: int
    """When the handshake was done; 0 if nobody saw it."""
    joined_late: bool
    """The connection is older than the agent: its first bytes may be in mid-message."""
    namespace: int = 0
    """Number of the network namespace, as ``/proc/PID/ns/net`` shows it."""
    connecting: StreamMark = NO_MARK
    """
    What HAProxy was working on when it called ``connect``.

    Of a client's connection: when a stream first tried to read, or else when the first bytes came.
    """


class DataEvent(NamedTuple):
    """Bytes that one system call moved over a connection, or a part of them."""

    connection_id: int
    timestamp_ns: int
    """When the call had moved the bytes."""
    process_id: int
    thread_id: int
    flow: Flow
    offset: int
    """Position of ``data[0]`` in this flow of the connection; a jump means lost bytes."""
    size: int
    """Bytes the process moved: more than ``len(data)`` when the copy was cut."""
    turned: bool
    """The first bytes of this flow since bytes went the other way, by the kernel's account."""
    data: bytes
    stream: StreamMark = NO_MARK
    """What HAProxy was working on when it sent the bytes."""


class CloseEvent(NamedTuple):
    """A step on the way to the end of a connection."""

    connection_id: int
    timestamp_ns: int
    process_id: int
    step: CloseStep
    error: int
    """``errno`` of the failed call or of the socket, 0 if there was none."""
    stream: StreamMark = NO_MARK
    """What HAProxy was working on when it closed the connection."""
    passed: tuple[int, int] = (0, 0)
    """Bytes that had passed until then, by flow: more than were seen means that some were lost."""


class SnapshotEvent(NamedTuple):
    """
    What a HAProxy thread had in hand when it moved bytes, to find out where things lie.

    The ``DataEvent`` of the same connection and time follows it. If it ``is_connecting``, the
    thread opened that connection instead.
    """

    connection_id: int
    timestamp_ns: int
    process_id: int
    role: Role
    context_address: int
    """Value of the thread-local ``th_ctx``: where the thread's context lies."""
    context: tuple[int, ...]
    """The first 16 words of the thread's context."""
    targets: tuple[bytes, ...]
    """The 64 bytes that each of these words points to; zeros where it points nowhere."""
    task: int
    """The running task, if its function is ``process_stream`` as far as known; else 0."""
    stream_address: int
    """The argument of that task, else 0."""
    stream: bytes
    """The first 1,024 bytes of what ``stream_address`` points to."""
    is_connecting: bool = False


class ProcessEvent(NamedTuple):
    """A process started, changed its program, or ended."""

    timestamp_ns: int
    process_id: int
    step: ProcessStep
    parent_id: int
    """Of a forked process; else 0."""
    executable: str
    """Path as given to ``execve``; empty for other steps."""


class LogEvent(NamedTuple):
    """A HAProxy wrote a line to its log."""

    timestamp_ns: int
    process_id: int
    thread_id: int
    data: bytes
    """Its first 2 KiB; what stands in front of a line in a log (priority, date, host) is not."""


class LostEvent(NamedTuple):
    """What the kernel side could not hand over since the last such event."""

    timestamp_ns: int
    reason: str
    """``ring_full``, ``read_fault``, …; the names of ``bpf/events.h``."""
    amount: int


Event: TypeAlias = (
    OpenEvent | DataEvent | CloseEvent | ProcessEvent | SnapshotEvent | LogEvent | LostEvent
)
