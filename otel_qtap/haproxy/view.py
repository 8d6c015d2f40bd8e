"""What is known of the names in one HAProxy process, ready to be asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, TypeVar

from otel_qtap.haproxy.configuration import HaproxyConfiguration
from otel_qtap.haproxy.runtime import Runtime

__all__ = ["CheckedServer", "NameTables", "ProcessView", "ServerName"]

_V = TypeVar("_V")
End: TypeAlias = tuple[str, int]
"""Address or host name, and port."""


class ServerName(NamedTuple):
    """A server of HAProxy, in the words of the Collector's haproxy receiver."""

    proxy_name: str
    """The backend (or ``listen`` section)."""
    service_name: str
    proxy_id: int = 0
    """``iid`` and ``sid`` of HAProxy's statistics; 0 when only the configuration is known."""
    service_id: int = 0


class CheckedServer(NamedTuple):
    """A server whose health checks go to some address."""

    name: ServerName
    rise: int
    """Successful checks in a row that bring it up."""
    fall: int
    """Failed checks in a row that bring it down."""
    health: int | None
    """HAProxy's own count when it was last asked; ``None`` when it could not be."""


class NameTables(NamedTuple):
    """
    The names in one HAProxy process, by address and port, and what else it says of itself.

    An entry that is ``None`` stands for several names: none is the right one.
    """

    servers: Mapping[End, ServerName | None] = {}
    checked: Mapping[End, CheckedServer | None] = {}
    frontends: Mapping[End, str | None] = {}
    hosts: Mapping[End, str | None] = {}
    """What HAProxy itself calls the host at an address, where it was not given the address."""
    asked_ns: int = 0
    """When the process was asked last, in nanoseconds since the epoch; 0: never."""
    has_log: bool = False
    """Whether its configuration has requests logged."""

    def server_at(self, address: str, port: int) -> ServerName | None:
        """Return the server at an address, which may also be a host name."""
        return self.servers.get((address, port)) or self.servers.get((address, 0))

    def checked_server_at(self, address: str, port: int) -> CheckedServer | None:
        """Return the server whose health is checked at an address."""
        return self.checked.get((address, port)) or self.checked.get((address, 0))

    def frontend_at(self, port: int, address: str = "") -> str | None:
        """Return the frontend that takes connections to a port."""
        found = self.frontends.get((address, port)) if address else None
        return found or self.frontends.get(("", port))

    def host_at(self, address: str, port: int) -> str:
        """Return the host name that HAProxy's configuration has for an address; else empty."""
        return self.hosts.get((address, port)) or ""


_NO_NAMES = NameTables()


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process."""

    started: int
    """Start of the process in clock ticks: its id may be used again."""
    configuration: HaproxyConfiguration | None = None
    is_trusted: bool = False
    """Whether the configuration is the one that the process read."""
    logs_to_descriptor: bool = False
    """Whether requests are logged to a stdout or stderr that is no socket."""
    runtime: Runtime | None = None
    tables: NameTables = _NO_NAMES
    gone_s: float = 0.0
    """When the process was found to have ended, by the clock of whoever looked; else 0."""

    def with_runtime(self, runtime: Runtime | None, asked_ns: int) -> ProcessView:
        """
        Return the view that results from what the process says.

        ``asked_ns`` says when it was asked, in nanoseconds since the epoch.
        """
        if runtime is not None and runtime == self.runtime:
            return replace(self, tables=self.tables._replace(asked_ns=asked_ns))
        configuration = self.configuration if self.is_trusted else None
        tables = _NO_NAMES
        if configuration is not None:
            tables = tables._replace(
                frontends=_unambiguous(_frontends(configuration)),
                has_log=bool(configuration.log_targets),
            )
        if runtime is not None:
            tables = tables._replace(
                servers=_unambiguous(_servers_at_runtime(runtime)),
                checked=_unambiguous(_checked_at_runtime(runtime)),
                hosts=_unambiguous(_hosts_at_runtime(runtime)),
                asked_ns=asked_ns,
            )
        elif configuration is not None:
            tables = tables._replace(
                servers=_unambiguous(_configured(configuration)),
                checked=_unambiguous(_checked_by(configuration)),
            )
        return replace(self, runtime=runtime, tables=tables)


def _servers_at_runtime(runtime: Runtime) -> Iterator[tuple[End, ServerName]]:
    for server in runtime.servers:
        name = ServerName(server.backend, server.name, server.backend_id, server.server_id)
        for host in (server.address, server.host_name):
            if host:
                yield (host, server.port), name


def _hosts_at_runtime(runtime: Runtime) -> Iterator[tuple[End, str]]:
    for server in runtime.servers:
        if server.address and server.host_name:
            yield (server.address, server.port), server.host_name


def _checked_at_runtime(runtime: Runtime) -> Iterator[tuple[End, CheckedServer]]:
    for server in runtime.servers:
        if server.rise and server.check_address:
            name = ServerName(server.backend, server.name, server.backend_id, server.server_id)
            end = (server.check_address, server.check_port)
            yield end, CheckedServer(name, server.rise, server.fall, server.health)


def _configured(configuration: HaproxyConfiguration) -> Iterator[tuple[End, ServerName]]:
    for server in configuration.servers:
        yield (server.host, server.port), ServerName(server.backend, server.name)


def _checked_by(configuration: HaproxyConfiguration) -> Iterator[tuple[End, CheckedServer]]:
    for server in configuration.servers:
        name = ServerName(server.backend, server.name)
        end = (server.check_host, server.check_port)
        yield end, CheckedServer(name, server.rise, server.fall, None)


def _frontends(configuration: HaproxyConfiguration) -> Iterator[tuple[End, str]]:
    for bind in configuration.binds:
        yield ("", bind.port), bind.frontend
        if bind.address:
            yield (bind.address, bind.port), bind.frontend


def _unambiguous(pairs: Iterable[tuple[End, _V]]) -> dict[End, _V | None]:
    found: dict[End, _V | None] = {}
    for end, name in pairs:
        found[end] = name if found.get(end, name) == name else None
    return found
