"""
A capture replayed: the linker's answers, held against the truth.

Every recording is replayed twice: once to read the nonces in the captured bodies, by which
the scorer tells transactions apart, and once with every nonce overwritten, so that no linker
can use one as evidence. If events are to be left out, both are done without them, and a
replay of all events tells what each transaction really is.
"""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from linking.capture import BODY_BYTES, Capture
from linking.identify import Nonces, Original, key_of, nonces_of, originals
from linking.score import Score, score
from traffic.world import WorldError

from otel_qtap.config import load_config
from otel_qtap.counters import CounterSet
from otel_qtap.events import LostEvent
from otel_qtap.pipeline import PipelineOptions
from otel_qtap.receiver.recording import Recording
from otel_qtap.replay import replay
from otel_qtap.transaction.model import Transaction

__all__ = ["Result", "evaluate", "replayed"]

_NONCE = re.compile(rb"N([qr]):[0-9a-f]{16}")
_NO_NONCE = rb"N\1:0000000000000000"
_REPLAY_S = 60.0
_TOLD = {"unreadable", "over_limit"}
"""Losses of bytes of which the number is known, as of spliced bodies: no request is missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A capture with its score."""

    capture: Capture
    score: Score
    lost: Counter[str]
    """Events that the kernel side could not hand over, by reason."""
    dropped: int
    """Events left out on purpose."""

    def failures(self, least_recall: float) -> list[str]:
        """Return what is not as it should be."""
        total = self.score.total
        found = list(self.capture.truth.problems()[:5])
        if not self.score.is_precise:
            found.append(f"wrong links: {self.score.total}, {self.score.neighbours}")
        if self.score.recall < least_recall:
            found.append(f"{total.missed} of {total.true_links} links missed")
        counted = [
            (self.score.mispaired, "transactions of two exchanges"),
            (self.score.duplicates, "exchanges captured twice"),
            (self.score.invented_checks, "invented health checks"),
        ]
        if not self.dropped and not self.lost:
            counted += [
                (self.score.misnumbered, "requests with misnumbered attempts"),
                (self.score.miscounted, "requests with another number of attempts than linked"),
                (self.score.missing, "exchanges not captured"),
            ]
        return found + [f"{amount} {what}" for amount, what in counted if amount]


class _Treated:
    """A recording as the pipeline is to see it: without some events, or without nonces."""

    epoch_offset_ns = 0  # so that the times of transactions are those of the notes

    def __init__(self, path: Path, *, drop: float, seed: int, masked: bool) -> None:
        self._recording = Recording(path)
        self._drop = drop
        self._random = random.Random(seed)  # noqa: S311 - a choice, not a secret
        self._masked = masked
        self.lost: Counter[str] = Counter()
        self.dropped = 0

    def __iter__(self) -> Iterator[object]:
        for item in self._recording:
            if isinstance(item, LostEvent):
                self.lost[item.reason] += item.amount
            if not isinstance(item, bytes):
                yield item
            elif self._drop and self._random.random() < self._drop:
                self.dropped += 1
            else:
                yield _NONCE.sub(_NO_NONCE, item) if self._masked else item
        self._recording.close()
        if not self._recording.is_complete:
            raise WorldError(f"{self._recording.path} has no end")


def replayed(captured: Capture) -> list[Transaction]:
    """Return all transactions of a capture, nonces included."""
    treated = _Treated(captured.recording, drop=0, seed=0, masked=False)
    return _replayed(treated, captured.config)


def _replayed(treated: _Treated, config: Path) -> list[Transaction]:
    collector, counters = _Collector(), CounterSet()
    replay(
        treated,  # type: ignore[arg-type]
        load_config(config).config, counters, io.BytesIO(),
        PipelineOptions(http_buffer_bytes=BODY_BYTES, observers=(collector,)), _REPLAY_S,
    )  # fmt: skip
    if counters.total("otel_qtap.receiver.undecodable"):
        raise WorldError("the recording has records that cannot be read")
    return collector.transactions


class _Collector:
    """Keeps every transaction that the pipeline hands on, links included."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []

    def consume(self, transaction: Transaction) -> None:
        self.transactions.append(transaction)


def evaluate(captured: Capture, *, drop: float = 0.0, seed: int = 1, masked: bool = True) -> Result:
    """
    Replay a capture, without ``drop`` of its events, and score what the linker made of it.

    Unless ``masked`` the linker sees the nonces, which make every answer differ from the
    others, as answers often do; otherwise those of one size are all alike.
    """
    whole = _Treated(captured.recording, drop=0, seed=seed, masked=False)
    everything = _replayed(whole, captured.config)
    seen = everything
    if drop:
        without = _Treated(captured.recording, drop=drop, seed=seed, masked=False)
        seen = _replayed(without, captured.config)
    nonces: dict[tuple[object, ...], Nonces] = {key_of(t): nonces_of(t) for t in seen}
    known = {} if whole.lost.keys() - _TOLD else originals(seen, everything)

    def original(transaction: Transaction) -> Original:
        key = key_of(transaction)
        return known.get(key) or Original(None, nonces[key])

    treated = _Treated(captured.recording, drop=drop, seed=seed, masked=masked)
    transactions = _replayed(treated, captured.config)
    return Result(
        capture=captured,
        score=score(
            transactions, captured.truth, captured.topology,
            nonces=lambda transaction: nonces[key_of(transaction)], original=original,
        ),
        lost=treated.lost,
        dropped=treated.dropped,
    )  # fmt: skip
