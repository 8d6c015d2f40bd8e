"""
Which of the links found are right.

``transaction.link`` of every captured transaction is compared with the parent that it truly
has: that of an attempt is the SERVER transaction of the request it was made for, and between
two proxies that of the second one's SERVER transaction is the attempt of the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from linking.identify import Identifier, Nonces, Original, Topology, nonces_of
from linking.truth import AttemptKind, Request, Truth

from otel_qtap.transaction.model import Transaction

__all__ = ["Score", "Tally", "score"]


@dataclass(slots=True)
class Tally:
    """How the transactions of one kind were linked."""

    captured: int = 0
    true_links: int = 0
    """Captured, and so was the transaction that is the right parent."""
    correct: int = 0
    wrong: int = 0
    missed: int = 0
    """Not linked although both ends were captured."""
    false_positives: int = 0
    """Linked, but nobody's; or linked to a request that HAProxy answered itself."""


@dataclass(slots=True)
class Score:
    """What became of everything that happened."""

    requests: int = 0
    answered_by_proxy: int = 0
    """Complete requests for which no server was asked."""
    ingress_expected: int = 0
    """SERVER transactions that must be there: one for each request that got a whole answer."""
    ingress: int = 0
    """Of these, captured."""
    egress_expected: int = 0
    """CLIENT transactions that must be: of requests that a server answered, or dropped by plan."""
    egress: int = 0
    """Of these, captured; health checks too, failed connects not."""
    kinds: dict[AttemptKind, Tally] = field(default_factory=lambda: defaultdict(Tally))
    """Links of attempts to the requests they were made for."""
    neighbours: Tally = field(default_factory=Tally)
    """Links of a second proxy's requests to the attempts of the first."""
    methods: Counter[str] = field(default_factory=Counter)
    misnumbered: int = 0
    """Requests whose linked attempts are not counted 0, 1, 2 … in their order."""
    miscounted: int = 0
    """Requests that say they took another number of attempts than are linked to them."""
    invented_checks: int = 0
    """Attempts for a client's request that are said to be health checks."""
    untold_checks: int = 0
    """Health checks that are not said to be such."""
    unsure: int = 0
    """Links that cannot be checked, since one of their ends was not identified."""
    unidentified: int = 0
    mispaired: int = 0
    """Transactions made of the request of one exchange and the response of another."""
    duplicates: int = 0
    """Exchanges that two transactions claim to be."""

    @property
    def total(self) -> Tally:
        """Return the sum over all kinds of attempts."""
        names = [each.name for each in fields(Tally)]
        return Tally(*(sum(getattr(t, n) for t in self.kinds.values()) for n in names))

    @property
    def is_precise(self) -> bool:
        """Whether no link that was given is wrong."""
        tallies = (self.total, self.neighbours)
        return not any(tally.wrong or tally.false_positives for tally in tallies)

    @property
    def precision(self) -> float:
        """The share of links that are right; 1 when there are none."""
        total = self.total
        given = total.correct + total.wrong + total.false_positives
        return total.correct / given if given else 1.0

    @property
    def recall(self) -> float:
        """The share of links that were found, of those that could be; 1 when none could."""
        total = self.total
        return total.correct / total.true_links if total.true_links else 1.0

    @property
    def missing(self) -> int:
        """Exchanges that were not captured, on either side."""
        return self.ingress_expected - self.ingress + self.egress_expected - self.egress


def score(
    transactions: Iterable[Transaction],
    truth: Truth,
    topology: Topology,
    *,
    nonces: Callable[[Transaction], Nonces] = nonces_of,
    original: Callable[[Transaction], Original] | None = None,
) -> Score:
    """Compare every link with the truth; for the other arguments see ``Identifier``."""
    identifier = Identifier(truth, topology, nonces, original)
    scorer = _Scorer(truth, topology, identifier)
    captured = list(transactions)
    ingress = [t for t in captured if t.direction.is_ingress]
    for transaction in ingress:
        scorer.learn(transaction)
    for transaction in captured:
        if not transaction.direction.is_ingress:
            scorer.judge_egress(transaction)
    for transaction in ingress:
        scorer.judge_ingress(transaction)
    return scorer.finish()


_Place = tuple[int, int]
"""A port of a front end or server, and the number of a request that came by there."""


class _Scorer:
    def __init__(self, truth: Truth, topology: Topology, identifier: Identifier) -> None:
        self._truth = truth
        self._topology = topology
        self._identifier = identifier
        self._score = Score()
        self._servers_by_id: dict[str, _Place | None] = {}
        """SERVER transactions; ``None`` for one that was not identified."""
        self._servers: dict[_Place, str] = {}
        self._unidentified_clients: dict[str, Transaction] = {}
        self._clients: dict[_Place, str] = {}
        """CLIENT transactions between two proxies."""
        self._resends: dict[_Place, list[tuple[int, int]]] = defaultdict(list)
        """When the attempts for a request began, with the number that each was given."""
        self._seen_attempts: set[int] = set()
        self._told_attempts: dict[str, int] = {}
        """How many attempts a SERVER transaction says it took."""
        self._linked_attempts: Counter[str] = Counter()

    def learn(self, transaction: Transaction) -> None:
        """Remember which request a SERVER transaction is about."""
        request = self._identifier.request(transaction)
        place = None if request is None else (transaction.local.port, request.number)
        self._servers_by_id[transaction.request_id] = place
        if transaction.hop is not None:
            self._told_attempts[transaction.request_id] = transaction.hop.attempts
        if place is None:
            self._score.unidentified += 1
        elif self._servers.setdefault(place, transaction.request_id) != transaction.request_id:
            self._score.duplicates += 1

    def judge_egress(self, transaction: Transaction) -> None:
        """Compare the parent of a CLIENT transaction with the right one."""
        parent_id = self._parent_of(transaction)
        if parent_id is not None:
            self._linked_attempts[parent_id] += 1
        found = self._identifier.egress(transaction)
        if found is None:
            self._score.unidentified += 1
            self._score.unsure += parent_id is not None
            self._unidentified_clients[transaction.request_id] = transaction
            return
        if found.attempt is not None:
            self._score.duplicates += found.attempt.number in self._seen_attempts
            self._seen_attempts.add(found.attempt.number)
        is_check = bool(getattr(transaction, "is_health_check", False))
        self._score.invented_checks += is_check and found.request is not None
        self._score.untold_checks += not is_check and found.kind is AttemptKind.CHECK
        tally = self._score.kinds[found.kind]
        tally.captured += 1
        if found.kind is AttemptKind.UNKNOWN:
            self._score.unsure += parent_id is not None
        elif found.request is None:
            tally.false_positives += parent_id is not None
        else:
            self._compare(tally, transaction, found.request, parent_id)

    def _compare(
        self, tally: Tally, transaction: Transaction, request: Request, parent_id: str | None
    ) -> None:
        port = transaction.remote.port
        if port in self._topology.hops:
            self._clients[port, request.number] = transaction.request_id
        right = self._topology.fronts.get(port, request.front_port), request.number
        can_be_found = right in self._servers
        given = self._servers_by_id.get(parent_id, (0, -1)) if parent_id is not None else right
        if parent_id is None:
            tally.missed += can_be_found
        elif given is None:
            self._score.unsure += 1
            return
        elif given == right:
            tally.correct += 1
            timings = transaction.timings
            began_ns = timings.connect_start_ns or timings.request_start_ns
            self._resends[right].append((began_ns, getattr(transaction, "resend_count", 0)))
        elif given[0] and given[1] not in self._truth.attempted:
            tally.false_positives += 1
        else:
            tally.wrong += 1
        tally.true_links += can_be_found

    def judge_ingress(self, transaction: Transaction) -> None:
        """Compare the parent of a SERVER transaction with the attempt of the proxy before it."""
        parent_id = self._parent_of(transaction)
        place = self._servers_by_id[transaction.request_id]
        if place is None:
            self._score.unsure += parent_id is not None
            return
        tally = self._score.neighbours
        right = self._clients.get(place)
        tally.captured += place[0] in self._topology.hops
        tally.true_links += right is not None
        if parent_id is None:
            tally.missed += right is not None
        elif place[0] not in self._topology.hops:
            tally.false_positives += 1
        elif parent_id == right:
            tally.correct += 1
        elif right is None and self._may_be(parent_id, transaction):
            self._score.unsure += 1
        else:
            tally.wrong += 1

    def _may_be(self, parent_id: str, transaction: Transaction) -> bool:
        """Whether the parent is the unidentified other end of the same connection."""
        parent = self._unidentified_clients.get(parent_id)
        return parent is not None and (parent.local, parent.remote) == (
            transaction.remote,
            transaction.local,
        )

    def _parent_of(self, transaction: Transaction) -> str | None:
        """Return the request id that the linker gave as parent, ``None`` if it gave none."""
        link: Any = getattr(transaction, "link", None)
        if link is None or not link.parent_id:
            return None
        self._score.methods[link.method.value] += 1
        return str(link.parent_id)

    def finish(self) -> Score:
        """Count what happened and whether it was captured."""
        result, truth, topology = self._score, self._truth, self._topology
        result.mispaired = self._identifier.mispaired
        result.misnumbered = sum(
            [number for _, number in sorted(attempts)] != list(range(len(attempts)))
            for attempts in self._resends.values()
        )
        result.miscounted = sum(
            told != self._linked_attempts[request_id]
            for request_id, told in self._told_attempts.items()
        )
        result.requests = len(truth.requests)
        for request in truth.requests:
            if request.outcome != "complete":
                continue
            is_attempted = request.number in truth.attempted
            result.answered_by_proxy += not is_attempted
            fronts = set(topology.fronts.values()) or {request.front_port}
            result.ingress_expected += len(fronts)
            result.ingress += sum((front, request.number) in self._servers for front in fronts)
            hops = topology.hops if is_attempted else ()
            result.egress_expected += len(hops)
            result.egress += sum((port, request.number) in self._clients for port in hops)
        for attempt in truth.attempts:
            if attempt.outcome != "gone" and attempt.server_port in topology.server_ports:
                result.egress_expected += 1
                result.egress += attempt.number in self._seen_attempts
        return result
