"""
Byte streams become transactions: requests with the responses that answer them.

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
from dataclasses import dataclass

from otel_qtap.connection.facts import Facts
from otel_qtap.connection.model import Peer
from otel_qtap.connection.tracker import Connection
from otel_qtap.counters import Counter, CounterSet
from otel_qtap.events import CloseEvent, CloseStep, DataEvent, Flow, Role
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
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.direction import direction_of
from otel_qtap.transaction.exchange import Exchange, MemoryBudget
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Ending, Timings, Transaction

__all__ = ["Assembler", "AssemblerLimits"]

_COMPLETE = Ending.COMPLETE  # looking up a member takes longer than comparing with it
_ETIMEDOUT = 110
_RESET_ERRORS = frozenset({32, 103, 104})  # EPIPE, ECONNABORTED, ECONNRESET


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblerLimits:
    """Bounds on what unfinished transactions may hold."""

    body_bytes: int = 2 * 1024 * 1024
    """Kept of each body (Qtap's ``--http-buffer-size``); 0 when no rule can ask for bodies."""
    memory_bytes: int = 128 * 1024 * 1024
    """Kept of all bodies together."""
    pipelined: int = 256
    """Requests that may wait for their answers on one connection."""


class Assembler:
    """Makes a conversation of each connection, and a transaction of each of its exchanges."""

    def __init__(
        self,
        consumer: Consumer,
        facts: Facts,
        counters: CounterSet,
        *,
        limits: AssemblerLimits,
        ids: IdGenerator,
        epoch_offset_ns: int,
    ) -> None:
        """``epoch_offset_ns`` turns the kernel's monotonic time into time since the epoch."""
        self.limits = limits
        self.epoch_offset_ns = epoch_offset_ns
        self._consume = consumer.consume
        self._facts = facts
        self._process_of = facts.process
        self._ids = ids

        def counter(name: str, unit: str, text: str) -> Counter:
            return counters.counter(f"otel_qtap.{name}", unit, text)

        self.budget = MemoryBudget(
            limits.memory_bytes,
            counter("assembler.body_bytes_refused", "By", "Body bytes not kept for want of memory"),
        )
        self.parse_errors = counter(
            "assembler.parse_errors", "{error}", "Places where a stream was not readable as HTTP"
        )
        self.orphans = counter(
            "assembler.orphan_responses", "{response}",
            "Responses whose request was not seen, so that no transaction was made",
        )  # fmt: skip
        self.cut_requests = counter(
            "assembler.incomplete_requests", "{request}",
            "Connections that ended, or lost bytes, in the middle of a request head",
        )  # fmt: skip
        self._transactions = {
            (role, ending): counters.counter(
                "otel_qtap.transactions", "{transaction}", "Transactions seen, captured or not",
                role=role.name.lower(), ending=ending.value,
            )
            for role in (Role.SERVER, Role.CLIENT)
            for ending in Ending
        }  # fmt: skip

    def open(self, connection: Connection) -> Conversation:
        """Return the reader of a new connection."""
        return Conversation(connection, self)

    def emit(self, talk: Conversation, exchange: Exchange, ending: Ending, end_ns: int) -> None:
        """Hand on a transaction that is over."""
        connection = talk.connection
        offset = self.epoch_offset_ns
        start_ns = exchange.request_start_ns + offset
        if ending is _COMPLETE:
            talk.completed.value += 1
        else:
            self._transactions[connection.role, ending].value += 1
        if not talk.xid:
            talk.xid = self._ids.new(connection.opened_ns + offset)
        process = self._process_of(exchange.process_id)
        connect_start_ns = connect_end_ns = 0
        if connection.role is Role.CLIENT:
            if not talk.remote_name:
                talk.remote_name = self._facts.name_of(
                    exchange.process_id, connection.remote.address
                )
            if exchange.index == 0 and connection.connect_started_ns:
                connect_start_ns = connection.connect_started_ns + offset
                connect_end_ns = connection.established_ns and connection.established_ns + offset
        # Written out, not by a function for each: this is the busiest place of the agent.
        request_end_ns, response_end_ns = exchange.request_end_ns, exchange.response_end_ns
        response_start_ns = exchange.response_start_ns
        transaction = Transaction(
            request_id=self._ids.new(start_ns),
            connection_id=talk.xid,
            index=exchange.index,
            direction=talk.direction,
            process=process,
            container=self._facts.container(process) if process.container_id else None,
            local=connection.local,
            remote=connection.remote,
            remote_name=talk.remote_name,
            request=exchange.finish_request(),
            response=None if exchange.response is None else exchange.finish_response(),
            timings=Timings(
                request_start_ns=start_ns,
                request_head_ns=exchange.request_head_ns + offset,
                request_end_ns=request_end_ns + offset if request_end_ns else 0,
                response_start_ns=response_start_ns + offset if response_start_ns else 0,
                response_head_ns=exchange.response_head_ns + offset if response_start_ns else 0,
                response_end_ns=response_end_ns + offset if response_end_ns else 0,
                end_ns=end_ns + offset,
                connect_start_ns=connect_start_ns,
                connect_end_ns=connect_end_ns,
            ),
            ending=ending,
            proxied_source=talk.proxied_source,
            joined_late=connection.joined_late,
            thread_id=exchange.thread_id,
        )
        if exchange.request_body is not None or exchange.response_body is not None:
            exchange.release(self.budget)
        self._consume(transaction)

    def completed(self, role: Role) -> Counter:
        """Return the counter of complete transactions."""
        return self._transactions[role, Ending.COMPLETE]


class Conversation:
    """The two streams of one HTTP/1 connection, read together."""

    __slots__ = (
        "_assembler",
        "_closer",
        "_current",
        "_expects_gap",
        "_failure",
        "_first_request_ns",
        "_first_response_ns",
        "_has_pipelined",
        "_in_interim",
        "_in_order",
        "_index",
        "_is_tunnel",
        "_is_turn",
        "_just_answered",
        "_last_data_ns",
        "_late_request",
        "_misses_request",
        "_pending",
        "_process_id",
        "_request_flow",
        "_requests",
        "_responses",
        "_thread_id",
        "completed",
        "connection",
        "direction",
        "proxied_source",
        "remote_name",
        "xid",
    )

    def __init__(self, connection: Connection, assembler: Assembler) -> None:
        self.connection = connection
        self.direction = direction_of(connection.role, connection.remote.address)
        self.xid = ""
        self.remote_name = ""
        self.proxied_source: Peer | None = None
        self.completed = assembler.completed(connection.role)
        self._assembler = assembler
        late = connection.joined_late
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
        self._has_pipelined = False
        """Whether the client was seen not to wait for an answer."""
        self._misses_request = False
        """The bytes lost last of the requests began one."""
        self._expects_gap = False
        """What the requests showed means that responses were lost, or else pipelining."""
        self._just_answered = False
        """No byte was sent to the server, as far as seen, since it completed an answer."""
        self._in_interim = False
        self._is_tunnel = False
        self._is_turn = False
        """Whether the request being read began a turn of the talk."""
        self._index = 0
        self._first_request_ns = 0
        self._first_response_ns = 0
        self._last_data_ns = 0
        self._process_id = connection.process_id
        self._thread_id = 0
        self._closer = ""  # "local" or "remote": who closed first
        self._failure: Ending | None = None

    # What the tracker tells -----------------------------------------------------------

    def stream_data(self, event: DataEvent) -> None:
        """Take the next bytes of one of the flows."""
        if self._is_tunnel:
            return
        _, now, process_id, thread_id, flow, _, _, turned, data = event
        self._last_data_ns = now
        if flow is self._request_flow:
            self._process_id = process_id
            self._thread_id = thread_id
            requests = self._requests
            if requests.is_idle:
                self._first_request_ns = now
                self._is_turn = turned
            for item in requests.read(data):
                self._on_request_event(item, now)
        else:
            responses = self._responses
            if responses.is_idle:
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
            requests = self._requests
            was_lost, was_idle = requests.is_lost, requests.is_idle
            requests.gap(size)
            for item in requests.read(b""):
                self._on_request_event(item, timestamp_ns)
            if requests.is_lost and not was_lost:
                self._in_order = False
                if not was_idle and self._current is None:
                    self._assembler.cut_requests.value += 1
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
        if step is CloseStep.RECEIVED_END:
            self._closer = self._closer or "remote"
            self._end_flow(Flow.RECEIVE, now)
        elif step is CloseStep.LOCAL_CLOSED:
            self._closer = self._closer or "local"
            self._end_flow(Flow.SEND, now)
        elif step is CloseStep.REMOTE_CLOSED:
            self._closer = self._closer or "remote"
        elif step in (CloseStep.RESET, CloseStep.CALL_FAILED):
            self._note_failure(event.error)
        elif step is CloseStep.DESTROYED:
            self._end_flow(Flow.RECEIVE, now)
            self._end_flow(Flow.SEND, now)
            self._finish_all(self._early_ending(), now)

    def give_up(self, timestamp_ns: int) -> None:
        """The agent will see no more of this connection."""
        self._finish_all(Ending.UNFINISHED, timestamp_ns)

    # Requests -------------------------------------------------------------------------

    def _on_request_event(self, event: HttpEvent | ParseError, now: int) -> None:
        kind = type(event)
        if kind is RequestHead:
            self._on_request_head(event, now)  # type: ignore[arg-type]
        elif kind is MessageEnd:
            self._first_request_ns = now  # of the next one, if it begins in the same bytes
            self._is_turn = False
            if self._current is not None:
                self._on_request_end(event, self._current, now)  # type: ignore[arg-type]
        elif kind is BodyData:
            if self._current is not None:
                self._current.add_request_body(
                    event,  # type: ignore[arg-type]
                    self._assembler.limits.body_bytes,
                    self._assembler.budget,
                )
        elif kind is ProxyHeader:
            self._on_proxy_header(event)  # type: ignore[arg-type]
        else:
            self._assembler.parse_errors.value += 1
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
        self._index += 1
        self._current = exchange
        if self._in_order:
            if len(pending) >= self._assembler.limits.pipelined:
                self._lose_track(Ending.UNFINISHED, now)
                return
            self._responses.expect(head.method)
            pending.append(exchange)

    def _on_request_end(self, event: MessageEnd, current: Exchange, now: int) -> None:
        current.end_request(event, now)
        self._current = None
        if current is self._late_request:
            self._late_request = None
            self._emit(current, Ending.COMPLETE, now)
        elif not current.in_order:
            self._emit(current, Ending.LOST, now)

    def _on_proxy_header(self, header: ProxyHeader) -> None:
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
                exchange.add_response_body(
                    event,  # type: ignore[arg-type]
                    self._assembler.limits.body_bytes,
                    self._assembler.budget,
                )
        elif kind is MessageEnd:
            self._first_response_ns = now
            if self._in_interim:
                self._in_interim = False
            elif exchange is not None and exchange.response is not None:
                self._on_response_end(event, exchange, now, loss=loss, closed=closed)  # type: ignore[arg-type]
        elif kind is TunnelStart:
            self._is_tunnel = True
            self._requests.start_tunnel()
            self._finish_all(Ending.UPGRADED, now)
        else:
            self._assembler.parse_errors.value += 1
            self._lose_track(Ending.UNREADABLE, now)

    def _on_response_head(self, head: ResponseHead, exchange: Exchange | None, now: int) -> None:
        self._in_interim = head.is_interim
        if exchange is None:
            if not head.is_interim:
                self._assembler.orphans.value += 1
                if self._just_answered:  # two answers in a row, so two requests in a row
                    self._has_pipelined = True
        elif head.is_interim:
            exchange.interim_statuses = (*exchange.interim_statuses[-7:], head.status)
        else:
            exchange.response = head
            exchange.response_start_ns = self._first_response_ns
            exchange.response_head_ns = now

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
                self._assembler.cut_requests.value += 1
            self._requests.end()
            for item in self._requests.read(b""):
                self._on_request_event(item, now)
        else:
            self._responses.end()
            for item in self._responses.read(b""):
                self._on_response_event(item, now, closed=True)

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
        self._assembler.emit(self, exchange, ending, now)


def _is_upgrade(exchange: Exchange) -> bool:
    status = exchange.response.status if exchange.response else 0
    return status == 101 or (exchange.request.method == "CONNECT" and 200 <= status < 300)
