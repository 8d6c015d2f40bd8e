"""
The plugins that a configuration asks for, and which of them see a transaction.

A stack is a list of plugins; each sees every transaction of the stack, whatever the
others do with it, and one that fails does not keep it from them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import (
    AccessLogsPlugin,
    Config,
    DetectErrorsPlugin,
    DetectErrorsRule,
    HttpCapturePlugin,
    HttpMetricsPlugin,
    LoggerPlugin,
    Plugin,
    ReportUsagePlugin,
    StackConfig,
)
from otel_qtap.counters import Counter, CounterSet
from otel_qtap.delivery import TapFirst, describe_error
from otel_qtap.destinations import Destinations
from otel_qtap.plugins import (
    AccessLogFormat,
    AccessLogs,
    DetectErrors,
    ErrorRule,
    HttpCapture,
    HttpMetrics,
    Logger,
    Redactor,
    ReportUsage,
    parse_status_codes,
)
from otel_qtap.plugins.rule_facts import (
    RuleBinder,
    TransactionFacts,
    TransactionRule,
    highest_possible_level,
)
from otel_qtap.rules import Stage
from otel_qtap.stores import StdoutWriter
from otel_qtap.stores.qtap_fields import authority_host, endpoint_of
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.readable import readable_text

__all__ = ["PluginContext", "Stacks"]

log = logging.getLogger("otel_qtap")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext:
    """What plugins have in common, and keep when the configuration changes."""

    counters: CounterSet
    writer: StdoutWriter
    tap_first: TapFirst
    hostname: str
    """Of this host; empty where nobody knows it, as in a replay."""
    http_metrics: Callable[[], HttpMetrics]
    """Always the same one: the bound on its label sets holds for all stacks together."""


class Stacks:
    """The stacks of one configuration."""

    def __init__(self, config: Config, destinations: Destinations, context: PluginContext) -> None:
        maker = _PluginMaker(config, destinations, context)
        stacks = {name: maker.stack(stack) for name, stack in config.stacks_in_use()}
        self._loggers = maker.loggers
        self._hostname = context.hostname
        self._default = stacks.get(config.tap.http.stack, ())
        self._by_domain = {
            endpoint.domain.lower().rstrip("."): stacks.get(endpoint.http.stack, ())
            for endpoint in config.tap.endpoints
            if endpoint.http.stack
        }

    def consume(self, transaction: Transaction) -> None:
        """Give a transaction to every plugin of its stack."""
        plugins = self._plugins_for(transaction) if self._by_domain else self._default
        for plugin in plugins:
            try:
                plugin.consume(transaction)
            except Exception as error:  # shields the other plugins, and the tap
                plugin.count_failure(error)

    def may_want_bodies(self, transaction: Transaction) -> bool:
        """
        Return whether any plugin may ask for the bodies of ``transaction`` once it is over.

        It has come as far as the head of its request, or of its response if it has one.
        """
        known = Stage.REQUEST_HEAD if transaction.response is None else Stage.RESPONSE_HEAD
        plugins = self._plugins_for(transaction) if self._by_domain else self._default
        facts = TransactionFacts(transaction, self._hostname)
        return any(plugin.may_want_bodies(facts, known) for plugin in plugins)

    def flush(self, deadline_s: float) -> bool:
        """Return whether what plugins queued themselves has left the agent."""
        results = [logger.flush(deadline_s) for logger in self._loggers]
        return all(results)

    def close(self, deadline_s: float) -> bool:
        """Deliver what plugins queued themselves and stop."""
        results = [logger.close(deadline_s) for logger in self._loggers]
        return all(results)

    def _plugins_for(self, transaction: Transaction) -> tuple[_Plugin, ...]:
        """Return the stack for the server's name as it is known, else as it was asked for."""
        for name in (
            endpoint_of(transaction),
            authority_host(readable_text(transaction.authority)),
        ):
            found = self._by_domain.get(name.lower().rstrip("."))
            if found is not None:
                return found
        return self._default


class _Made(NamedTuple):
    """A plugin, and what decides about levels in it."""

    plugin: Consumer
    highest_level: CaptureLevel
    """The most that it wants of a transaction that no rule matches."""
    rules: Sequence[TransactionRule] = ()


class _Plugin:
    """A plugin with the account of its failures."""

    __slots__ = ("_failed", "_made", "_type", "consume")

    def __init__(self, made: _Made, type_: str, counters: CounterSet) -> None:
        self.consume: Callable[[Transaction], None] = made.plugin.consume
        self._made = made
        self._type = type_
        self._failed: Counter = counters.counter(
            "otel_qtap.plugin.failed", "{transaction}", "Transactions that a plugin failed on",
            plugin=type_,
        )  # fmt: skip

    def may_want_bodies(self, facts: TransactionFacts, known: Stage) -> bool:
        """Whether it may ask for the bodies of a transaction that is not over."""
        made = self._made
        return highest_possible_level(made.rules, made.highest_level, facts, known).has_bodies

    def count_failure(self, error: Exception) -> None:
        """Count a transaction that the plugin failed on; the first is told."""
        if not self._failed.value:
            log.error(
                "plugin %s failed on a transaction (%s); further failures are only counted",
                self._type, describe_error(error),
            )  # fmt: skip
        self._failed.value += 1


class _PluginMaker:
    """Makes the plugins of one configuration."""

    def __init__(self, config: Config, destinations: Destinations, context: PluginContext) -> None:
        self.loggers: list[Logger] = []
        self._destinations = destinations
        self._context = context
        self._compiler = config.rule_compiler()
        self._binder = RuleBinder(context.hostname)
        self._redactor = Redactor.of(config.redact)

    def stack(self, stack: StackConfig) -> tuple[_Plugin, ...]:
        """Return the plugins of a stack, in their order."""
        counters = self._context.counters
        made = [(self._made(plugin), plugin.type) for plugin in stack.plugins]
        return tuple(_Plugin(each, type_, counters) for each, type_ in made if each is not None)

    def _made(self, plugin: Plugin) -> _Made | None:
        match plugin:
            case HttpCapturePlugin():
                return self._http_capture(plugin)
            case AccessLogsPlugin():
                return self._access_logs(plugin)
            case DetectErrorsPlugin():
                made: Consumer = self._detect_errors(plugin)
            case ReportUsagePlugin():
                made = ReportUsage(
                    redactor=self._redactor,
                    consumers=self._destinations.events,
                    hostname=self._context.hostname,
                )
            case HttpMetricsPlugin():
                made = self._context.http_metrics()
            case LoggerPlugin():
                made = self._logger()
            case _:
                return None  # one of Qtap's that is not provided: the start has said so
        return _Made(made, plugin.highest_level())

    def _http_capture(self, plugin: HttpCapturePlugin) -> _Made:
        config = plugin.config
        rules = [
            self._binder.bind(
                self._compiler.compile(rule.expr),
                config.level_of(rule),
                rule.format,
                rule.sample_rate,
            )
            for rule in config.rules
        ]
        made = HttpCapture(
            level=config.level,
            format=config.format,
            sample_rate=config.sample_rate,
            rules=rules,
            redactor=self._redactor,
            consumers=self._destinations.transactions,
            counters=self._context.counters,
        )
        return _Made(made, config.level, rules)

    def _access_logs(self, plugin: AccessLogsPlugin) -> _Made:
        config = plugin.config
        rules = [
            self._binder.bind(self._compiler.compile(rule.expr), config.mode_of(rule))
            for rule in config.rules
        ]
        made = AccessLogs(
            mode=config.mode,
            format=AccessLogFormat(config.format.value),
            rules=rules,
            redactor=self._redactor,
            writer=self._context.writer,
        )
        return _Made(made, config.mode, rules)

    def _detect_errors(self, plugin: DetectErrorsPlugin) -> DetectErrors:
        return DetectErrors(
            rules=[_error_rule(rule) for rule in plugin.config.rules],
            redactor=self._redactor,
            consumers=self._destinations.events,
            object_stores=self._destinations.object_stores,
            counters=self._context.counters,
            hostname=self._context.hostname,
        )

    def _logger(self) -> Logger:
        if not self.loggers:  # one is enough for all stacks, which it does not tell apart
            self.loggers.append(
                Logger(
                    redactor=self._redactor,
                    counters=self._context.counters,
                    tap_first=self._context.tap_first,
                )
            )
        return self.loggers[0]


def _error_rule(rule: DetectErrorsRule) -> ErrorRule:
    duration = rule.trigger_duration
    return ErrorRule(
        name=rule.name,
        trigger_status_codes=parse_status_codes(rule.trigger_status_codes),
        trigger_empty_body=rule.trigger_empty_body,
        trigger_duration_ms=duration.total_seconds() * 1000 if duration else 0,
        trigger_contains=rule.trigger_contains,
        record_request_headers=rule.record_req_headers,
        record_request_body=rule.record_req_body,
        record_response_headers=rule.record_res_headers,
        record_response_body=rule.record_res_body,
        only_categories=frozenset(rule.only_categories),
        only_urls=rule.only_urls,
        exclude_urls=rule.exclude_urls,
        with_tags=rule.with_tags,
        reports_issue=rule.report_as_issue,
        continues=rule.go_on,
    )
