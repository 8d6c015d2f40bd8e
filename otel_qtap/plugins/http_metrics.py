"""
The ``http_metrics`` plugin: Qtap's Prometheus metrics of every transaction.

    qtap_http_requests_total, _requests_duration_ms, _requests_size_bytes
    qtap_http_responses_total, _responses_duration_ms, _responses_size_bytes
    qtap_http_duration_ms

The labels are Qtap's: ``method``, ``host``, ``status_code``, ``protocol``. Clients choose
methods and hosts, so only methods that exist are told apart and the number of label
sets is bounded: hosts that come when it is reached share the label ``_other``.
"""

from __future__ import annotations

from otel_qtap.counters import Counter, CounterSet, Histogram
from otel_qtap.stores.qtap_fields import protocol_of, status_of
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.readable import readable_text

__all__ = ["HttpMetrics"]

DURATION_BOUNDS_MS = (
    0.1, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000,
    120_000, 300_000, 600_000,
)  # fmt: skip
SIZE_BOUNDS_BYTES = (
    1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 50_000_000,
)  # fmt: skip

# RFC 9110 section 9.3 and RFC 5789.
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_OTHER = "_other"
_NS_PER_MS = 1e6


class HttpMetrics:
    """Count every transaction, captured or not."""

    def __init__(self, *, counters: CounterSet, max_label_sets: int = 200) -> None:
        """Each label set takes 94 lines of ``/metrics`` and 4 kB of memory."""
        self._counters = counters
        self._max_label_sets = max_label_sets
        self._by_labels: dict[tuple[str, str, str, str], _Series] = {}
        self._by_spelling: dict[tuple[str, str, int, str], _Series] = {}
        self._duration = counters.histogram(
            "qtap.http.duration_ms", "ms", "First request byte to last response byte.",
            DURATION_BOUNDS_MS,
        )  # fmt: skip

    def consume(self, transaction: Transaction) -> None:
        """Count ``transaction``."""
        request = transaction.request
        spelling = (request.method, transaction.authority, status_of(transaction), request.version)
        series = self._by_spelling.get(spelling)
        if series is None:
            series = self._series_of(transaction)
            if len(self._by_spelling) >= 4 * self._max_label_sets:
                self._by_spelling.clear()
            self._by_spelling[spelling] = series
        series.record(transaction)
        self._duration.record(transaction.timings.duration_ns / _NS_PER_MS)

    def _series_of(self, transaction: Transaction) -> _Series:
        method = transaction.request.method
        host = readable_text(transaction.authority).rpartition("@")[2].lower()
        status, protocol = str(status_of(transaction)), protocol_of(transaction)
        method = method if method in _METHODS else _OTHER
        series = self._by_labels.get((method, host, status, protocol))
        if series is None:
            if len(self._by_labels) >= self._max_label_sets:
                host = _OTHER
            labels = (method, host, status, protocol)
            series = self._by_labels.get(labels)
            if series is None:
                series = self._by_labels[labels] = _Series(self._counters, *labels)
        return series


class _Series:
    """The metrics of one label set."""

    __slots__ = (
        "_request_duration",
        "_request_size",
        "_requests",
        "_response_duration",
        "_response_size",
        "_responses",
    )

    def __init__(
        self, counters: CounterSet, method: str, host: str, status_code: str, protocol: str
    ) -> None:
        labels = {
            "method": method, "host": host, "status_code": status_code, "protocol": protocol
        }  # fmt: skip

        def counter(name: str, text: str) -> Counter:
            return counters.counter(f"qtap.http.{name}", "1", text, **labels)

        def duration(name: str, text: str) -> Histogram:
            name = f"qtap.http.{name}.duration_ms"
            return counters.histogram(name, "ms", text, DURATION_BOUNDS_MS, **labels)

        def size(name: str, text: str) -> Histogram:
            name = f"qtap.http.{name}.size_bytes"
            return counters.histogram(name, "By", text, SIZE_BOUNDS_BYTES, **labels)

        self._requests = counter("requests", "Requests seen.")
        self._request_duration = duration("requests", "First to last byte of the request.")
        self._request_size = size("requests", "Head and body of the request on the wire.")
        self._responses = counter("responses", "Responses seen.")
        self._response_duration = duration("responses", "First to last byte of the response.")
        self._response_size = size("responses", "Head and body of the response on the wire.")

    def record(self, transaction: Transaction) -> None:
        """Count ``transaction``; times that were not seen are left out."""
        request, response, timings = transaction.request, transaction.response, transaction.timings
        self._requests.value += 1
        self._request_size.record(request.head_size + request.body.wire_size)
        if timings.request_end_ns:
            self._request_duration.record(
                (timings.request_end_ns - timings.request_start_ns) / _NS_PER_MS
            )
        if response is not None:
            self._responses.value += 1
            self._response_size.record(response.head_size + response.body.wire_size)
            if timings.response_end_ns:
                self._response_duration.record(
                    (timings.response_end_ns - timings.response_start_ns) / _NS_PER_MS
                )
