"""The place of an exchange among others, while it is being found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from otel_qtap.protocol.events import Headers, RequestHead, ResponseHead
from otel_qtap.transaction.link import (
    Ancestor,
    Candidate,
    HopHeaders,
    Link,
    LinkMethod,
    StreamKey,
    trace_context,
)

if TYPE_CHECKING:
    from otel_qtap.transaction.exchange import Exchange

__all__ = ["Place"]

_TIMED_OUT = 504


class Place:
    """
    An exchange that others may belong to; it may itself belong to another.

    Settled once it is known where it belongs, up to the root of its trace; who needs that
    before may wait for it.
    """

    __slots__ = (
        "_has_sent",
        "_lineage",
        "accepted_ns",
        "ancestors",
        "answered_ns",
        "asking",
        "attempts",
        "awaited",
        "begun",
        "eligible_ns",
        "is_first_sent",
        "is_received",
        "is_settled",
        "is_void",
        "key",
        "parent",
        "process_id",
        "request",
        "request_id",
        "response",
        "spent",
        "task",
        "thread_id",
        "waiting",
    )

    def __init__(self, request_id: str, request: RequestHead) -> None:
        self.request_id = request_id
        self.request = request
        self.response: ResponseHead | None = None
        self.key: StreamKey | None = None
        self.process_id = 0
        self.task = 0
        """The HAProxy task that worked on it, where the stream itself is not known."""
        self.is_void = False
        """Whether the evidence contradicts itself, so that nothing may be linked to it."""
        self.thread_id = 0
        """That answered the request."""
        self.eligible_ns = 0
        """When the process could begin to work on the request."""
        self.accepted_ns = 0
        """When its connection was accepted, if it is the first there; else when it was eligible."""
        self.answered_ns = 0
        self.attempts = 0
        self.spent: list[tuple[int, int]] = []
        """When it was waiting for backends: begin and end of each attempt that is over."""
        self.asking: Sequence[Exchange] = ()
        """What backends were being asked in its stream when the client's answer began."""
        self.ancestors: tuple[Ancestor, ...] = ()
        """All that caused it, the nearest first."""
        self.is_first_sent = False
        """Whether it is the first request that was sent for what caused it."""
        self.parent: Place | None = None
        """Of a request that a neighbour sent: that neighbour's."""
        self.is_received = False
        """Whether it was asked for the neighbour that sent it."""
        self.is_settled = True
        self.awaited: Place | None = None
        """What it belongs to, while that is not settled itself."""
        self.waiting: list[Callable[[], None]] = []
        self.begun: Headers = ()
        """The first trace context in what was sent because of it."""
        self._has_sent = False
        self._lineage: tuple[Ancestor, ...] = ()

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """Itself and all that caused it, once it is settled; what was told once stays so."""
        if not self._lineage:
            context = trace_context(self.request.headers)
            begun = () if context else self.begun
            own = Ancestor(self.request_id, context, self.is_first_sent, begun)
            self._lineage = (own, *self.ancestors)
        return self._lineage

    def send(self, request: RequestHead, sent: Place | None = None) -> bool:
        """
        ``request`` was sent for it, and ``sent`` is its place; return whether it was the first.

        The first may begin a trace, or what was sent because of it may have done so.
        """
        if self._has_sent:
            return False
        self._has_sent = True
        begun = trace_context(request.headers) or (() if sent is None else sent.begun)
        if begun:
            self.begin(begun)
        return True

    def begin(self, context: Headers) -> None:
        """A trace begins in what was sent because of it, unless its own request names one."""
        if not self.begun:
            self.begun = context
            if self.parent is not None:
                self.parent.begin(context)

    def await_parent(self) -> None:
        """It belongs to something that is not known yet."""
        self.is_settled = False

    def settle(self, parent: Place | None = None) -> None:
        """It belongs to ``parent``, which is settled, or to nothing; whoever waits goes on."""
        if parent is not None:
            self.ancestors = parent.lineage
        self.awaited = None
        self.is_settled = True
        waiting, self.waiting = self.waiting, []
        for proceed in waiting:
            proceed()

    def waits_for(self, other: Place) -> bool:
        """Whether it is settled only after ``other``, or is the same."""
        place: Place | None = self
        while place is not None and place is not other:
            place = place.awaited
        return place is other

    def when_settled(self, proceed: Callable[[], None]) -> None:
        """Call ``proceed`` now or as soon as it is settled."""
        if self.is_settled:
            proceed()
        else:
            self.waiting.append(proceed)

    def link(self, method: LinkMethod, *, is_first_sent: bool = False) -> Link:
        """Return the link of something that this exchange caused; it must be settled."""
        lineage = self.lineage
        return Link(
            method=method,
            parent_id=self.request_id,
            root_id=lineage[-1].request_id,
            ancestors=lineage,
            is_first_sent=is_first_sent,
        )

    def contradiction(self, sent: Exchange) -> str:
        """Return what speaks against ``sent`` having been sent for it, or nothing."""
        if sent.thread_id and self.thread_id and sent.thread_id != self.thread_id:
            return "thread"
        if sent.begin_ns < self.eligible_ns:
            # Right in mode tcp only: there HAProxy connects as soon as it has a client.
            has_sent = bool(sent.request.method)
            if sent.begin_ns < self.accepted_ns or (
                has_sent and sent.request_start_ns < self.eligible_ns
            ):
                return "eligible"
        if sent.begin_ns > self.answered_ns:
            return "answered"
        return ""

    def has_given_up(self, end_ns: int) -> bool:
        """
        Whether an attempt without an answer, closed by the proxy at that time, took too long.

        The proxy says so (504), or it went on without it and answered the client later. Not if
        it answered by itself and let go of the attempt then: what the client sent may be why.
        """
        given = self.response
        return given is not None and (given.status == _TIMED_OUT or end_ns < self.answered_ns)

    def compared_with(self, sent: RequestHead, answer: ResponseHead | None) -> HopHeaders:
        """
        Return both sides of what a proxy sent to a backend for it.

        An answer with another status is not the one that was passed on.
        """
        received, given = self.request.headers, self.response
        if answer is None or given is None or answer.status != given.status:
            return HopHeaders(received, sent.headers)
        return HopHeaders(received, sent.headers, answer.headers, given.headers)

    def candidate(self) -> Candidate:
        """Return it as one that may have caused something; it must be settled."""
        root = self.lineage[-1]
        return Candidate(self.request_id, root.request_id, root.context or root.begun)
