"""
Between the assembler and the plugins: HAProxy's own account is put to its transactions.

Names of frontends, backends and servers, the line of the access log, and what health
checks say. Everything else passes through untouched and at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from otel_qtap.counters import CounterSet
from otel_qtap.events import LogEvent
from otel_qtap.haproxy.health import HealthCheck, HealthChecks
from otel_qtap.haproxy.log_join import LogJoiner
from otel_qtap.haproxy.transactions import is_haproxy, served_request
from otel_qtap.haproxy.view import NameTables
from otel_qtap.protocol.haproxy_log import AccessLogLine
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.link import ProxyName
from otel_qtap.transaction.model import Direction, Ending, Transaction

__all__ = ["HaproxyAccount", "Names", "NoNames"]

_INGRESS = Direction.INGRESS  # looking up a member takes longer than comparing with it
_FRONTEND = "FRONTEND"  # what HAProxy's statistics call the service that a frontend is
_NAMES_WAIT_NS = 5_000_000_000  # for the names of a process that has just appeared
_MAX_EARLY_CHECKS = 4096
_CORRECT_EVERY_NS = 1_000_000_000
_TELLS_NOTHING = frozenset({Ending.LOST, Ending.UNREADABLE, Ending.UNFINISHED, Ending.UPGRADED})


class Names(Protocol):
    """Who knows the names: ``HaproxyNames``, or what a recording says."""

    def tables_of(self, pid: int, /) -> NameTables | None:
        """Return the names in a process; ``None`` before they were looked for. Never waits."""


class NoNames:
    """Nobody knows any."""

    def tables_of(self, _pid: int, /) -> NameTables | None:
        """Return that there are none."""
        return _NOTHING


_NOTHING = NameTables()


class HaproxyAccount:
    """
    Completes the transactions of HAProxy, and hands all on to ``consumer``.

    One thread owns it. Times of events are the kernel's; ``epoch_offset_ns`` returns what
    turns them into nanoseconds since the epoch. ``wants_client`` says whether a client at an
    address is captured: lines about others are passed over.
    """

    def __init__(
        self,
        consumer: Consumer,
        counters: CounterSet,
        *,
        epoch_offset_ns: Callable[[], int],
        names: Names | None = None,
        wants_line: Callable[[int, str], bool] = lambda _pid, _client: True,
    ) -> None:
        self.on_arrival: Callable[[Transaction], None] = lambda _: None
        """Told of each transaction at once, whether or not it will wait for its line."""
        self._pass_on = consumer.consume
        self._tables_of = (names or NoNames()).tables_of
        self._epoch_offset_ns = epoch_offset_ns
        self._health = HealthChecks(counters, self._tables_of)
        self._early_checks: deque[HealthCheck] = deque()
        self._correct_at_ns = 0
        self._joiner: LogJoiner[Transaction] = LogJoiner(
            consumer,
            describe=served_request,
            attach=_attach,
            counters=counters,
            wants_line=wants_line,
        )

    def consume(self, transaction: Transaction) -> None:
        """Take the next transaction; it goes on now or, with its line, a moment later."""
        if not is_haproxy(transaction):
            self.on_arrival(transaction)
            self._pass_on(transaction)
            return
        pid = transaction.process.pid
        tables = self._tables_of(pid) or _NOTHING
        if transaction.direction is _INGRESS:
            _name_frontend(transaction, tables)
            self.on_arrival(transaction)
            if tables.has_log or self._joiner.knows(pid):
                self._joiner.accept(transaction)
                return
            self._joiner.pass_by(pid, transaction.timings.end_ns)
        else:
            _name_server(transaction, tables)
            self.on_arrival(transaction)
            if transaction.is_health_check:
                self.check(transaction)
        self._pass_on(transaction)

    def expect_log(self, event: LogEvent) -> None:
        """A process wrote to its log, but what it wrote has to wait for what it is about."""
        self._joiner.expect(
            event.process_id, event.timestamp_ns + self._epoch_offset_ns(), event.data
        )

    def accept_log(self, event: LogEvent) -> None:
        """Take what a process wrote to its log."""
        written_ns = event.timestamp_ns + self._epoch_offset_ns()
        self._joiner.accept_line(event.process_id, written_ns, event.data)

    def tick(self, timestamp_ns: int) -> None:
        """Let go of what waited long enough; to be called every few milliseconds."""
        now_ns = timestamp_ns + self._epoch_offset_ns()
        self._joiner.tick(now_ns)
        if now_ns >= self._correct_at_ns:
            self._correct_at_ns = now_ns + _CORRECT_EVERY_NS
            self._take_early_checks(now_ns - _NAMES_WAIT_NS)
            self._health.tick()

    def check(self, transaction: Transaction) -> None:
        """Count a health check, which need not have got as far as to ask."""
        response, ending = transaction.response, transaction.ending
        if response is None and ending in _TELLS_NOTHING:
            return
        check = HealthCheck(
            transaction.process.pid,
            *transaction.remote,
            response.status if response is not None else 0,
            "" if response is not None else ending.value,
            transaction.timings.end_ns,
        )
        if self._early_checks or self._tables_of(check.process_id) is None:
            # Under its address it would be another server than under its name.
            self._early_checks.append(check)
            if len(self._early_checks) > _MAX_EARLY_CHECKS:
                self._health.consume(self._early_checks.popleft())
        else:
            self._health.consume(check)

    def close(self) -> None:
        """Let go of everything, because nothing will follow."""
        while self._early_checks:
            self._health.consume(self._early_checks.popleft())
        self._joiner.close()

    # Inside -----------------------------------------------------------------------------

    def _take_early_checks(self, before_ns: int) -> None:
        early = self._early_checks
        while early and (
            early[0].end_ns < before_ns or self._tables_of(early[0].process_id) is not None
        ):
            self._health.consume(early.popleft())


def _name_frontend(transaction: Transaction, tables: NameTables) -> None:
    address, port = transaction.local
    frontend = tables.frontend_at(port, address)
    if frontend:
        transaction.proxy_name = ProxyName(frontend, _FRONTEND)  # type: ignore[misc]  # not seen yet


def _name_server(transaction: Transaction, tables: NameTables) -> None:
    address, port = transaction.remote
    name = transaction.remote_name
    if not name:
        name = tables.host_at(address, port)
        transaction.remote_name = name  # type: ignore[misc]  # nobody has seen it yet
    server = tables.server_at(address, port)
    if server is None and name:
        server = tables.server_at(name, port)
    if server is not None:
        transaction.proxy_name = ProxyName(*server[:2])  # type: ignore[misc]  # nobody has seen it


def _attach(transaction: Transaction, line: AccessLogLine) -> Transaction:
    """Put the line to its transaction, which says itself what was asked."""
    transaction.haproxy_log = line.without_request()  # type: ignore[misc]
    if transaction.proxy_name is None:
        transaction.proxy_name = ProxyName(line.frontend, _FRONTEND)  # type: ignore[misc]
    return transaction
