"""
Which line of HAProxy's log is about which transaction.

They belong together when the process, the client's address and port, the request line and
the status are the same, and the times fit. Over HTTP/1 the order on the client's
connection settles the rest without any tolerance: HAProxy writes the line of a request
after its response began and before the next response of that connection begins, and both
moments are the kernel's. With "option logasap" it writes it with the head of the server's
response, before its own begins; and that of a request that it cannot read, which is the
last of its connection, even before it says so.

A transaction may come much later than its line, even after the next one of its connection:
it has waited for its link. That a line is a copy of another is only certain, therefore,
once the request after that one is known; and where not every request is logged, so is
which request a line is about.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from otel_qtap.protocol.haproxy_log import AccessLogLine, LogFormat

__all__ = [
    "Entry", "ServedRequest", "WrittenLine", "entries_for", "is_copy", "is_last_answered",
    "line_for",
]  # fmt: skip

T = TypeVar("T")

_MS = 1_000_000
# HAProxy's clock stands still while it works through its events, and its threads may have
# to wait for a processor: 27 ms were seen. Without an order the start alone decides.
_TOLERANCE_NS = 500 * _MS
_TOLERANCE_WITHOUT_ORDER_NS = 100 * _MS
_AHEAD_NS = 2 * _MS  # but it is never ahead, except for what the agent's is off by (agent.py)
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

    __slots__ = (
        "accepted_ns", "is_missing", "key", "order_ns", "request", "said", "target", "transaction",
    )  # fmt: skip

    def __init__(self, request: ServedRequest, transaction: T, accepted_ns: int) -> None:
        self.request = request
        self.key = (request.process_id, *request.client)
        self.order_ns = request.response_start_ns or request.end_ns
        self.target = _origin_form(request.target)
        self.transaction: T | None = transaction  # None once it went on
        self.said = 0
        """What its line says, as ``WrittenLine.says``; 0 while it has none."""
        self.is_missing = False  # counted as such
        self.accepted_ns = accepted_ns


class WrittenLine:
    """A line, with what is worked out once for all comparisons."""

    __slots__ = (
        "is_ahead", "is_ordered", "is_waiting", "key", "line", "says", "start_ns", "target",
        "written_ns",
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
        has_order = line.version != "2.0" and not is_forwarded
        self.is_ahead = has_order and _is_ahead(line)
        """Whether it was written after the request came and before the response began."""
        self.is_ordered = has_order and not self.is_ahead
        """Whether it was written after the response began and before the next one did."""
        self.is_waiting = True


def entries_for(entries: deque[Entry[T]], written: WrittenLine) -> list[Entry[T]]:
    """
    Return the transaction that a line is about, or whose line says exactly the same.

    Several where that is not decided. ``entries`` are in the order of ``order_ns``.
    """
    fitting: list[Entry[T]] = []
    answered: list[tuple[str, int]] = []  # listeners: the same client may use two at once
    earliest_ns = written.start_ns - _TOLERANCE_NS
    for entry in reversed(entries):
        if entry.order_ns < earliest_ns:
            break  # as all before it
        request = entry.request
        if written.is_ordered:
            # The latest response before the line is the one it is about.
            if request.listener in answered:
                continue
            fits = _fits(entry, written)
            if fits and entry.said in (0, written.says):
                fitting.append(entry)
            if fits or 0 < request.response_start_ns <= written.written_ns:
                answered.append(request.listener)
        elif _fits(entry, written):
            if not entry.said:
                fitting.append(entry)
            elif entry.said == written.says:
                return [entry]
    own = [entry for entry in fitting if not _is_told(entries, entry, written)]
    return own or [entry for entry in entries if fitting and entry.said == written.says][-1:]


def is_copy(entries: deque[Entry[T]], written: WrittenLine) -> bool:
    """Whether it is certain that the request of a line has another one that says the same."""
    fitting = entries_for(entries, written)
    if len(fitting) != 1 or fitting[0].said != written.says:
        return False
    if not written.is_ordered:
        return True
    listener, index = fitting[0].request.listener, fitting[0].request.request_index
    for entry in reversed(entries):
        if entry is fitting[0]:
            break
        if entry.request.listener == listener and entry.request.request_index == index + 1:
            return True
    return False


def is_last_answered(entries: deque[Entry[T]], entry: Entry[T], written: WrittenLine) -> bool:
    """Whether it is certain that the next request was answered after the line was written."""
    following = _neighbour_of(entries, entry, 1)
    return following is not None and following.order_ns > written.written_ns


def _neighbour_of(entries: deque[Entry[T]], entry: Entry[T], steps: int) -> Entry[T] | None:
    """Return the transaction so many steps behind this one on its connection, if it is known."""
    listener, index = entry.request.listener, entry.request.request_index + steps
    for each in reversed(entries):
        if each.request.request_index == index and each.request.listener == listener:
            return each
    return None


def line_for(
    lines: list[WrittenLine], entry: Entry[T], entries: deque[Entry[T]]
) -> WrittenLine | None:
    """Return the line about a transaction among those that came before it, oldest first."""
    fitting = [written for written in lines if _fits(entry, written)]
    fitting = [written for written in fitting if not _is_told(entries, entry, written)]
    if not fitting:
        return None
    if fitting[-1].is_ahead:  # it may fit a pipelined request behind its own as well
        before = _neighbour_of(entries, entry, -1)
        is_own = before is None or before.order_ns < fitting[-1].written_ns
        return fitting[-1] if is_own else None
    first = fitting[0]
    if first.is_ordered or all(written.says == first.says for written in fitting):
        return first
    return None


def _is_told(entries: deque[Entry[T]], entry: Entry[T], written: WrittenLine) -> bool:
    """
    Whether a line may be a copy of the line of a request before this one.

    That it was written after the response began tells, if there was one.
    """
    if entry.request.response_start_ns or entry.said:
        return False
    return any(each.said == written.says for each in entries)


def _fits(entry: Entry[T], written: WrittenLine) -> bool:
    line, request = written.line, entry.request
    if line.method and (line.method != request.method or not _is_target(entry, written)):
        return False
    if line.status != request.status and line.status > 0 and request.status:
        return False
    start_ns = written.start_ns
    tolerance_ns = _TOLERANCE_NS if written.is_ordered else _TOLERANCE_WITHOUT_ORDER_NS
    if written.is_ahead:
        if not request.request_start_ns <= written.written_ns <= entry.order_ns:
            return False
        tolerance_ns = _TOLERANCE_NS
    begin_ns = request.request_start_ns - tolerance_ns
    if line.format is LogFormat.CLF:  # to the second, rounded down
        begin_ns -= 1000 * _MS
    if not written.is_ordered:
        return begin_ns <= start_ns <= request.request_start_ns + tolerance_ns
    # Pipelined requests start, for HAProxy, when the response before them has gone.
    last_ns = entry.order_ns + _AHEAD_NS
    is_read = line.has_request  # else the line is written before HAProxy says so
    earliest_ns = request.response_start_ns if is_read else request.request_start_ns
    return earliest_ns <= written.written_ns and begin_ns <= start_ns <= last_ns


def _is_ahead(line: AccessLogLine) -> bool:
    """Whether HAProxy writes such a line before it answers, over HTTP/1."""
    # Without a response of the server HAProxy makes one, and writes the line after it.
    return line.is_early and line.response_ms >= 0 and line.termination_state[:2] == "--"


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
