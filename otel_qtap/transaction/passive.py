"""
Links where no stream is known: what the traffic itself leaves no doubt about.

Two kinds of evidence count. A value that names one request was the same on both sides, and
no other client's request had it (``LinkMethod.HEADER``). Or the answer can only have been
passed on (``LinkMethod.RESPONSE``): one client was answered with these bytes, one backend had
sent them, and no other of either side is in question. Who is in question is decided by what
cannot be otherwise: a request is read before it is passed on, an answer received before it is
given. Whatever is not known counts as possible: an answer yet to come (the decision waits for
it), a client that went away, an answer of which too little was seen, and after a loss all
that was under way in the process. Where two can be meant, neither is chosen.

Small answers are alike everywhere. One that was met before, or has less than 32 bytes, counts
only if the request had been passed on unchanged as well, and if it is no error, which proxies
make up by themselves. And no answer counts to a request that the process makes of its own
accord too: a client may be answered out of what it keeps.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Protocol

from otel_qtap.connection.model import Peer
from otel_qtap.connection.tracker import Connection
from otel_qtap.counters import CounterSet
from otel_qtap.events import Role
from otel_qtap.transaction.evidence import BodyStart, form_of, identities, line_of, path_of
from otel_qtap.transaction.exchange import Exchange
from otel_qtap.transaction.link import LinkMethod
from otel_qtap.transaction.model import Ending, Transaction
from otel_qtap.transaction.own import OwnRequests
from otel_qtap.transaction.parties import History, Party
from otel_qtap.transaction.place import Place
from otel_qtap.transaction.proof import (
    FIRST_ERROR,
    is_answered_alike,
    is_rare,
    is_telling,
    is_twin,
    known_caller_of,
    twin_of,
)

__all__ = ["PassiveLinker", "PassiveOwner", "PassiveSource"]

_ANSWERED = (Ending.COMPLETE, Ending.UPGRADED)
_OVER = (*_ANSWERED, Ending.LOST)  # what was lost is noticed when something follows it
_CANDIDATES = 8
_PROCESSES = 4096
_EARLIER = 128
_IN_FLIGHT = 16384
_HELD = 4096
_HELD_BYTES = 32 * 1024 * 1024
_LONGEST_WAIT_NS = 10_000_000_000
_REMEMBERED_NS = 30_000_000_000
_BLIND_NS = 60_000_000_000


class PassiveSource(Protocol):
    """Who knows processes and the exchanges in flight: the ``Assembler``."""

    def place_of(self, exchange: Exchange) -> Place:
        """Return the place of an exchange in flight."""

    def shares_threads(self, process_id: int) -> bool:
        """Whether a process serves each request on the thread that read it: a HAProxy."""

    def in_flight(self, process_id: int) -> list[tuple[Exchange, Connection, Peer]] | None:
        """
        Return the clients' requests that a process has at hand, with where they came from.

        The connection and the client; ``None`` if there is no connection to any client.
        """


class PassiveOwner(Protocol):
    """Who passes transactions on: the ``Linker``."""

    def adopt(
        self, transaction: Transaction, exchange: Exchange, place: Place, method: LinkMethod
    ) -> None:
        """Pass on a request to a backend as sent for the client's request of ``place``."""

    def release(self, transaction: Transaction, exchange: Exchange) -> None:
        """Pass on a request to a backend as it is."""


class PassiveLinker:
    """Finds what requests to backends were sent for, or holds back until nothing can tell."""

    def __init__(self, owner: PassiveOwner, source: PassiveSource, counters: CounterSet) -> None:
        self._owner = owner
        self._source = source
        self._histories: dict[int, History] = {}
        self._own: OrderedDict[int, OwnRequests] = OrderedDict()
        """Kept for longer than the histories; by process, who asked last at the end."""
        self._earlier: OrderedDict[int, deque[tuple[int, int, tuple[int, ...]]]] = OrderedDict()
        """Begin, line and identities of clients' requests while there was no history."""
        self._in_flight = 0
        self._blind_ns = 0
        self._held: dict[Party, int] = {}
        """Requests to backends that are not decided, in order of their ends; body bytes."""
        self._held_bytes = 0
        self._linked = {
            method: counters.counter(
                "otel_qtap.link.linked", "{transaction}",
                "Transactions linked to what caused them, by the evidence", method=method.value,
            )
            for method in (LinkMethod.HEADER, LinkMethod.RESPONSE)
        }  # fmt: skip
        self._undecided = {
            reason: counters.counter(
                "otel_qtap.link.undecided", "{transaction}",
                "Requests to backends of which the traffic did not tell what they were for",
                reason=reason,
            )
            for reason in (
                "ambiguous", "circular", "commonplace", "expired", "incomplete", "no_parent",
                "overflow",
            )
        }  # fmt: skip
        counters.gauge(
            "otel_qtap.link.held", "{transaction}",
            "Requests to backends that wait until it is known what they were for",
            lambda: len(self._held),
        )  # fmt: skip

    # What the conversations tell --------------------------------------------------------

    def begin(self, exchange: Exchange, connection: Connection, peer: Peer | None) -> None:
        """
        Take note of a request whose head has been seen; it must be told when it is over.

        ``peer`` is the client: the remote end, or whom a PROXY line names; of a request to a
        backend only the latter.
        """
        history = self._histories.get(exchange.process_id)
        if connection.role is Role.SERVER:
            if history is not None:
                self._begin(history, exchange, connection, peer)
            else:  # it has not asked anybody: there is nothing to find
                self._note_early(exchange)
            return
        if history is None:
            history = self._begin_history(exchange.process_id)
            if history is None:
                self._note_own(exchange)
                return
        if exchange.request_start_ns > max(self._blind_ns, history.blind_ns):
            head = exchange.request
            history.note_sent(path_of(head), form_of(head), exchange.request_start_ns)
        if history.group(exchange.thread_id).has_clients_waiting:
            self._begin(history, exchange, connection, peer)
        else:
            history.sent.meet(line_of(exchange.request), None)

    def answer(self, exchange: Exchange) -> None:
        """The final response of an exchange begins."""
        party = exchange.party
        assert party is not None  # noqa: S101 - for the type checker
        exchange.body_start = party.body = BodyStart()
        if exchange.response is not None:
            party.status = exchange.response.status
        party.eligible_ns = exchange.eligible_ns
        party.group.answer(party, exchange.response_start_ns)
        if party.waiters:
            self._wake(party)

    def withdraw(self, exchange: Exchange) -> None:
        """The process turned out to tell its streams: nothing has to be found out."""
        party, exchange.party, exchange.body_start = exchange.party, None, None
        if party is not None:
            self._in_flight -= 1
            party.group.leave(party)
            if party.is_server:
                party.group.history.stop_waiting(party)
            party.end_ns = party.start_ns
            party.exchange = None
            self._wake(party)

    def lose(self, timestamp_ns: int, process_id: int | None = None) -> None:
        """Until now that process, or any, may have had exchanges that nobody saw."""
        if process_id is None:
            self._blind_ns = max(self._blind_ns, timestamp_ns)
        elif process_id in self._histories:
            history = self._histories[process_id]
            history.blind_ns = max(history.blind_ns, timestamp_ns)

    # What the linker tells --------------------------------------------------------------

    def observe(self, transaction: Transaction, exchange: Exchange) -> None:
        """A client's request is over; the owner passes it on."""
        party = exchange.party
        if party is None:
            return
        self._end(party, transaction, exchange)
        party.is_gone = transaction.ending not in _OVER
        if not party.is_gone:
            party.group.history.stop_waiting(party)
        party.request_id = transaction.request_id
        party.response = exchange.response
        if exchange.place is not None:
            party.place = exchange.place
            party.place.response = exchange.response
        if party.key is not None:
            party.group.history.served.meet(party.key, party)
        party.group.keep(party)
        if party.waiters:
            self._wake(party)
        party.exchange = None

    def consume(self, transaction: Transaction, exchange: Exchange) -> None:
        """Take a request to a backend that is over; the owner is told what to do, or later."""
        party = exchange.party
        if party is None:
            self._owner.release(transaction, exchange)
            return
        self._end(party, transaction, exchange)
        if transaction.ending in _ANSWERED:
            if party.key is not None:
                party.group.history.fetched.meet(party.key, party)
            party.group.keep(party)
        if party.waiters:
            self._wake(party)
        party.transaction = transaction
        asked = known_caller_of(party)
        if asked is not None:
            self._link(party, asked, LinkMethod.HEADER)
        elif transaction.ending not in _ANSWERED or party.key is None:
            self._let_go(party, "incomplete", [])
            party.forget()
        else:
            self._hold(party)
            party.twin = twin_of(party)
            self._weigh(party)

    def tick(self, now_ns: int) -> None:
        """Let go of what has waited or is remembered for too long; about once a second."""
        for party in list(self._held):
            if now_ns - party.end_ns <= _LONGEST_WAIT_NS:
                break
            if party in self._held:
                self._weigh(party, last_reason="expired")
        for process_id, history in list(self._histories.items()):
            for group in history.groups.values():
                group.expire(now_ns - _REMEMBERED_NS)
            if history.blind_ns < now_ns and all(g.is_empty for g in history.groups.values()):
                del self._histories[process_id]

    def close(self) -> None:
        """Let everything go that is held back, because nothing will follow."""
        for party in list(self._held):
            if party in self._held:
                self._weigh(party, last_reason="expired")

    # Notes ------------------------------------------------------------------------------

    def _begin_history(self, process_id: int) -> History | None:
        """Begin to take notes of a process that asks others while it serves clients."""
        in_flight = self._source.in_flight(process_id)
        if in_flight is None or len(self._histories) >= _PROCESSES:
            return None
        has_threads = self._source.shares_threads(process_id)
        history = History(self._own_of(process_id), has_threads=has_threads)
        self._histories[process_id] = history
        at_hand = {(e.request_start_ns, line_of(e.request)) for e, _, _ in in_flight}
        for start_ns, line, values in self._earlier.pop(process_id, ()):
            if (start_ns, line) not in at_hand:
                for value in (line, *values):
                    history.asked.meet(value, None)
        for exchange, connection, peer in in_flight:
            self._begin(history, exchange, connection, peer)
            if exchange.party is not None and exchange.response_start_ns:  # its body is not known
                exchange.party.group.answer(exchange.party, exchange.response_start_ns)
        return history

    def _note_early(self, exchange: Exchange) -> None:
        """Take note of what must not seem to be new when a history begins."""
        process_id, head = exchange.process_id, exchange.request
        earlier = self._earlier.get(process_id)
        if earlier is None:
            earlier = self._earlier[process_id] = deque(maxlen=_EARLIER)
            if len(self._earlier) > _PROCESSES:
                self._earlier.popitem(last=False)
        earlier.append((exchange.request_start_ns, line_of(head), identities(head.headers)))

    def _own_of(self, process_id: int) -> OwnRequests:
        own = self._own.pop(process_id, None) or OwnRequests()
        self._own[process_id] = own
        if len(self._own) > _PROCESSES:
            self._own.popitem(last=False)
        return own

    def _note_own(self, exchange: Exchange) -> None:
        """Take note of what a process asks that serves nobody at present."""
        now_ns = exchange.request_start_ns
        if now_ns > self._blind_ns:
            own = self._own_of(exchange.process_id)
            own.note(form_of(exchange.request), now_ns, is_alone=True)

    def _begin(
        self, history: History, exchange: Exchange, connection: Connection, peer: Peer | None
    ) -> None:
        if self._in_flight >= _IN_FLIGHT:
            history.blind_ns = exchange.request_start_ns + _BLIND_NS
            return
        self._in_flight += 1
        group = history.group(exchange.thread_id)
        party = exchange.party = Party(exchange, group, connection, peer)
        party.identities = identities(party.head.headers)
        if party.is_server:
            history.start_waiting(party)
            for value in party.identities:
                history.asked.meet(value, party)
            history.asked.meet(party.line, party)
        else:
            history.sent.meet(party.line, party)
            if peer is not None:
                party.caller = group.caller_of(peer)
        group.begin(party)

    def _end(self, party: Party, transaction: Transaction, exchange: Exchange) -> None:
        timings = transaction.timings
        lasted_ns = timings.end_ns - timings.request_start_ns
        self._in_flight -= 1
        party.group.leave(party)
        party.end_ns = exchange.request_start_ns + lasted_ns
        party.received_ns = exchange.response_end_ns or party.end_ns
        if party.body is not None and transaction.ending in _ANSWERED:
            party.key = party.body.key()

    # Decisions --------------------------------------------------------------------------

    def _hold(self, party: Party) -> None:
        transaction = party.transaction
        assert transaction is not None  # noqa: S101 - for the type checker
        size = len(transaction.request.body.content)
        if transaction.response is not None:
            size += len(transaction.response.body.content)
        while self._held and (len(self._held) >= _HELD or self._held_bytes + size > _HELD_BYTES):
            self._weigh(next(iter(self._held)), last_reason="overflow")
        self._held[party] = size
        self._held_bytes += size

    def _wake(self, party: Party) -> None:
        """Judge anew who waited for this one."""
        waiters, party.waiters = party.waiters, []
        for each in waiters:
            if each not in self._held:
                continue
            blocker = each.group.parent_in_flight(each) if each.twin is None else None
            if blocker is None:
                self._weigh(each)
            else:
                blocker.waiters.append(each)

    def _weigh(self, sent: Party, last_reason: str = "") -> None:
        """Decide on a request that is held back, or have it wait unless there is a reason."""
        twin = sent.twin
        if twin is not None and not is_twin(sent, twin):
            twin = sent.twin = None
        if twin is not None and is_answered_alike(sent, twin) and not self._is_blind(twin):
            self._link(sent, twin, LinkMethod.HEADER)
            return
        group = sent.group
        blocker = group.parent_in_flight(sent)
        if twin is not None and not twin.end_ns:
            blocker = twin  # for the others there is no need to wait
        if blocker is not None and not last_reason:
            blocker.waiters.append(sent)
            return
        parents = group.parents_of(sent, _CANDIDATES + 1)
        asked = parents[0] if len(parents) == 1 else None
        has_rare_answer = asked is not None and is_rare(sent, asked)
        if has_rare_answer:
            blocker = None  # nobody else can have been answered the same
        else:
            parents += group.opaque_parents_of(sent, _CANDIDATES + 1)
        if blocker is None and asked is not None:
            blocker = group.rival_in_flight(asked)
            if blocker is not None and not last_reason:
                blocker.waiters.append(sent)
                return
        reason = last_reason if blocker is not None else self._doubt_about(sent, parents)
        if reason:
            self._let_go(sent, reason, parents)
        else:
            self._link(sent, parents[0], LinkMethod.RESPONSE)

    def _doubt_about(self, sent: Party, parents: list[Party]) -> str:
        """Return why it must not be linked to one of these, or nothing."""
        if not parents:
            return "no_parent"
        asked = parents[0]
        if len(parents) > 1 or asked.key is None or sent.group.rival_of(sent, asked) is not None:
            return "ambiguous"
        if self._is_blind(asked):
            return "incomplete"
        return "" if is_rare(sent, asked) or is_telling(sent, asked) else "commonplace"

    def _is_blind(self, asked: Party) -> bool:
        """Whether not all is known of what went on since the client asked."""
        group = asked.group
        return asked.start_ns <= max(self._blind_ns, group.history.blind_ns, group.blind_ns)

    def _link(self, sent: Party, asked: Party, method: LinkMethod) -> None:
        place = self._place_of(asked)
        own = sent.exchange.place if sent.exchange is not None else None
        if own is not None and place.waits_for(own):
            self._let_go(sent, "circular", [])
            return
        transaction, exchange = self._take(sent)
        sent.partner = asked
        if asked.group.history.has_threads:  # a proxy; others ask several things at once
            transaction.resend_count = place.attempts  # type: ignore[misc]  # nobody saw it yet
            place.attempts += 1
        self._linked[method].value += 1
        self._owner.adopt(transaction, exchange, place, method)

    def _place_of(self, asked: Party) -> Place:
        """Return the place of a client's request, which few need."""
        if asked.place is None:
            exchange = asked.exchange
            if exchange is not None and not asked.request_id:
                asked.place = self._source.place_of(exchange)
            else:
                asked.place = Place(asked.request_id, asked.head)
                asked.place.response = asked.response
                if exchange is not None:
                    exchange.place = asked.place
                else:  # it has been passed on: what was told of it must stay so
                    _ = asked.place.lineage
        return asked.place

    def _let_go(self, sent: Party, reason: str, candidates: list[Party]) -> None:
        transaction, exchange = self._take(sent)
        self._undecided[reason].value += 1
        # An error may have been thrown away to try again: who got another is as likely.
        if 0 < len(candidates) <= _CANDIDATES and sent.status < FIRST_ERROR:
            places = map(self._place_of, reversed(candidates))
            transaction.candidates = tuple(  # type: ignore[misc]
                place.candidate() for place in places if place.is_settled
            )
        self._owner.release(transaction, exchange)

    def _take(self, sent: Party) -> tuple[Transaction, Exchange]:
        self._held_bytes -= self._held.pop(sent, 0)
        transaction, exchange = sent.transaction, sent.exchange
        assert transaction is not None  # noqa: S101 - for the type checker
        assert exchange is not None  # noqa: S101
        sent.transaction = sent.exchange = None
        return transaction, exchange
