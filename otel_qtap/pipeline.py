"""
The chain that a configuration asks for, from events to what leaves the agent.

    events -> ConnectionTracker -> Assembler -> the stack's plugins -> stores, exporters

Everything up to the queues of stores and exporters runs on the thread that calls
``consume``; nothing here knows whether a kernel or a recording is behind it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, Protocol

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import (
    AccessLogsPlugin,
    Config,
    HttpCapturePlugin,
    OtelProtocol,
    OtelStore,
    TapDirection,
)
from otel_qtap.config.model import (
    StdoutStore as StdoutStoreConfig,
)
from otel_qtap.connection.facts import Facts
from otel_qtap.connection.model import Process
from otel_qtap.connection.tracker import Connection, ConnectionTracker, StreamReader
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst
from otel_qtap.events import Role
from otel_qtap.plugins import AccessLogFormat, AccessLogs, HttpCapture, Redactor
from otel_qtap.stores import StdoutStore, StdoutWriter
from otel_qtap.transaction.assembler import Assembler, AssemblerLimits
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Transaction

__all__ = ["Pipeline", "PipelineOptions"]


class Destination(Consumer, Protocol):
    """A store or an exporter."""

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before has arrived."""

    def close(self, deadline_s: float) -> bool:
        """Deliver what waits and stop; return whether all of it arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What the command line says, beyond the Qtap file."""

    http_buffer_bytes: int = 2 * 1024 * 1024
    max_connections: int = 65536
    id_seed: bytes | None = None
    """Makes request ids repeatable, for a replay."""


class Pipeline:
    """One configuration at work."""

    def __init__(
        self,
        config: Config,
        facts: Facts,
        counters: CounterSet,
        stdout: BinaryIO,
        *,
        options: PipelineOptions,
        epoch_offset_ns: int,
    ) -> None:
        self._config = config
        self._facts = facts
        self.tap_first = TapFirst()
        self._writer = StdoutWriter(stdout, counters=counters, tap_first=self.tap_first)
        self._destinations = self._make_destinations(counters)
        self._plugins = self._make_plugins(counters)
        has_bodies = config.highest_capture_level() is CaptureLevel.FULL
        self.assembler = Assembler(
            self,
            facts,
            counters,
            limits=AssemblerLimits(body_bytes=options.http_buffer_bytes if has_bodies else 0),
            ids=IdGenerator(options.id_seed),
            epoch_offset_ns=epoch_offset_ns,
        )
        self._tracker = ConnectionTracker(
            self._open_reader, counters, capacity=options.max_connections
        )
        self._skipped = counters.counter(
            "otel_qtap.connection.filtered",
            "{connection}",
            "Connections passed over because of tap.direction, ignore_loopback or filters",
        )
        self.accept_event = self._tracker.consume
        """Take the next event; bound once, because it is called for each."""
        self.accept_data = self._tracker.accept_data
        """Take the next ``DataEvent``."""

    def consume(self, transaction: Transaction) -> None:
        """Give a transaction to every plugin of the stack."""
        for plugin in self._plugins:
            plugin.consume(transaction)

    def excludes(self, process: Process) -> bool:
        """Whether ``tap.filters`` leave a process alone."""
        return self._config.tap.filters.excludes(process.executable)

    def retain_connections(self, living: set[int], before_ns: int) -> None:
        """Let go of connections whose end was lost, see ``ConnectionTracker.retain``."""
        self._tracker.retain(living, before_ns)

    def stop_connections(self, timestamp_ns: int) -> None:
        """Let go of everything unfinished, because no event will follow."""
        self._tracker.close(timestamp_ns)

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before has left the agent."""
        results = [destination.flush(deadline_s) for destination in self._everything()]
        return all(results)

    def close(self, deadline_s: float) -> bool:
        """Deliver what waits and stop; returns whether all of it arrived."""
        results = [destination.close(deadline_s) for destination in self._everything()]
        return all(results)

    def _everything(self) -> list[Destination | StdoutWriter]:
        return [
            *(d for d in self._destinations if not isinstance(d, StdoutStore)),
            self._writer,
        ]

    def _open_reader(self, connection: Connection) -> StreamReader | None:
        """Decide on a connection once; the kernel side has decided before, as far as it could."""
        if not is_wanted(self._config, connection.role, connection.remote.address) or self.excludes(
            self._facts.process(connection.process_id)
        ):
            self._skipped.value += 1
            return None
        return self.assembler.open(connection)

    def _make_destinations(self, counters: CounterSet) -> list[Destination]:
        destinations: list[Destination] = []
        if any(isinstance(s, StdoutStoreConfig) for s in self._config.object_stores()):
            destinations.append(StdoutStore(self._writer))
        stores = [
            store
            for store in self._config.event_stores()
            if isinstance(store, OtelStore) and store.protocol is not OtelProtocol.STDOUT
        ]
        if stores:
            destinations += _make_otlp(stores, counters, self.tap_first)
        return destinations

    def _make_plugins(self, counters: CounterSet) -> Sequence[Consumer]:
        stack = self._config.http_stack()
        redactor = Redactor()
        plugins: list[Consumer] = []
        for plugin in stack.plugins if stack else ():
            if isinstance(plugin, HttpCapturePlugin):
                plugins.append(
                    HttpCapture(
                        level=plugin.config.level,
                        format=plugin.config.format,
                        redactor=redactor,
                        consumers=self._destinations,
                        counters=counters,
                    )
                )
            elif isinstance(plugin, AccessLogsPlugin):
                plugins.append(
                    AccessLogs(
                        mode=plugin.config.mode,
                        format=AccessLogFormat(plugin.config.format.value),
                        redactor=redactor,
                        writer=self._writer,
                    )
                )
        return plugins


def is_wanted(config: Config, role: Role, remote_address: str) -> bool:
    """Whether ``tap.direction`` and ``tap.ignore_loopback`` want a connection."""
    tap = config.tap
    place = _place_of(remote_address)
    if tap.ignore_loopback and place == "loopback":
        return False
    if tap.direction is TapDirection.ALL:
        return True
    if role is Role.SERVER:
        return tap.direction is TapDirection.INGRESS
    if tap.direction is TapDirection.EGRESS:
        return True
    wanted = TapDirection.EGRESS_INTERNAL if place == "internal" else TapDirection.EGRESS_EXTERNAL
    return tap.direction is wanted


_INTERNAL = {
    4: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    6: ("fc00::/7", "fe80::/10"),
}


@lru_cache(maxsize=4096)
def _place_of(address: str) -> str:
    """Where an address is, by the filter's own reading, which counts fe80::/10 as internal."""
    parsed = ipaddress.ip_address(address)
    if parsed.is_loopback or parsed.is_unspecified:
        return "loopback"
    if parsed.version == 4 and parsed.is_link_local:
        return "loopback"
    networks = _INTERNAL[parsed.version]
    is_internal = any(parsed in ipaddress.ip_network(network) for network in networks)
    return "internal" if is_internal else "external"


def _make_otlp(
    stores: Sequence[OtelStore], counters: CounterSet, tap_first: TapFirst
) -> list[Destination]:
    # The OpenTelemetry SDK is a third of the agent's memory; only who exports pays for it.
    from otel_qtap.exporters import (  # noqa: PLC0415
        OtlpExporter,
        ResourceTable,
        SpanIdentifier,
    )

    identify = SpanIdentifier()
    exporters: list[Destination] = []
    for number, store in enumerate(stores):
        extra = {"deployment.environment.name": store.environment} if store.environment else {}
        exporters.append(
            OtlpExporter(
                counters=counters,
                endpoint=store.resolve_endpoint(os.environ) or None,
                protocol=store.protocol.value,
                headers=store.resolve_headers(os.environ),
                insecure=None if store.tls.enabled else True,
                signals=tuple(signal.value for signal in store.signals),
                identify=identify,
                resource_of=ResourceTable(service_name=store.service_name or None, extra=extra),
                name=store.id or ("otlp" if number == 0 else f"otlp-{number}"),
                tap_first=tap_first,
            )
        )
    return exporters
