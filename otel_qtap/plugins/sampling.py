"""
Keep a share of what would be captured, whole traces at a time.

A trace is all that HAProxy did for one request. Its members are decided by the same id,
that of the transaction the trace begins with, so the SERVER side and the CLIENT side of
a proxied request are kept or dropped together, whichever is seen first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from otel_qtap.transaction.model import Transaction

__all__ = ["Sampler", "is_sampled", "trace_root_id"]

_HASH_BYTES = 8
_ALL = 1 << (8 * _HASH_BYTES)


def is_sampled(trace_root_id: str, rate: float) -> bool:
    """
    Return whether the trace that begins with ``trace_root_id`` is in the sample.

    ``rate`` is the share of traces to keep, 0 to 1. The answer is the same on every
    machine and at any time, and what a rate keeps any higher rate keeps too.
    """
    if rate >= 1:
        return True
    digest = hashlib.blake2b(trace_root_id.encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest, "big") < rate * _ALL


def trace_root_id(transaction: Transaction) -> str:
    """
    Return the request id of the transaction that the trace of ``transaction`` begins with.

    Its own where it is linked to none, as far as anybody knows.
    """
    link = transaction.link
    return transaction.request_id if link is None else link.root_id


class Sampler:
    """
    Decide once per trace: the first of its members decides for those that follow.

    With a single rate the hash says it all. With several, two members of one trace may
    come by different rates (a rule that one of them matches), so what was decided is
    remembered, for the latest ``capacity / 2`` to ``capacity`` traces.
    """

    def __init__(self, rates: Collection[float], *, capacity: int = 65536) -> None:
        """``rates``: all that ``keeps`` may ever be asked about."""
        self._remembers = len(set(rates)) > 1
        self._generation = max(1, capacity // 2)
        self._recent: dict[str, bool] = {}
        self._older: dict[str, bool] = {}

    def keeps(self, transaction: Transaction, rate: float) -> bool:
        """Return whether to keep ``transaction``, which came by ``rate``."""
        root_id = trace_root_id(transaction)
        if not self._remembers:
            return is_sampled(root_id, rate)
        decided = self._recent.get(root_id)
        if decided is None:
            decided = self._older.get(root_id)
        if decided is None:
            decided = is_sampled(root_id, rate)
            if len(self._recent) >= self._generation:
                self._older, self._recent = self._recent, {}
            self._recent[root_id] = decided
        return decided
