"""
The ``http_capture`` plugin: decide what to keep of a transaction, and hand that on.

This is the last place on the tap thread: behind it are queues. Rules see the whole
transaction; consumers see it redacted and reduced to the level that was decided. A
sample rate below 1, of the rule that matched or else of the plugin, hands on only that
share, whole traces at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import describe_error
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.plugins.sampling import Sampler
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

    @property
    def sample_rate(self) -> float | None:
        """The share to keep of what it matches, 0 to 1; ``None`` for that of the plugin."""

    def matches(self, transaction: Transaction) -> bool:
        """Whether this rule decides about ``transaction``."""


class _Decision(NamedTuple):
    """What to do with a transaction."""

    level: CaptureLevel
    format: CaptureFormat
    sample_rate: float


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
        sample_rate: float = 1.0,
    ) -> None:
        """``sample_rate``: the share to keep, 0 to 1, where no rule says another."""
        self._default = _Decision(level, format, sample_rate)
        self._default_level = level
        self._redactor = redactor
        self._consumers = tuple(consumers)
        self._rules = tuple(
            (
                rule,
                _Decision(
                    rule.level,
                    rule.format or format,
                    sample_rate if rule.sample_rate is None else rule.sample_rate,
                ),
            )
            for rule in rules
        )
        rates = {sample_rate, *(decision.sample_rate for _, decision in self._rules)}
        self._sampler = None if rates == {1.0} else Sampler(rates)
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
        self._sampled_out = counters.counter(
            "otel_qtap.capture.sampled_out",
            "{transaction}",
            "Transactions that a sample rate left out.",
        )
        self._failing: set[str] = set()

    def consume(self, transaction: Transaction) -> None:
        """Hand on what ``transaction`` is reduced to; nothing when its level is ``none``."""
        level, format_, sample_rate = self._decide(transaction) if self._rules else self._default
        if level is self._default_level:  # looking up by a member of an enumeration is slow
            self._seen_default.value += 1
        else:
            self._seen[level].add()
        if level is CaptureLevel.NONE:
            return
        if self._sampler is not None and not self._sampler.keeps(transaction, sample_rate):
            self._sampled_out.value += 1
            return
        reduced = self._redactor.redact(transaction).reduced_to(level, format_)
        for consumer in self._consumers:
            try:
                consumer.consume(reduced)
            except Exception as error:  # shields the tap and the other consumers
                self._count_failure(type(consumer).__name__, error)

    def _decide(self, transaction: Transaction) -> _Decision:
        for rule, decision in self._rules:
            try:
                is_match = rule.matches(transaction)
            except Exception as error:  # a rule that fails does not match
                self._count_failure(type(rule).__name__, error)
                continue
            if is_match:
                return decision
        return self._default

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
