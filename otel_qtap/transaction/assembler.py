"""
Exchanges become transactions: counted, named, and with their times since the epoch.

Of what is shared by all connections this is the one place; what concerns one of them is
in ``conversation.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from otel_qtap.connection.facts import Facts
from otel_qtap.connection.model import Peer
from otel_qtap.connection.tracker import Connection
from otel_qtap.counters import Counter, CounterSet
from otel_qtap.events import Role, StreamMark
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.conversation import Conversation
from otel_qtap.transaction.exchange import AssemblerLimits, Exchange, MemoryBudget
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.link import StreamKey
from otel_qtap.transaction.linker import Linker
from otel_qtap.transaction.model import Ending, Timings, Transaction
from otel_qtap.transaction.neighbours import Neighbours
from otel_qtap.transaction.passive import PassiveLinker
from otel_qtap.transaction.place import Place
from otel_qtap.transaction.relays import Relays, pass_on

__all__ = ["Assembler", "AssemblerLimits", "BodyPolicy"]

_COMPLETE = Ending.COMPLETE  # looking up a member takes longer than comparing with it


class BodyPolicy(Protocol):
    """Who knows what the plugins may ask for."""

    def wants_bodies(self, transaction: Transaction) -> bool:
        """
        Return whether anybody may ask for the bodies of ``transaction``, which is not over.

        It has come as far as the head of its request, or of its response if it has one.
        """


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
        bodies: BodyPolicy | None = None,
        links_by_evidence: bool = True,
    ) -> None:
        """
        ``epoch_offset_ns`` turns the kernel's monotonic time into time since the epoch.

        ``bodies`` is asked about long ones; without it all are kept up to the limits.
        ``links_by_evidence`` says whether to look for links where no process tells any.
        """
        self._links_by_evidence = links_by_evidence
        self._bodies = bodies
        self.limits = limits
        self.epoch_offset_ns = epoch_offset_ns
        self.linker = Linker(consumer, counters, self)
        self._telling: set[int] = set()
        """Processes that tell which stream they are working on."""
        self._serving: dict[int, set[Conversation]] = {}
        """Conversations with clients, by process."""
        self.neighbours = Neighbours(counters)
        self._relays: Relays[Conversation] = Relays()
        self._consume = self.linker.consume
        self.begin = self.linker.begin
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
        talk = Conversation(connection, self)
        talk.meeting = self.neighbours.join(connection)
        if connection.role is Role.SERVER:
            self.linker.serve(connection.process_id)
            self._serving.setdefault(connection.process_id, set()).add(talk)
            self._relays.join(talk)
        return talk

    # What the passive linker asks -------------------------------------------------------

    def passive_for(self, connection: Connection) -> PassiveLinker | None:
        """Return who looks for the links of a connection; nobody if streams tell them."""
        if connection.process_id in self._telling or not self._links_by_evidence:
            return None
        return self.linker.passive

    def note_streams(self, process_id: int) -> None:
        """A process tells its streams."""
        self._telling.add(process_id)

    def in_flight(self, process_id: int) -> list[tuple[Exchange, Connection, Peer]] | None:
        """Return the clients' requests that a process has at hand, with where they came from."""
        talks = self._serving.get(process_id)
        if talks is None:
            return None
        return [
            (exchange, talk.connection, talk.client)
            for talk in talks
            for exchange in talk.in_flight
        ]

    def shares_threads(self, process_id: int) -> bool:
        """Whether a process serves each request on the thread that read it: a HAProxy."""
        return "haproxy" in self._process_of(process_id).executable.rpartition("/")[2]

    def place_of(self, exchange: Exchange) -> Place:
        """Return the place of an exchange in flight."""
        return self._place_of(exchange)

    def forget_task(self, talk: Conversation) -> None:
        """What got the first bytes of a client will be used for others."""
        if talk.connection.role is Role.SERVER:
            self._relays.leave(talk)

    def leave(self, talk: Conversation) -> None:
        """Let go of a connection that is over."""
        if talk.connection.role is Role.CLIENT:
            self._relays.forget(talk)
        else:
            self._relays.leave(talk)
            self.linker.stop_serving(talk.connection.process_id)
            talks = self._serving.get(talk.connection.process_id, set())
            talks.discard(talk)
            if not talks:
                self._serving.pop(talk.connection.process_id, None)
                self._telling.discard(talk.connection.process_id)  # its number may be given anew
        if talk.meeting is not None:
            self.neighbours.leave(talk.connection, talk.meeting)
            talk.meeting = None

    def send(self, talk: Conversation, exchange: Exchange) -> None:
        """Note a request that another captured process may get."""
        meeting = talk.meeting
        # The other end is seen with the first request, if it is captured at all.
        if meeting is not None and (exchange.index < 2 or meeting.is_complete):
            meeting.send(exchange)

    def relay(self, talk: Conversation, exchange: Exchange) -> None:
        """Find the client's request that HAProxy passes on byte by byte."""
        if exchange.index == 0:
            talk.origin = self._relays.find(
                exchange.process_id, talk.connection.connecting, talk.sending
            )
            if talk.origin is None:
                self._relays.send(talk)
        if talk.origin is not None:
            self._pass_on(talk.origin, talk, exchange)

    def _pass_on(self, client: Conversation, server: Conversation, exchange: Exchange) -> None:
        asked = pass_on(exchange, client, server)
        if asked is not None:
            self._receive(client, asked, exchange.request_head_ns)
            self._place_of(asked)

    def relay_back(self, talk: Conversation, exchange: Exchange, mark: StreamMark) -> None:
        """Find the server whose answer HAProxy passes on byte by byte, and what it was sent."""
        server = self._relays.find_server(talk.connection.process_id, mark)
        if server is None:
            return
        connecting = server.connection.connecting
        key = StreamKey(talk.connection.process_id, connecting.address, connecting.serial)
        over = self.linker.sent_in(key)
        if over is None:
            return
        all_sent = [*over, *server.in_flight]
        if not any(_is_relayed(sent, exchange) for sent in all_sent):
            return
        self._relays.forget(server)
        server.origin = talk
        for sent in all_sent:
            if sent.passage is None:
                self._pass_on(talk, server, sent)
        self.linker.reconsider(key)

    def _receive(self, talk: Conversation, exchange: Exchange, now_ns: int) -> None:
        """Find the request that a neighbour sent, if that is captured as well."""
        meeting = talk.meeting
        if meeting is None or not meeting.is_complete:
            return
        place = self._place_of(exchange)
        if not place.is_received:
            place.is_received = True
            place.await_parent()
            meeting.receive(exchange.position, now_ns, partial(self._belong, place))

    def _meet(self, talk: Conversation, exchange: Exchange, now_ns: int) -> None:
        """
        Give an exchange with a neighbour its place at the latest now.

        What one end received may be told before what the other end sent: they run on
        different processors. So the neighbour may not have answered yet, by what is known.
        """
        if talk.connection.role is Role.SERVER:
            self._receive(talk, exchange, now_ns)
        elif exchange.place is None and talk.meeting is not None and talk.meeting.is_complete:
            self._place_of(exchange).await_parent()  # the linker settles it

    def _belong(self, place: Place, sent: Exchange | None) -> None:
        if sent is None or (sent.place is None and sent.is_emitted):
            place.settle()
            return
        parent = sent.place
        if parent is None:
            parent = self._place_of(sent)
            parent.await_parent()  # until the linker knows what it was sent for
        elif parent.waits_for(place):
            place.settle()  # the linker has it the other way round: nobody may wait for himself
            return
        place.parent = place.awaited = parent
        parent.when_settled(partial(place.settle, parent))

    def _place_of(self, exchange: Exchange) -> Place:
        if exchange.place is None:
            request_id = self._ids.new(exchange.request_start_ns + self.epoch_offset_ns)
            exchange.place = Place(request_id, exchange.request)
        return exchange.place

    def answer(self, talk: Conversation, exchange: Exchange, timestamp_ns: int) -> None:
        """Give an exchange its place, because HAProxy begins to answer it."""
        self._receive(talk, exchange, timestamp_ns)
        mark = exchange.mark
        place = self._place_of(exchange)
        if place.key is not None:
            return
        place.process_id, place.task = exchange.process_id, mark.task
        if mark.address:
            place.key = StreamKey(exchange.process_id, mark.address, mark.serial)
        place.response = exchange.response
        place.thread_id = exchange.answered_by
        place.eligible_ns = place.accepted_ns = exchange.eligible_ns
        if exchange.index == 0 and talk.connection.established_ns:
            place.accepted_ns = talk.connection.established_ns
        place.answered_ns = timestamp_ns
        self.linker.answer(place)

    def judge(self, talk: Conversation, exchange: Exchange) -> None:
        """Let go of the bodies of an exchange if nobody can want them any more."""
        exchange.judged = 1 if exchange.response is None else 2
        if self._bodies is not None and not self._bodies.wants_bodies(
            self._unfinished(talk, exchange)
        ):
            exchange.drop_bodies(self.budget)

    def _unfinished(self, talk: Conversation, exchange: Exchange) -> Transaction:
        """Return an exchange as far as it has come."""
        connection = talk.connection
        process_id, start_ns = exchange.process_id, exchange.request_start_ns + self.epoch_offset_ns
        process = self._process_of(process_id)
        if connection.role is Role.CLIENT and not talk.remote_name:
            talk.remote_name = self._facts.name_of(process_id, connection.remote.address)
        return Transaction(
            request_id="",
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
            timings=Timings(request_start_ns=start_ns),
            ending=Ending.UNFINISHED,
            proxied_source=talk.proxied_source,
            joined_late=connection.joined_late,
        )

    def emit(self, talk: Conversation, exchange: Exchange, ending: Ending, end_ns: int) -> None:
        """Hand on a transaction that is over."""
        connection = talk.connection
        exchange.is_emitted = True
        if exchange.passage is not None and connection.role is Role.SERVER:
            exchange.passage.decide(is_certain=talk.is_relay)  # unless it was answered before
        if talk.meeting is not None:
            self._meet(talk, exchange, end_ns)
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
            request_id=(
                self._ids.new(start_ns) if exchange.place is None else exchange.place.request_id
            ),
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
        self._consume(transaction, exchange, connection.role)

    def completed(self, role: Role) -> Counter:
        """Return the counter of complete transactions."""
        return self._transactions[role, Ending.COMPLETE]


def _is_relayed(sent: Exchange, asked: Exchange) -> bool:
    """Whether a server was asked and has answered what a client was, both of equal place."""
    return (sent.index, sent.request, sent.response) == (
        asked.index, asked.request, asked.response,
    )  # fmt: skip
