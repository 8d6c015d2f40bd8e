"""
Health checks, as far as they can be seen from outside: how many, how they went, and when
a server went up or down.

A check is a connection of HAProxy that belongs to no stream. It fails when no connection
comes to be, or when the answer is neither 2xx nor 3xx: HAProxy's own rule unless
``http-check expect`` says otherwise. Which server is checked, and how many results in a
row it takes, is asked of the names; without them each target stands for itself and every
change of the result counts.

Of checks that only connect, those that fail are seen alone. So what HAProxy says itself,
each time that it is asked, puts right what the checks that were seen amount to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from otel_qtap.counters import Counter, CounterSet
from otel_qtap.haproxy.view import CheckedServer, NameTables

__all__ = ["HealthCheck", "HealthChecks"]

MAX_TARGETS = 1024
_GRACE_NS = 50_000_000  # between the end of a check and HAProxy's taking it into account


class HealthCheck(NamedTuple):
    """One check: an egress transaction without a stream, or a connection that failed."""

    process_id: int
    address: str
    port: int
    status: int = 0
    """0 when there was no HTTP answer."""
    error: str = ""
    """What went wrong (``connect_failed``, ``timeout``, …); empty when nothing did."""
    end_ns: int = 0
    """When it was over, in nanoseconds since the epoch."""

    @property
    def is_passed(self) -> bool:
        """Whether HAProxy takes it as a success."""
        return not self.error and (not self.status or 200 <= self.status < 400)


class _Series:
    """The counters of one server, shared by all processes that check it."""

    __slots__ = ("failed", "is_up", "passed", "turns")

    def __init__(self, counters: CounterSet, labels: dict[str, str]) -> None:
        self.is_up: bool | None = None
        self.passed, self.failed = (
            counters.counter(
                "otel_qtap.haproxy.health_checks",
                "{check}",
                "Health checks that HAProxy made, by how they went.",
                result=result,
                **labels,
            )
            for result in ("passed", "failed")
        )
        self.turns: dict[bool, Counter] = {
            is_up: counters.counter(
                "otel_qtap.haproxy.health_transitions",
                "{transition}",
                "Times that health checks took a server up or down.",
                to="up" if is_up else "down",
                **labels,
            )
            for is_up in (True, False)
        }
        counters.gauge(
            "otel_qtap.haproxy.server_up",
            "1",
            "Whether the last health checks say that a server is up; -1 while they do not say.",
            lambda: -1 if self.is_up is None else int(self.is_up),
            **labels,
        )


class _State:
    """
    What one process makes of the results of one server.

    As HAProxy counts: ``health`` goes from 0 to ``rise + fall - 1`` and the server is up
    from ``rise`` on; a success takes a server that is up to the top, a failure one that is
    down to 0. Until HAProxy's count is known, so many results in a row have to agree.
    """

    __slots__ = ("end", "fall", "health", "in_a_row", "known_ns", "last_ns", "rise", "series")

    def __init__(
        self, series: _Series, end: tuple[str, int], checked: CheckedServer | None, asked_ns: int
    ) -> None:
        self.series = series
        self.end = end
        self.known_ns = asked_ns
        """When HAProxy's own count was as it is taken here; what was before is in it."""
        self.last_ns = 0
        self.rise = checked.rise if checked else 1
        self.fall = checked.fall if checked else 1
        self.health = checked.health if checked else None
        self.in_a_row = 0  # successes; negative: failures
        if self.health is not None:
            series.is_up = self.health >= self.rise

    def take(self, end_ns: int, *, is_passed: bool) -> None:
        self.last_ns = max(self.last_ns, end_ns)
        if self.health is not None and end_ns < self.known_ns:
            return
        if self.health is None:
            self._find_out(is_passed=is_passed)
            return
        was_up = self.health >= self.rise
        top = self.rise + self.fall - 1
        if is_passed:
            self.health = top if self.health + 1 >= self.rise else self.health + 1
        else:
            self.health = self.health - 1 if self.health > self.rise else 0
        self._turn(was_up)

    def correct(self, checked: CheckedServer, asked_ns: int) -> None:
        """Take what HAProxy says itself, unless a check was too near to know what is in it."""
        if checked.health is None or asked_ns <= max(self.last_ns + _GRACE_NS, self.known_ns):
            return
        was_up = None if self.health is None else self.health >= self.rise
        self.rise, self.fall, self.health = checked.rise, checked.fall, checked.health
        self.known_ns = asked_ns
        self._turn(was_up)

    def _turn(self, was_up: bool | None) -> None:
        """Note whether the server is up, which is a transition if it was known to be not."""
        is_up = self.health is not None and self.health >= self.rise
        if was_up is not None and is_up is not was_up:
            self.series.turns[is_up].add()
        self.series.is_up = is_up

    def _find_out(self, *, is_passed: bool) -> None:
        """Learn where the server stands from results that agree; that is no transition."""
        step = 1 if is_passed else -1
        self.in_a_row = self.in_a_row + step if self.in_a_row * step > 0 else step
        if self.in_a_row >= self.rise or -self.in_a_row >= self.fall:
            self.health = self.rise + self.fall - 1 if is_passed else 0
            self.series.is_up = is_passed


class HealthChecks:
    """
    Counts health checks per server. One thread owns it; at most ``MAX_TARGETS`` servers.

    ``tables_of`` returns what is known of the names in a process.
    """

    def __init__(
        self, counters: CounterSet, tables_of: Callable[[int], NameTables | None] = lambda _: None
    ) -> None:
        self._counters = counters
        self._tables_of = tables_of
        self._states: OrderedDict[tuple[int, str, str], _State] = OrderedDict()
        self._series: dict[tuple[str, str], _Series] = {}

    def consume(self, check: HealthCheck) -> None:
        """Take the next check of any process."""
        state = self._state_of(check)
        is_passed = check.is_passed
        (state.series.passed if is_passed else state.series.failed).add()
        state.take(check.end_ns, is_passed=is_passed)

    def tick(self) -> None:
        """Put right what HAProxy knows better; to be called about once a second."""
        for (process_id, _, _), state in self._states.items():
            tables = self._tables_of(process_id)
            checked = tables and tables.checked_server_at(*state.end)
            if tables and checked:
                state.correct(checked, tables.asked_ns)

    def _state_of(self, check: HealthCheck) -> _State:
        end = (check.address, check.port)
        tables = self._tables_of(check.process_id)
        checked = tables.checked_server_at(*end) if tables else None
        if checked is not None:
            backend, server = checked.name.proxy_name, checked.name.service_name
        else:
            host = f"[{check.address}]" if ":" in check.address else check.address
            backend, server = "", f"{host}:{check.port}"
        key = (check.process_id, backend, server)
        state = self._states.get(key)
        if state is None:
            asked_ns = tables.asked_ns if tables else 0
            series = self._series_of(backend, server)
            state = self._states[key] = _State(series, end, checked, asked_ns)
            if len(self._states) > MAX_TARGETS * 2:  # workers come and go with each reload
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(key)
        return state

    def _series_of(self, backend: str, server: str) -> _Series:
        if (backend, server) not in self._series and len(self._series) >= MAX_TARGETS:
            backend, server = "", "other"
        key = (backend, server)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(
                self._counters, {"backend": backend, "server": server}
            )
        return series
