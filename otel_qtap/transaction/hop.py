"""What a proxy did for a client's request: how often it asked backends, how long it waited."""

from __future__ import annotations

from otel_qtap.transaction.exchange import Exchange
from otel_qtap.transaction.link import ProxyHop
from otel_qtap.transaction.model import Timings, Transaction
from otel_qtap.transaction.place import Place

__all__ = ["hop_of", "may_be_connecting"]

_UNAVAILABLE = 503
_UNEXPLAINED_NS = 10_000_000


def hop_of(timings: Timings, exchange: Exchange, place: Place) -> ProxyHop:
    """Account for the time between first byte in and last byte out."""
    attempts, spent = place.attempts, place.spent
    if place.asking or exchange.passage is not None:
        under_way = _under_way(timings, exchange, place)
        attempts += len(under_way)
        spent = spent + under_way
    waited, end = 0, timings.request_start_ns  # in mode tcp HAProxy connects before
    for begin_ns, end_ns in sorted(spent):
        waited += max(0, end_ns - max(begin_ns, end))
        end = max(end, end_ns)
    return ProxyHop(attempts=attempts, overhead_ns=max(0, timings.duration_ns - waited))


def _under_way(timings: Timings, exchange: Exchange, place: Place) -> list[tuple[int, int]]:
    """
    Return when it was waiting for backends that had not done when its client had its answer.

    One that has not begun to answer is not waited for since the proxy answered by itself.
    """
    offset_ns = exchange.offset_ns(timings)
    found = []
    for sent in place.asking:
        if not (sent.is_emitted or place.is_void or place.contradiction(sent)):
            ends_ns = timings.end_ns
            if sent.response is None:
                ends_ns = place.answered_ns + offset_ns
            found.append((sent.begin_ns + offset_ns, ends_ns))
    passage = exchange.passage  # what was passed on unread is for the client in any case
    if passage is not None and passage.is_certain and not passage.sent.is_emitted:
        found.append((passage.sent.request_start_ns + offset_ns, timings.end_ns))
    return found


def may_be_connecting(transaction: Transaction, hop: ProxyHop) -> bool:
    """
    Whether the last attempt to connect to a server may not be over yet.

    When that takes too long, HAProxy first answers its client and then closes the connection;
    nobody has heard of it by then. (Seen so in HAProxy 2.6 and 3.2.)
    """
    response = transaction.response
    return (
        response is not None
        and response.status == _UNAVAILABLE
        and hop.overhead_ns > _UNEXPLAINED_NS
    )
