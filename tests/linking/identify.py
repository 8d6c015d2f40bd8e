"""
Which exchange a captured transaction was, by the notes of client and backend.

Its ports and its time name the connection; there its index names the exchange, or after a
loss the nonces of its bodies, or its times. What none of them names for certain stays
without a name: a scorer that guesses would find links wrong that are right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from linking.truth import Attempt, AttemptKind, Request, Truth, nonce_of

from otel_qtap.transaction.model import Transaction

__all__ = ["Egress", "Identifier", "Nonces", "Topology", "key_of", "nonces_of"]

Nonces = tuple[str, str]
"""Of the request and of the response; empty where a body holds none."""

_ACCEPT_SLACK_NS = 500_000_000  # a connection may be used before the backend has accepted it
_Record = TypeVar("_Record", Request, Attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Which ports are whose in a scenario."""

    entries: frozenset[int]
    """Front ends that the client connects to."""
    server_ports: frozenset[int]
    """Of the backend, as far as captured processes connect to them."""
    fronts: Mapping[int, int] = field(default_factory=dict)
    """
    Port of a server to that of the front end whose requests it gets; all of them, or none
    where every server gets the requests of every entry.
    """
    dead_addresses: frozenset[str] = frozenset()
    """Where nobody listens; connections go to the port number of the client they are for."""

    @property
    def hops(self) -> frozenset[int]:
        """Ports on which one proxy talks to the next, where nobody takes notes."""
        return frozenset(self.fronts) - self.server_ports


@dataclass(frozen=True, slots=True)
class Egress:
    """What a CLIENT transaction turned out to be."""

    kind: AttemptKind
    request: Request | None
    """What it was for; ``None`` if it was for no request."""
    attempt: Attempt | None = None
    """The backend's note of it, where it got to a backend."""


def nonces_of(transaction: Transaction) -> Nonces:
    """Return the nonces that the captured bodies hold."""
    response = transaction.response
    return (
        nonce_of(transaction.request.body.content, "q"),
        nonce_of(response.body.content, "r") if response is not None else "",
    )


def key_of(transaction: Transaction) -> tuple[object, ...]:
    """Return what names a transaction in every replay of the same events."""
    t = transaction
    start_ns = t.timings.request_start_ns
    return t.direction, t.local, t.remote, t.index, start_ns, t.timings.connect_start_ns


class Identifier:
    """
    Finds the notes of transactions, whose times are to be ``CLOCK_MONOTONIC`` as theirs.

    Unless ``is_lossless`` the index of a transaction is not trusted: requests that were lost
    before it were not counted.
    """

    def __init__(
        self,
        truth: Truth,
        topology: Topology,
        nonces: Callable[[Transaction], Nonces],
        *,
        is_lossless: bool,
    ) -> None:
        self.mispaired = 0
        """Transactions made of the request of one exchange and the response of another."""
        self._truth = truth
        self._topology = topology
        self._nonces = nonces
        entered = ((r.front_port, r.port, r) for r in truth.requests)
        served = ((a.server_port, a.port, a) for a in truth.attempts)
        self._clients = _Connections(entered, _requests_at, slack_ns=0, is_lossless=is_lossless)
        self._servers = _Connections(
            served, _attempts_at, slack_ns=_ACCEPT_SLACK_NS, is_lossless=is_lossless
        )

    def request(self, transaction: Transaction) -> Request | None:
        """Return the request that a SERVER transaction is about, ``None`` if none is certain."""
        front = transaction.local.port
        if front not in self._topology.entries:
            return self._by_nonce(transaction)
        peer, nonces = transaction.remote.port, self._nonces(transaction)
        return self._certain(self._clients.find(transaction, front, peer, nonces))

    def egress(self, transaction: Transaction) -> Egress | None:
        """Return what a CLIENT transaction was, ``None`` if nobody knows for certain."""
        port = transaction.remote.port
        if transaction.remote.address in self._topology.dead_addresses:
            request = self._on_dead_port(transaction)
            return None if request is None else Egress(AttemptKind.CONNECT_FAILED, request)
        if port not in self._topology.server_ports:
            request = self._by_nonce(transaction)
            return None if request is None else Egress(AttemptKind.ANSWERED, request)
        peer, nonces = transaction.local.port, self._nonces(transaction)
        attempt = self._certain(self._servers.find(transaction, port, peer, nonces))
        if attempt is None:
            return None
        return Egress(self._truth.kind_of(attempt), self._truth.request_of(attempt), attempt)

    def _by_nonce(self, transaction: Transaction) -> Request | None:
        """Between two proxies nobody takes notes; there only the bodies tell."""
        asked, answered = self._nonces(transaction)
        by_request = self._truth.by_request_nonce.get(asked)
        by_response = self._truth.by_response_nonce.get(answered)
        if by_request is None or by_response is None or by_request is by_response:
            return by_request or by_response
        self.mispaired += 1
        return None

    def _on_dead_port(self, transaction: Transaction) -> Request | None:
        """The port number that nobody listens on is the client's."""
        timings = transaction.timings
        at_ns = timings.connect_start_ns or timings.request_start_ns
        found = [
            request
            for front in self._topology.entries
            for request in self._clients.all_of(front, transaction.remote.port)
            if request.sent_ns <= at_ns <= request.done_ns
        ]
        return found[0] if len(found) == 1 else None

    def _certain(self, found: _Record | _Mispaired | None) -> _Record | None:
        """Return the record that was found, and count the transactions made of two."""
        if isinstance(found, _Mispaired):
            self.mispaired += 1
            return None
        return found


class _Mispaired:
    """Instead of a record: the transaction has the request of one and the response of another."""


_MISPAIRED = _Mispaired()


class _Connections(Generic[_Record]):
    """The records of one side, by connection."""

    def __init__(
        self,
        records: Iterable[tuple[int, int, _Record]],
        at_time: Callable[[list[_Record], Transaction], list[_Record]],
        *,
        slack_ns: int,
        is_lossless: bool,
    ) -> None:
        self._slack_ns = slack_ns
        """How long before it was opened, by the notes, a connection may have been used."""
        self._at_time: Callable[[list[_Record], Transaction], list[_Record]] = at_time
        self._is_lossless = is_lossless
        self._by_nonce: dict[str, list[_Record]] = defaultdict(list)
        grouped: dict[tuple[int, int], dict[int, list[_Record]]] = defaultdict(dict)
        for server, peer, record in records:
            grouped[server, peer].setdefault(record.connection, []).append(record)
            for nonce in filter(None, (record.request_nonce, record.response_nonce)):
                self._by_nonce[nonce].append(record)
        self._by_ends: dict[tuple[int, int], list[list[_Record]]] = {
            ends: sorted((sorted(c, key=_index) for c in connections.values()), key=_opened)
            for ends, connections in grouped.items()
        }

    def all_of(self, server: int, peer: int) -> list[_Record]:
        """Return the records of all connections between two ports."""
        return [record for each in self._by_ends.get((server, peer), ()) for record in each]

    def find(
        self, transaction: Transaction, server: int, peer: int, nonces: Nonces
    ) -> _Record | _Mispaired | None:
        """Return the record of a transaction between these ports, if one is certain."""
        connection = self._connection_at(server, peer, transaction.timings.request_start_ns)
        if not connection:
            return None
        if self._is_lossless:
            index = transaction.index
            if not 0 <= index < len(connection):
                return None
            return connection[index] if _fits(connection[index], nonces) else _MISPAIRED
        if any(nonces):
            number = connection[0].connection
            known = self._by_nonce.get(nonces[1]) or self._by_nonce.get(nonces[0]) or []
            named = [r for r in known if r.connection == number and _fits(r, nonces)]
            if len(named) == 1:
                return named[0]
            # None: of an exchange that was broken off the notes may have one nonce or none.
            connection = named or [r for r in connection if _fits(r, nonces)]
            if not connection:
                return _MISPAIRED
        found = self._at_time(connection, transaction)
        return found[0] if len(found) == 1 else None

    def _connection_at(self, server: int, peer: int, at_ns: int) -> list[_Record]:
        """Return the records of the connection that these two ports made at that time."""
        connections = self._by_ends.get((server, peer), [])
        place = bisect_right(connections, at_ns + self._slack_ns, key=_opened)
        # A port can be used again at once, so several may have been opened by then.
        for connection in connections[:place]:
            if _ended(connection) >= at_ns:
                return connection
        return connections[place - 1] if place else []


def _fits(record: Request | Attempt, nonces: Nonces) -> bool:
    """Whether what was captured is what was noted, as far as either is known."""
    pairs = zip(nonces, (record.request_nonce, record.response_nonce), strict=True)
    return all(not captured or not noted or captured == noted for captured, noted in pairs)


def _index(record: Request | Attempt) -> int:
    return record.index


def _opened(connection: list[Any]) -> int:
    return int(connection[0].opened_ns)


def _ended(connection: list[Any]) -> int:
    return max(each.last_ns for each in connection)


def _requests_at(connection: list[Request], transaction: Transaction) -> list[Request]:
    """Return the requests that were under way when HAProxy read this one."""
    at_ns = transaction.timings.request_start_ns
    return [r for r in connection if r.sent_ns <= at_ns <= r.done_ns]


def _attempts_at(connection: list[Attempt], transaction: Transaction) -> list[Attempt]:
    """
    Return the requests that the backend may have read when HAProxy sent this one.

    The answer to the one before must have been sent, and this one not yet have been read.
    Near the moment of reading the two clocks do not tell, so the answer has to.
    """
    timings = transaction.timings
    answered_before_ns = 0
    found = []
    for attempt in connection:
        if answered_before_ns <= timings.request_start_ns <= attempt.head_ns and (
            not timings.response_start_ns or attempt.answered_ns <= timings.response_start_ns
        ):
            found.append(attempt)
        answered_before_ns = attempt.answered_ns
    return found
