"""``stacks``: the plugins that transactions go through, and their rules."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.config.section import (
    NOT_PROVIDED,
    Duration,
    Inactive,
    Level,
    SampleRate,
    Section,
)
from otel_qtap.config.services import StoreSelector

__all__ = [
    "AccessLogsConfig",
    "AccessLogsFormat",
    "AccessLogsPlugin",
    "AccessLogsRule",
    "DetectErrorsConfig",
    "DetectErrorsPlugin",
    "DetectErrorsRule",
    "HttpCaptureConfig",
    "HttpCapturePlugin",
    "HttpCaptureRule",
    "HttpMetricsPlugin",
    "InactivePlugin",
    "LoggerPlugin",
    "Plugin",
    "ReportUsagePlugin",
    "StackConfig",
]

_LEVELS = tuple(CaptureLevel)
_STATUS = re.compile(r"[1-5](?:xx|[0-9]{2})|([1-5][0-9]{2})-([1-5][0-9]{2})", re.ASCII)


def highest(*levels: CaptureLevel | None) -> CaptureLevel:
    """Return the level that keeps the most; ``None`` counts for nothing."""
    known = [level for level in levels if level is not None]
    return max(known, key=_LEVELS.index, default=CaptureLevel.NONE)


# http_capture ------------------------------------------------------------------------


class HttpCaptureRule(Section):
    """One of the ``rules`` of an ``http_capture`` plugin; the first that matches decides."""

    name: str = ""
    """For people."""
    expr: str = Field(min_length=1)
    """A rulekit expression about a transaction."""
    level: Level | None = None
    """What to keep of what it matches; without one, what the plugin keeps."""
    format: CaptureFormat | None = None
    """How to store what it matches; without one, as the plugin does."""
    sample_rate: SampleRate | None = None
    """An extension: the share to keep of what it matches; without one, the plugin's."""


class HttpCaptureConfig(Section):
    """The ``config`` of an ``http_capture`` plugin."""

    level: Level = CaptureLevel.NONE
    """What to keep of a transaction that no rule matches."""
    format: CaptureFormat = CaptureFormat.JSON
    """How to store it."""
    rules: tuple[HttpCaptureRule, ...] = ()
    """Tried from the first to the last; the first that matches decides."""
    sample_rate: SampleRate = 1.0
    """An extension: the share of transactions to keep; linked ones are kept together."""
    object_store: Annotated[
        StoreSelector | None, Inactive("every object store gets every transaction")
    ] = None
    """The object store to write to."""

    def level_of(self, rule: HttpCaptureRule) -> CaptureLevel:
        """Return what is kept of a transaction that ``rule`` matches."""
        return self.level if rule.level is None else rule.level


class HttpCapturePlugin(Section):
    """Stores what the stack's transactions carried."""

    type: Literal["http_capture"]
    config: HttpCaptureConfig = HttpCaptureConfig()

    def highest_level(self) -> CaptureLevel:
        """Return the most that this plugin can ever keep of a transaction."""
        return highest(self.config.level, *(rule.level for rule in self.config.rules))


# access_logs -------------------------------------------------------------------------


class AccessLogsFormat(Enum):
    """How ``access_logs`` prints."""

    CONSOLE = "console"
    JSON = "json"


class AccessLogsRule(Section):
    """One of the ``rules`` of an ``access_logs`` plugin; the first that matches decides."""

    name: str = ""
    """For people."""
    expr: str = Field(min_length=1)
    """A rulekit expression about a transaction."""
    mode: Level | None = None
    """What to print of what it matches; without one, what the plugin prints."""


class AccessLogsConfig(Section):
    """The ``config`` of an ``access_logs`` plugin."""

    mode: Level = CaptureLevel.SUMMARY
    """What to print of a transaction that no rule matches."""
    format: AccessLogsFormat = AccessLogsFormat.CONSOLE
    """How to print it."""
    rules: tuple[AccessLogsRule, ...] = ()
    """Tried from the first to the last; the first that matches decides."""

    def mode_of(self, rule: AccessLogsRule) -> CaptureLevel:
        """Return what is printed of a transaction that ``rule`` matches."""
        return self.mode if rule.mode is None else rule.mode


class AccessLogsPlugin(Section):
    """Prints a line, or more, for each of the stack's transactions."""

    type: Literal["access_logs", "debug"]
    """``debug`` is the same plugin under another of its names."""
    config: AccessLogsConfig = AccessLogsConfig()

    def highest_level(self) -> CaptureLevel:
        """Return the most that this plugin can ever print of a transaction."""
        return highest(self.config.mode, *(rule.mode for rule in self.config.rules))


# detect_errors -----------------------------------------------------------------------


class _CamelSection(Section):
    """A section whose keys are in camel case."""

    model_config = ConfigDict(alias_generator=to_camel)


Category: TypeAlias = Literal["app", "css", "js", "font", "image", "media", "other"]
"""What Qtap sorts responses into by their content type."""


def _one_text(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Texts: TypeAlias = Annotated[
    tuple[str, ...], BeforeValidator(_one_text, json_schema_input_type=str | tuple[str, ...])
]
"""A list of texts, or one text."""


class DetectErrorsRule(_CamelSection):
    """One of the ``rules`` of a ``detect_errors`` plugin: when a transaction is an issue."""

    name: str = ""
    """What issues are called."""
    trigger_status_codes: tuple[str, ...] = ()
    """Status codes, ``404``, classes of them, ``5xx``, or ranges, ``500-504``."""
    trigger_empty_body: bool = False
    """A response without content."""
    trigger_duration: Duration | None = None
    """A transaction that takes longer."""
    trigger_contains: Texts = ()
    """A response whose content has this text, or one of these."""
    record_req_headers: bool = False
    """Keep the header fields of the request with the issue."""
    record_req_body: bool = False
    """Keep the content of the request with the issue."""
    record_res_headers: bool = False
    """Keep the header fields of the response with the issue."""
    record_res_body: bool = False
    """Keep the content of the response with the issue."""
    only_categories: tuple[Category, ...] = ()
    """Look at responses of these kinds only."""
    only_urls: tuple[str, ...] = ()
    """Look at URLs that contain one of these texts only; ``*`` stands for anything."""
    exclude_urls: tuple[str, ...] = ()
    """Pass over URLs that contain one of these texts; ``*`` stands for anything."""
    with_tags: tuple[str, ...] = ()
    """Look at transactions that have one of these tags only, ``key:value``."""
    report_as_issue: bool = True
    """Emit an Issue event."""
    go_on: bool = Field(default=False, alias="continue")
    """Try the rules after this one as well when it matches."""

    @field_validator("trigger_status_codes")
    @classmethod
    def _check_status_codes(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        codes = tuple(code.lower() for code in codes)
        found = [_STATUS.fullmatch(code) for code in codes]
        if not all(match and (match[1] or "") <= (match[2] or "") for match in found):
            raise ValueError("must be status codes: 404, 5xx for all from 500 on, or 500-504")
        return codes

    @property
    def needs_bodies(self) -> bool:
        """Whether it looks at content, or keeps some."""
        return bool(self.trigger_contains) or self.record_req_body or self.record_res_body


class DetectErrorsConfig(_CamelSection):
    """The ``config`` of a ``detect_errors`` plugin."""

    batch_period_ms: Annotated[int, Inactive("issues are sent as they come")] = Field(
        default=0, ge=0, alias="batchPeriodMS"
    )
    """How long Qtap collects issues before it sends them, in milliseconds."""
    rules: tuple[DetectErrorsRule, ...] = ()
    """Tried from the first to the last."""


class DetectErrorsPlugin(Section):
    """Emits an Issue event for each transaction that its rules call an error."""

    type: Literal["detect_errors"]
    config: DetectErrorsConfig = DetectErrorsConfig()

    def highest_level(self) -> CaptureLevel:
        """Return the most that this plugin looks at: ``full`` when a rule is about content."""
        if any(rule.needs_bodies for rule in self.config.rules):
            return CaptureLevel.FULL
        return CaptureLevel.HEADERS if self.config.rules else CaptureLevel.NONE


# Without configuration ---------------------------------------------------------------


class EmptyConfig(Section):
    """The ``config`` of a plugin that has nothing to configure."""


class _SummaryPlugin(Section):
    """A plugin that looks at the head of each transaction and has nothing to configure."""

    config: EmptyConfig = EmptyConfig()

    def highest_level(self) -> CaptureLevel:
        """Return ``SUMMARY``: heads are enough."""
        return CaptureLevel.SUMMARY


class ReportUsagePlugin(_SummaryPlugin):
    """Emits a Request event for each transaction."""

    type: Literal["report_usage"]


class HttpMetricsPlugin(_SummaryPlugin):
    """Counts transactions for ``/metrics``, under Qtap's names."""

    type: Literal["http_metrics"]


class LoggerPlugin(_SummaryPlugin):
    """Logs each transaction at the level ``debug``."""

    type: Literal["logger"]


# Not ours ----------------------------------------------------------------------------


class InactivePlugin(Section):
    """A plugin of Qtap that the stack runs without."""

    inactive: ClassVar[str] = f"this plugin is {NOT_PROVIDED}; the stack runs without it"

    type: Literal["qscan", "dlp", "llm", "devtools"]
    config: Any = None

    def highest_level(self) -> CaptureLevel:
        """Return ``NONE``: a plugin that does not run needs nothing."""
        return CaptureLevel.NONE


Plugin: TypeAlias = Annotated[
    HttpCapturePlugin
    | AccessLogsPlugin
    | ReportUsagePlugin
    | HttpMetricsPlugin
    | LoggerPlugin
    | DetectErrorsPlugin
    | InactivePlugin,
    Field(discriminator="type"),
]


class StackConfig(Section):
    """Plugins that see the same transactions, one after the other."""

    plugins: tuple[Plugin, ...] = ()
    """Each sees every transaction, whatever the others do with it."""

    def highest_level(self) -> CaptureLevel:
        """Return the most that any plugin of the stack can ask for."""
        return highest(*(plugin.highest_level() for plugin in self.plugins))
