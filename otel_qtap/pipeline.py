"""
The chain that a configuration asks for, from events to what leaves the agent.

    events -> ConnectionTracker -> Assembler -> HaproxyAccount -> the plugins of a stack
           -> stores, exporters

Everything up to the queues of stores and exporters runs on the thread that calls
``consume``; nothing here knows whether a kernel or a recording is behind it.

What follows from the configuration can be made anew (``prepare``) and swapped (``adopt``)
while connections go on: they belong to the chain, not to the configuration.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from threading import Thread
from typing import BinaryIO

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import Config, HttpMetricsPlugin, LinkMode, TapDirection
from otel_qtap.connection.facts import Facts
from otel_qtap.connection.model import Process
from otel_qtap.connection.tracker import Connection, ConnectionTracker, StreamReader
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst
from otel_qtap.destinations import Destinations
from otel_qtap.events import Event, LogEvent, Role
from otel_qtap.haproxy import HaproxyAccount, Names
from otel_qtap.haproxy.streams import StreamMarks
from otel_qtap.plugins import ConnectionReporter, HttpMetrics
from otel_qtap.stack import PluginContext, Stacks
from otel_qtap.stores import StdoutWriter, System
from otel_qtap.transaction.assembler import Assembler, AssemblerLimits
from otel_qtap.transaction.consumer import Consumer
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Transaction

__all__ = ["SETTLE_NS", "TICK_NS", "Pipeline", "PipelineOptions", "Setup"]

TICK_NS = 250_000_000
"""How often ``tick`` should be called: connections are reported half a second after they open."""
SETTLE_NS = 10_000_000
"""How often ``settle`` should be called: transactions wait a tenth of a second for their line."""

_RETIREMENT_S = 30.0  # that what was queued for old destinations has to get there


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """What the command line says, beyond the Qtap file."""

    http_buffer_bytes: int = 2 * 1024 * 1024
    max_connections: int = 65536
    id_seed: bytes | None = None
    """Makes request ids repeatable, for a replay."""
    hostname: str = field(default_factory=socket.gethostname)
    """Of the machine that was captured; empty where that is not known."""
    observers: tuple[Consumer, ...] = ()
    """Get every transaction, whatever the configuration says."""

    def limits(self, config: Config) -> AssemblerLimits:
        """Return what may be held of the traffic under ``config``."""
        has_bodies = config.highest_capture_level() is CaptureLevel.FULL
        return AssemblerLimits(body_bytes=self.http_buffer_bytes if has_bodies else 0)


@dataclass(frozen=True, slots=True)
class Setup:
    """What follows from one configuration."""

    config: Config
    destinations: Destinations
    stacks: Stacks

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before has left the agent, stdout aside."""
        results = [part.flush(deadline_s) for part in (self.destinations, self.stacks)]
        return all(results)


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
        names: Names | None = None,
    ) -> None:
        """``names`` knows the frontends and servers of HAProxy processes."""
        self._facts = facts
        self._options = options
        self._observers = options.observers
        self._counters = counters
        self.tap_first = TapFirst()
        self._writer = StdoutWriter(stdout, counters=counters, tap_first=self.tap_first)
        self._context = PluginContext(
            counters=counters,
            writer=self._writer,
            tap_first=self.tap_first,
            hostname=options.hostname,
            http_metrics=cache(partial(HttpMetrics, counters=counters)),
        )
        self._span_key = os.urandom(32)
        self._reporter: ConnectionReporter | None = None
        self._retiring: list[_Retirement] = []
        self._excluded_logs: dict[str, bool] = {}
        """Programs whose log was seen, and whether ``tap.filters`` leave them alone."""
        self._has_new_tap = False
        """Whether connections may be open that the configuration in force does not want."""
        self._ids = IdGenerator(options.id_seed)
        self._instance = IdGenerator(options.id_seed).new(epoch_offset_ns)
        self._setup = self._make_setup(config, None)
        self.haproxy = HaproxyAccount(
            self,
            counters,
            epoch_offset_ns=lambda: self.assembler.epoch_offset_ns,
            names=names,
            wants_line=self._wants_line,
        )
        self.assembler = Assembler(
            self.haproxy,
            facts,
            counters,
            limits=options.limits(config),
            ids=self._ids,
            epoch_offset_ns=epoch_offset_ns,
            bodies=self,
            links_by_evidence=config.tap.link is not LinkMode.OFF,
        )
        self.assembler.linker.on_failed_check = self.haproxy.check
        self._report_connections()
        self._tracker = ConnectionTracker(
            self._open_reader,
            counters,
            capacity=options.max_connections,
            on_loss=self.assembler.linker.lose,
        )
        self._skipped = counters.counter(
            "otel_qtap.connection.filtered",
            "{connection}",
            "Connections passed over because of tap.direction, ignore_loopback or filters",
        )
        self.streams = StreamMarks(self._tracker.consume, counters)
        """Where events of HAProxy wait until the marks they carry are verified."""
        self.streams.on_line = self.haproxy.accept_log
        self.streams.on_distrust = self.assembler.linker.distrust
        self.accept_data = self._tracker.accept_data
        """Take the next ``DataEvent``, unless ``streams.is_needed``."""

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._setup.config

    def accept_event(self, event: Event) -> None:
        """Take the next event."""
        if type(event) is LogEvent and self.streams.is_holding:
            self.haproxy.expect_log(event)
        self.streams.consume(event)

    def consume(self, transaction: Transaction) -> None:
        """Give a transaction to every plugin of its stack, and to who observes them all."""
        if self._has_new_tap and not self._wants(transaction):
            return
        self._setup.stacks.consume(transaction)
        for observer in self._observers:
            observer.consume(transaction)

    def wants_bodies(self, transaction: Transaction) -> bool:
        """
        Return whether anybody may ask for the bodies of ``transaction``, which is not over.

        It has come as far as the head of its request, or of its response if it has one.
        """
        return self._setup.stacks.may_want_bodies(transaction)

    def prepare(self, config: Config) -> Setup:
        """
        Make what follows from ``config``; may be called on any thread.

        Destinations that the file describes as before are not made anew. Raises
        ``DestinationError``.
        """
        return self._make_setup(config, self._setup)

    def adopt(self, setup: Setup) -> None:
        """
        Put ``setup`` into force; connections go on, and what runs ends under the new one.

        What was queued by the old one is delivered on a thread of its own.
        """
        old, self._setup = self._setup, setup
        self._has_new_tap |= old.config.tap != setup.config.tap
        self._excluded_logs.clear()
        self.assembler.limits = self._options.limits(setup.config)
        self._report_connections()
        self._retiring = [each for each in self._retiring if each.is_alive()]
        self._retiring.append(
            _Retirement(old, keeps_destinations=setup.destinations is old.destinations)
        )

    def excludes(self, process: Process) -> bool:
        """Whether ``tap.filters`` leave a process alone."""
        return self.config.tap.filters.excludes(process.executable)

    def reconcile_connections(self, account: Mapping[int, tuple[int, int]], before_ns: int) -> None:
        """Take note of ends that were lost, see ``ConnectionTracker.reconcile``."""
        self._tracker.reconcile(account, before_ns)

    def stop_connections(self, timestamp_ns: int) -> None:
        """Let go of everything unfinished, because no event will follow."""
        self.streams.close()
        self._tracker.close(timestamp_ns)
        self.assembler.linker.close()
        self.haproxy.close()

    def tick(self, timestamp_ns: int) -> None:
        """Do what is due; to be called every ``TICK_NS``, in the time of events."""
        if self._reporter is not None:
            self._reporter.tick(timestamp_ns)
        self.streams.tick(timestamp_ns)
        self.assembler.linker.tick(timestamp_ns)
        self.assembler.neighbours.tick(timestamp_ns)

    def settle(self, timestamp_ns: int) -> None:
        """Let go of what waited for HAProxy's log; to be called every ``SETTLE_NS`` or so."""
        self.haproxy.tick(timestamp_ns)

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before has left the agent."""
        results = [part.flush(deadline_s) for part in (self._setup, self._writer)]
        return all(results)

    def close(self, deadline_s: float) -> bool:
        """Deliver what waits and stop; returns whether all of it arrived."""
        setup = self._setup
        results = [each.wait(deadline_s) for each in self._retiring]
        results += [
            part.close(deadline_s) for part in (setup.destinations, setup.stacks, self._writer)
        ]
        return all(results)

    def _make_setup(self, config: Config, current: Setup | None) -> Setup:
        if current is not None and _same_destinations(current.config, config):
            destinations = current.destinations
            return Setup(config, destinations, Stacks(config, destinations, self._context))
        with ExitStack() as made:
            destinations = Destinations(
                config,
                writer=self._writer,
                counters=self._counters,
                tap_first=self.tap_first,
                span_key=self._span_key,
            )
            made.callback(destinations.close, 0.0)  # if the rest cannot be made
            stacks = Stacks(config, destinations, self._context)
            made.pop_all()
        return Setup(config, destinations, stacks)

    def _report_connections(self) -> None:
        """Have connections reported to whom the configuration names, from now on."""
        consumers = self._setup.destinations.connections
        has_metrics = any(
            isinstance(plugin, HttpMetricsPlugin)
            for _, stack in self.config.stacks_in_use()
            for plugin in stack.plugins
        )
        if self._reporter is not None:
            self._reporter.report_to(consumers)
        elif consumers or has_metrics:
            self._reporter = ConnectionReporter(
                consumers=consumers,
                facts=self._facts,
                system=System(hostname=self._options.hostname, instance=self._instance),
                counters=self._counters,
                epoch_offset_ns=lambda: self.assembler.epoch_offset_ns,
            )
            self.haproxy.on_arrival = self._reporter.consume

    def _wants_line(self, process_id: int, client: str) -> bool:
        """Whether what a process serves to a client at an address is captured."""
        program = self._facts.process(process_id).executable
        is_excluded = self._excluded_logs.get(program)
        if is_excluded is None:
            is_excluded = self.config.tap.filters.excludes(program)
            self._excluded_logs[program] = is_excluded
        try:
            return not is_excluded and is_wanted(self.config, Role.SERVER, client)
        except ValueError:  # no address
            return not is_excluded

    def _wants(self, transaction: Transaction) -> bool:
        role = Role.SERVER if transaction.direction.is_ingress else Role.CLIENT
        is_wanted_here = is_wanted(self.config, role, transaction.remote.address)
        return is_wanted_here and not self.excludes(transaction.process)

    def _open_reader(self, connection: Connection) -> StreamReader | None:
        """Decide on a connection once; the kernel side has decided before, as far as it could."""
        if not is_wanted(self.config, connection.role, connection.remote.address) or self.excludes(
            self._facts.process(connection.process_id)
        ):
            self._skipped.value += 1
            return None
        talk = self.assembler.open(connection)
        if self._reporter is None:
            return talk
        talk.xid = self._ids.new(connection.opened_ns + self.assembler.epoch_offset_ns)
        return self._reporter.follow(connection, talk, talk.xid)


class _Retirement(Thread):
    """Delivers what an old configuration has queued, and closes what nobody uses any more."""

    def __init__(self, setup: Setup, *, keeps_destinations: bool) -> None:
        super().__init__(name="retirement", daemon=True)
        self._parts: list[Destinations | Stacks] = [setup.stacks]
        if not keeps_destinations:
            self._parts.append(setup.destinations)
        self._has_arrived = True
        self.start()

    def run(self) -> None:
        """Close them; what takes too long is counted as dropped."""
        results = [part.close(_RETIREMENT_S) for part in self._parts]
        self._has_arrived = all(results)

    def wait(self, deadline_s: float) -> bool:
        """Return whether all of it arrived within ``deadline_s``."""
        self.join(deadline_s)
        return self._has_arrived and not self.is_alive()


def _same_destinations(one: Config, other: Config) -> bool:
    return (one.services, one.tap.health_checks) == (other.services, other.tap.health_checks)


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
