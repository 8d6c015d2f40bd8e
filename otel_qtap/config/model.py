"""
The Qtap file as frozen values: what a user may write, and what it means.

Scalars arrive as the text that stands in the file (``loading.py`` keeps it), so each
field decides how to read its own: ``0123`` in a secret stays ``0123``. A key without a
value counts as not written, as in Qtap. Keys that Qtap knows and this version does not
act on are fields all the same, marked with ``Inactive``, so that they can be warned
about by name while a misspelt key is an error.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from otel_qtap.config.capture import CaptureFormat, CaptureLevel

__all__ = [
    "FILTER_GROUPS",
    "AccessLogsConfig",
    "AccessLogsFormat",
    "AccessLogsPlugin",
    "AccessLogsRule",
    "ActiveEventStore",
    "ActiveObjectStore",
    "Config",
    "CustomFilterConfig",
    "DisabledStore",
    "EventStore",
    "FiltersConfig",
    "HttpCaptureConfig",
    "HttpCapturePlugin",
    "HttpCaptureRule",
    "Inactive",
    "InactivePlugin",
    "MacroConfig",
    "ObjectStore",
    "OtelProtocol",
    "OtelStore",
    "Plugin",
    "RulekitConfig",
    "S3Store",
    "ServicesConfig",
    "Signal",
    "StackConfig",
    "StdoutStore",
    "TapConfig",
    "TapDirection",
    "TlsConfig",
    "ValueSource",
]

NOT_ACTIVE = "not active in this version"

FILTER_GROUPS: Mapping[str, tuple[str, ...]] = {
    "container-runtimes": ("/usr/bin/containerd", "/usr/bin/dockerd", "/usr/bin/runc"),
    "eks": (
        "/app/aws-k8s-agent",
        "/usr/bin/amazon-ssm-agent",
        "/usr/bin/ssm-agent-worker",
        "/usr/bin/ssm-document-worker",
    ),
    "gke": (
        "/home/kubernetes/bin/gcfsd",
        "/event-exporter",
        "/fluent-bit-gke-exporter",
        "/home/kubernetes/bin/node-problem-detector",
    ),
    "kubernetes": (
        "/home/kubernetes/bin/kubelet",
        "/home/kubernetes/bin/kube-proxy",
        "/proxy-agent",
        "/cluster-proportional-autoscaler",
        "/csi-node-driver-registrar",
    ),
    "qpoint": (),  # the agent's own process: the kernel side skips it by its id
}
"""Executables behind the names that ``tap.filters.groups`` may list; exact paths."""

GROUP_ALIASES: Mapping[str, str] = {"container": "container-runtimes"}
"""Names that Qtap's documentation uses for a group and Qtap itself ignores."""

MAX_PATH_LENGTH = 4096  # PATH_MAX of linux/limits.h: what a filter looks at

_LEVELS = tuple(CaptureLevel)
_ENVIRONMENT_REFERENCE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Inactive:
    """Marks a field that is read and then has no effect; ``why`` completes the warning."""

    why: str = NOT_ACTIVE


class Section(BaseModel):
    """A mapping of the file: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, coerce_numbers_to_str=True
    )

    inactive: ClassVar[str] = ""
    """Why writing this section has no effect; empty where it has."""

    @model_validator(mode="before")
    @classmethod
    def _skip_empty(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None or key not in cls.model_fields
        }


# Values ------------------------------------------------------------------------------


def _headers_for_details(value: object) -> object:
    return CaptureLevel.HEADERS if value == "details" else value  # Qtap's guides use both words


Level: TypeAlias = Annotated[CaptureLevel, BeforeValidator(_headers_for_details)]


class ValueSource(Section):
    """A value that need not stand in the file: ``{type: env, value: NAME}``."""

    type: Literal["env", "text"]
    value: str = Field(repr=False)

    def resolve(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Return the value, or ``None`` when it names an environment variable that is not set."""
        return self.value if self.type == "text" else environ.get(self.value)


def _text_source(value: object) -> object:
    return {"type": "text", "value": value} if isinstance(value, str) else value


HeaderValue: TypeAlias = Annotated[ValueSource, BeforeValidator(_text_source)]
"""Newer Qtap files write a value source, older ones the plain text."""


# Stores ------------------------------------------------------------------------------


class Signal(Enum):
    """What an ``otel`` event store can send."""

    TRACES = "traces"
    LOGS = "logs"


class OtelProtocol(Enum):
    """How an ``otel`` event store sends."""

    GRPC = "grpc"
    HTTP = "http"
    STDOUT = "stdout"


class TlsConfig(Section):
    """The ``tls`` of an ``otel`` store."""

    enabled: bool = False
    """An endpoint that is a full URL says it by its scheme instead."""
    insecure_skip_verify: bool = False


class DisabledStore(Section):
    """A store that is written down and switched off."""

    type: Literal["disabled"]
    id: str = ""


class StdoutStore(Section):
    """Standard output, as event store and as object store."""

    type: Literal["stdout"]
    id: str = ""


class OtelStore(Section):
    """An OTLP destination for spans and log records."""

    type: Literal["otel"]
    id: str = ""
    endpoint: str = Field(default="", repr=False)  # may carry user-info
    """``host:port`` or URL, with ``{{NAME}}`` for environment variables; empty: the default."""
    protocol: OtelProtocol = OtelProtocol.GRPC
    service_name: str = ""
    """Empty: each observed process has its own ``service.name``."""
    environment: str = ""
    headers: dict[str, HeaderValue] = Field(default={}, repr=False)
    tls: TlsConfig = TlsConfig()
    signals: tuple[Signal, ...] = (Signal.TRACES, Signal.LOGS)
    """An extension: what to send here."""

    def endpoint_variables(self) -> tuple[str, ...]:
        """Return the names of the environment variables that the endpoint refers to."""
        return tuple(_ENVIRONMENT_REFERENCE.findall(self.endpoint))

    def resolve_endpoint(self, environ: Mapping[str, str] = os.environ) -> str:
        """Return the endpoint with its ``{{NAME}}`` replaced from the environment."""
        return _ENVIRONMENT_REFERENCE.sub(lambda m: environ.get(m[1], ""), self.endpoint)

    def resolve_headers(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the headers to send; one whose variable is not set is left out."""
        resolved = ((name, source.resolve(environ)) for name, source in self.headers.items())
        return {name: value for name, value in resolved if value is not None}


class HostedEventStore(Section):
    """The event stores of Qtap that belong to a hosted service."""

    inactive: ClassVar[str] = f"this event store is {NOT_ACTIVE}"

    type: Literal["axiom", "pulse", "pulse-legacy", "pulse-streaming"]
    id: str = ""
    dataset: ValueSource | None = None
    token: ValueSource | None = None
    url: str = Field(default="", repr=False)
    allow_insecure: bool = False


class S3Store(Section):
    """An S3 bucket for whole transactions."""

    inactive: ClassVar[str] = f"this object store is {NOT_ACTIVE}"

    type: Literal["s3"]
    id: str = ""
    endpoint: str = Field(default="s3.amazonaws.com", repr=False)
    region: str = "us-east-1"
    bucket: str = Field(min_length=1)
    access_key: ValueSource | None = None
    secret_key: ValueSource | None = None
    insecure: bool = False
    access_url: str = Field(default="", repr=False)
    event_store: dict[str, str] = {}

    @model_validator(mode="after")
    def _need_both_keys(self) -> S3Store:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key come together: write both, or neither")
        return self


class HostedObjectStore(Section):
    """The object stores of Qtap that this version does not write to."""

    inactive: ClassVar[str] = f"this object store is {NOT_ACTIVE}"

    type: Literal["qpoint", "otel"]
    id: str = ""
    url: str = Field(default="", repr=False)
    token: ValueSource | None = None
    otel_endpoint: str = Field(default="", repr=False)
    protocol: OtelProtocol = OtelProtocol.GRPC
    service_name: str = ""
    environment: str = ""
    headers: dict[str, HeaderValue] = Field(default={}, repr=False)
    tls: TlsConfig = TlsConfig()
    event_store: dict[str, str] = {}


EventStore: TypeAlias = Annotated[
    DisabledStore | StdoutStore | OtelStore | HostedEventStore, Field(discriminator="type")
]
ObjectStore: TypeAlias = Annotated[
    DisabledStore | StdoutStore | S3Store | HostedObjectStore, Field(discriminator="type")
]
ActiveEventStore: TypeAlias = StdoutStore | OtelStore
ActiveObjectStore: TypeAlias = StdoutStore


class ServicesConfig(Section):
    """Where things go. All stores of a list are used, where Qtap uses the first."""

    event_stores: tuple[EventStore, ...] = ()
    object_stores: tuple[ObjectStore, ...] = ()
    qscan: Annotated[object, Inactive()] = None


# Stacks ------------------------------------------------------------------------------


class HttpCaptureRule(Section):
    """One of the ``rules`` of an ``http_capture`` plugin."""

    name: str = ""
    expr: str = Field(min_length=1)
    level: Level | None = None
    format: CaptureFormat | None = None


class HttpCaptureConfig(Section):
    """The ``config`` of an ``http_capture`` plugin."""

    level: Level = CaptureLevel.NONE
    """What to keep of a transaction that no rule matches."""
    format: CaptureFormat = CaptureFormat.JSON
    rules: Annotated[
        tuple[HttpCaptureRule, ...],
        Inactive(
            "rules of http_capture are read but not evaluated in this version; "
            "the plugin's level applies"
        ),
    ] = ()
    object_store: Annotated[object, Inactive("every object store gets every transaction")] = None


class HttpCapturePlugin(Section):
    """Stores what the stack's transactions carried."""

    type: Literal["http_capture"]
    config: HttpCaptureConfig = HttpCaptureConfig()

    def highest_level(self) -> CaptureLevel:
        """Return the most that this plugin can ever keep of a transaction."""
        return _highest(self.config.level, *(rule.level for rule in self.config.rules))


class AccessLogsFormat(Enum):
    """How ``access_logs`` prints."""

    CONSOLE = "console"
    JSON = "json"


class AccessLogsRule(Section):
    """One of the ``rules`` of an ``access_logs`` plugin."""

    name: str = ""
    expr: str = Field(min_length=1)
    mode: Level | None = None


class AccessLogsConfig(Section):
    """The ``config`` of an ``access_logs`` plugin."""

    mode: Level = CaptureLevel.SUMMARY
    format: AccessLogsFormat = AccessLogsFormat.CONSOLE
    rules: Annotated[
        tuple[AccessLogsRule, ...],
        Inactive(
            "rules of access_logs are read but not evaluated in this version; "
            "the plugin's mode applies"
        ),
    ] = ()


class AccessLogsPlugin(Section):
    """Prints a line, or more, for each of the stack's transactions."""

    type: Literal["access_logs", "debug"]
    """``debug`` is the same plugin under its newer name."""
    config: AccessLogsConfig = AccessLogsConfig()

    def highest_level(self) -> CaptureLevel:
        """Return the most that this plugin can ever print of a transaction."""
        return _highest(self.config.mode, *(rule.mode for rule in self.config.rules))


class InactivePlugin(Section):
    """A plugin of Qtap that the stack runs without."""

    inactive: ClassVar[str] = f"this plugin is {NOT_ACTIVE}; the stack runs without it"

    type: Literal[
        "report_usage",
        "http_metrics",
        "logger",
        "detect_errors",
        "qscan",
        "dlp",
        "llm",
        "devtools",
    ]
    config: object = None

    def highest_level(self) -> CaptureLevel:
        """Return ``NONE``: a plugin that does not run needs nothing."""
        return CaptureLevel.NONE


Plugin: TypeAlias = Annotated[
    HttpCapturePlugin | AccessLogsPlugin | InactivePlugin, Field(discriminator="type")
]


class StackConfig(Section):
    """Plugins that see the same transactions, one after the other."""

    plugins: tuple[Plugin, ...] = ()

    def highest_level(self) -> CaptureLevel:
        """Return the most that any plugin of the stack can ask for."""
        return _highest(*(plugin.highest_level() for plugin in self.plugins))


def _highest(*levels: CaptureLevel | None) -> CaptureLevel:
    known = [level for level in levels if level is not None]
    return max(known, key=_LEVELS.index, default=CaptureLevel.NONE)


# Tap ---------------------------------------------------------------------------------


class TapDirection(Enum):
    """Which connections to look at, by who opened them and to where."""

    ALL = "all"
    INGRESS = "ingress"
    EGRESS = "egress"
    EGRESS_INTERNAL = "egress-internal"
    EGRESS_EXTERNAL = "egress-external"


class HttpTapConfig(Section):
    """``tap.http``."""

    stack: str = ""
    display: Annotated[object, Inactive("obsolete: a key of version 1 files")] = None


class CustomFilterConfig(Section):
    """A process to leave alone, by the path of its executable."""

    exe: str = Field(min_length=1)
    strategy: Literal["exact", "prefix", "suffix", "contains", "regex"] = "suffix"
    only: tuple[Literal["data", "dns", "tls", "http"], ...] = ()
    """What to leave out of it; empty: everything."""

    @model_validator(mode="after")
    def _compile(self) -> CustomFilterConfig:
        if self.strategy == "regex":
            _compiled(self.exe)
        return self

    def matches(self, executable: str) -> bool:
        """Whether this filter is about ``executable``; case counts for ``regex`` only."""
        if self.strategy == "regex":
            return _compiled(self.exe).search(executable) is not None
        path, wanted = executable.lower(), self.exe.lower()
        match self.strategy:
            case "exact":
                return path == wanted
            case "prefix":
                return path.startswith(wanted)
            case "suffix":
                return path.endswith(wanted)
            case "contains":
                return wanted in path

    def covers(self, *, tls: bool) -> bool:
        """Whether it leaves out the HTTP of encrypted or of plaintext connections."""
        return not self.only or "data" in self.only or ("tls" if tls else "http") in self.only


def _compiled(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "[[": RE2 reads it as Python does today
        try:
            return re.compile(pattern)  # cached by re; RE2 syntax that Python lacks is an error
        except (re.error, RecursionError, OverflowError) as error:
            position = getattr(error, "colno", None)
            where = f" at column {position}" if position else ""
            reason = getattr(error, "msg", "too complex")
            raise ValueError(f"not a regular expression: {reason}{where}") from None


class FiltersConfig(Section):
    """``tap.filters``: a match means exclude."""

    groups: tuple[str, ...] = ()
    custom: tuple[CustomFilterConfig, ...] = ()

    def excludes(self, executable: str, *, tls: bool = False) -> bool:
        """
        Whether the HTTP of this executable is to be left alone.

        The first custom filter that matches decides, before any group. To be asked once
        per process, not per transaction: regular expressions are Python's and their cost
        has no bound but the length of a path.
        """
        path = executable[:MAX_PATH_LENGTH]
        for custom in self.custom:
            if custom.matches(path):
                return custom.covers(tls=tls)
        return any(
            path in FILTER_GROUPS.get(GROUP_ALIASES.get(group, group), ()) for group in self.groups
        )


class EndpointConfig(Section):
    """An item of ``tap.endpoints``."""

    domain: str = Field(min_length=1)
    http: HttpTapConfig = HttpTapConfig()


class EnvTagConfig(Section):
    """An item of ``tap.env_tags``."""

    env: str
    key: str


class TapConfig(Section):
    """What to look at."""

    direction: TapDirection = TapDirection.ALL
    ignore_loopback: bool = False
    """Leave out connections whose remote end is this host."""
    audit_include_dns: bool = False
    """Read for the sake of Qtap's files: no connection to port 53 is looked at either way."""
    http: HttpTapConfig = HttpTapConfig()
    filters: FiltersConfig = FiltersConfig()
    endpoints: Annotated[tuple[EndpointConfig, ...], Inactive()] = ()
    env_tags: Annotated[tuple[EnvTagConfig, ...], Inactive()] = ()
    redis: Annotated[object, Inactive()] = None
    mysql: Annotated[object, Inactive()] = None
    postgres: Annotated[object, Inactive()] = None
    kafka: Annotated[object, Inactive()] = None
    mongodb: Annotated[object, Inactive()] = None
    audit_logs: Annotated[object, Inactive("obsolete: a key of version 1 files")] = None


# The rest ----------------------------------------------------------------------------


class MacroConfig(Section):
    """A named expression: ``name()`` in a rule stands for ``expr``."""

    name: str = Field(min_length=1)
    expr: str = Field(min_length=1)


class RulekitConfig(Section):
    """``rulekit``."""

    macros: Annotated[
        tuple[MacroConfig, ...], Inactive("macros are read but not evaluated in this version")
    ] = ()

    @field_validator("macros")
    @classmethod
    def _refuse_equal_names(cls, macros: tuple[MacroConfig, ...]) -> tuple[MacroConfig, ...]:
        names = [macro.name for macro in macros]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two macros have the name {name!r}")
        return macros


class TagConfig(Section):
    """An item of ``tags``."""

    key: str
    source: Literal["env", "k8s.label", "k8s.annotation", "container.label"]
    location: str


class Config(Section):
    """A whole Qtap file, version 2."""

    version: str = "2"
    services: ServicesConfig = ServicesConfig()
    stacks: dict[str, StackConfig] = {}
    tap: TapConfig = TapConfig()
    rulekit: RulekitConfig = RulekitConfig()
    tags: Annotated[tuple[TagConfig, ...], Inactive()] = ()
    control: Annotated[object, Inactive("the egress controller is " + NOT_ACTIVE)] = None

    def http_stack(self) -> StackConfig | None:
        """Return the stack that HTTP transactions go through; ``None``: there is none."""
        name = self.tap.http.stack
        return None if name in ("", "none") else self.stacks.get(name)

    def highest_capture_level(self) -> CaptureLevel:
        """Return the most that any plugin in use, or any of its rules, can ask for."""
        stack = self.http_stack()
        return stack.highest_level() if stack else CaptureLevel.NONE

    def event_stores(self) -> tuple[ActiveEventStore, ...]:
        """Return the event stores that are written to."""
        stores = self.services.event_stores
        return tuple(store for store in stores if isinstance(store, ActiveEventStore))

    def object_stores(self) -> tuple[ActiveObjectStore, ...]:
        """Return the object stores that are written to."""
        stores = self.services.object_stores
        return tuple(store for store in stores if isinstance(store, ActiveObjectStore))
