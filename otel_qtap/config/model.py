"""
The Qtap file as one frozen value; its sections are in the modules beside this one.

    services.py   event stores and object stores
    stacks.py     plugins and their rules
    tap.py        which traffic; filters.py: which processes not
    rulekit.py    macros
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.filters import (
    FILTER_GROUPS,
    GROUP_ALIASES,
    CustomFilterConfig,
    FiltersConfig,
)
from otel_qtap.config.rulekit import MacroConfig, RulekitConfig
from otel_qtap.config.section import NOT_ACTIVE, NOT_PROVIDED, Inactive, Section, ValueSource
from otel_qtap.config.services import (
    ActiveEventStore,
    ActiveObjectStore,
    BatchConfig,
    DisabledStore,
    EventStore,
    HostedEventStore,
    HostedObjectStore,
    ObjectStore,
    OtelObjectStore,
    OtelProtocol,
    OtelStore,
    QscanServiceConfig,
    S3Store,
    ServicesConfig,
    Signal,
    SpoolConfig,
    StdoutStore,
    StoreSelector,
    TlsConfig,
)
from otel_qtap.config.stacks import (
    AccessLogsConfig,
    AccessLogsFormat,
    AccessLogsPlugin,
    AccessLogsRule,
    DetectErrorsConfig,
    DetectErrorsPlugin,
    DetectErrorsRule,
    HttpCaptureConfig,
    HttpCapturePlugin,
    HttpCaptureRule,
    HttpMetricsPlugin,
    InactivePlugin,
    LoggerPlugin,
    Plugin,
    ReportUsagePlugin,
    StackConfig,
    highest,
)
from otel_qtap.config.tap import (
    EndpointConfig,
    EnvTagConfig,
    HealthChecks,
    HttpTapConfig,
    LinkMode,
    TapConfig,
    TapDirection,
)
from otel_qtap.rules import RuleCompiler

__all__ = [
    "FILTER_GROUPS",
    "GROUP_ALIASES",
    "NOT_ACTIVE",
    "NOT_PROVIDED",
    "AccessLogsConfig",
    "AccessLogsFormat",
    "AccessLogsPlugin",
    "AccessLogsRule",
    "ActiveEventStore",
    "ActiveObjectStore",
    "BatchConfig",
    "Config",
    "CustomFilterConfig",
    "DetectErrorsConfig",
    "DetectErrorsPlugin",
    "DetectErrorsRule",
    "DisabledStore",
    "EndpointConfig",
    "EnvTagConfig",
    "EventStore",
    "FiltersConfig",
    "HealthChecks",
    "HostedEventStore",
    "HostedObjectStore",
    "HttpCaptureConfig",
    "HttpCapturePlugin",
    "HttpCaptureRule",
    "HttpMetricsPlugin",
    "HttpTapConfig",
    "Inactive",
    "InactivePlugin",
    "LinkMode",
    "LoggerPlugin",
    "MacroConfig",
    "ObjectStore",
    "OtelObjectStore",
    "OtelProtocol",
    "OtelStore",
    "Plugin",
    "QscanServiceConfig",
    "RedactConfig",
    "ReportUsagePlugin",
    "RulekitConfig",
    "S3Store",
    "Section",
    "ServicesConfig",
    "Signal",
    "SpoolConfig",
    "StackConfig",
    "StdoutStore",
    "StoreSelector",
    "TagConfig",
    "TapConfig",
    "TapDirection",
    "TlsConfig",
    "ValueSource",
]

NO_STACK = ("", "none")
"""What ``stack`` says where nothing is to be captured."""


class TagConfig(Section):
    """A tag that every event of a process carries."""

    key: str
    """The part before the colon."""
    source: Literal["env", "k8s.label", "k8s.annotation", "container.label"]
    """Where its value comes from."""
    location: str
    """The name of the variable, label or annotation."""


class ControlRuleConfig(Section):
    """A rule of Qtap's egress controller."""

    name: str = Field(min_length=1)
    """For people."""
    expr: str = Field(min_length=1)
    """A rulekit expression about a connection."""
    actions: tuple[Literal["allow", "deny"], ...] = ()
    """What to do with what it matches."""


class ControlConfig(Section):
    """Qtap's egress controller, which blocks connections; otel_qtap only observes."""

    default: Literal["allow"] = "allow"
    """What to do with what no rule matches."""
    rules: tuple[ControlRuleConfig, ...] = ()
    """Tried from the first to the last."""


class RedactConfig(Section):
    """What to take out of transactions, beyond what always is."""

    headers: tuple[str, ...] = ()
    """Names of further header fields whose values are secret, in any case of letters."""
    query: tuple[str, ...] = ()
    """Further keys of queries whose values are secret."""
    hash_key: ValueSource | None = None
    """With a key, equal secrets become equal hashes: ``REDACTED-`` and 16 hex digits."""


class Config(Section):
    """A whole Qtap file, version 2."""

    version: str = "2"
    """The version of this format."""
    services: ServicesConfig = ServicesConfig()
    """Where things go."""
    stacks: dict[str, StackConfig] = Field(default={})
    """Lists of plugins, each under a name of yours."""
    tap: TapConfig = TapConfig()
    """Which traffic to look at."""
    rulekit: RulekitConfig = RulekitConfig()
    """What the rules of all plugins have in common."""
    tags: Annotated[tuple[TagConfig, ...], Inactive("tags are " + NOT_ACTIVE)] = ()
    """Tags for events, from the surroundings of a process."""
    control: Annotated[
        ControlConfig | None,
        Inactive(f"the egress controller is {NOT_PROVIDED}, which only observes"),
    ] = None
    """Qtap's egress controller."""
    redact: RedactConfig = RedactConfig()
    """An extension: what to take out of transactions, beyond what always is."""

    def http_stack(self) -> StackConfig | None:
        """Return the stack that HTTP transactions go through; ``None``: there is none."""
        return self._stack(self.tap.http.stack)

    def stack_for(self, domain: str) -> StackConfig | None:
        """Return the stack for HTTP to ``domain``, by ``tap.endpoints`` or else ``tap.http``."""
        return self._stack(self.tap.stack_name_for(domain))

    def stacks_in_use(self) -> Iterator[tuple[str, StackConfig]]:
        """Yield each stack that HTTP transactions can go through, with its name, once."""
        names = [self.tap.http.stack, *(item.http.stack for item in self.tap.endpoints)]
        for name in dict.fromkeys(names):
            stack = self._stack(name)
            if stack is not None:
                yield name, stack

    def highest_capture_level(self) -> CaptureLevel:
        """Return the most that any plugin in use, or any of its rules, can ask for."""
        return highest(*(stack.highest_level() for _, stack in self.stacks_in_use()))

    def event_stores(self) -> tuple[ActiveEventStore, ...]:
        """Return the event stores that are written to."""
        stores = self.services.event_stores
        return tuple(store for store in stores if isinstance(store, ActiveEventStore))

    def object_stores(self) -> tuple[ActiveObjectStore, ...]:
        """Return the object stores that are written to."""
        stores = self.services.object_stores
        return tuple(store for store in stores if isinstance(store, ActiveObjectStore))

    def rule_compiler(self) -> RuleCompiler:
        """Return what compiles the rules of this file; raises ``RuleError`` for a bad macro."""
        macros = {macro.name: macro.expr for macro in self.rulekit.macros}
        return RuleCompiler(macros, qtap_compat=self.rulekit.compat == "qtap")

    def _stack(self, name: str) -> StackConfig | None:
        return None if name in NO_STACK else self.stacks.get(name)
