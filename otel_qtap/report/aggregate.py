"""
Adds up transactions for ``otel-qtap report``: each one once, in bounded memory.

What has process, end and path in common is one row; the three tables are made of these
rows when somebody asks. By backend: what processes asked of others. By frontend: what they
served. By path: what they served, or asked where nothing served was seen.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

from otel_qtap.connection.model import Peer
from otel_qtap.report.rows import About, Row, make_table
from otel_qtap.report.snapshot import ReportSnapshot
from otel_qtap.transaction.model import Direction, Transaction
from otel_qtap.transaction.readable import readable_text

__all__ = ["OTHER", "Report"]

OTHER = "(other)"
"""Stands for the ends and paths that come when there are too many."""

_V = TypeVar("_V")
_SPELLINGS = 4096
_UNSETTLED = 4096
_INGRESS = Direction.INGRESS


class Report:
    """
    Takes every transaction, whatever its level.

    ``consume`` runs on the tap thread, ``snapshot`` on any. After ``max_rows`` rows new
    paths are ``(other)``, after twice as many new ends as well, then new processes.
    """

    def __init__(self, *, max_rows: int = 512, is_coarse: bool = False) -> None:
        """``is_coarse``: the latencies are those of JSON records, see ``ReportSnapshot``."""
        self._max_rows = max_rows
        self._is_coarse = is_coarse
        self._rows: dict[About, Row] = {}
        self._row_of: dict[tuple[int, bool, Peer, str], Row] = {}
        """By process id, side, end and path as they are in a transaction."""
        self._asked_by: OrderedDict[str, Row] = OrderedDict()
        """By the request id of a client's request that is not over: who was asked last for it."""
        self._overheads: OrderedDict[str, int] = OrderedDict()
        """By request id: the proxy's share of a request that was over before its last attempt."""
        self._since_ns = self._until_ns = 0

    def consume(self, transaction: Transaction) -> None:
        """Add a transaction."""
        timings, response, target = (
            transaction.timings, transaction.response, transaction.request.target
        )  # fmt: skip
        start_ns, end_ns = timings.request_start_ns, timings.end_ns
        if end_ns > self._until_ns:  # noqa: PLR1730 - calling max takes three times as long
            self._until_ns = end_ns
        if start_ns < self._since_ns or not self._since_ns:
            self._since_ns = start_ns
        is_served = transaction.direction is _INGRESS
        end = transaction.local if is_served else transaction.remote
        if "?" in target:
            target = target.partition("?")[0]
        key = (transaction.process.pid, is_served, end, target)
        row = self._row_of.get(key)
        if row is None:
            row = self._row_of_new(key, transaction)
        if transaction.proxy_name is not None:
            row.proxy_name = transaction.proxy_name
        status = 0 if response is None else response.status
        if transaction.is_health_check:
            row.count_check(status)
            return
        row.count(transaction.ending, status, timings.duration_ns)
        if is_served:
            self._add_hop(transaction, row)
        else:
            self._add_attempt(transaction, row)

    def snapshot(self, *, max_rows: int = 256) -> ReportSnapshot:
        """Return what was added so far, ``max_rows`` rows of each process in each table."""
        rows = self._rows.copy()
        names = {about[:3]: row.proxy_name for about, row in rows.items() if row.proxy_name}

        def name_of_end(about: About) -> str:
            name = names.get(about[:3])  # once known, it is that of earlier requests as well
            if name is None:
                return about.end
            return name.proxy_name if about.is_served else "/".join(name)

        served = [item for item in rows.items() if item[0].is_served]
        asked = [item for item in rows.items() if not item[0].is_served]
        servers = {about.process for about, _ in served}
        by_path = served + [item for item in asked if item[0].process not in servers]
        return ReportSnapshot(
            transactions=sum(
                row.requests + row.health_checks_passed + row.health_checks_failed
                for row in rows.values()
            ),
            since_ns=self._since_ns,
            until_ns=self._until_ns,
            is_coarse=self._is_coarse,
            backend=make_table(asked, name_of_end, max_rows=max_rows),
            frontend=make_table(served, name_of_end, max_rows=max_rows),
            path=make_table(by_path, lambda about: about.path, max_rows=max_rows),
        )

    def _add_hop(self, transaction: Transaction, row: Row) -> None:
        hop = transaction.hop
        if hop is None:
            return
        if not hop.attempts:
            row.answered_by_proxy += 1
            return
        row.retries += hop.attempts - 1
        overhead_ns = hop.overhead_ns
        row.overhead.record(overhead_ns)
        asked = self._asked_by.pop(transaction.request_id, None)
        if asked is not None:
            asked.overhead.record(overhead_ns)
        else:
            _remember(self._overheads, transaction.request_id, overhead_ns)

    def _add_attempt(self, transaction: Transaction, row: Row) -> None:
        if transaction.resend_count:
            row.retries += 1
        link = transaction.link
        if link is None:
            return
        overhead_ns = self._overheads.pop(link.parent_id, None) if self._overheads else None
        if overhead_ns is not None:
            row.overhead.record(overhead_ns)
        else:
            _remember(self._asked_by, link.parent_id, row)  # a later attempt takes its place

    def _row_of_new(self, key: tuple[int, bool, Peer, str], transaction: Transaction) -> Row:
        about = _about(transaction)
        if self._has_no_room_for(about, 1):
            about = about._replace(path=OTHER)
            if self._has_no_room_for(about, 2):
                about = about._replace(end=OTHER)
                if self._has_no_room_for(about, 3):
                    about = about._replace(process=OTHER)
        row = self._rows.setdefault(about, Row())
        if len(self._row_of) >= _SPELLINGS:
            self._row_of.clear()
        self._row_of[key] = row
        return row

    def _has_no_room_for(self, about: About, times: int) -> bool:
        return about not in self._rows and len(self._rows) >= times * self._max_rows


def _about(transaction: Transaction) -> About:
    name = readable_text(transaction.process.name)
    container = transaction.container
    if container is not None and container.name:  # instances of one program are told apart
        name += f" ({readable_text(container.name)})"
    is_served = transaction.direction is _INGRESS
    if is_served:
        end = transaction.local.authority()
    else:
        end = transaction.remote.authority(readable_text(transaction.remote_name))
    path = readable_text(transaction.path) or readable_text(transaction.authority)
    return About(name, is_served, end, path)


def _remember(known: OrderedDict[str, _V], key: str, value: _V) -> None:
    known[key] = value
    if len(known) > _UNSETTLED:
        known.popitem(last=False)
