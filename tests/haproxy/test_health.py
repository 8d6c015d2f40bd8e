"""Health checks are counted per server, and servers go up and down when HAProxy says so."""

from __future__ import annotations

import pytest

from otel_qtap.counters import CounterSet
from otel_qtap.haproxy import CheckedServer, HealthCheck, HealthChecks, NameTables, ServerName

PASSED = HealthCheck(987, "10.0.0.1", 80, 200)
FAILED = HealthCheck(987, "10.0.0.1", 80, 503)
UNANSWERED = HealthCheck(987, "10.0.0.1", 80, 0, "connect_failed")

RESULTS = [
    pytest.param(200, "", True, id="200"),
    pytest.param(302, "", True, id="302"),
    pytest.param(0, "", True, id="connected"),
    pytest.param(404, "", False, id="404"),
    pytest.param(503, "", False, id="503"),
    pytest.param(101, "", False, id="101"),
    pytest.param(0, "connect_failed", False, id="no-connection"),
    pytest.param(200, "timeout", False, id="answer-that-did-not-end"),
]


@pytest.mark.parametrize(("status", "error", "is_passed"), RESULTS)
def test_a_check_passes_as_haproxy_lets_it_pass(status, error, is_passed) -> None:
    """2xx and 3xx, and a mere connection where nothing was asked."""
    check = HealthCheck(987, "10.0.0.1", 80, status, error)

    assert check.is_passed is is_passed


def tables(checked: CheckedServer | None, asked_s: float = 0) -> NameTables:
    return NameTables(checked={("10.0.0.1", 80): checked}, asked_ns=round(asked_s * 1e9))


class Seen:
    """Checks that were taken, and what the metrics say then."""

    def __init__(self, checked: CheckedServer | None = None, *, asked_s: float = 0) -> None:
        self.counters = CounterSet()
        self.tables = tables(checked, asked_s)
        self.checks = HealthChecks(self.counters, lambda _: self.tables)

    def take(self, results: str, check: HealthCheck = PASSED, *, end_s: float = 0) -> Seen:
        """Take a check for each sign: ``+`` passes, ``-`` fails."""
        for sign in results:
            each = check if sign == "+" else FAILED
            self.checks.consume(each._replace(end_ns=round(end_s * 1e9)))
        return self

    def value(self, name: str, **labels: str) -> int:
        labels = {"backend": "api", "server": "one"} | labels
        return self.counters.value(f"otel_qtap.haproxy.{name}", **labels)

    def up(self) -> list[float]:
        name = "otel_qtap.haproxy.server_up"
        return [sample.value for sample in self.counters.samples() if sample.name == name]


def named(rise: int = 2, fall: int = 3, health: int | None = None) -> CheckedServer:
    return CheckedServer(ServerName("api", "one"), rise, fall, health)


def test_checks_are_counted_per_server() -> None:
    """By how they went."""
    seen = Seen(named()).take("+++--+")

    assert seen.value("health_checks", result="passed") == 4
    assert seen.value("health_checks", result="failed") == 2


TURNS = [
    pytest.param(named(2, 3, 4), "---", (0, 1), 0, id="down-after-fall"),
    pytest.param(named(2, 3, 4), "--+--", (0, 0), 1, id="a-success-starts-anew"),
    pytest.param(named(2, 3, 4), "---++", (1, 1), 1, id="up-after-rise"),
    pytest.param(named(2, 3, 4), "---+-+", (0, 1), 0, id="a-failure-starts-anew"),
    pytest.param(named(2, 3, 2), "-", (0, 1), 0, id="just-up-and-down-at-once"),
    pytest.param(named(2, 3, 1), "+", (1, 0), 1, id="one-more-success"),
    pytest.param(named(1, 1, 1), "-+-+", (2, 2), 1, id="every-result"),
    pytest.param(named(), "++---", (0, 1), 0, id="unknown-then-up"),
    pytest.param(named(), "---++", (1, 0), 1, id="unknown-then-down"),
    pytest.param(named(), "+--+", (0, 0), -1, id="unknown-for-long"),
]


@pytest.mark.parametrize(("checked", "results", "turns", "is_up"), TURNS)
def test_servers_go_up_and_down_as_haproxy_counts(checked, results, turns, is_up) -> None:
    """``rise`` and ``fall`` results in a row; to find out where it stands is no transition."""
    seen = Seen(checked).take(results)

    assert (seen.value("health_transitions", to="up"),
            seen.value("health_transitions", to="down")) == turns  # fmt: skip
    assert seen.up() == [is_up]


def test_without_names_the_address_stands_for_the_server() -> None:
    """And every change of the result counts."""
    seen = Seen().take("+--+")
    labels = {"backend": "", "server": "10.0.0.1:80"}

    assert seen.value("health_checks", result="failed", **labels) == 2
    assert seen.value("health_transitions", to="down", **labels) == 1
    assert seen.value("health_transitions", to="up", **labels) == 1


def test_addresses_of_ipv6_have_brackets() -> None:
    """As everywhere."""
    seen = Seen()
    seen.checks.consume(PASSED._replace(address="2001:db8::1"))

    assert seen.value("health_checks", result="passed", backend="", server="[2001:db8::1]:80") == 1


def test_each_process_has_its_own_count_of_results() -> None:
    """A worker after a reload begins anew; its checks are those of the same server."""
    seen = Seen(named(2, 2, 3))
    for process_id in (1, 2):
        seen.take("+", PASSED._replace(process_id=process_id))
        seen.checks.consume(UNANSWERED._replace(process_id=process_id))

    assert seen.value("health_checks", result="failed") == 2
    assert seen.value("health_transitions", to="down") == 0


def test_the_number_of_servers_is_bounded() -> None:
    """What exceeds the bound is counted together."""
    seen = Seen()
    for port in range(1, 1200):
        seen.checks.consume(PASSED._replace(port=port))

    assert seen.value("health_checks", result="passed", backend="", server="other") == 175
    assert seen.counters.total("otel_qtap.haproxy.health_checks") == 1199


def test_what_haproxy_said_is_not_counted_again() -> None:
    """Checks that were over when it was asked are in its own count already."""
    seen = Seen(named(2, 3, 3), asked_s=10).take("-", end_s=9).take("--", end_s=11)

    assert seen.value("health_checks", result="failed") == 3
    assert seen.value("health_transitions", to="down") == 1


SAYINGS = [
    pytest.param(named(2, 3, 4), 12, (1, 1), 1, id="up-again"),
    pytest.param(named(2, 3, 0), 12, (0, 1), 0, id="still-down"),
    pytest.param(named(2, 3, 4), 11, (0, 1), 0, id="asked-before-the-last-check"),
    pytest.param(named(2, 3, None), 12, (0, 1), 0, id="not-said"),
    pytest.param(None, 12, (0, 1), 0, id="not-checked-any-more"),
]


@pytest.mark.parametrize(("said", "asked_s", "turns", "is_up"), SAYINGS)
def test_haproxy_itself_knows_better(said, asked_s, turns, is_up) -> None:
    """A check that only connects is not seen when it succeeds: only HAProxy says so."""
    seen = Seen(named(2, 3, 4), asked_s=1).take("---", end_s=11)
    seen.tables = tables(said, asked_s)
    seen.checks.tick()
    seen.checks.tick()

    assert (seen.value("health_transitions", to="up"),
            seen.value("health_transitions", to="down")) == turns  # fmt: skip
    assert seen.up() == [is_up]


def test_what_haproxy_says_of_a_server_that_nothing_was_known_of_is_no_transition() -> None:
    """It only tells where the server stands."""
    seen = Seen(named()).take("-", end_s=5)
    seen.tables = tables(named(2, 3, 0), 6)
    seen.checks.tick()

    assert seen.value("health_transitions", to="down") == 0
    assert seen.up() == [0]
