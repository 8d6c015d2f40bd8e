"""
Put HAProxy's own account of a request next to ours.

Two sums say whether anything is missing: the lines about requests, and the transactions on
listeners that were seen to log. HAProxy makes the first one without knowing of us.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import Generic, Protocol, TypeVar

from otel_qtap.counters import CounterSet
from otel_qtap.haproxy.log_match import (
    Entry,
    ServedRequest,
    WrittenLine,
    entries_for,
    is_copy,
    is_last_answered,
    line_for,
)
from otel_qtap.protocol.haproxy_log import AccessLogLine, parse_line, split_lines

__all__ = ["LogJoiner"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_MS = 1_000_000
_REMEMBER_NS = 10_000_000_000  # how long a transaction that went on is known
_LINE_WAIT_NS = 5_000_000_000  # how long a line waits for its transaction
_MAX_EARLY_LINES = 1024  # "option logasap": they wait for as long as the response takes
_MAX_LISTENERS = 4096
_MAX_PROCESSES = 1024

_LINE_RESULTS = (
    "joined",
    "late",  # its transaction had gone on without it, perhaps before anybody cared for lines
    "duplicate",  # of a joined one: there is more than one "log" line in the configuration
    "ambiguous",  # several transactions fit equally well (HTTP/2, forwarded lines)
    "unmatched",  # no transaction fits: the request was not seen
    "no_request",  # HAProxy itself could not read the request
    "unix_client",  # came over a Unix socket, which nobody watches
    "unrecognised",  # not an access line, or in a format of somebody's own
    "filtered",  # of a client whose requests are not captured
)


class _Listener(Enum):
    """Whether a listener of a process logs its requests."""

    UNKNOWN = "unknown"
    SILENT = "silent"
    LOGS = "logs"
    SKIPS = "skips"
    """It logs some (a sample, or what is not silenced): no line follows from others."""


class Consumer(Protocol[T_contra]):
    """What takes the transactions afterwards."""

    def consume(self, transaction: T_contra, /) -> None:
        """Take ``transaction``."""


class _Client(Generic[T]):
    """What passed lately on one connection of a client."""

    __slots__ = ("entries", "lines")

    def __init__(self) -> None:
        self.entries: deque[Entry[T]] = deque()  # by the time at which the answers began
        self.lines: list[WrittenLine] = []  # those that wait, by the time they were written

    def add(self, entry: Entry[T]) -> None:
        """Put a transaction where it belongs, nearly always at the end."""
        at = len(self.entries)
        while at and self.entries[at - 1].order_ns > entry.order_ns:
            at -= 1
        self.entries.insert(at, entry)


class LogJoiner(Generic[T]):
    """
    Transactions go in and come out again, at most ``wait_ns`` later, with their line.

    Sans-I/O; one thread owns it. ``describe`` says what identifies a transaction, or
    ``None`` for one that gets no line (egress); ``attach`` makes the transaction with its
    line. ``wants_line`` says whether what a process serves to a client at an address
    comes here at all. Whoever calls must call ``tick`` too: it lets go of what waited long
    enough. All times are nanoseconds since the epoch, by the same clock.
    """

    def __init__(
        self,
        next_consumer: Consumer[T],
        *,
        describe: Callable[[T], ServedRequest | None],
        attach: Callable[[T, AccessLogLine], T],
        counters: CounterSet,
        wants_line: Callable[[int, str], bool] = lambda _pid, _client: True,
        wait_ns: int = 100 * _MS,
        capacity: int = 8192,
    ) -> None:
        self._next = next_consumer
        self._describe = describe
        self._attach = attach
        self._wants_line = wants_line
        self._wait_ns = wait_ns
        self._capacity = capacity
        self._clients: dict[tuple[int, str, int], _Client[T]] = {}
        self._entries: deque[Entry[T]] = deque()  # all that are remembered
        self._held: deque[Entry[T]] = deque()  # of these, the ones that may wait for a line
        self._lines: deque[WrittenLine] = deque()
        self._early_lines: deque[WrittenLine] = deque()
        self._listeners: OrderedDict[tuple[int, tuple[str, int]], _Listener] = OrderedDict()
        self._writers: dict[int, int] = {}
        """When a process was last seen to log a request."""
        self._passed_by: dict[int, int] = {}
        """When the last transaction of a process ended that is not among the entries."""
        self._now_ns = 0
        self._line_counts = {
            result: counters.counter(
                "otel_qtap.haproxy.log.lines",
                "{line}",
                "What HAProxy wrote to its log, by what became of it.",
                result=result,
            )
            for result in _LINE_RESULTS
        }
        self._joined, self._missing, self._silent = (
            counters.counter(
                "otel_qtap.haproxy.log.transactions",
                "{transaction}",
                "Transactions on listeners of HAProxy that log, by whether a line came.",
                result=result,
            )
            for result in ("joined", "without_line", "closed_silently")
        )

    def accept_line(
        self, pid: int, timestamp_ns: int, data: bytes, *, is_forwarded: bool = False
    ) -> None:
        """
        Take what process ``pid`` wrote at ``timestamp_ns``: one line or several.

        ``is_forwarded`` says that a ring sent it to a server over TCP, at its leisure.
        """
        self._now_ns = max(self._now_ns, timestamp_ns)
        for text in split_lines(data):
            line = parse_line(text)
            if line is None:
                self._line_counts["unrecognised"].value += 1
            elif line.client_address == "unix":
                self._line_counts["unix_client"].value += 1
            elif not self._wants_line(pid, line.client_address):
                self._line_counts["filtered"].value += 1
            else:
                _note(self._writers, pid, timestamp_ns)
                self._take(WrittenLine(pid, timestamp_ns, line, is_forwarded=is_forwarded))

    def expect(self, pid: int, timestamp_ns: int, data: bytes) -> None:
        """Learn that process ``pid`` logs requests, from what ``accept_line`` is given later."""
        if any(parse_line(text) is not None for text in split_lines(data)):
            _note(self._writers, pid, timestamp_ns)

    def knows(self, pid: int) -> bool:
        """Whether process ``pid`` was seen to log requests."""
        return pid in self._writers

    def accept(self, transaction: T) -> None:
        """Take a transaction; it goes on now or within ``wait_ns``."""
        request = self._describe(transaction)
        if request is None:
            self._next.consume(transaction)
            return
        self._now_ns = max(self._now_ns, request.end_ns)
        pid = request.process_id
        if pid not in self._writers and self._state_of(request) is _Listener.SILENT:
            self.pass_by(pid, request.end_ns)
            self._next.consume(transaction)
            return
        entry = Entry(request, transaction, self._now_ns)
        client = self._client(entry.key)
        client.add(entry)
        self._entries.append(entry)
        state = self._state_of(request)
        written = line_for(client.lines, entry, client.entries) if client.lines else None
        if written is not None and not (state is _Listener.SKIPS and written.is_ordered):
            self._end_wait(client, written)
            self._join(entry, written)
        elif written is not None:  # it may be about the next one, which is still to come
            self._held.append(entry)
        elif state is _Listener.SILENT:
            self._let_go(entry, transaction)
        else:
            self._held.append(entry)
        if client.lines:
            self._join_certain(client)
            self._drop_copies(client)
        if len(self._entries) > self._capacity:
            self._forget(self._entries.popleft())

    def pass_by(self, pid: int, end_ns: int) -> None:
        """Note that a transaction of process ``pid`` does not come here: who knows of no log."""
        _note(self._passed_by, pid, end_ns)

    def tick(self, now_ns: int) -> None:
        """Let go of what waited long enough by ``now_ns``."""
        self._now_ns = max(self._now_ns, now_ns)
        while self._held and self._now_ns - self._held[0].accepted_ns >= self._wait_ns:
            self._give_up(self._held.popleft())
        while self._lines and self._now_ns - self._lines[0].written_ns >= _LINE_WAIT_NS:
            self._drop(self._lines.popleft())
        while self._entries and self._now_ns - self._entries[0].accepted_ns >= _REMEMBER_NS:
            self._forget(self._entries.popleft())

    def close(self) -> None:
        """Let go of everything."""
        for entry in self._held:
            self._give_up(entry)
        for written in (*self._lines, *self._early_lines):
            self._drop(written)
        for items in (self._held, self._lines, self._early_lines, self._entries, self._clients):
            items.clear()

    # A line ---------------------------------------------------------------------------

    def _take(self, written: WrittenLine) -> None:
        client = self._clients.get(written.key)
        fitting = entries_for(client.entries, written) if client is not None else []
        if client is None or not fitting:
            self._wait(written)
        elif len(fitting) > 1:
            self._line_counts["ambiguous"].value += 1
        elif fitting[0].said and not is_copy(client.entries, written):
            self._wait(written)  # perhaps it is about an equal request that is still to come
        elif fitting[0].said:
            self._line_counts["duplicate"].value += 1
        elif self._may_be_of_next(client, fitting[0], written):
            self._wait(written)
        elif fitting[0].transaction is not None:
            self._join(fitting[0], written)
        else:
            self._line_counts["late"].value += 1
            self._note_late(fitting[0], written)

    def _may_be_of_next(self, client: _Client[T], entry: Entry[T], written: WrittenLine) -> bool:
        """Whether a line may be about a request that comes later than it should."""
        if not written.is_ordered or self._state_of(entry.request) is not _Listener.SKIPS:
            return False
        return not is_last_answered(client.entries, entry, written)

    def _wait(self, written: WrittenLine) -> None:
        client = self._client(written.key)
        client.lines.append(written)
        waiting = self._early_lines if written.line.is_early else self._lines
        waiting.append(written)
        if len(waiting) > (_MAX_EARLY_LINES if written.line.is_early else self._capacity):
            self._drop(waiting.popleft())

    def _drop(self, written: WrittenLine) -> None:
        """Count a line that no transaction came for."""
        if not written.is_waiting:
            return
        client = self._clients[written.key]
        fitting = entries_for(client.entries, written)
        if any(entry.said for entry in fitting):
            result = "duplicate"
        elif not written.line.has_request:
            result = "no_request"
        elif fitting:
            result = "ambiguous"
        elif written.start_ns <= self._passed_by.get(written.key[0], 0):
            result = "late"
        else:
            result = "unmatched"
        self._line_counts[result].value += 1
        self._end_wait(client, written)
        self._remove_if_empty(written.key, client)

    def _drop_copies(self, client: _Client[T]) -> None:
        for written in client.lines.copy():
            if is_copy(client.entries, written):
                self._line_counts["duplicate"].value += 1
                self._end_wait(client, written)

    def _join_certain(self, client: _Client[T]) -> None:
        """Join what waited until the request after it was known."""
        for written in client.lines.copy():
            if not written.is_ordered:
                continue
            fitting = entries_for(client.entries, written)
            if len(fitting) != 1 or fitting[0].said or fitting[0].transaction is None:
                continue
            if is_last_answered(client.entries, fitting[0], written):
                self._end_wait(client, written)
                self._join(fitting[0], written)

    @staticmethod
    def _end_wait(client: _Client[T], written: WrittenLine) -> None:
        written.is_waiting = False
        client.lines.remove(written)

    # A transaction --------------------------------------------------------------------

    def _join(self, entry: Entry[T], written: WrittenLine) -> None:
        assert entry.transaction is not None  # noqa: S101 - for the type checker
        entry.said = written.says
        self._line_counts["joined"].value += 1
        self._joined.value += 1
        self._learn_of(entry)
        self._let_go(entry, self._attach(entry.transaction, written.line))

    def _note_late(self, entry: Entry[T], written: WrittenLine) -> None:
        entry.said = written.says
        if not entry.is_missing:  # nobody had expected a line
            entry.is_missing = True
            self._missing.value += 1
        self._learn_of(entry)

    def _learn_of(self, entry: Entry[T]) -> None:
        """A listener has logged this request."""
        if self._state_of(entry.request) is not _Listener.SKIPS:
            self._set_state(entry.request, _Listener.LOGS)

    def _give_up(self, entry: Entry[T]) -> None:
        """Let a transaction go on without a line, if it still waits for one."""
        if entry.transaction is None:
            return
        client = self._clients[entry.key]
        for written in client.lines:
            if written.is_ordered and entries_for(client.entries, written) == [entry]:
                self._end_wait(client, written)
                self._join(entry, written)
                return
        request, state = entry.request, self._state_of(entry.request)
        if state is not _Listener.LOGS and state is not _Listener.SKIPS:
            self._set_state(request, _Listener.SILENT)
        elif not request.status and request.request_index:
            # HAProxy neither answers nor logs when a server closes on a request that is not
            # the first of its connection: the client is to try again (seen in 2.6 and 2.8).
            self._silent.value += 1
            entry.is_missing = True
        else:
            self._missing.value += 1
            entry.is_missing = True
            self._set_state(request, _Listener.SKIPS)
        self._let_go(entry, entry.transaction)

    def _state_of(self, request: ServedRequest) -> _Listener:
        return self._listeners.get((request.process_id, request.listener), _Listener.UNKNOWN)

    def _set_state(self, request: ServedRequest, state: _Listener) -> None:
        key = (request.process_id, request.listener)
        if self._listeners.get(key) is not state:
            self._listeners[key] = state
            if len(self._listeners) > _MAX_LISTENERS:
                self._listeners.popitem(last=False)

    def _let_go(self, entry: Entry[T], transaction: T) -> None:
        entry.transaction = None
        self._next.consume(transaction)

    def _forget(self, entry: Entry[T]) -> None:
        """Take away the oldest entry of all."""
        self._give_up(entry)
        client = self._clients[entry.key]
        client.entries.remove(entry)  # nearly always the first
        self._remove_if_empty(entry.key, client)

    def _client(self, key: tuple[int, str, int]) -> _Client[T]:
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = _Client()
        return client

    def _remove_if_empty(self, key: tuple[int, str, int], client: _Client[T]) -> None:
        if not client.entries and not client.lines:
            del self._clients[key]


def _note(times: dict[int, int], pid: int, time_ns: int) -> None:
    times[pid] = time_ns
    if len(times) > _MAX_PROCESSES:
        del times[next(iter(times))]
