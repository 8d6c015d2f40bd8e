"""
Which backend requests a proxy sent for which client request.

The assembler says when a proxy begins to answer a client (``answer``) and when an exchange
is over (``consume``). HAProxy handles each client request in one stream, and the kernel
side has marked the events with the stream that was being processed: what it opened and sent
to backends, and what it answered, belong together if they carry the same mark. Order, time
and thread are never evidence; they are checks, and what violates one is not linked.

A transaction goes on as soon as its place is known: a backend attempt when its client is
being answered, which nearly always is before it is over.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial

from otel_qtap.counters import Counter as EventCounter
from otel_qtap.counters import CounterSet
from otel_qtap.events import Role, StreamState
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.exchange import Exchange
from otel_qtap.transaction.hop import hop_of, may_be_connecting
from otel_qtap.transaction.link import LinkMethod, StreamKey
from otel_qtap.transaction.model import Ending, Request, Transaction
from otel_qtap.transaction.passive import PassiveLinker, PassiveSource
from otel_qtap.transaction.place import Place
from otel_qtap.transaction.relays import Passage

__all__ = ["Linker"]

_KNOWN = StreamState.KNOWN
_CLIENT_CLOSED, _CONNECT_FAILED = Ending.CLIENT_CLOSED, Ending.CONNECT_FAILED
_PLACES = 65536
_WAITING = 16384
_GIVEN_UP = 1024
_DISTRUSTED = 1024
_BLIND_NS = 60_000_000_000
_LONGEST_WAIT_NS = 60_000_000_000
_REFUSED = 4096
_LAST_CONNECT_NS = 100_000_000
_KEPT_AT_ADDRESS = 4  # a request can outlast its answer, while its stream is used again


class _Waiting:
    """A backend attempt whose client has not been answered yet."""

    __slots__ = ("exchange", "key", "since_ns", "transaction")

    def __init__(
        self, key: StreamKey, transaction: Transaction, exchange: Exchange, since_ns: int
    ) -> None:
        self.key = key
        self.transaction = transaction
        self.exchange = exchange
        self.since_ns = since_ns


class Linker:
    """Puts transactions into their places and hands them on."""

    def __init__(self, consumer: Consumer, counters: CounterSet, source: PassiveSource) -> None:
        self._consume = consumer.consume
        self.passive = PassiveLinker(self, source, counters)
        self.on_failed_check: Callable[[Transaction], None] = lambda _: None
        """Told of health checks that got no connection: they are no transactions."""
        self.on_violation: Callable[[int, str, int], None] = lambda *_: None
        """
        Told of marks that contradict each other: process, check, time of the older of them.

        Not of those that something lost would explain. Comes while a transaction is being
        passed on.
        """
        self._distrusted: dict[int, int] = {}
        """By process: up to when its marks are worth nothing."""
        self._places: OrderedDict[tuple[int, int], list[Place]] = OrderedDict()
        """By process and address of the stream: those with the newest numbers, oldest first."""
        self._given_up: OrderedDict[tuple[int, int], list[Place]] = OrderedDict()
        """By process and task: clients that got no answer, oldest first."""
        self._in_flight: dict[StreamKey, list[Exchange]] = {}
        """
        Requests to backends that are not over, of clients that are not answered.

        One may be told to be over long after its client was answered, when many other streams
        have been at the same address.
        """
        self._waiting: dict[tuple[int, int], list[_Waiting]] = {}
        self._waiting_count = 0
        self._refused: deque[tuple[int, Transaction, Exchange, Place]] = deque()
        """Clients' requests that HAProxy found no server for, with when it said so."""
        self._blind_until_ns = 0
        self._clients: Counter[int] = Counter()
        """Captured connections of clients, by process: without any there is no answer to await."""

        def counter(name: str, unit: str, text: str, **labels: str) -> EventCounter:
            return counters.counter(f"otel_qtap.link.{name}", unit, text, **labels)

        self._linked = counter(
            "linked", "{transaction}", "Transactions linked to what caused them, by the evidence",
            method=LinkMethod.STREAM.value,
        )  # fmt: skip
        self._linked_neighbours = counter(
            "linked", "{transaction}", "Transactions linked to what caused them, by the evidence",
            method=LinkMethod.CONNECTION.value,
        )  # fmt: skip
        self._unlinked = {
            reason: counter(
                "unlinked", "{transaction}",
                "Backend attempts of HAProxy without a client's request, by reason", reason=reason,
            )
            for reason in (
                "no_stream", "unreadable", "unanswered", "expired", "overflow", "violation",
                "not_captured",
            )
        }  # fmt: skip
        self._violations = {
            check: counter(
                "violations", "{violation}",
                "Evidence that contradicted itself, so that no link was made", check=check,
            )
            for check in ("thread", "eligible", "answered", "two_clients", "circular")
        }  # fmt: skip
        self._health_checks = counter(
            "health_checks", "{transaction}", "Health checks that HAProxy sent over HTTP"
        )
        counters.gauge(
            "otel_qtap.link.waiting", "{transaction}",
            "Backend attempts whose client has not been answered yet",
            lambda: self._waiting_count,
        )  # fmt: skip

    # What the assembler tells -----------------------------------------------------------

    def lose(self, timestamp_ns: int) -> None:
        """Something is missing: for a while, what was not seen is no evidence."""
        self._blind_until_ns = timestamp_ns + _BLIND_NS
        self.passive.lose(timestamp_ns)

    def distrust(self, process_id: int, before_ns: int) -> None:
        """The marks that a process had until then are worth nothing: link nothing by them."""
        self._distrusted[process_id] = before_ns
        while len(self._distrusted) > _DISTRUSTED:
            del self._distrusted[next(iter(self._distrusted))]
        for at in [at for at in self._waiting if at[0] == process_id]:
            for each in self._keep(at, []):
                self._let_go(each, "violation")
        for table in (self._places, self._given_up):
            for at in [at for at in table if at[0] == process_id]:
                del table[at]

    def serve(self, process_id: int) -> None:
        """A client's connection to the process is captured from now on."""
        self._clients[process_id] += 1

    def stop_serving(self, process_id: int) -> None:
        """A client's connection to the process is over."""
        self._clients[process_id] -= 1
        if self._clients[process_id] > 0:
            return
        del self._clients[process_id]
        if self._waiting_count:
            for at in [at for at in self._waiting if at[0] == process_id]:
                for each in self._keep(at, []):
                    self._let_go(each, "unanswered")

    def begin(self, exchange: Exchange) -> None:
        """A request to a backend begins in a stream that is known."""
        mark = exchange.mark
        key = exchange.key = StreamKey(exchange.process_id, mark.address, mark.serial)
        self._in_flight.setdefault(key, []).append(exchange)

    def answer(self, place: Place) -> None:
        """The process begins to answer the request of ``place``, or gives its client up."""
        key = place.key
        if key is None:
            self._give_up(place)
            return
        at = (key.process_id, key.address)
        known = self._places.get(at)
        if known is None:
            known = self._places[at] = []
            if len(self._places) > _PLACES:
                self._places.popitem(last=False)
        else:
            self._places.move_to_end(at)
            for other in known:
                if other.key == key:
                    other.is_void = place.is_void = True
                    self._violated("two_clients", place, other.answered_ns)
        known.append(place)
        if len(known) > _KEPT_AT_ADDRESS:
            del known[0]
        asking = self._in_flight.pop(key, None)
        if asking is not None:
            place.asking = asking
            for exchange in asking:
                exchange.asked_by = place
        if at in self._waiting:
            self._answer_waiting(at, place)

    def consume(self, transaction: Transaction, exchange: Exchange, role: Role) -> None:
        """Take a transaction that is over."""
        if role is Role.CLIENT:
            self._consume_sent(transaction, exchange)
            return
        if exchange.party is not None:
            self.passive.observe(transaction, exchange)
        place = exchange.place
        if place is None:
            self._consume(transaction)
        elif place.is_settled:
            self._finish_server(transaction, exchange, place)
        else:
            place.waiting.append(partial(self._finish_server, transaction, exchange, place))

    def _consume_sent(self, transaction: Transaction, exchange: Exchange) -> None:
        key = exchange.key
        if key is not None and exchange.asked_by is None:
            in_flight = self._in_flight[key]
            in_flight.remove(exchange)
            if not in_flight:
                del self._in_flight[key]
        if exchange.passage is None:
            self._consume_marked(transaction, exchange)
        else:
            self._consume_passed(transaction, exchange, exchange.passage)

    def _consume_passed(
        self, transaction: Transaction, exchange: Exchange, passage: Passage
    ) -> None:
        place = passage.asked.place
        assert place is not None  # noqa: S101 - for the type checker

        def proceed(is_certain: bool) -> None:
            if not is_certain:
                self._consume_marked(transaction, exchange)
                return
            if exchange.key is not None:  # the stream tried other servers before, likely
                for each in self._take_waiting(exchange.key):
                    self._attach(each.transaction, each.exchange, place)
            self._attach(transaction, exchange, place)

        passage.when_decided(proceed)

    def sent_in(self, key: StreamKey) -> list[Exchange] | None:
        """
        Return the requests that were sent in a stream and are over, but nobody's yet.

        ``None`` if a client was answered in it: then they are, or will be, that client's.
        """
        if self._find(key) is not None:
            return None
        waiting = self._waiting.get((key.process_id, key.address), ())
        return [each.exchange for each in waiting if each.key == key]

    def reconsider(self, key: StreamKey) -> None:
        """Think again about what waits: whose request it is has come out in another way."""
        for each in self._take_waiting(key, is_passed=True):
            assert each.exchange.passage is not None  # noqa: S101 - for the type checker
            self._consume_passed(each.transaction, each.exchange, each.exchange.passage)

    def _consume_marked(self, transaction: Transaction, exchange: Exchange) -> None:
        mark = exchange.mark
        state = mark.state
        if state is _KNOWN:
            key = exchange.key or StreamKey(exchange.process_id, mark.address, mark.serial)
            transaction.stream = key  # type: ignore[misc]  # nobody has seen it yet
            if self._distrusted and exchange.begin_ns < self._distrusted.get(key.process_id, 0):
                self._unlinked["violation"].value += 1
                self._pass_unlinked(transaction, exchange)
                return
            place = exchange.asked_by or self._find(key)
            if place is None and self._given_up:
                place = self._find_given_up(exchange, key)
            if place is not None:
                self._link(transaction, exchange, place)
            elif exchange.process_id in self._clients or transaction.ending is _CONNECT_FAILED:
                self._wait(key, transaction, exchange)  # in mode tcp a client may be silent so far
            else:  # nobody sees what it was sent for
                self._unlinked["not_captured"].value += 1
                self._pass_unlinked(transaction, exchange)
        elif state is StreamState.NOT_ASKED:
            self.passive.consume(transaction, exchange)
        else:
            self._pass_on(transaction, exchange, state)

    def tick(self, now_ns: int) -> None:
        """Let go of those that have waited too long; called about once a second."""
        for at, waiting in list(self._waiting.items()):
            if waiting and now_ns - waiting[0].since_ns > _LONGEST_WAIT_NS:
                expired = [w for w in waiting if now_ns - w.since_ns > _LONGEST_WAIT_NS]
                self._keep(at, [w for w in waiting if now_ns - w.since_ns <= _LONGEST_WAIT_NS])
                for each in expired:
                    self._let_go(each, "expired")
        while self._refused and now_ns - self._refused[0][0] > _LAST_CONNECT_NS:
            self._finish_refused()
        self.passive.tick(now_ns)

    def close(self) -> None:
        """Let everything go that waits, because nothing will follow."""
        while self._refused:
            self._finish_refused()
        for at in list(self._waiting):
            for each in self._keep(at, []):
                self._let_go(each, "unanswered")
        self.passive.close()

    # What the passive linker tells ------------------------------------------------------

    def adopt(
        self, transaction: Transaction, exchange: Exchange, place: Place, method: LinkMethod
    ) -> None:
        """Pass on a request to a backend as sent for the client's request of ``place``."""
        is_first_sent = place.send(exchange.request, exchange.place)
        self._put_under(place, transaction, exchange, is_first_sent, method)

    def release(self, transaction: Transaction, exchange: Exchange) -> None:
        """Pass on a request to a backend as it is."""
        self._pass_unlinked(transaction, exchange)

    # Streams ----------------------------------------------------------------------------

    def _find(self, key: StreamKey) -> Place | None:
        for place in self._places.get((key.process_id, key.address), ()):
            if place.key == key:
                return place
        return None

    # A client that is given up without an answer: HAProxy frees the stream, and has taken it
    # from its task before it closes the connection. A task belongs to one stream at a time, so
    # what it sent to backends between the client's request and that moment was for the client.

    def _give_up(self, place: Place) -> None:
        owner = (place.process_id, place.task)
        places = self._given_up.setdefault(owner, [])
        places.append(place)
        self._given_up.move_to_end(owner)
        if len(self._given_up) > _GIVEN_UP:
            self._given_up.popitem(last=False)
        for at, waiting in list(self._waiting.items()):
            if at[0] != place.process_id:
                continue
            found = [each for each in waiting if self._owner_of(each.exchange, each.key) is place]
            if found:
                self._keep(at, [each for each in waiting if each not in found])
                for each in found:
                    self._adopt(place, each.key)
                    self._link(each.transaction, each.exchange, place)

    def _find_given_up(self, exchange: Exchange, key: StreamKey) -> Place | None:
        place = self._owner_of(exchange, key)
        if place is not None:
            self._adopt(place, key)
        return place

    def _owner_of(self, exchange: Exchange, key: StreamKey) -> Place | None:
        """Return the one client given up by the task for which a request can have been sent."""
        if exchange.request_head_ns < self._blind_until_ns:
            return None  # the client that it was for may be among what was lost
        places = self._given_up.get((exchange.process_id, exchange.mark.task), ())
        begin_ns = exchange.connect_started_ns or exchange.request_start_ns
        found = [
            place
            for place in places
            if place.key in (None, key) and place.eligible_ns <= begin_ns <= place.answered_ns
        ]
        return found[0] if len(found) == 1 else None

    def _adopt(self, place: Place, key: StreamKey) -> None:
        if place.key is None:
            place.key = key

    def _wait(self, key: StreamKey, transaction: Transaction, exchange: Exchange) -> None:
        timings = transaction.timings
        since_ns = timings.end_ns - exchange.offset_ns(timings)
        waiting = _Waiting(key, transaction, exchange, since_ns)
        if self._waiting_count >= _WAITING:
            self._let_go(waiting, "overflow")
            return
        self._waiting.setdefault((key.process_id, key.address), []).append(waiting)
        self._waiting_count += 1

    def _take_waiting(self, key: StreamKey, *, is_passed: bool = False) -> list[_Waiting]:
        """Return what waits for the answer of a stream, and does no more."""
        at = (key.process_id, key.address)
        waiting = self._waiting.get(at, ())
        found = [
            w for w in waiting if w.key == key and is_passed == (w.exchange.passage is not None)
        ]
        if found:
            self._keep(at, [w for w in waiting if w not in found])
        return found

    def _keep(self, at: tuple[int, int], kept: list[_Waiting]) -> list[_Waiting]:
        """Put ``kept`` in place of those that wait, and return the latter."""
        before = self._waiting.pop(at, [])
        if kept:
            self._waiting[at] = kept
        self._waiting_count += len(kept) - len(before)
        return before

    def _answer_waiting(self, at: tuple[int, int], place: Place) -> None:
        key = place.key
        assert key is not None  # noqa: S101 - for the type checker
        newer = []
        for each in self._keep(at, []):
            if each.key == key:
                self._link(each.transaction, each.exchange, place)
            elif _is_older(each.key.serial, key.serial):
                self._let_go(each, "unanswered")  # its stream is over: there is one at an address
            else:
                newer.append(each)
        if newer:
            self._keep(at, newer)

    def _link(self, transaction: Transaction, exchange: Exchange, place: Place) -> None:
        violated = place.contradiction(exchange)
        if violated or place.is_void:
            if violated:
                self._violated(violated, place, exchange.begin_ns)
            self._unlinked["violation"].value += 1
            self._pass_unlinked(transaction, exchange)
            return
        self._attach(transaction, exchange, place)

    def _attach(self, transaction: Transaction, exchange: Exchange, place: Place) -> None:
        """Make an attempt one of those for the request of ``place``, and pass it on."""
        if exchange.place is not None and place.waits_for(exchange.place):
            self._violations["circular"].value += 1
            self._unlinked["violation"].value += 1
            self._pass_unlinked(transaction, exchange)
            return
        timings = transaction.timings
        begin_ns = timings.connect_start_ns or timings.request_start_ns
        place.spent.append((begin_ns, timings.response_end_ns or timings.end_ns))
        transaction.resend_count = place.attempts  # type: ignore[misc]
        place.attempts += 1
        self._linked.value += 1
        has_sent = transaction.ending is not _CONNECT_FAILED
        is_first = has_sent and place.send(exchange.request, exchange.place)
        self._put_under(place, transaction, exchange, is_first, LinkMethod.STREAM)

    def _put_under(
        self,
        place: Place,
        transaction: Transaction,
        exchange: Exchange,
        is_first_sent: bool,
        method: LinkMethod,
    ) -> None:
        """Pass on an attempt for the request of ``place``, once that has a place itself."""
        if exchange.place is not None:
            exchange.place.awaited = place
        place.when_settled(
            partial(self._finish_client, transaction, exchange, place, is_first_sent, method)
        )

    def _violated(self, check: str, place: Place, seen_ns: int) -> None:
        self._violations[check].value += 1
        if place.answered_ns >= self._blind_until_ns:
            self.on_violation(place.process_id, check, min(seen_ns, place.answered_ns))

    def _finish_client(
        self,
        transaction: Transaction,
        exchange: Exchange,
        place: Place,
        is_first_sent: bool,
        method: LinkMethod,
    ) -> None:
        transaction.link = place.link(  # type: ignore[misc]
            method, is_first_sent=is_first_sent
        )
        if transaction.ending is _CLIENT_CLOSED and transaction.response is None:
            end_ns = transaction.timings.end_ns - exchange.offset_ns(transaction.timings)
            transaction.was_given_up = place.has_given_up(end_ns)  # type: ignore[misc]
        if transaction.ending is _CONNECT_FAILED:
            asked = place.request  # what it would have been asked
            transaction.request = Request(  # type: ignore[misc]
                method=asked.method, target=asked.target, version=asked.version
            )
        else:
            transaction.hop_headers = place.compared_with(  # type: ignore[misc]
                exchange.request, exchange.response
            )
        if exchange.place is not None:
            exchange.place.is_first_sent = is_first_sent
            exchange.place.settle(place)
        self._consume(transaction)

    def _finish_server(self, transaction: Transaction, exchange: Exchange, place: Place) -> None:
        if place.parent is not None:
            transaction.link = place.parent.link(LinkMethod.CONNECTION)  # type: ignore[misc]
            self._linked_neighbours.value += 1
        transaction.begun = place.lineage[0].begun  # type: ignore[misc]
        if place.key is not None:
            transaction.stream = place.key  # type: ignore[misc]
        if place.key is not None or place.spent:
            hop = transaction.hop = hop_of(  # type: ignore[misc]
                transaction.timings, exchange, place
            )
            if may_be_connecting(transaction, hop) and len(self._refused) < _REFUSED:
                self._refused.append((place.answered_ns, transaction, exchange, place))
                return
            place.asking = ()  # a place outlives its exchanges by far
        self._consume(transaction)

    def _finish_refused(self) -> None:
        """Pass on one that waited for HAProxy's last attempt to connect to a server."""
        _, transaction, exchange, place = self._refused.popleft()
        transaction.hop = hop_of(transaction.timings, exchange, place)  # type: ignore[misc]
        place.asking = ()
        self._consume(transaction)

    def _let_go(self, waiting: _Waiting, reason: str) -> None:
        self._unlinked[reason].value += 1
        self._pass_unlinked(waiting.transaction, waiting.exchange)

    def _pass_on(self, transaction: Transaction, exchange: Exchange, state: StreamState) -> None:
        """Pass on what HAProxy, or another program, sent outside of any stream."""
        if state is StreamState.UNREADABLE:
            self._unlinked["unreadable"].value += 1
        elif state is not StreamState.NOT_ASKED:
            if exchange.tells_check:
                transaction.is_health_check = True  # type: ignore[misc]
                self._health_checks.value += 1
            else:
                self._unlinked["no_stream"].value += 1
        self._pass_unlinked(transaction, exchange)

    def _pass_unlinked(self, transaction: Transaction, exchange: Exchange) -> None:
        if exchange.place is not None:
            exchange.place.settle()
            transaction.begun = exchange.place.lineage[0].begun  # type: ignore[misc]
        if transaction.ending is not _CONNECT_FAILED:  # else nobody knows what it was for
            self._consume(transaction)
        elif transaction.is_health_check:
            self.on_failed_check(transaction)


def _is_older(serial: int, other: int) -> bool:
    """Whether a number was given before another; they wrap at 2^32."""
    return 0 < (other - serial) & 0xFFFFFFFF < 0x80000000
