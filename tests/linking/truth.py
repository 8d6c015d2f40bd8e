"""
What really happened: the notes of the load client and of the backend, put together.

The client knows which nonce every one of its requests carried and was answered with, the
backend which nonce it read and answered. Whoever asked and whoever answered are found by
that, whatever HAProxy did in between: by the request's nonce where it carried one (then
attempts are known too whose answer nobody got), else by the response's.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Self

__all__ = ["Attempt", "AttemptKind", "Request", "Truth", "nonce_of"]

NONCE_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Request:
    """What the client knows of one request; times are ``CLOCK_MONOTONIC`` nanoseconds."""

    number: int
    """Place in the notes, from 0."""
    front_port: int
    port: int
    """The client's."""
    connection: int
    index: int
    """Place of the request on its connection, from 0."""
    opened_ns: int
    sent_ns: int
    """Just before the call that sent it."""
    done_ns: int
    request_nonce: str
    """Empty when it carried none."""
    response_nonce: str
    """Empty when it got no answer of a backend."""
    status: int
    outcome: str
    """``complete``, ``aborted`` (by the client, as planned), ``closed``, ``unfinished``."""
    is_from_cache: bool

    @property
    def last_ns(self) -> int:
        """When it was over for the client."""
        return self.done_ns


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the backend knows of one request that HAProxy sent to it."""

    number: int
    server_port: int
    port: int
    """HAProxy's."""
    connection: int
    index: int
    opened_ns: int
    head_ns: int
    """When its head had been read."""
    answered_ns: int
    """Just before the answer was sent, or when it was dropped."""
    request_nonce: str
    response_nonce: str
    status: int
    outcome: str
    """``answered``, ``dropped`` (as planned), ``gone`` (the connection ended before)."""

    @property
    def last_ns(self) -> int:
        """When the backend was last seen to have to do with it."""
        return max(self.head_ns, self.answered_ns)


class AttemptKind(Enum):
    """Whose attempt it was and what it came to."""

    ANSWERED = "answered"
    """Its answer is the one that the client got."""
    DISCARDED = "answer thrown away"
    UNANSWERED = "no answer"
    CONNECT_FAILED = "connect failed"
    """HAProxy got no connection, so no backend knows of it."""
    CHECK = "health check"
    """Of HAProxy itself, so nobody's."""
    UNKNOWN = "unknown"
    """Neither nonce came back, so nobody can say whose it was."""


class Truth:
    """Both sides' notes of one run."""

    def __init__(
        self, requests: Iterable[Request], attempts: Iterable[Attempt], *, has_checks: bool = False
    ) -> None:
        """``has_checks``: what belongs to no request is a health check."""
        self.requests = tuple(requests)
        self.attempts = tuple(attempts)
        self._has_checks = has_checks
        self.by_request_nonce = {r.request_nonce: r for r in self.requests if r.request_nonce}
        self.by_response_nonce = {
            r.response_nonce: r for r in self.requests if r.response_nonce and not r.is_from_cache
        }

    @classmethod
    def read(cls, client: Path, backend: Path, *, has_checks: bool = False) -> Self:
        """Read the notes of ``load.c`` and ``backend.c``."""
        requests = (_request(number, row) for number, row in enumerate(_rows(client)))
        attempts = (_attempt(number, row) for number, row in enumerate(_rows(backend)))
        return cls(requests, attempts, has_checks=has_checks)

    def request_of(self, attempt: Attempt) -> Request | None:
        """Return the request that HAProxy made this attempt for, if it was for one."""
        if attempt.request_nonce:
            return self.by_request_nonce.get(attempt.request_nonce)
        return self.by_response_nonce.get(attempt.response_nonce)

    def kind_of(self, attempt: Attempt) -> AttemptKind:
        """Return what became of an attempt."""
        request = self.request_of(attempt)
        if request is None:
            return AttemptKind.CHECK if self._has_checks else AttemptKind.UNKNOWN
        if not attempt.response_nonce:
            return AttemptKind.UNANSWERED
        if request.response_nonce == attempt.response_nonce:
            return AttemptKind.ANSWERED
        return AttemptKind.DISCARDED

    @cached_property
    def attempted(self) -> frozenset[int]:
        """Numbers of the requests that some server was asked for."""
        found = map(self.request_of, self.attempts)
        return frozenset(request.number for request in found if request is not None)

    def problems(self) -> list[str]:
        """Return what cannot be: a harness that contradicts itself measures nothing."""
        found = []
        given = Counter(a.response_nonce for a in self.attempts if a.response_nonce)
        got = Counter(
            r.response_nonce for r in self.requests if r.response_nonce and not r.is_from_cache
        )
        asked = Counter(r.request_nonce for r in self.requests if r.request_nonce)
        for name, nonces in (("answers", given), ("received answers", got), ("requests", asked)):
            found += [f"nonce {n} {count} times among {name}" for n, count in nonces.items()
                      if count > 1]  # fmt: skip
        found += [f"answer {nonce} was received, but never given" for nonce in got - given]
        for attempt in self.attempts:
            by_answer = self.by_response_nonce.get(attempt.response_nonce)
            request = self.request_of(attempt)
            if attempt.request_nonce and request is None:
                found.append(f"request {attempt.request_nonce} was served, but never sent")
            elif by_answer is not None and by_answer is not request:
                found.append(f"answer {attempt.response_nonce} went to another request")
        return found


def nonce_of(body: bytes, side: str) -> str:
    """Return the nonce that a body begins with (``q``: request, ``r``: response), or nothing."""
    if body[:2] == b"\x1f\x8b":
        try:
            body = zlib.decompressobj(31).decompress(body, 64)
        except zlib.error:
            return ""
    if body[:3] != f"N{side}:".encode() or len(body) < 3 + NONCE_DIGITS:
        return ""
    return body[3 : 3 + NONCE_DIGITS].decode("ascii", errors="replace")


def _request(number: int, row: list[str]) -> Request:
    port, connection, index, front, opened, sent, done = map(int, row[:7])
    asked, answered, status, outcome, local = row[7:]
    return Request(
        number, front, port, connection, index, opened, sent, done, _nonce(asked),
        _nonce(answered), int(status), outcome, local == "1",
    )  # fmt: skip


def _attempt(number: int, row: list[str]) -> Attempt:
    server, port, connection, index, opened, head, answered = map(int, row[:7])
    asked, given, status, outcome = row[7:]
    return Attempt(
        number, server, port, connection, index, opened, head, answered, _nonce(asked),
        _nonce(given), int(status), outcome,
    )  # fmt: skip


def _nonce(text: str) -> str:
    if text.startswith("gz:"):
        return nonce_of(bytes.fromhex(text[3:]), "r")
    return "" if text == "-" else text


def _rows(path: Path) -> Iterable[list[str]]:
    with path.open(encoding="ascii") as lines:
        for line in lines:
            yield line.rstrip("\n").split("\t")
