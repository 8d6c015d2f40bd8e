"""What the ``http_capture`` plugin hands on, and that nobody behind it can hurt the tap."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.plugins.http_capture import HttpCapture
from otel_qtap.plugins.redaction import Redactor


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

    def matches(self, transaction) -> bool:
        return transaction.path == self.path


class Broken:
    """A consumer and a rule that fails on everything."""

    level = CaptureLevel.FULL
    format = None

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
