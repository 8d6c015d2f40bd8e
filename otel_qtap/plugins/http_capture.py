"""
The ``http_capture`` plugin: decide what to keep of a transaction, and hand that on.

This is the last place on the tap thread: behind it are queues. Rules see the whole
transaction; consumers see it redacted and reduced to the level that was decided.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import describe_error
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.model import Transaction

__all__ = ["CaptureRule", "HttpCapture"]

_logger = logging.getLogger(__name__)


class CaptureRule(Protocol):
    """A compiled entry of ``rules``."""

    @property
    def level(self) -> CaptureLevel:
        """What to keep of what it matches."""

    @property
    def format(self) -> CaptureFormat | None:
        """How to store it; ``None`` for the format of the plugin."""

    def matches(self, transaction: Transaction) -> bool:
        """Whether this rule decides about ``transaction``."""


class HttpCapture:
    """Redact each transaction and reduce it to the level that the first matching rule names."""

    def __init__(
        self,
        *,
        level: CaptureLevel,
        format: CaptureFormat = CaptureFormat.JSON,  # noqa: A002 - the key of the Qtap file
        redactor: Redactor,
        consumers: Sequence[Consumer],
        counters: CounterSet,
        rules: Sequence[CaptureRule] = (),
    ) -> None:
        self._default = (level, format)
        self._redactor = redactor
        self._consumers = tuple(consumers)
        self._rules = tuple(rules)
        self._counters = counters
        self._seen = {
            level: counters.counter(
                "otel_qtap.capture.transactions",
                "{transaction}",
                "Transactions by the level that was decided.",
                level=level.value,
            )
            for level in CaptureLevel
        }
        self._seen_default = self._seen[level]
        self._failing: set[str] = set()

    def consume(self, transaction: Transaction) -> None:
        """Hand on what ``transaction`` is reduced to; nothing when its level is ``none``."""
        level, format_ = self._decide(transaction) if self._rules else self._default
        if level is self._default[0]:  # looking up by a member of an enumeration is slow
            self._seen_default.value += 1
        else:
            self._seen[level].add()
        if level is CaptureLevel.NONE:
            return
        reduced = self._redactor.redact(transaction).reduced_to(level, format_)
        for consumer in self._consumers:
            try:
                consumer.consume(reduced)
            except Exception as error:  # shields the tap and the other consumers
                self._count_failure(type(consumer).__name__, error)

    def _decide(self, transaction: Transaction) -> tuple[CaptureLevel, CaptureFormat]:
        level, format_ = self._default
        for rule in self._rules:
            try:
                is_match = rule.matches(transaction)
            except Exception as error:  # a rule that fails does not match
                self._count_failure(type(rule).__name__, error)
                continue
            if is_match:
                return rule.level, rule.format or format_
        return level, format_

    def _count_failure(self, component: str, error: Exception) -> None:
        self._counters.counter(
            "otel_qtap.capture.failed",
            "{transaction}",
            "Transactions that a rule or a consumer failed on.",
            component=component,
        ).add()
        if component not in self._failing:
            self._failing.add(component)
            _logger.error(
                "%s failed on a transaction (%s); further failures are only counted",
                component,
                describe_error(error),
            )
