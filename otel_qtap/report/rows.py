"""What is counted of requests that have their end and their path in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from otel_qtap.report.quantiles import Quantiles
from otel_qtap.report.snapshot import ReportRow, ReportTable, Spread
from otel_qtap.transaction.link import ProxyName
from otel_qtap.transaction.model import Ending

__all__ = ["About", "Row", "make_table"]

_NS_PER_MS = 1e6
_COMPLETE = Ending.COMPLETE
_COUNTS = (
    "requests", "client_errors", "server_errors", "failed", "aborted", "unseen", "retries",
    "answered_by_proxy", "health_checks_passed", "health_checks_failed",
)  # fmt: skip


class About(NamedTuple):
    """Which requests a row is about."""

    process: str
    is_served: bool
    """Whether the process served them, or asked them of others."""
    end: str
    """Where it took them, or whom it asked."""
    path: str


class Row:
    """Counts; the tap adds, whoever is asked reads."""

    __slots__ = (*_COUNTS, "latency", "overhead", "proxy_name")

    def __init__(self) -> None:
        self.requests = self.client_errors = self.server_errors = 0
        self.failed = self.aborted = self.unseen = self.retries = self.answered_by_proxy = 0
        self.health_checks_passed = self.health_checks_failed = 0
        self.latency, self.overhead = Quantiles(), Quantiles()
        self.proxy_name: ProxyName | None = None
        """What HAProxy calls the end, as far as it is known."""

    def count(self, ending: Ending, status: int, duration_ns: int) -> None:
        """Count a request; ``status`` 0: it got no response."""
        self.requests += 1
        if ending is not _COMPLETE:
            if ending.error_type is not None:
                self.failed += 1
                return
            if ending is Ending.CLIENT_CLOSED:
                self.aborted += 1
                return
        if not status:
            self.unseen += 1
            return
        if status >= 400:
            if status >= 500:
                self.server_errors += 1
            else:
                self.client_errors += 1
        if ending is _COMPLETE or ending is Ending.UPGRADED:
            self.latency.record(duration_ns)

    def count_check(self, status: int) -> None:
        """Count a health check of the proxy, by HAProxy's own rule: 2xx and 3xx are good."""
        if 200 <= status < 400:
            self.health_checks_passed += 1
        else:
            self.health_checks_failed += 1

    def merge(self, other: Row) -> None:
        """Add what ``other`` has counted."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.merge(other.latency)
        self.overhead.merge(other.overhead)

    def shown(self, process: str, name: str, total: int) -> ReportRow:
        """Return what a reader sees; ``total`` is what the share is of."""
        return ReportRow(
            process=process,
            name=name,
            share=self.requests / total if total else 0.0,
            **{count: getattr(self, count) for count in _COUNTS},
            latency_ms=_spread(self.latency),
            overhead_ms=_spread(self.overhead),
        )


def make_table(
    rows: Iterable[tuple[About, Row]], name_of: Callable[[About], str], *, max_rows: int
) -> ReportTable:
    """Return ``rows`` added up by process and ``name_of``, those with most requests first."""
    by_process: dict[str, dict[str, Row]] = {}
    for about, row in rows:
        its_rows = by_process.setdefault(about.process, {})
        its_rows.setdefault(name_of(about), Row()).merge(row)
    shown: list[ReportRow] = []
    totals: list[ReportRow] = []
    for process, its_rows in sorted(by_process.items()):
        total = Row()
        for row in its_rows.values():
            total.merge(row)
        totals.append(total.shown(process, "", total.requests))
        ordered = sorted(its_rows.items(), key=lambda item: (-item[1].requests, item[0]))
        shown += [row.shown(process, name, total.requests) for name, row in ordered[:max_rows]]
    return ReportTable(rows=tuple(shown), totals=tuple(totals))


def _spread(values: Quantiles) -> Spread | None:
    if not values.count:
        return None
    return Spread(
        p50=values.at(0.5) / _NS_PER_MS,
        p95=values.at(0.95) / _NS_PER_MS,
        p99=values.at(0.99) / _NS_PER_MS,
        max=values.maximum / _NS_PER_MS,
    )
