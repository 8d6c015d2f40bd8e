"""
The exchanges of a process as the two sides of links that are looked for.

Who is in question is decided here, by what cannot be otherwise; ``passive.py`` asks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Hashable

from otel_qtap.connection.model import Peer
from otel_qtap.connection.tracker import Connection
from otel_qtap.events import Role
from otel_qtap.protocol.events import RequestHead, ResponseHead
from otel_qtap.transaction.evidence import BodyKey, BodyStart, form_of, line_of, path_of
from otel_qtap.transaction.exchange import Exchange
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.own import OwnRequests
from otel_qtap.transaction.place import Place

__all__ = ["Group", "History", "Party"]

_SLACK_NS = 1_000_000
"""By which events of several processors may be out of the order of their times."""
_FORGOTTEN = RequestHead("", "", "", (), 0, None)


class Party:
    """One exchange; a client's request (``is_server``) or one to a backend."""

    __slots__ = (
        "answered_ns",
        "body",
        "caller",
        "eligible_ns",
        "end_ns",
        "ends",
        "exchange",
        "form",
        "group",
        "head",
        "identities",
        "is_gone",
        "is_server",
        "key",
        "line",
        "partner",
        "path",
        "peer",
        "place",
        "received_ns",
        "request_id",
        "response",
        "start_ns",
        "status",
        "transaction",
        "twin",
        "waiters",
    )

    def __init__(
        self, exchange: Exchange, group: Group, connection: Connection, peer: Peer | None
    ) -> None:
        self.exchange: Exchange | None = exchange
        """While it is in flight or held back."""
        self.group = group
        self.is_server = connection.role is Role.SERVER
        ends = connection.local, connection.remote
        self.ends = ends[::-1] if self.is_server else ends
        """Of its connection: who asked, and who was asked."""
        self.peer = peer
        """The client: who sent the request, or whom a PROXY line names."""
        self.head = exchange.request
        self.line = line_of(exchange.request)
        self.path = path_of(exchange.request)
        self.form = 0 if self.is_server else form_of(exchange.request)
        self.identities: tuple[int, ...] = ()
        self.start_ns = exchange.request_start_ns
        self.eligible_ns = exchange.request_head_ns
        """When it was its turn: the head was there, and what was asked before was answered."""
        self.answered_ns = 0
        """When the first byte of the response passed."""
        self.received_ns = 0
        """When the last byte of it did."""
        self.end_ns = 0
        """When it was over; 0 while it is in flight."""
        self.is_gone = False
        """Whether a client went away without an answer: the process may go on with it."""
        self.status = 0
        self.body: BodyStart | None = None
        self.key: BodyKey | None = None
        """Of the body of the response, if that is complete and enough of it was seen."""
        self.request_id = ""
        """Of a client's request that is over."""
        self.response: ResponseHead | None = None
        self.place: Place | None = None
        self.caller: Party | None = None
        """The only request of the peer that was in flight when this one was sent."""
        self.twin: Party | None = None
        """The only client's request that was the same."""
        self.partner: Party | None = None
        """The client's request that it was sent for, once that is certain."""
        self.waiters: list[Party] = []
        """Requests to backends that cannot be judged while this one is in flight."""
        self.transaction: Transaction | None = None
        """While it is held back."""

    def was_there_for(self, sent: Party) -> bool:
        """
        Whether this client's request had come when ``sent`` began.

        And is not the same one: a process that asks itself may be seen to receive a request
        before it is seen to have sent it.
        """
        return self.start_ns <= sent.start_ns and self.ends != sent.ends

    def may_have_caused(self, sent: Party) -> bool:
        """Whether this client's request was there when ``sent`` began, and unanswered."""
        return self.was_there_for(sent) and (
            not self.answered_ns or self.answered_ns >= sent.answered_ns
        )

    def may_have_got(self, sent: Party) -> bool:
        """Whether the times allow that this client was answered what ``sent`` was."""
        return (
            self.was_there_for(sent)
            and self.answered_ns >= sent.answered_ns
            and self.end_ns >= sent.received_ns
        )

    def is_nobodys(self, asked: Party) -> bool:
        """Whether it is not known to have been sent for another than ``asked``."""
        return self.partner is None or self.partner is asked

    @property
    def may_go_on(self) -> bool:
        """Whether it is in flight, or the process may not know that it is not."""
        return not self.end_ns or (self.is_gone and self.head is not _FORGOTTEN)

    def forget(self) -> None:
        """Let go of what takes memory; the object may stand in a memory for longer."""
        self.head = _FORGOTTEN
        self.body = self.place = self.response = self.caller = self.twin = self.partner = None


def _start_of(party: Party) -> int:
    return party.start_ns


def _answer_of(party: Party) -> int:
    return party.answered_ns


class Group:
    """
    Exchanges that may belong together: of one process, or of one thread of a HAProxy.

    HAProxy serves a request on the thread that read it; of other programs the thread says
    nothing. What is over is in order of its end.
    """

    KEPT = 4096

    def __init__(self, history: History) -> None:
        self.history = history
        self.blind_ns = 0
        """What was over by then is not known any more."""
        self._asked: list[Party] = []
        """Clients' requests without an answer, by their begin."""
        self._answering: list[Party] = []
        """Clients' requests that are being answered, by the begin of the answer."""
        self._sent: list[Party] = []
        """Requests to backends, by their begin."""
        self._served: dict[BodyKey | None, list[Party]] = {}
        """Clients' requests that are over; ``None``: nobody knows what they were answered."""
        self._fetched: dict[BodyKey | None, list[Party]] = {}
        """Answered requests to backends; ``None``: too little of the answer was seen."""
        self._over: deque[Party] = deque()

    @property
    def has_clients_waiting(self) -> bool:
        """Whether a client's request is in flight."""
        return bool(self._asked or self._answering)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self._asked or self._answering or self._sent or self._over)

    def begin(self, party: Party) -> None:
        """Take an exchange that begins."""
        in_flight = self._asked if party.is_server else self._sent
        if not in_flight or in_flight[-1].start_ns <= party.start_ns:
            in_flight.append(party)
        else:
            insort(in_flight, party, key=_start_of)

    def answer(self, party: Party, timestamp_ns: int) -> None:
        """Its response begins."""
        party.answered_ns = timestamp_ns
        if party.is_server:
            self._asked.remove(party)
            insort(self._answering, party, key=_answer_of)

    def leave(self, party: Party) -> None:
        """It is not in flight any more."""
        if party.is_server:
            (self._answering if party.answered_ns else self._asked).remove(party)
        else:
            self._sent.remove(party)

    def keep(self, party: Party) -> None:
        """Remember an exchange that is over."""
        (self._served if party.is_server else self._fetched).setdefault(party.key, []).append(party)
        self._over.append(party)
        if len(self._over) > self.KEPT:
            self._forget()

    def expire(self, before_ns: int) -> None:
        """Forget what was over before that time."""
        while self._over and self._over[0].end_ns < before_ns:
            self._forget()

    def _forget(self) -> None:
        party = self._over.popleft()
        if party.is_gone:
            self.history.stop_waiting(party)
        known = self._served if party.is_server else self._fetched
        known[party.key].remove(party)
        if not known[party.key]:
            del known[party.key]
        self.blind_ns = max(self.blind_ns, party.end_ns)
        party.forget()

    # Questions --------------------------------------------------------------------------

    def caller_of(self, peer: Peer) -> Party | None:
        """Return the only request in flight of a client."""
        in_flight = (*self._asked, *self._answering)
        found = [party for party in in_flight if party.peer == peer]
        return found[0] if len(found) == 1 else None

    def parents_of(self, sent: Party, limit: int) -> list[Party]:
        """Return the clients' requests that were answered, by now whole, with the same bytes."""
        found: list[Party] = []
        for party in reversed(self._served.get(sent.key, ())):
            if party.end_ns < sent.received_ns - _SLACK_NS or len(found) >= limit:
                break
            if party.may_have_got(sent):
                found.append(party)
        return found

    def opaque_parents_of(self, sent: Party, limit: int) -> list[Party]:
        """Return those that may have caused it of whose answer nobody knows enough."""
        found: list[Party] = []
        for party in reversed(self._served.get(None, ())):
            if party.end_ns < sent.start_ns - _SLACK_NS or len(found) >= limit:
                break
            if party.end_ns >= sent.start_ns and party.may_have_caused(sent):
                found.append(party)
        return found

    def parent_in_flight(self, sent: Party) -> Party | None:
        """Return a client's request whose answer, yet to come, may be that of ``sent``."""
        if self._asked and self._asked[0].start_ns <= sent.start_ns:
            return self._asked[0]
        for party in reversed(self._answering):
            if party.answered_ns < sent.answered_ns:
                break
            if party.start_ns <= sent.start_ns and _may_have_size_of(sent, party):
                return party
        return None

    def rival_of(self, sent: Party, asked: Party) -> Party | None:
        """Return another request to a backend whose answer ``asked`` may have got."""
        for key in (sent.key, None):
            for party in reversed(self._fetched.get(key, ())):
                if party.end_ns < asked.start_ns - _SLACK_NS:
                    break
                if party is not sent and asked.may_have_got(party) and party.is_nobodys(asked):
                    return party
        return None

    def rival_in_flight(self, asked: Party) -> Party | None:
        """
        Return a request to a backend that has no whole answer, though ``asked`` has.

        If it was sent for ``asked``, its answer was lost; the next event of its connection
        will tell.
        """
        for party in self._sent[bisect_left(self._sent, asked.start_ns, key=_start_of) :]:
            if party.start_ns > asked.answered_ns:
                break
            if not party.answered_ns or party.answered_ns <= asked.answered_ns:
                return party
        return None


def _may_have_size_of(sent: Party, asked: Party) -> bool:
    """Whether an answer under way can have as many bytes as that of ``sent``."""
    exchange = asked.exchange
    if exchange is None or exchange.response is None or sent.body is None:
        return True
    length = exchange.response.content_length
    return length is None or length == sent.body.size or exchange.request.method == "HEAD"


class _Memory:
    """Which values were met once, of those that came last."""

    CAPACITY = 4096
    MOST = 4 * CAPACITY
    """With those whose requests are still in flight, which others may repeat meanwhile."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Party | None] = OrderedDict()

    def meet(self, value: Hashable, party: Party | None) -> None:
        """Somebody has this value: ``party``, or one that cannot matter."""
        known = self._known
        if value in known:
            known[value] = None
            known.move_to_end(value)
            return
        known[value] = party
        if len(known) > self.CAPACITY:
            oldest, of = known.popitem(last=False)
            if of is not None and of.may_go_on and len(known) < self.MOST:
                known[oldest] = of

    def only(self, value: Hashable) -> Party | None:
        """Return the only one who had the value, ``None`` if there were others or none."""
        return self._known.get(value)


class History:
    """What is remembered of the exchanges of one process."""

    def __init__(self, own: OwnRequests, *, has_threads: bool) -> None:
        self.own = own
        """What the process asks without having been asked."""
        self.has_threads = has_threads
        """Whether a thread keeps its requests to itself."""
        self.blind_ns = 0
        """Until when there may have been exchanges that nobody saw."""
        self.groups: dict[int, Group] = {}
        self.asked = _Memory()
        """What clients' requests say of themselves: identities, and method with target."""
        self.sent = _Memory()
        """Method and target of requests to backends."""
        self.served = _Memory()
        """Bodies that clients were answered."""
        self.fetched = _Memory()
        """Bodies that backends answered."""
        self._waiting: dict[int, int] = {}
        """How many clients wait for each path, or did until they went away."""

    def start_waiting(self, asked: Party) -> None:
        """A client asks for something."""
        self._waiting[asked.path] = self._waiting.get(asked.path, 0) + 1

    def stop_waiting(self, asked: Party) -> None:
        """A client has got it, or went away so long ago that nobody works on it any more."""
        left = self._waiting.pop(asked.path) - 1
        if left:
            self._waiting[asked.path] = left

    def note_sent(self, path: int, form: int, now_ns: int) -> None:
        """Take note of what the process asks though no client waits for it."""
        if path not in self._waiting:
            self.own.note(form, now_ns, is_alone=not self._waiting)

    def group(self, thread_id: int) -> Group:
        """Return the group of what a thread does."""
        key = thread_id if self.has_threads else 0
        found = self.groups.get(key)
        if found is None:
            found = self.groups[key] = Group(self)
        return found
