"""
The two streams of a connection become exchanges: requests with the responses that answer them.

On one HTTP/1 connection the answers come in the order of the requests (RFC 9112,
section 9.3.2), so a queue would do if nothing were ever lost. What this module adds is
care about loss: once bytes are missing where messages begin or end, nobody knows how
many messages they held, and pairing the next response with the next request would be a
guess. Then requests are let go as ``Ending.LOST`` until the talk is in step again:
nothing is unanswered, and the next request begins a turn of the conversation. Its answer
counts only if nothing of the responses is missing since, because what is missing may as
well have been the answer, and the one that came belong to a request that was lost too.

That holds for clients that wait for an answer before they ask again, as nearly all do. A
connection on which one was seen not to wait never comes into step again after a loss. The
one case that nothing can tell: a client that always keeps a request in flight, and of
which all was lost that showed it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from otel_qtap.connection.model import Peer
from otel_qtap.connection.tracker import Connection
from otel_qtap.counters import Counter
from otel_qtap.events import (
    NO_MARK,
    CloseEvent,
    CloseStep,
    DataEvent,
    Flow,
    Role,
    StreamMark,
    StreamState,
)
from otel_qtap.protocol.events import (
    BodyData,
    HttpEvent,
    MessageEnd,
    MessageEnding,
    ProxyHeader,
    RequestHead,
    ResponseHead,
    TunnelStart,
)
from otel_qtap.protocol.http1 import ParseError, RequestParser, ResponseParser
from otel_qtap.transaction.direction import direction_of
from otel_qtap.transaction.exchange import MANY_BYTES, AssemblerLimits, Exchange, MemoryBudget
from otel_qtap.transaction.model import Ending
from otel_qtap.transaction.neighbours import Meeting
from otel_qtap.transaction.passive import PassiveLinker

__all__ = ["Conversation", "ConversationOwner"]

_KNOWN = StreamState.KNOWN
_OTHER = StreamState.OTHER
_OUTSIDE_STREAMS = (StreamState.OTHER, StreamState.NONE)
_WORKING = (StreamState.KNOWN, StreamState.ENDING)
_NOTHING_ASKED = RequestHead("", "", "", (), 0, None)
_COMPLETE = Ending.COMPLETE  # looking up a member takes longer than comparing with it
_LOSSES = (Ending.LOST, Ending.UNREADABLE)
_ETIMEDOUT = 110
_RESET_ERRORS = frozenset({32, 103, 104})  # EPIPE, ECONNABORTED, ECONNRESET


class ConversationOwner(Protocol):
    """What all conversations share, and who takes their exchanges: the ``Assembler``."""

    limits: AssemblerLimits
    budget: MemoryBudget
    parse_errors: Counter
    orphans: Counter
    cut_requests: Counter

    def passive_for(self, connection: Connection) -> PassiveLinker | None:
        """Return who looks for the links of a connection; nobody if its process tells streams."""

    def note_streams(self, process_id: int) -> None:
        """A process tells which stream it is working on."""

    def completed(self, role: Role) -> Counter:
        """Return the counter of complete transactions that a process with ``role`` took part in."""

    def begin(self, exchange: Exchange) -> None:
        """HAProxy begins a request to a server for one of its streams."""

    def send(self, talk: Conversation, exchange: Exchange) -> None:
        """A process begins a request to a neighbour."""

    def relay(self, talk: Conversation, exchange: Exchange) -> None:
        """HAProxy begins a request to a server over a connection that may be a relay."""

    def relay_back(self, talk: Conversation, exchange: Exchange, mark: StreamMark) -> None:
        """HAProxy begins to answer a client outside of any stream."""

    def forget_task(self, talk: Conversation) -> None:
        """The task that got the connection's first bytes has no more to do with it."""

    def leave(self, talk: Conversation) -> None:
        """The connection is over."""

    def answer(self, talk: Conversation, exchange: Exchange, timestamp_ns: int) -> None:
        """HAProxy begins to answer a client, or gives it up, in the stream of ``exchange.mark``."""

    def judge(self, talk: Conversation, exchange: Exchange) -> None:
        """Decide whether the bodies of an exchange are worth keeping, now that they are long."""

    def emit(self, talk: Conversation, exchange: Exchange, ending: Ending, end_ns: int) -> None:
        """Take an exchange that is over."""


class Conversation:
    """The two streams of one HTTP/1 connection, read together."""

    __slots__ = (
        "_answering_thread_id",
        "_closer",
        "_current",
        "_expects_gap",
        "_failure",
        "_first_mark",
        "_first_request_ns",
        "_first_request_offset",
        "_first_response_ns",
        "_has_missed",
        "_has_pipelined",
        "_in_interim",
        "_in_order",
        "_index",
        "_is_client",
        "_is_shared",
        "_is_tunnel",
        "_is_turn",
        "_just_answered",
        "_last_answer_ns",
        "_last_data_ns",
        "_last_mark",
        "_late_request",
        "_misses_request",
        "_owner",
        "_passive",
        "_pending",
        "_process_id",
        "_request_flow",
        "_requests",
        "_responses",
        "_served",
        "_thread_id",
        "completed",
        "connection",
        "direction",
        "is_relay",
        "meeting",
        "origin",
        "proxied_source",
        "remote_name",
        "xid",
    )

    def __init__(self, connection: Connection, owner: ConversationOwner) -> None:
        self.connection = connection
        self.direction = direction_of(connection.role, connection.remote.address)
        self.xid = self.remote_name = ""
        self.meeting: Meeting | None = None
        """With the other end of the connection, where that is captured as well."""
        self.origin: Conversation | None = None
        """The client whose bytes are passed on here."""
        self.is_relay = False
        """Whether a client's requests were seen to be passed on unread."""
        self.proxied_source: Peer | None = None
        self.completed = owner.completed(connection.role)
        self._owner = owner
        self._passive = owner.passive_for(connection)
        late = connection.joined_late
        self._is_client = connection.role is Role.CLIENT
        self._request_flow = Flow.RECEIVE if connection.role is Role.SERVER else Flow.SEND
        self._requests = RequestParser(joined_late=late)
        self._responses = ResponseParser(joined_late=late)
        self._pending: deque[Exchange] = deque()
        """Requests that wait for their answer, in order."""
        self._current: Exchange | None = None
        """The request whose body is being received."""
        self._late_request: Exchange | None = None
        """An exchange with a complete response and a request that is still coming."""
        self._in_order = not late
        """Whether every response from here on answers the next of the requests that wait."""
        self._has_missed = late
        """Bytes of the requests, or their beginning, were not seen."""
        self._has_pipelined = False
        """Whether the client was seen not to wait for an answer."""
        self._misses_request = False
        """The bytes lost last of the requests began one."""
        self._expects_gap = False
        """What the requests showed means that responses were lost, or else pipelining."""
        self._just_answered = False
        """No byte was sent to the server, as far as seen, since it completed an answer."""
        self._in_interim = self._is_tunnel = False
        # Whether one stream of HAProxy used it after the other, or a health check opened it.
        # Then no bytes are passed on there as they come, for which there is one stream as long
        # as the connection lasts; what is sent outside of any stream is a health check.
        self._is_shared = self._is_turn = False
        """Whether the request being read began a turn of the talk."""
        self._index = self._thread_id = self._answering_thread_id = 0
        self._first_request_ns = self._first_response_ns = 0
        self._last_data_ns = self._last_answer_ns = 0
        self._first_request_offset = -1
        self._first_mark = NO_MARK
        """Of the first byte that was sent of the message being read."""
        self._last_mark = self._served = NO_MARK
        """Of the last byte that was sent; of the stream that used the connection last."""
        self._process_id = connection.process_id
        self._closer = ""  # "local" or "remote": who closed first
        self._failure: Ending | None = None

    # What the tracker tells -----------------------------------------------------------

    def stream_data(self, event: DataEvent) -> None:
        """Take the next bytes of one of the flows."""
        if self._is_tunnel:
            return
        self._last_data_ns = event.timestamp_ns
        if event.flow is self._request_flow:
            self._read_requests(event)
        else:
            self._read_responses(event)

    def _read_requests(self, event: DataEvent) -> None:
        _, now, self._process_id, self._thread_id, _, offset, _, turned, data, mark = event
        requests = self._requests
        is_lost = requests.is_lost  # then what begins here may be a message, or nothing
        begins = requests.is_idle or is_lost
        if requests.is_idle:
            self._first_request_ns = now
            self._is_turn = turned
        if begins:
            self._first_request_offset = -1 if is_lost else offset
        if self._is_client:  # marks are on what was sent
            self._last_mark = mark
            if begins:
                self._first_mark = mark
        for item in requests.read(data):
            self._on_request_event(item, now)

    def _read_responses(self, event: DataEvent) -> None:
        _, now, _, thread_id, _, _, _, turned, data, mark = event
        responses = self._responses
        is_idle = responses.is_idle
        if not self._is_client:
            self._answering_thread_id = thread_id
            self._last_mark = mark
            if is_idle or responses.is_lost:
                self._first_mark = mark
        if is_idle:
            self._first_response_ns = now
        if turned:
            self._just_answered = False
        if self._expects_gap:  # nothing was lost, so the client did not wait
            self._expects_gap = False
            self._has_pipelined = True
        for item in responses.read(data):
            self._on_response_event(item, now)

    def stream_gap(self, flow: Flow, size: int, timestamp_ns: int) -> None:
        """Bytes of one of the flows are missing."""
        if self._is_tunnel:
            return
        if flow is self._request_flow:
            self._has_missed = True
            requests = self._requests
            was_lost, was_idle = requests.is_lost, requests.is_idle
            requests.gap(size)
            for item in requests.read(b""):
                self._on_request_event(item, timestamp_ns)
            if requests.is_lost and not was_lost:
                self._in_order = False
                if not was_idle and self._current is None:
                    self._owner.cut_requests.value += 1
                self._misses_request = was_idle
        else:
            responses = self._responses
            was_lost = responses.is_lost
            self._expects_gap = self._just_answered = False
            responses.gap(size)
            for item in responses.read(b""):
                self._on_response_event(item, timestamp_ns, loss=True)
            if responses.is_lost and (self._pending or not was_lost):
                self._lose_track(Ending.LOST, timestamp_ns)

    def stream_step(self, event: CloseEvent) -> None:
        """The connection is one step nearer to its end."""
        step, now = event.step, event.timestamp_ns
        if event.stream.state in _WORKING and self._pending:
            self._close_unanswered(self._pending[0], event.stream, now)
        if step is CloseStep.RECEIVED_END:
            self._closer = self._closer or "remote"
            self._end_flow(Flow.RECEIVE, now)
        elif step is CloseStep.LOCAL_CLOSED:
            self._closer = self._closer or "local"
            self._owner.forget_task(self)
            self._end_flow(Flow.SEND, now)
        elif step is CloseStep.LOCAL_CLOSED_TOO:
            self._owner.forget_task(self)
        elif step is CloseStep.REMOTE_CLOSED:
            self._closer = self._closer or "remote"
        elif step is CloseStep.CONNECT_FAILED:
            self._fail_connect(event)
        elif step in (CloseStep.RESET, CloseStep.CALL_FAILED):
            self._note_failure(event.error)
        elif step is CloseStep.DESTROYED:
            self._end_flow(Flow.RECEIVE, now)
            self._end_flow(Flow.SEND, now)
            self._finish_all(self._early_ending(), now)
            self._owner.leave(self)

    def give_up(self, timestamp_ns: int) -> None:
        """The agent will see no more of this connection."""
        self._finish_all(Ending.UNFINISHED, timestamp_ns)
        self._owner.leave(self)

    # Requests -------------------------------------------------------------------------

    def _on_request_event(self, event: HttpEvent | ParseError, now: int) -> None:
        kind = type(event)
        if kind is RequestHead:
            self._on_request_head(event, now)  # type: ignore[arg-type]
        elif kind is MessageEnd:
            self._first_request_ns = now  # of the next one, if it begins in the same bytes
            self._first_request_offset = -1
            if self._is_client:
                self._first_mark = self._last_mark
            self._is_turn = False
            if self._current is not None:
                self._on_request_end(event, self._current, now)  # type: ignore[arg-type]
        elif kind is BodyData:
            current = self._current
            if current is not None:
                kept = current.add_request_body(
                    event,  # type: ignore[arg-type]
                    self._owner.limits.body_bytes,
                    self._owner.budget,
                )
                if kept > MANY_BYTES and not current.judged:
                    self._owner.judge(self, current)
        elif kind is ProxyHeader:
            self._on_proxy_header(event)  # type: ignore[arg-type]
        else:
            self._owner.parse_errors.value += 1
            self._in_order = False
            self._current = None

    def _on_request_head(self, head: RequestHead, now: int) -> None:
        pending = self._pending
        if self._is_turn:
            if pending:
                self._expects_gap = True
            elif not self._in_order:
                self._try_to_step_in()
        elif pending and self._in_order:
            self._has_pipelined = True
        exchange = Exchange(
            self._index, head, self._first_request_ns, now, self._process_id, self._thread_id,
            in_order=self._in_order,
        )  # fmt: skip
        self._locate(exchange)
        self._index += 1
        self._current = exchange
        if self._in_order:
            if len(pending) >= self._owner.limits.pipelined:
                self._lose_track(Ending.UNFINISHED, now)
                return
            self._responses.expect(head.method)
            pending.append(exchange)
            if self._passive is not None:
                self._begin(exchange)

    @property
    def in_flight(self) -> Iterable[Exchange]:
        """The requests that wait for their answer."""
        return self._pending

    @property
    def is_whole(self) -> bool:
        """Whether every request was seen, and nothing before the first but a PROXY header."""
        return not self._has_missed

    @property
    def sending(self) -> StreamMark:
        """What HAProxy was working on when it sent the request that is being read."""
        return self._first_mark

    @property
    def client(self) -> Peer:
        """Who asked, also where a proxy in between names it."""
        return self.proxied_source or self.connection.remote

    def _begin(self, exchange: Exchange) -> None:
        """Have what it belongs to looked for, if no stream tells that."""
        assert self._passive is not None  # noqa: S101 - for the type checker
        if exchange.mark.state is not StreamState.NOT_ASKED:
            self._end_passive()
            return
        peer = self.proxied_source if self._is_client else self.client
        self._passive.begin(exchange, self.connection, peer)

    def _end_passive(self) -> None:
        self._passive = None
        self._owner.note_streams(self._process_id)

    def _note_hidden(self, now: int) -> None:
        """There was an exchange of which too little was seen."""
        if self._passive is not None:
            self._passive.lose(now, self._process_id)

    def _locate(self, exchange: Exchange) -> None:
        """Note where a request begins in its stream, and for which stream of HAProxy it is."""
        is_first = self._index == 0 and not self._has_missed
        # What came before the first was a PROXY header at most.
        exchange.position = 0 if is_first else self._first_request_offset
        if self._is_client:
            exchange.mark = self._first_mark
            if is_first:  # the connection was opened for it, or for a health check
                exchange.mark = self.connection.connecting
                exchange.connect_started_ns = self.connection.connect_started_ns
                self._is_shared = exchange.mark.state in _OUTSIDE_STREAMS
            exchange.tells_check = is_first or self._is_shared
            mark = exchange.mark
            if mark.state is _KNOWN:
                self._owner.begin(exchange)
                if not self._is_shared:
                    served, self._served = self._served, mark
                    self._is_shared = served is not NO_MARK and served[1:3] != mark[1:3]
            if self.meeting is not None:
                self._owner.send(self, exchange)
            if self.origin is not None or (
                not self._index and self._first_mark.state in _OUTSIDE_STREAMS
            ):
                self._owner.relay(self, exchange)

    def _on_request_end(self, event: MessageEnd, current: Exchange, now: int) -> None:
        current.end_request(event, now)
        self._current = None
        if current is self._late_request:
            self._late_request = None
            self._emit(current, Ending.COMPLETE, now)
        elif not current.in_order:
            self._emit(current, Ending.LOST, now)

    def _on_proxy_header(self, header: ProxyHeader) -> None:
        self._owner.forget_task(self)  # it reads such a line and nothing else
        if header.source_address:
            self.proxied_source = Peer(header.source_address, header.source_port)

    def _try_to_step_in(self) -> None:
        """Begin anew with a request that begins a turn while none waits for its answer."""
        if self._misses_request and self._just_answered:
            # A client that waits has the answer to the request that was lost, so that is
            # missing too.
            self._expects_gap = True
        if self._has_pipelined or self._expects_gap:
            return
        self._in_order = True
        if not self._responses.is_idle:
            # The client has its answer, so the parser is mistaken about its end: it may be
            # one to a HEAD request that was lost.
            self._responses = ResponseParser(joined_late=True)

    # Responses ------------------------------------------------------------------------

    def _on_response_event(
        self, event: HttpEvent | ParseError, now: int, *, loss: bool = False, closed: bool = False
    ) -> None:
        kind = type(event)
        exchange = self._pending[0] if self._pending else None
        if kind is ResponseHead:
            self._on_response_head(event, exchange, now)  # type: ignore[arg-type]
        elif kind is BodyData:
            if exchange is not None and exchange.response is not None:
                kept = exchange.add_response_body(
                    event,  # type: ignore[arg-type]
                    self._owner.limits.body_bytes,
                    self._owner.budget,
                )
                if kept > MANY_BYTES and exchange.judged < 2:
                    self._owner.judge(self, exchange)
        elif kind is MessageEnd:
            self._first_response_ns = now
            if not self._is_client:
                self._first_mark = self._last_mark
            if self._in_interim:
                self._in_interim = False
            elif exchange is not None and exchange.response is not None:
                self._on_response_end(event, exchange, now, loss=loss, closed=closed)  # type: ignore[arg-type]
        elif kind is TunnelStart:
            self._is_tunnel = True
            self._requests.start_tunnel()
            self._finish_all(Ending.UPGRADED, now)
        else:
            self._owner.parse_errors.value += 1
            self._lose_track(Ending.UNREADABLE, now)

    def _on_response_head(self, head: ResponseHead, exchange: Exchange | None, now: int) -> None:
        self._in_interim = head.is_interim
        if exchange is None:
            if not head.is_interim:
                self._owner.orphans.value += 1
                self._note_hidden(now)
                if self._just_answered:  # two answers in a row, so two requests in a row
                    self._has_pipelined = True
        elif head.is_interim:
            exchange.interim_statuses = (*exchange.interim_statuses[-7:], head.status)
        else:
            exchange.response = head
            exchange.response_start_ns = self._first_response_ns
            exchange.response_head_ns = now
            if not self._is_client:
                self._begin_answer(exchange, self._first_mark)
            if exchange.party is not None and self._passive is not None:
                if self._first_mark.state is StreamState.NOT_ASKED or self._is_client:
                    exchange.eligible_ns = max(exchange.request_head_ns, self._last_answer_ns)
                    self._passive.answer(exchange)
                else:
                    self._passive.withdraw(exchange)
                    self._end_passive()

    def _begin_answer(self, exchange: Exchange, mark: StreamMark) -> None:
        """Have what was asked for a client's request looked for, if HAProxy tells it."""
        if mark.state is _KNOWN:
            self._answer(exchange, mark, self._first_response_ns)
        elif mark.state is _OTHER and exchange.passage is None:
            self._owner.relay_back(self, exchange, mark)
        if exchange.passage is not None:
            self.is_relay = mark.state in _OUTSIDE_STREAMS
            exchange.passage.decide(is_certain=self.is_relay)

    def _on_response_end(
        self, event: MessageEnd, exchange: Exchange, now: int, *, loss: bool, closed: bool
    ) -> None:
        if event.ending is MessageEnding.COMPLETE:
            ending = _COMPLETE
            self._just_answered = True
        elif event.ending is MessageEnding.CLOSED:
            ending = self._failure or Ending.COMPLETE
        elif event.ending is MessageEnding.LOST:
            ending = Ending.LOST if loss else Ending.UNREADABLE
        else:
            ending = self._early_ending()
        # A stream that ended had its last byte some time before.
        exchange.end_response(event, min(now, self._last_data_ns) if closed else now)
        self._last_answer_ns = now
        self._pending.popleft()
        if _is_upgrade(exchange):
            ending = Ending.UPGRADED
        if ending is _COMPLETE and not exchange.is_request_over:
            self._late_request = exchange
        else:
            self._finish(exchange, ending, now)

    # Ends -----------------------------------------------------------------------------

    def _end_flow(self, flow: Flow, now: int) -> None:
        if self._is_tunnel:
            return
        if flow is self._request_flow:
            if not self._requests.is_idle and self._current is None:
                self._owner.cut_requests.value += 1
            self._requests.end()
            for item in self._requests.read(b""):
                self._on_request_event(item, now)
        else:
            self._responses.end()
            for item in self._responses.read(b""):
                self._on_response_event(item, now, closed=True)

    def _fail_connect(self, event: CloseEvent) -> None:
        """Make an exchange of an attempt that never got to ask, if HAProxy made it for somebody."""
        connection = self.connection
        if connection.connecting.state is StreamState.NOT_ASKED or self._index:
            return
        exchange = Exchange(
            0, _NOTHING_ASKED, connection.connect_started_ns, event.timestamp_ns,
            connection.process_id, 0, in_order=True,
        )  # fmt: skip
        self._index = 1
        exchange.mark = connection.connecting
        exchange.tells_check = True
        exchange.connect_started_ns = connection.connect_started_ns
        self._emit(exchange, Ending.CONNECT_FAILED, event.timestamp_ns)

    def _answer(self, exchange: Exchange, mark: StreamMark, now: int) -> None:
        exchange.mark = mark
        exchange.answered_by = self._answering_thread_id
        # What is answered next was read before, when requests are pipelined.
        exchange.eligible_ns = max(exchange.request_head_ns, self._last_answer_ns)
        self._owner.answer(self, exchange, now)

    def _close_unanswered(self, exchange: Exchange, mark: StreamMark, now: int) -> None:
        """HAProxy closes the connection before it began to answer a request."""
        last = self._last_mark
        is_of_last = mark.state is _KNOWN and (mark.address, mark.serial) == (
            last.address, last.serial,
        )  # fmt: skip
        if exchange.interim_statuses:
            is_of_last = False  # what it sent last was for this one
        if exchange.response is None and not is_of_last:  # else it has not looked at it
            self._answer(exchange, mark, now)

    def _note_failure(self, error: int) -> None:
        if error == _ETIMEDOUT:
            self._failure = self._failure or Ending.TIMED_OUT
        elif error in _RESET_ERRORS:
            self._failure = self._failure or Ending.RESET
            self._closer = self._closer or "remote"
        else:  # no error on the socket: the process dropped the connection itself
            self._closer = self._closer or "local"

    def _early_ending(self) -> Ending:
        """What to call the end of an exchange that the end of its connection cut short."""
        if self._failure is not None:
            return self._failure
        closed_by_server = (self._closer == "local") == (self.connection.role is Role.SERVER)
        return Ending.SERVER_CLOSED if closed_by_server else Ending.CLIENT_CLOSED

    def _lose_track(self, ending: Ending, now: int) -> None:
        """Let all unanswered requests go; nobody knows which response comes next."""
        self._finish_all(ending, now)
        self._in_order = False
        self._just_answered = False
        self._in_interim = False
        self._responses = ResponseParser(joined_late=True)

    def _finish_all(self, ending: Ending, now: int) -> None:
        late, self._late_request = self._late_request, None
        if late is not None:
            self._emit(late, Ending.COMPLETE, now)  # its response was
            self._current = None if self._current is late else self._current
        while self._pending:
            self._finish(self._pending.popleft(), ending, now)
        if self._current is not None:
            self._finish(self._current, ending, now)

    def _finish(self, exchange: Exchange, ending: Ending, now: int) -> None:
        if self._current is exchange:
            self._current = None
        self._emit(exchange, ending, now)

    def _emit(self, exchange: Exchange, ending: Ending, now: int) -> None:
        if ending in _LOSSES:
            self._note_hidden(now)
        self._owner.emit(self, exchange, ending, now)


def _is_upgrade(exchange: Exchange) -> bool:
    status = exchange.response.status if exchange.response else 0
    return status == 101 or (exchange.request.method == "CONNECT" and 200 <= status < 300)
