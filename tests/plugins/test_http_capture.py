"""What the ``http_capture`` plugin hands on, and that nobody behind it can hurt the tap."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

import pytest

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.plugins.http_capture import HttpCapture
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.transaction.link import Link, LinkMethod


@dataclass
class Sink:
    """A consumer that keeps what it gets."""

    taken: list = field(default_factory=list)

    def consume(self, transaction) -> None:
        self.taken.append(transaction)


@dataclass
class PathRule:
    """A rule that matches one path."""

    path: str
    level: CaptureLevel
    format: CaptureFormat | None = None
    sample_rate: float | None = None

    def matches(self, transaction) -> bool:
        return transaction.path == self.path


class Broken:
    """A consumer and a rule that fails on everything."""

    level = CaptureLevel.FULL
    format = None
    sample_rate = None

    def consume(self, transaction) -> None:
        raise RuntimeError(f"cannot store {transaction.request.header('authorization')}")

    def matches(self, transaction) -> bool:
        raise RuntimeError(f"cannot evaluate {transaction.path}")


@pytest.fixture
def capture(counters):
    """Make a plugin with one sink; return both."""

    def make(**changes):
        sink = Sink()
        options = {
            "level": CaptureLevel.FULL,
            "redactor": Redactor(),
            "consumers": [sink],
            "counters": counters,
        }
        return HttpCapture(**(options | changes)), sink

    return make


LEVELS = [
    pytest.param(CaptureLevel.SUMMARY, b"", id="summary"),
    pytest.param(CaptureLevel.HEADERS, b"", id="headers"),
    pytest.param(CaptureLevel.FULL, b"body", id="full"),
]


@pytest.mark.parametrize(("level", "content"), LEVELS)
def test_level_and_format_travel_with_the_transaction(
    level, content, capture, make_transaction
) -> None:
    """Bodies go unless the level is ``full``; their size is known all the same."""
    plugin, sink = capture(level=level, format=CaptureFormat.TEXT)
    plugin.consume(make_transaction(request_body=b"body", response_body=b"body"))

    (taken,) = sink.taken
    assert (taken.level, taken.format) == (level, CaptureFormat.TEXT)
    for message in (taken.request, taken.response):
        assert (message.body.content, message.body.size) == (content, 4)


def test_none_hands_nothing_on_and_is_counted(capture, make_transaction, counters) -> None:
    """Level ``none`` ends here; every transaction is counted under its level."""
    plugin, sink = capture(level=CaptureLevel.NONE)
    plugin.consume(make_transaction())
    assert sink.taken == []
    assert counters.value("otel_qtap.capture.transactions", level="none") == 1


def test_what_is_handed_on_is_redacted(capture, make_transaction) -> None:
    """No consumer ever sees a credential."""
    plugin, sink = capture()
    plugin.consume(
        make_transaction(target="/?token=s3cret", request_headers=(("cookie", "s3cret"),))
    )
    (taken,) = sink.taken
    assert taken.request.target == "/?token=REDACTED"
    assert taken.request.headers == (("cookie", "REDACTED"),)


RULES = [
    PathRule("/health", CaptureLevel.NONE),
    PathRule("/api", CaptureLevel.HEADERS, CaptureFormat.TEXT),
    PathRule("/api", CaptureLevel.FULL),
    PathRule("/full", CaptureLevel.FULL),
]

DECISIONS = [
    pytest.param("/health", None, id="none-drops"),
    pytest.param("/api", (CaptureLevel.HEADERS, CaptureFormat.TEXT), id="first-match-wins"),
    pytest.param("/full", (CaptureLevel.FULL, CaptureFormat.JSON), id="format-of-the-plugin"),
    pytest.param("/other", (CaptureLevel.SUMMARY, CaptureFormat.JSON), id="no-match"),
]


@pytest.mark.parametrize(("target", "decision"), DECISIONS)
def test_rules_decide_in_order(target, decision, capture, make_transaction) -> None:
    """The first rule that matches decides; without one, the level of the plugin holds."""
    plugin, sink = capture(level=CaptureLevel.SUMMARY, rules=RULES)
    plugin.consume(make_transaction(target=target))
    assert [(taken.level, taken.format) for taken in sink.taken] == ([decision] if decision else [])


def test_a_failing_consumer_reaches_nobody_else(
    capture, make_transaction, counters, caplog
) -> None:
    """The others get theirs; each failure is counted; the log tells it once, without data."""
    sink = Sink()
    plugin, _ = capture(consumers=[Broken(), sink], redactor=Redactor(header_names=[]))
    transaction = make_transaction(request_headers=(("authorization", "s3cret"),))
    with caplog.at_level(logging.INFO, logger="otel_qtap"):
        for _ in range(3):
            plugin.consume(transaction)

    assert len(sink.taken) == 3
    assert counters.value("otel_qtap.capture.failed", component="Broken") == 3
    assert len(caplog.records) == 1
    assert "s3cret" not in caplog.text


def test_a_failing_rule_does_not_match(capture, make_transaction, counters) -> None:
    """Evaluation goes on with the next rule."""
    plugin, sink = capture(rules=[Broken(), PathRule("/api/users", CaptureLevel.SUMMARY)])
    plugin.consume(make_transaction())
    assert [taken.level for taken in sink.taken] == [CaptureLevel.SUMMARY]
    assert counters.value("otel_qtap.capture.failed", component="Broken") == 1


RATES = [
    # of the plugin, of the rule for /api, share of /api and of /other that is kept
    pytest.param(1.0, None, 1.0, 1.0, id="all"),
    pytest.param(0.0, None, 0.0, 0.0, id="none"),
    pytest.param(0.0, 1.0, 1.0, 0.0, id="only-the-rule"),
    pytest.param(1.0, 0.0, 0.0, 1.0, id="all-but-the-rule"),
    pytest.param(0.3, None, 0.3, 0.3, id="rule-takes-the-plugin's"),
    pytest.param(0.5, 0.1, 0.1, 0.5, id="each-its-own"),
]


@pytest.mark.parametrize(("plugin_rate", "rule_rate", "api", "other"), RATES)
def test_a_share_is_kept(
    plugin_rate, rule_rate, api, other, capture, make_transaction, counters
) -> None:
    """That of the rule that matched, else the plugin's; what is left out is counted."""
    rule = PathRule("/api", CaptureLevel.HEADERS, sample_rate=rule_rate)
    plugin, sink = capture(rules=[rule], sample_rate=plugin_rate)
    count = 1000
    for number in range(count):
        for target in ("/api", "/other"):
            plugin.consume(make_transaction(target=target, request_id=f"{target}{number}"))

    for target, share in (("/api", api), ("/other", other)):
        kept = sum(taken.path == target for taken in sink.taken)
        assert abs(kept - count * share) <= 4 * (count * share * (1 - share)) ** 0.5
    left_out = counters.value("otel_qtap.capture.sampled_out")
    assert left_out == 2 * count - len(sink.taken)
    assert counters.total("otel_qtap.capture.transactions") == 2 * count


def test_the_same_transactions_are_kept_everywhere(capture, make_transaction) -> None:
    """Another agent with the same rate keeps the same ones."""
    kept = []
    for _ in range(2):
        plugin, sink = capture(sample_rate=0.5)
        for number in range(50):
            plugin.consume(make_transaction(request_id=f"r{number}"))
        kept.append([taken.request_id for taken in sink.taken])
    assert kept[0] == kept[1]
    assert 5 < len(kept[0]) < 45


def test_level_none_is_not_part_of_a_sample(capture, make_transaction, counters) -> None:
    """There is nothing to keep of it."""
    plugin, sink = capture(level=CaptureLevel.NONE, sample_rate=0.5)
    for number in range(20):
        plugin.consume(make_transaction(request_id=f"r{number}"))
    assert sink.taken == []
    assert counters.value("otel_qtap.capture.sampled_out") == 0


@pytest.mark.parametrize("client_first", [True, False])
def test_both_sides_of_a_proxied_request_are_kept_or_left_out_together(
    client_first, capture, make_transaction
) -> None:
    """Retries too, and also where a rule with another rate matches only one of them."""
    rule = PathRule("/api", CaptureLevel.HEADERS, sample_rate=0.9)
    plugin, sink = capture(rules=[rule], sample_rate=0.2)
    for number in range(400):
        root = f"root{number}"
        link = Link(method=LinkMethod.STREAM, parent_id=root, root_id=root)
        trace = [
            make_transaction(request_id=f"{root}-1", link=link, target="/other"),
            make_transaction(request_id=f"{root}-2", link=link, target="/api"),
            make_transaction(request_id=root, target="/api"),
        ]
        for transaction in trace if client_first else reversed(trace):
            plugin.consume(transaction)

    traces = Counter(taken.request_id.partition("-")[0] for taken in sink.taken)
    assert set(traces.values()) == {3}
    share = 0.2 if client_first else 0.9  # the rate of the one that is seen first
    assert abs(len(traces) - 400 * share) <= 4 * (400 * share * (1 - share)) ** 0.5
