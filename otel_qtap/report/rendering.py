"""A report as a table for people; columns in which nothing happened are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from otel_qtap.report.snapshot import ReportRow, ReportSnapshot, ReportTable, Spread

__all__ = ["By", "Rates", "rates_between", "render_report"]

By = Literal["backend", "frontend", "path"]
Rates = Mapping[tuple[str, str], float]
"""Requests in a second by process and name of the row; the name of a sum is empty."""

_NS_PER_S = 1e9
MAX_NAME = 60  # characters of a row's name


class _Column(NamedTuple):
    title: str
    text: Callable[[ReportRow], str]
    is_optional: bool = False
    """Whether it is left out when all of it is ``0`` or ``-``."""


def _ms(spread: Spread | None, name: str) -> str:
    if spread is None:
        return "-"
    value: float = getattr(spread, name)
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _checks(row: ReportRow) -> str:
    count = row.health_checks_passed + row.health_checks_failed
    if not row.health_checks_failed:
        return f"{count:,}"
    return f"{count:,} ({row.health_checks_failed:,} failed)"


_COLUMNS = (
    _Column("requests", lambda row: f"{row.requests:,}"),
    _Column("share", lambda row: f"{row.share:.1%}"),
    _Column("4xx", lambda row: f"{row.client_errors:,}"),
    _Column("5xx", lambda row: f"{row.server_errors:,}"),
    _Column("failed", lambda row: f"{row.failed:,}"),
    _Column("aborted", lambda row: f"{row.aborted:,}", is_optional=True),
    _Column("unseen", lambda row: f"{row.unseen:,}", is_optional=True),
    _Column("retries", lambda row: f"{row.retries:,}", is_optional=True),
    _Column("by proxy", lambda row: f"{row.answered_by_proxy:,}", is_optional=True),
    _Column("p50 ms", lambda row: _ms(row.latency_ms, "p50")),
    _Column("p95 ms", lambda row: _ms(row.latency_ms, "p95")),
    _Column("p99 ms", lambda row: _ms(row.latency_ms, "p99")),
    _Column("overhead p50 ms", lambda row: _ms(row.overhead_ms, "p50"), is_optional=True),
    _Column("overhead p99 ms", lambda row: _ms(row.overhead_ms, "p99"), is_optional=True),
    _Column("health checks", _checks, is_optional=True),
)


def render_report(
    snapshot: ReportSnapshot,
    by: By,
    *,
    process: str = "",
    limit: int = 40,
    rates: Rates | None = None,
) -> str:
    """
    Return the table of ``snapshot`` as lines of text.

    ``process`` shows only programs with that in their name, ``limit`` no more rows than
    that of each. ``rates`` adds a column.
    """
    table: ReportTable = getattr(snapshot, by)
    blocks = []
    for total in table.totals:
        if process not in total.process:
            continue
        rows = [row for row in table.rows if row.process == total.process]
        shown = rows[:limit]
        if len(rows) > 1:
            shown.append(total)
        lines = list(_lines(by, shown, rates))
        if len(rows) > limit:
            lines.insert(-1, f"  … {len(rows) - limit:,} more")
        blocks.append("\n".join([f"{total.process} by {by}, {_time_span(snapshot)}", *lines]))
    if not blocks:
        what = "asked of others" if by == "backend" else "served"
        whom = f" by {process}" if process else ""
        return f"no HTTP request {what}{whom} was seen ({snapshot.transactions} transactions)\n"
    text = "\n\n".join(blocks) + "\n"
    if snapshot.is_coarse:
        text += "\nJSON records have whole milliseconds, up to the head of the response.\n"
    return text


def rates_between(before: ReportSnapshot, after: ReportSnapshot, by: By, seconds: float) -> Rates:
    """Return how many requests in a second each row had between two snapshots."""
    old = _requests(getattr(before, by))
    return {
        key: max(0, count - old.get(key, 0)) / seconds
        for key, count in _requests(getattr(after, by)).items()
    }


def _requests(table: ReportTable) -> dict[tuple[str, str], int]:
    return {(row.process, row.name): row.requests for row in (*table.rows, *table.totals)}


def _lines(by: By, rows: Sequence[ReportRow], rates: Rates | None) -> Iterator[str]:
    columns = list(_COLUMNS)
    if rates is not None:
        columns.insert(1, _Column("per s", lambda row: _per_second(row, rates)))
    cells = [[column.text(row) for row in rows] for column in columns]
    shown = [
        (column.title, texts)
        for column, texts in zip(columns, cells, strict=True)
        if not column.is_optional or any(text not in ("0", "-") for text in texts)
    ]
    names = [_cut(row.name) or "all" for row in rows]
    width = max(len(name) for name in (by, *names))
    widths = [max(len(title), *map(len, texts)) for title, texts in shown]
    titles = [title.rjust(size) for (title, _), size in zip(shown, widths, strict=True)]
    yield "  ".join(["", by.ljust(width), *titles]).rstrip()
    for number, name in enumerate(names):
        texts = [texts[number].rjust(size) for (_, texts), size in zip(shown, widths, strict=True)]
        yield "  ".join(["", name.ljust(width), *texts]).rstrip()


def _per_second(row: ReportRow, rates: Rates) -> str:
    rate = rates.get((row.process, row.name), 0.0)
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _time_span(snapshot: ReportSnapshot) -> str:
    since_s, until_s = snapshot.since_ns / _NS_PER_S, snapshot.until_ns / _NS_PER_S
    begin = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(since_s))
    is_same_day = time.gmtime(since_s)[:3] == time.gmtime(until_s)[:3]
    end = time.strftime("%H:%M:%S" if is_same_day else "%Y-%m-%d %H:%M:%S", time.gmtime(until_s))
    return f"{begin} to {end} UTC ({_duration(until_s - since_s)})"


def _duration(seconds: float) -> str:
    """Return a span of time in its two largest units: ``1.2 s``, ``5 min 3 s``, ``1 d 1 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _cut(name: str) -> str:
    """Return a name that leaves room for the numbers; of a path the end tells more."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
