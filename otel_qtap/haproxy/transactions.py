"""What the log of HAProxy is compared with, taken from a transaction."""

from __future__ import annotations

from functools import lru_cache

from otel_qtap.haproxy.log_match import ServedRequest
from otel_qtap.transaction.model import Transaction

__all__ = ["is_haproxy", "served_request"]


def is_haproxy(transaction: Transaction) -> bool:
    """Whether a HAProxy took part in a transaction."""
    return _is_program(transaction.process.executable)


@lru_cache(maxsize=1024)
def _is_program(executable: str) -> bool:
    return "haproxy" in executable.rpartition("/")[2]


def served_request(transaction: Transaction) -> ServedRequest | None:
    """Return what identifies a transaction that HAProxy served; ``None`` for all others."""
    if not transaction.direction.is_ingress or not is_haproxy(transaction):
        return None
    timings = transaction.timings
    return ServedRequest(
        transaction.process.pid,
        transaction.local,
        transaction.proxied_source or transaction.remote,
        transaction.request.method,
        transaction.request.target,
        transaction.response.status if transaction.response else 0,
        transaction.index,
        timings.request_start_ns,
        timings.response_start_ns,
        timings.end_ns,
    )
