"""
Which line of HAProxy's log is about which transaction.

They belong together when the process, the client's address and port, the request line and
the status are the same, and the times fit. Over HTTP/1 the order on the client's
connection settles the rest without any tolerance: HAProxy writes the line of a request
after its response began and before the next response of that connection begins, and both
moments are the kernel's. So a loss of either kind cannot shift the others.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from otel_qtap.protocol.haproxy_log import AccessLogLine, LogFormat

__all__ = ["Entry", "ServedRequest", "WrittenLine", "entries_for", "line_for"]

T = TypeVar("T")

_MS = 1_000_000
# HAProxy's clock stands still while it works through its events, and its threads may have
# to wait for a processor: 27 ms were seen. Without an order the start alone decides.
_TOLERANCE_NS = 500 * _MS
_TOLERANCE_WITHOUT_ORDER_NS = 100 * _MS
_ZONE_STEP_MS = 15 * 60 * 1000  # every time zone is a multiple of a quarter of an hour off


class ServedRequest(NamedTuple):
    """What identifies a transaction that a process served; times in ns since the epoch."""

    process_id: int
    listener: tuple[str, int]
    """Address and port that the client connected to, as the process sees them."""
    client: tuple[str, int]
    """Address and port of the client, the one of a PROXY header if there was one."""
    method: str
    target: str
    status: int
    """0 when there was no response."""
    request_index: int
    """Number of the request on its connection, from 0."""
    request_start_ns: int
    response_start_ns: int
    """0 when there was no response."""
    end_ns: int


class Entry(Generic[T]):
    """A transaction that was given to the joiner, and what became of it."""

    __slots__ = ("accepted_ns", "is_missing", "key", "request", "said", "target", "transaction")

    def __init__(self, request: ServedRequest, transaction: T, accepted_ns: int) -> None:
        self.request = request
        self.key = (request.process_id, *request.client)
        self.target = _origin_form(request.target)
        self.transaction: T | None = transaction  # None once it went on
        self.said = 0
        """What its line says, as ``WrittenLine.says``; 0 while it has none."""
        self.is_missing = False  # counted as such
        self.accepted_ns = accepted_ns


class WrittenLine:
    """A line, with what is worked out once for all comparisons."""

    __slots__ = (
        "is_ordered", "is_waiting", "key", "line", "says", "start_ns", "target", "written_ns",
    )  # fmt: skip

    def __init__(
        self, pid: int, written_ns: int, line: AccessLogLine, *, is_forwarded: bool
    ) -> None:
        self.line = line
        self.key = (pid, line.client_address, line.client_port)
        self.written_ns = written_ns
        self.target = _origin_form(line.target)
        self.start_ns = _start_ns(line, written_ns)
        self.says = hash(line[1:_LAST_COMMON_FIELD]) or 1
        """The same for lines about one request, which may be cut at different lengths."""
        # Over HTTP/2 responses leave after their lines, several in one system call; and what
        # a ring forwards was written some time before.
        self.is_ordered = not (line.is_early or is_forwarded) and line.version != "2.0"
        self.is_waiting = True


def entries_for(entries: deque[Entry[T]], written: WrittenLine) -> list[Entry[T]]:
    """Return the transaction that a line is about; several where that is not decided."""
    fitting: list[Entry[T]] = []
    earliest_ns = written.start_ns - _TOLERANCE_NS
    for entry in reversed(entries):
        if entry.request.end_ns < earliest_ns:
            break  # as all before it
        if not _fits(entry, written):
            continue
        if written.is_ordered:
            # The latest response before the line is the one it is about.
            if entry.said in (0, written.says):
                fitting.append(entry)
            break
        if not entry.said:
            fitting.append(entry)
        elif entry.said == written.says:
            return [entry]
    return fitting


def line_for(lines: list[WrittenLine], entry: Entry[T]) -> WrittenLine | None:
    """Return the line about a transaction among those that came before it, oldest first."""
    fitting = [written for written in lines if _fits(entry, written)]
    if fitting and (len(fitting) == 1 or fitting[0].is_ordered):
        return fitting[0]
    return None


def _fits(entry: Entry[T], written: WrittenLine) -> bool:
    line, request = written.line, entry.request
    if line.method and (line.method != request.method or not _is_target(entry, written)):
        return False
    if line.status != request.status and line.status > 0 and request.status:
        return False
    start_ns = written.start_ns
    tolerance_ns = _TOLERANCE_NS if written.is_ordered else _TOLERANCE_WITHOUT_ORDER_NS
    begin_ns = request.request_start_ns - tolerance_ns
    if line.format is LogFormat.CLF:  # to the second, rounded down
        begin_ns -= 1000 * _MS
    if not written.is_ordered:
        return begin_ns <= start_ns <= request.request_start_ns + tolerance_ns
    # Pipelined requests start, for HAProxy, when the response before them has gone.
    last_ns = (request.response_start_ns or request.end_ns) + tolerance_ns
    return request.response_start_ns <= written.written_ns and begin_ns <= start_ns <= last_ns


def _is_target(entry: Entry[T], written: WrittenLine) -> bool:
    if written.line.is_cut:
        return entry.target.startswith(written.target)
    return entry.target == written.target


_LAST_COMMON_FIELD = AccessLogLine._fields.index("captures")


def _start_ns(line: AccessLogLine, written_ns: int) -> int:
    """
    Return when the request began.

    The time zone of a line is whatever puts the end of the request next to the moment
    at which the line was written.
    """
    if line.format is LogFormat.CLF:
        return line.start_ms * _MS
    end_ms = line.start_ms + max(0, line.active_ms)
    steps = (written_ns // _MS - end_ms + _ZONE_STEP_MS // 2) // _ZONE_STEP_MS  # the nearest
    return (line.start_ms + steps * _ZONE_STEP_MS) * _MS


def _origin_form(target: str) -> str:
    """Return path and query of a target: over HTTP/2 HAProxy logs an absolute one."""
    if target.startswith("/"):
        return target
    scheme, separator, rest = target.partition("://")
    if not separator or not scheme.isalpha():
        return target
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"
