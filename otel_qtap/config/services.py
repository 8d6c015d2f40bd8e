"""
``services``: where events and objects go.

An event store takes what is small (spans, log records, Qtap's events), an object store
takes whole transactions. All stores of a list are used, where Qtap uses the first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from otel_qtap.config.section import (
    NOT_ACTIVE,
    NOT_PROVIDED,
    Duration,
    HeaderValue,
    Inactive,
    Section,
    Size,
    ValueSource,
)

__all__ = [
    "ActiveEventStore",
    "ActiveObjectStore",
    "BatchConfig",
    "DisabledStore",
    "EventStore",
    "HostedEventStore",
    "HostedObjectStore",
    "ObjectStore",
    "OtelObjectStore",
    "OtelProtocol",
    "OtelStore",
    "QscanServiceConfig",
    "S3Store",
    "ServicesConfig",
    "Signal",
    "SpoolConfig",
    "StdoutStore",
    "StoreSelector",
    "TlsConfig",
]

_ENVIRONMENT_REFERENCE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_HOST_AND_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)
_URL_PLACEHOLDERS = ("SCHEME", "ENDPOINT", "BUCKET", "DIGEST")


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
    """Accept any certificate."""


class BatchConfig(Section):
    """How many records travel together."""

    max_items: int = Field(default=512, ge=1)
    """Send at the latest when so many wait."""
    max_bytes: Size = 2 * 1024 * 1024
    """Send at the latest when they take so many bytes."""
    max_delay: Duration = timedelta(seconds=1)
    """Send at the latest so long after the first one."""


class SpoolConfig(Section):
    """Where records wait on disk while their destination is away."""

    directory: str = Field(min_length=1)
    """Of this agent alone; made when it is not there."""
    max_bytes: Size = 1024**3
    """What does not fit is dropped, and counted."""


class StoreSelector(Section):
    """Names one store of the other list."""

    id: str = ""
    """The ``id`` of the store."""
    disabled: bool = False
    """Use none of them."""


class DisabledStore(Section):
    """A store that is written down and switched off."""

    type: Literal["disabled"]
    id: str = ""
    """A name of its own."""


class StdoutStore(Section):
    """Standard output, as event store and as object store."""

    type: Literal["stdout"]
    id: str = ""
    """A name of its own."""


class OtelStore(Section):
    """An OTLP destination for spans and log records."""

    type: Literal["otel"]
    id: str = ""
    """A name of its own: the label ``destination`` of its counters."""
    endpoint: str = Field(default="", repr=False)  # may carry user-info
    """``host:port`` or URL, with ``{{NAME}}`` for environment variables; empty: the default."""
    protocol: OtelProtocol = OtelProtocol.GRPC
    """How to send: ``grpc`` (port 4317), ``http`` (port 4318)."""
    service_name: str = ""
    """Empty: each observed process has its own ``service.name``."""
    environment: str = ""
    """The ``deployment.environment.name`` of everything sent here."""
    headers: dict[str, HeaderValue] = Field(default={}, repr=False)
    """Sent with each request, for instance for authorization."""
    tls: TlsConfig = TlsConfig()
    """Whether and how to encrypt."""
    signals: tuple[Signal, ...] = (Signal.TRACES, Signal.LOGS)
    """An extension: what to send here."""
    batch: Annotated[BatchConfig, Inactive()] = BatchConfig()
    """An extension: how many records travel together."""
    spool: Annotated[SpoolConfig | None, Inactive()] = None
    """An extension: where records wait on disk while the receiver is away."""

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

    inactive: ClassVar[str] = f"this event store is {NOT_PROVIDED}"

    type: Literal["axiom", "pulse", "pulse-legacy", "pulse-streaming"]
    id: str = ""
    """A name of its own."""
    dataset: ValueSource | None = None
    """The Axiom dataset."""
    token: ValueSource | None = None
    """What the service knows its customer by."""
    url: str = Field(default="", repr=False)
    """Where the service is."""
    endpoint: str = Field(default="", repr=False)
    """Where the service is, in older files."""
    allow_insecure: bool = False
    """Send without TLS."""


class S3Store(Section):
    """An S3 bucket for whole transactions, each under the SHA-1 of its content."""

    type: Literal["s3"]
    id: str = ""
    """A name of its own."""
    endpoint: str = Field(default="s3.amazonaws.com", min_length=1, repr=False)
    """``host`` or ``host:port``, without ``https://``."""
    region: str = "us-east-1"
    """The region that requests are signed for."""
    bucket: str = Field(min_length=1)
    """The name of the bucket; it must be there already."""
    access_key: ValueSource | None = None
    """With ``secret_key``; without both, the usual AWS sources are asked (environment, role)."""
    secret_key: ValueSource | None = None
    """With ``access_key``."""
    insecure: bool = False
    """Speak plain HTTP."""
    access_url: str = Field(default="", repr=False)
    """
    The URL that events name for an object, with ``{{SCHEME}}``, ``{{ENDPOINT}}``,
    ``{{BUCKET}}`` and ``{{DIGEST}}``.
    """
    event_store: Annotated[
        StoreSelector | None, Inactive("every event store gets the record of an object")
    ] = None
    """The event store that gets the record of an object."""
    spool: Annotated[SpoolConfig | None, Inactive()] = None
    """An extension: where objects wait on disk while the bucket is out of reach."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if "://" in endpoint:
            raise ValueError(
                "must be host or host:port without a scheme; write 'insecure: true' for plain HTTP"
            )
        if endpoint and not _HOST_AND_PORT.fullmatch(endpoint):
            raise ValueError("must be host or host:port, as in minio.example.com:9000")
        return endpoint

    @field_validator("access_url")
    @classmethod
    def _check_placeholders(cls, url: str) -> str:
        for name in _PLACEHOLDER.findall(url):
            if name not in _URL_PLACEHOLDERS:
                known = ", ".join(f"{{{{{known}}}}}" for known in _URL_PLACEHOLDERS)
                raise ValueError(f"has a placeholder that is not one of {known}")
        return url

    @model_validator(mode="after")
    def _need_both_keys(self) -> S3Store:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key come together: write both, or neither")
        return self

    def resolve_keys(self, environ: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
        """Return access key and secret key; ``None``: the usual AWS sources are to be asked."""
        if self.access_key is None or self.secret_key is None:
            return None
        access, secret = self.access_key.resolve(environ), self.secret_key.resolve(environ)
        return (access, secret) if access and secret else None


class HostedObjectStore(Section):
    """The object store of Qtap that belongs to a hosted service."""

    inactive: ClassVar[str] = f"this object store is {NOT_PROVIDED}"

    type: Literal["qpoint"]
    id: str = ""
    """A name of its own."""
    url: str = Field(default="", repr=False)
    """Where the service is."""
    token: ValueSource | None = None
    """What the service knows its customer by."""
    event_store: StoreSelector | None = None
    """The event store that gets the record of an object."""


class OtelObjectStore(Section):
    """Whole transactions as OTLP log records."""

    inactive: ClassVar[str] = (
        f"this object store is {NOT_ACTIVE}; the otel event store sends headers and bodies"
    )

    type: Literal["otel"]
    id: str = ""
    """A name of its own."""
    otel_endpoint: str = Field(default="", repr=False)
    """``host:port`` or URL."""
    protocol: OtelProtocol = OtelProtocol.GRPC
    """How to send."""
    service_name: str = ""
    """The ``service.name`` of everything sent here."""
    environment: str = ""
    """The ``deployment.environment.name`` of everything sent here."""
    headers: dict[str, HeaderValue] = Field(default={}, repr=False)
    """Sent with each request."""
    tls: TlsConfig = TlsConfig()
    """Whether and how to encrypt."""
    event_store: StoreSelector | None = None
    """The event store that gets the record of an object."""


EventStore: TypeAlias = Annotated[
    DisabledStore | StdoutStore | OtelStore | HostedEventStore, Field(discriminator="type")
]
ObjectStore: TypeAlias = Annotated[
    DisabledStore | StdoutStore | S3Store | OtelObjectStore | HostedObjectStore,
    Field(discriminator="type"),
]
ActiveEventStore: TypeAlias = StdoutStore | OtelStore
ActiveObjectStore: TypeAlias = StdoutStore | S3Store


class QscanServiceConfig(Section):
    """The hosted scanner of Qtap's ``qscan`` plugin."""

    inactive: ClassVar[str] = f"this service is {NOT_PROVIDED}"

    type: Literal["stdout", "client"]
    url: str = Field(default="", repr=False)
    """Where the service is."""
    token: ValueSource | None = None
    """What the service knows its customer by."""


class ServicesConfig(Section):
    """Where things go. All stores of a list are used, where Qtap uses the first."""

    event_stores: tuple[EventStore, ...] = ()
    """Take spans, log records and Qtap's events."""
    object_stores: tuple[ObjectStore, ...] = ()
    """Take whole transactions, as far as their level allows."""
    qscan: Annotated[DisabledStore | QscanServiceConfig, Field(discriminator="type")] | None = None
    """The service of Qtap's qscan plugin."""
