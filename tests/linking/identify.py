"""
Which exchange a captured transaction was, by the notes of client and backend.

Its ports and its time name the connection; there its index names the exchange, and the
nonces of its bodies have to agree. In a replay that lacks events an index names nothing, but
the replay of all events has the same request at the same nanosecond, and its index does.
What is not named for certain stays without a name: a scorer that guesses would find links
wrong that are right. (Near a moment the times of both sides do not tell: a server may have
read a request, and answered it, before HAProxy's call that sends it has returned.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from linking.truth import Attempt, AttemptKind, Request, Truth, nonce_of

from otel_qtap.transaction.model import Transaction

__all__ = [
    "Egress", "Identifier", "Nonces", "Original", "Topology", "key_of", "nonces_of", "originals",
]  # fmt: skip

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


class Original(NamedTuple):
    """What a transaction is when nothing is left out."""

    index: int | None
    """Its place on its connection; ``None`` where requests before it may not have been seen."""
    nonces: Nonces


def originals(
    transactions: Iterable[Transaction], whole: Iterable[Transaction]
) -> dict[tuple[object, ...], Original]:
    """
    Return, by ``key_of``, what transactions of a replay that lacks events really are.

    ``whole`` is the replay of all events, nonces included. The same request begins with the
    same event in both; of several that do, as pipelined ones may, the first are the same.
    """
    beginning: dict[tuple[object, ...], list[Transaction]] = defaultdict(list)
    for transaction in sorted(whole, key=_index):
        beginning[_begin_of(transaction)].append(transaction)
    counted: Counter[tuple[object, ...]] = Counter()
    found = {}
    for transaction in sorted(transactions, key=_index):
        begin = _begin_of(transaction)
        twins = beginning.get(begin, [])
        if counted[begin] < len(twins):
            twin = twins[counted[begin]]
            found[key_of(transaction)] = Original(twin.index, nonces_of(twin))
        counted[begin] += 1
    return found


def _begin_of(transaction: Transaction) -> tuple[object, ...]:
    t = transaction
    return t.direction, t.local, t.remote, t.timings.request_start_ns


class Identifier:
    """Finds the notes of transactions, whose times are to be ``CLOCK_MONOTONIC`` as theirs."""

    def __init__(
        self,
        truth: Truth,
        topology: Topology,
        nonces: Callable[[Transaction], Nonces] = nonces_of,
        original: Callable[[Transaction], Original] | None = None,
    ) -> None:
        """
        ``nonces`` are those of a transaction as it was captured, whatever hides them now.

        Without ``original`` everything was captured.
        """
        self.mispaired = 0
        """Transactions made of the request of one exchange and the response of another."""
        self._truth = truth
        self._topology = topology
        self._nonces = nonces
        self._original = original or (lambda t: Original(t.index, nonces(t)))
        entered = ((r.front_port, r.port, r) for r in truth.requests)
        served = ((a.server_port, a.port, a) for a in truth.attempts)
        self._clients = _Connections(entered, 0)
        self._servers = _Connections(served, _ACCEPT_SLACK_NS)

    def request(self, transaction: Transaction) -> Request | None:
        """Return the request that a SERVER transaction is about, ``None`` if none is certain."""
        front = transaction.local.port
        if front not in self._topology.entries:
            return self._by_nonce(transaction)
        return self._find(self._clients, transaction, front, transaction.remote.port)

    def egress(self, transaction: Transaction) -> Egress | None:
        """Return what a CLIENT transaction was, ``None`` if nobody knows for certain."""
        port = transaction.remote.port
        if transaction.remote.address in self._topology.dead_addresses:
            request = self._on_dead_port(transaction)
            return None if request is None else Egress(AttemptKind.CONNECT_FAILED, request)
        if port not in self._topology.server_ports:
            request = self._by_nonce(transaction)
            return None if request is None else Egress(AttemptKind.ANSWERED, request)
        attempt = self._find(self._servers, transaction, port, transaction.local.port)
        if attempt is None:
            return None
        return Egress(self._truth.kind_of(attempt), self._truth.request_of(attempt), attempt)

    def _by_nonce(self, transaction: Transaction) -> Request | None:
        """Between two proxies nobody takes notes; there only the bodies tell."""
        named, seen = (
            {request.number: request for request in self._named_by(nonces)}
            for nonces in (self._original(transaction).nonces, self._nonces(transaction))
        )
        if len(named | seen) > 1:
            self.mispaired += 1
            return None
        return next(iter(named.values()), None)

    def _named_by(self, nonces: Nonces) -> list[Request]:
        asked, answered = nonces
        truth = self._truth
        found = (truth.by_request_nonce.get(asked), truth.by_response_nonce.get(answered))
        return [request for request in found if request is not None]

    def _on_dead_port(self, transaction: Transaction) -> Request | None:
        """The port number that nobody listens on is the client's."""
        timings = transaction.timings
        at_ns = timings.connect_start_ns or timings.request_start_ns
        found = [
            request
            for front in self._topology.entries
            for request in self._clients.all_of(front, transaction.remote.port)
            if _begun_ns(request) <= at_ns <= request.done_ns
        ]
        return found[0] if len(found) == 1 else None

    def _find(
        self, notes: _Connections[_Record], transaction: Transaction, server: int, peer: int
    ) -> _Record | None:
        """Return the note of a transaction, and count those that are made of two exchanges."""
        at_ns = transaction.timings.request_start_ns
        original, nonces = self._original(transaction), self._nonces(transaction)
        found = notes.find(server, peer, at_ns, original)
        if found is None:
            return None
        if not (_fits(found, original.nonces) and _fits(found, nonces)):
            self.mispaired += 1
            return None
        return found


class _Connections(Generic[_Record]):
    """The records of one side, by connection."""

    def __init__(self, records: Iterable[tuple[int, int, _Record]], slack_ns: int) -> None:
        self._slack_ns = slack_ns
        """How long before it was opened, by the notes, a connection may have been used."""
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

    def find(self, server: int, peer: int, at_ns: int, original: Original) -> _Record | None:
        """Return the record of what was seen between these ports, if one is certain."""
        connection = self._connection_at(server, peer, at_ns)
        index, (asked, answered) = original
        if index is not None:
            return connection[index] if 0 <= index < len(connection) else None
        known = self._by_nonce.get(answered) or self._by_nonce.get(asked) or ()
        named = [record for record in known if record in connection]
        return named[0] if len(named) == 1 else None

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


def _begun_ns(request: Request) -> int:
    """When HAProxy may have begun to work for a request: in mode tcp it does not wait for one."""
    return request.sent_ns if request.index else request.opened_ns


def _index(record: Request | Attempt | Transaction) -> int:
    return record.index


def _opened(connection: list[Any]) -> int:
    return int(connection[0].opened_ns)


def _ended(connection: list[Any]) -> int:
    return max(each.last_ns for each in connection)
