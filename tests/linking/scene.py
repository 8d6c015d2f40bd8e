"""
A run that never was, for tests of the scorer: notes, and transactions with the right links.

Everything is consistent by construction, so the score of a scene is known beforehand; tests
then spoil one thing after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from factories import make_request, make_response, make_timings, make_transaction
from linking.identify import Topology
from linking.truth import Attempt, Request, Truth

from otel_qtap.connection.model import Peer
from otel_qtap.transaction.model import Direction, Transaction

__all__ = ["FRONT", "SERVER", "TOPOLOGY", "Answer", "Linked", "Method", "Scene"]

FRONT, SERVER = 8085, 9001
STEP_NS = 1_000_000
TOPOLOGY = Topology(
    entries=frozenset({FRONT}),
    server_ports=frozenset({SERVER}),
    dead_addresses=frozenset({"127.0.9.1"}),
)
LOCALHOST = "127.0.0.1"


class Method(Enum):
    """Stands in for the linker's own."""

    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a linker says of a transaction."""

    parent_id: str
    method: Method = Method.STREAM


class Linked:
    """A transaction of which the linker says something else than it did."""

    def __init__(
        self,
        transaction: Transaction,
        parent_id: str | None,
        *,
        resend_count: int = 0,
        is_health_check: bool = False,
    ) -> None:
        self.transaction = transaction
        self.link = None if parent_id is None else Answer(parent_id)
        self.resend_count = resend_count
        self.is_health_check = is_health_check

    def now(self, parent_id: str | None, **changes: Any) -> Linked:
        """Return the same with another link, and what else is to be different."""
        said = {"resend_count": self.resend_count, "is_health_check": self.is_health_check}
        return Linked(self.transaction, parent_id, **(said | changes))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transaction, name)


class Scene:
    """Requests one after the other, each on the connection that the caller says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.attempts: list[Attempt] = []
        self.captured: list[Linked] = []
        self._now_ns = 10**12
        self._nonces = 0
        self._counts: dict[tuple[int, int], int] = {}

    def truth(self, **settings: bool) -> Truth:
        """Return what client and backend know."""
        return Truth(self.requests, self.attempts, **settings)

    def nonce(self) -> str:
        """Return one that was not used before."""
        self._nonces += 1
        return f"{self._nonces:016x}"

    def _tick(self) -> int:
        self._now_ns += STEP_NS
        return self._now_ns

    def _index(self, server: int, port: int) -> int:
        index = self._counts.get((server, port), 0)
        self._counts[server, port] = index + 1
        return index

    def request(
        self, port: int, *, attempts: int = 1, with_body: bool = False, server_port: int = 30001
    ) -> Request:
        """
        A client's request from ``port``, which the last of ``attempts`` answers.

        Without attempts HAProxy answers it. The earlier ones are answered too, but what they
        say is thrown away.
        """
        number, index = len(self.requests), self._index(FRONT, port)
        asked = self.nonce() if with_body else ""
        sent_ns = self._tick()
        started_ns = self._tick()
        parent = f"ingress-{number}"
        served = [self._attempt(asked, server_port, parent, resends=n) for n in range(attempts)]
        answer = served[-1].response_nonce if served else ""
        request = Request(
            number, FRONT, port, port, index, 10**12, sent_ns, self._tick() + STEP_NS, asked,
            answer, 200, "complete", is_from_cache=False,
        )  # fmt: skip
        self.requests.append(request)
        transaction = make_transaction(
            direction=Direction.INGRESS,
            request_id=parent,
            index=index,
            local=Peer(LOCALHOST, FRONT),
            remote=Peer(LOCALHOST, port),
            request=make_request(body=f"Nq:{asked}".encode() if asked else b""),
            response=make_response(body=f"Nr:{answer}".encode() if answer else b"denied"),
            timings=make_timings(start_ns=started_ns, duration_ns=self._now_ns - started_ns),
        )
        self.captured.append(Linked(transaction, None))
        self._tick()
        self._tick()
        return request

    def check(self, server_port: int = 30999) -> None:
        """A health check."""
        self._attempt("", server_port, None)

    def _attempt(self, asked: str, port: int, parent: str | None, *, resends: int = 0) -> Attempt:
        number, index = len(self.attempts), self._index(SERVER, port)
        started_ns, answer = self._tick(), self.nonce()
        head_ns, answered_ns, response_ns = self._tick(), self._tick(), self._tick()
        attempt = Attempt(
            number, SERVER, port, port, index, 10**12, head_ns, answered_ns, asked, answer, 200,
            "answered",
        )  # fmt: skip
        self.attempts.append(attempt)
        transaction = make_transaction(
            direction=Direction.EGRESS_EXTERNAL,
            request_id=f"egress-{number}",
            index=index,
            local=Peer(LOCALHOST, port),
            remote=Peer(LOCALHOST, SERVER),
            request=make_request(body=f"Nq:{asked}".encode() if asked else b""),
            response=make_response(body=f"Nr:{answer}".encode()),
            timings=make_timings(
                start_ns=started_ns, duration_ns=response_ns - started_ns,
                response_start_ns=response_ns,
            ),
        )  # fmt: skip
        self.captured.append(
            Linked(transaction, parent, resend_count=resends, is_health_check=parent is None)
        )
        return attempt

    def attempt_of(self, number: int) -> Linked:
        """Return the CLIENT transaction of an attempt."""
        return next(t for t in self.captured if t.request_id == f"egress-{number}")

    def relink(self, number: int, parent_id: str | None, **changes: Any) -> None:
        """Have the linker say this of an attempt."""
        linked = self.attempt_of(number)
        self.captured[self.captured.index(linked)] = linked.now(parent_id, **changes)

    def alter(self, request_id: str, **changes: Any) -> None:
        """Have another transaction captured than what was."""
        place = next(n for n, t in enumerate(self.captured) if t.request_id == request_id)
        old = self.captured[place]
        new = Linked(replace(old.transaction, **changes), None)
        new.link, new.resend_count = old.link, old.resend_count
        new.is_health_check = old.is_health_check
        self.captured[place] = new

    def lose(self, request_id: str) -> None:
        """Have a transaction not captured."""
        self.captured = [t for t in self.captured if t.request_id != request_id]
