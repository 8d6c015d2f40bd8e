"""``tap``: which traffic to look at, and the stack that it goes through."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any

from pydantic import field_validator

from otel_qtap.config.filters import FiltersConfig
from otel_qtap.config.section import NOT_ACTIVE, Inactive, Section

__all__ = [
    "EndpointConfig",
    "EnvTagConfig",
    "HealthChecks",
    "HttpTapConfig",
    "LinkMode",
    "TapConfig",
    "TapDirection",
]

_OBSOLETE = Inactive("obsolete: a key of version 1 files")
_NAME_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_NAME_PART}(?:\.{_NAME_PART})*\.?", re.ASCII)


class TapDirection(Enum):
    """Which connections to look at, by who opened them and to where."""

    ALL = "all"
    INGRESS = "ingress"
    EGRESS = "egress"
    EGRESS_INTERNAL = "egress-internal"
    EGRESS_EXTERNAL = "egress-external"


class HealthChecks(Enum):
    """What becomes of the health checks that HAProxy sends."""

    COUNT = "count"
    """They are counted; rules and stores see them, spans are not made of them."""
    SPANS = "spans"
    """They become spans as well."""


class LinkMode(Enum):
    """How the requests that HAProxy serves are linked to those it sends for them."""

    AUTO = "auto"
    """The best that this machine and this HAProxy allow."""
    FAST = "fast"
    """By HAProxy's streams, read at its calls on sockets."""
    PROBE = "probe"
    """By HAProxy's streams, read by probes in its program: more exact, more expensive."""
    PASSIVE = "passive"
    """By what the messages themselves show."""
    OFF = "off"
    """Not at all."""


class HttpTapConfig(Section):
    """What becomes of HTTP."""

    stack: str = ""
    """The name of a stack; empty or ``none``: nothing is captured."""
    display: Annotated[Any, _OBSOLETE] = None


class OtherTapConfig(Section):
    """What becomes of another protocol."""

    stack: str = ""
    """The name of a stack."""


class EndpointConfig(Section):
    """Another stack for the requests to one domain."""

    domain: str
    """A host name, compared as a whole and without regard to case."""
    http: HttpTapConfig = HttpTapConfig()
    """The stack for its HTTP; ``none``: nothing of it is captured."""

    @field_validator("domain")
    @classmethod
    def _check_domain(cls, domain: str) -> str:
        if "*" in domain:
            raise ValueError("must be one host name: there are no wildcards, each name is an item")
        if "/" in domain or ":" in domain:
            raise ValueError("must be a host name alone, without scheme, port and path")
        if not _HOST_NAME.fullmatch(domain):
            raise ValueError("must be a host name, as in api.example.com")
        return domain


class EnvTagConfig(Section):
    """An item of ``tap.env_tags``."""

    env: str
    """The name of an environment variable."""
    key: str
    """The key of the tag."""


class TapConfig(Section):
    """What to look at."""

    direction: TapDirection = TapDirection.ALL
    """Which connections, by who opened them and to where."""
    ignore_loopback: bool = False
    """Leave out connections whose remote end is this host."""
    audit_include_dns: bool = False
    """Read for the sake of Qtap's files: no connection to port 53 is looked at either way."""
    http: HttpTapConfig = HttpTapConfig()
    """What becomes of HTTP."""
    filters: FiltersConfig = FiltersConfig()
    """Processes to leave alone."""
    endpoints: tuple[EndpointConfig, ...] = ()
    """Other stacks for the requests to some domains."""
    health_checks: HealthChecks = HealthChecks.COUNT
    """An extension: what becomes of HAProxy's health checks."""
    link: LinkMode = LinkMode.AUTO
    """An extension: how the two sides of HAProxy are linked."""
    env_tags: Annotated[tuple[EnvTagConfig, ...], Inactive("env_tags are " + NOT_ACTIVE)] = ()
    """Tags from environment variables; newer files use ``tags``."""
    redis: Annotated[OtherTapConfig | None, Inactive()] = None
    """What becomes of Redis."""
    mysql: Annotated[OtherTapConfig | None, Inactive()] = None
    """What becomes of MySQL."""
    postgres: Annotated[OtherTapConfig | None, Inactive()] = None
    """What becomes of PostgreSQL."""
    kafka: Annotated[OtherTapConfig | None, Inactive()] = None
    """What becomes of Kafka."""
    mongodb: Annotated[OtherTapConfig | None, Inactive()] = None
    """What becomes of MongoDB."""
    audit_logs: Annotated[Any, _OBSOLETE] = None

    def stack_name_for(self, domain: str) -> str:
        """Return the name of the stack for HTTP to ``domain`` (a host name without port)."""
        wanted = domain.lower().rstrip(".")
        for endpoint in self.endpoints:
            if endpoint.domain.lower().rstrip(".") == wanted and endpoint.http.stack:
                return endpoint.http.stack
        return self.http.stack
