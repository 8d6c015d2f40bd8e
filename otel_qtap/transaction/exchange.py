"""
A request and its response while they are still on the wire.

What is known so far, in a form that grows; ``Assembler`` turns it into a
``Transaction`` once it is over. Times are the kernel's monotonic nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from otel_qtap.counters import Counter
from otel_qtap.events import NO_MARK
from otel_qtap.protocol.events import BodyData, MessageEnd, MessageEnding, RequestHead, ResponseHead
from otel_qtap.transaction.evidence import BodyStart
from otel_qtap.transaction.link import StreamKey
from otel_qtap.transaction.model import Body, Request, Response, Timings
from otel_qtap.transaction.place import Place

if TYPE_CHECKING:
    from otel_qtap.transaction.parties import Party
    from otel_qtap.transaction.relays import Passage

__all__ = ["MANY_BYTES", "AssemblerLimits", "BodyBuffer", "Exchange", "MemoryBudget"]

MANY_BYTES = 16 * 1024
"""Of a body: with so many it is worth asking whether anybody will want it."""

_COMPLETE = MessageEnding.COMPLETE  # looking up a member takes longer than comparing with it


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblerLimits:
    """Bounds on what unfinished transactions may hold."""

    body_bytes: int = 2 * 1024 * 1024
    """Kept of each body (Qtap's ``--http-buffer-size``); 0 when no rule can ask for bodies."""
    memory_bytes: int = 128 * 1024 * 1024
    """Kept of all bodies together."""
    pipelined: int = 256
    """Requests that may wait for their answers on one connection."""


class MemoryBudget:
    """
    A bound on the body bytes that all unfinished exchanges hold together.

    What does not fit is not kept: its size still counts, and the transaction says that
    its body is cut.
    """

    __slots__ = ("_limit", "_refused", "used")

    def __init__(self, limit_bytes: int, refused: Counter) -> None:
        self._limit = limit_bytes
        self._refused = refused
        self.used = 0

    def take(self, size: int) -> bool:
        """Reserve ``size`` bytes; returns whether there was room."""
        if self.used + size > self._limit:
            self._refused.value += size
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Release what was taken."""
        self.used -= size


class BodyBuffer:
    """The start of a body, up to a limit, and how much passed in all."""

    __slots__ = ("_is_whole", "_pieces", "kept", "size", "wire_size")

    def __init__(self) -> None:
        self._pieces: tuple[bytes, ...] | list[bytes] = ()
        self._is_whole = True
        self.kept = 0
        self.size = 0
        self.wire_size = 0

    def add(self, event: BodyData, limit: int, budget: MemoryBudget) -> None:
        """Take the next piece; past a hole nothing more is kept, so that what is kept is true."""
        data, size = event
        self.size += size
        if not limit or not self._is_whole or not size:
            return
        room = limit - self.kept
        if len(data) < size or len(data) > room:
            self._is_whole = False
            data = data[:room]
        if data and budget.take(len(data)):
            if type(self._pieces) is list:
                self._pieces.append(data)
            else:
                self._pieces = [data]
            self.kept += len(data)
        elif data:
            self._is_whole = False

    def drop(self, budget: MemoryBudget) -> None:
        """Keep nothing of it, now and later; its size still counts."""
        budget.give_back(self.kept)
        self._pieces = ()
        self._is_whole = False
        self.kept = 0

    def finish(self) -> Body:
        """Return the body as captured."""
        pieces = self._pieces
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return Body(content=content, size=self.size, wire_size=self.wire_size)


_EMPTY_BODY = Body()


class Exchange:
    """One request and, when it comes, its response."""

    __slots__ = (
        "answered_by",
        "asked_by",
        "body_start",
        "connect_started_ns",
        "eligible_ns",
        "in_order",
        "index",
        "interim_statuses",
        "is_emitted",
        "is_request_over",
        "judged",
        "key",
        "mark",
        "party",
        "passage",
        "place",
        "position",
        "process_id",
        "request",
        "request_body",
        "request_end_ns",
        "request_head_ns",
        "request_start_ns",
        "request_trailers",
        "response",
        "response_body",
        "response_end_ns",
        "response_head_ns",
        "response_start_ns",
        "response_trailers",
        "tells_check",
        "thread_id",
    )

    def __init__(
        self, index: int, head: RequestHead, start_ns: int, head_ns: int,
        process_id: int, thread_id: int, *, in_order: bool,
    ) -> None:  # fmt: skip
        self.index = index
        self.in_order = in_order
        """Whether the next response is known to be its answer."""
        self.process_id = process_id
        self.thread_id = thread_id
        self.request = head
        self.request_start_ns = start_ns
        self.request_head_ns = head_ns
        self.request_end_ns = 0
        self.request_body: BodyBuffer | None = None
        self.request_trailers: tuple[tuple[str, str], ...] = ()
        self.is_request_over = False
        self.judged = 0
        """Whether somebody was asked about its bodies: 1 with its request, 2 with its response."""
        self.response: ResponseHead | None = None
        self.response_start_ns = 0
        self.response_head_ns = 0
        self.response_end_ns = 0
        self.response_body: BodyBuffer | None = None
        self.response_trailers: tuple[tuple[str, str], ...] = ()
        self.interim_statuses: tuple[int, ...] = ()
        self.mark = NO_MARK
        """What HAProxy was working on: of a client's request, when it began to answer it; of
        one to a backend, when it opened the connection for it, or else sent it."""
        self.tells_check = False
        """Whether a mark outside of any stream means that it is a health check."""
        self.connect_started_ns = 0
        """Set if the connection was opened for this request."""
        self.eligible_ns = head_ns
        """When the process could begin to work on it."""
        self.answered_by = 0
        """Thread that began to answer."""
        self.key: StreamKey | None = None
        """Of a request to a backend: the stream that it was sent for."""
        self.asked_by: Place | None = None
        """Of a request to a backend: the client's, if that was answered meanwhile."""
        self.is_emitted = False
        self.place: Place | None = None
        self.passage: Passage | None = None
        """What it has in common with the one as which HAProxy passed it on, or which it was."""
        self.party: Party | None = None
        """What the passive linker knows of it, where it looks for links."""
        self.body_start: BodyStart | None = None
        """Of the response, for the passive linker."""
        self.position = -1
        """Where the request begins in its stream, in bytes; -1 where that is not known."""

    @property
    def begin_ns(self) -> int:
        """When the process opened a connection for it, or else sent or got it."""
        return self.connect_started_ns or self.request_start_ns

    def offset_ns(self, timings: Timings) -> int:
        """Return how much later the times of its transaction are, which are since the epoch."""
        return timings.request_start_ns - self.request_start_ns

    def add_request_body(self, event: BodyData, limit: int, budget: MemoryBudget) -> int:
        """Take a piece of the request's body; returns how much of it is kept."""
        body = self.request_body
        if body is None:
            body = self.request_body = BodyBuffer()
        body.add(event, limit, budget)
        return body.kept

    def add_response_body(self, event: BodyData, limit: int, budget: MemoryBudget) -> int:
        """Take a piece of the response's body; returns how much of it is kept."""
        body = self.response_body
        if body is None:
            body = self.response_body = BodyBuffer()
        body.add(event, limit, budget)
        if self.body_start is not None:
            self.body_start.add(event)
        return body.kept

    def end_request(self, event: MessageEnd, timestamp_ns: int) -> None:
        """The request is over, or nothing more of it will be seen."""
        self.is_request_over = True
        if event.ending is _COMPLETE:
            self.request_end_ns = timestamp_ns
        self.request_trailers = event.trailers
        if self.request_body is not None:
            self.request_body.wire_size = event.wire_body_size

    def end_response(self, event: MessageEnd, timestamp_ns: int) -> None:
        """The response is over, or nothing more of it will be seen."""
        if event.ending is _COMPLETE or event.ending is MessageEnding.CLOSED:
            self.response_end_ns = timestamp_ns
        self.response_trailers = event.trailers
        if self.response_body is not None:
            self.response_body.wire_size = event.wire_body_size

    def finish_request(self) -> Request:
        """Return the request as captured."""
        head = self.request
        return Request(
            method=head.method,
            target=head.target,
            version=head.version,
            headers=head.headers,
            trailers=self.request_trailers,
            body=_EMPTY_BODY if self.request_body is None else self.request_body.finish(),
            head_size=head.size,
        )

    def finish_response(self) -> Response:
        """Return the response as captured; there must be one."""
        head = self.response
        assert head is not None  # noqa: S101 - for the type checker
        return Response(
            status=head.status,
            reason=head.reason,
            version=head.version,
            headers=head.headers,
            trailers=self.response_trailers,
            body=_EMPTY_BODY if self.response_body is None else self.response_body.finish(),
            head_size=head.size,
            interim_statuses=self.interim_statuses,
        )

    def drop_bodies(self, budget: MemoryBudget) -> None:
        """Keep nothing of them, because nobody will want them."""
        for body in (self.request_body, self.response_body):
            if body is not None:
                body.drop(budget)

    def release(self, budget: MemoryBudget) -> None:
        """Give back the memory that the bodies were counted for."""
        for body in (self.request_body, self.response_body):
            if body is not None:
                budget.give_back(body.kept)
