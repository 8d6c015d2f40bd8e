"""
The loop around the kernel side, which an agent and a recorder have in common.

It runs on the main thread: drain the ring, look after the rest every now and then, stop at
a signal. What becomes of a record is decided by ``agent.py`` and ``recorder.py``.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import Config, TapDirection
from otel_qtap.connection.container import ContainerTable
from otel_qtap.connection.facts import HostFacts
from otel_qtap.connection.hosts import HostNames
from otel_qtap.connection.model import Process
from otel_qtap.connection.process import ProcessTable
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst
from otel_qtap.events import LostEvent, ProcessEvent, ProcessStep
from otel_qtap.haproxy import HaproxyNames
from otel_qtap.haproxy.layout import Layout
from otel_qtap.haproxy.streams import StreamMarks
from otel_qtap.haproxy.watch import HaproxyWatch
from otel_qtap.pace import Pace
from otel_qtap.pipeline import TICK_NS, PipelineOptions
from otel_qtap.receiver.backlog import DEFAULT_BACKLOG_BYTES
from otel_qtap.receiver.kernel import DEFAULT_RING_BYTES, KernelReceiver, KernelSettings
from otel_qtap.receiver.programs import Rung

__all__ = ["AgentOptions", "Tap", "kernel_settings"]

log = logging.getLogger("otel_qtap")

_HEAD_BYTES = 16 * 1024  # HAProxy's own limit for a head (tune.bufsize)
_HOUSEKEEPING_S = 1.0
_TICK_S = TICK_NS / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What the command line says about an agent on this machine."""

    rung: Rung | None = None
    ring_bytes: int = DEFAULT_RING_BYTES
    backlog_bytes: int = DEFAULT_BACKLOG_BYTES
    """Most that may wait outside of the ring, as it is kept there."""
    docker_socket: Path = Path("/var/run/docker.sock")
    flush_deadline_s: float = 5.0
    may_hurry: bool = True
    """Whether the tap may raise its priority while its ring fills up, see ``Pace``."""
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


def kernel_settings(config: Config, http_buffer_bytes: int) -> KernelSettings:
    """Return what the kernel side has to hand over for ``config``, and no more."""
    direction = config.tap.direction
    wants = {
        TapDirection.ALL: (True, True, True),
        TapDirection.INGRESS: (True, False, False),
        TapDirection.EGRESS: (False, True, True),
        TapDirection.EGRESS_INTERNAL: (False, True, False),
        TapDirection.EGRESS_EXTERNAL: (False, False, True),
    }[direction]
    with_bodies = config.highest_capture_level() is CaptureLevel.FULL
    return KernelSettings(
        ingress=wants[0],
        egress_internal=wants[1],
        egress_external=wants[2],
        ignore_loopback=config.tap.ignore_loopback,
        turn_limit=_HEAD_BYTES + (http_buffer_bytes if with_bodies else 0),
    )


class Tap:
    """What running and recording have in common: the kernel side, signals and the loop."""

    def __init__(self, config: Config, options: AgentOptions, counters: CounterSet) -> None:
        self.config = config
        self.options = options
        self.counters = counters
        self.is_ready = False
        self.tap_first: TapFirst | None = None
        self._is_stopping = False
        self.processes = ProcessTable(counters=counters)
        self.containers = ContainerTable(options.docker_socket, counters)
        self.facts = HostFacts(self.processes, self.containers, HostNames())
        self._undecodable = counters.counter(
            "otel_qtap.receiver.undecodable", "{record}", "Records that could not be read"
        )
        self._last_loss_log_s = 0.0
        self.names = HaproxyNames(counters, on_refresh=self._watch_log)
        self.receiver = KernelReceiver(
            kernel_settings(config, options.pipeline.http_buffer_bytes),
            counters,
            rung=options.rung,
            ring_bytes=options.ring_bytes,
            backlog_bytes=options.backlog_bytes,
        )
        self.seen_ns = time.monotonic_ns()
        """Up to when everything that happened has been drained."""

    def watch_haproxy(self, streams: StreamMarks, learn: Callable[[int, Layout], None]) -> None:
        """Find the HAProxy processes of this machine, and keep ``streams`` in step with them."""

        def find(process_id: int, layout: Layout) -> None:
            learn(process_id, layout)
            if not self.config.tap.filters.excludes(self.processes.get(process_id).executable):
                self.names.follow(process_id)

        self._streams = streams
        self._watch = HaproxyWatch(self.receiver, find, self.counters, mode=self.config.tap.link)
        streams.on_verdict = self._watch.decide
        streams.on_doubt = self._watch.doubt
        self.names.start()
        self._watch.find()

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the loop to end; safe to call from a signal handler."""
        self._is_stopping = True

    def exclude_filtered_processes(self, excludes: Callable[[Process], bool]) -> None:
        """Tell the kernel side which of the processes that run already are to be left alone."""
        if not self.config.tap.filters.custom and not self.config.tap.filters.groups:
            return
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and excludes(self.processes.get(int(entry.name))):
                self.receiver.exclude(int(entry.name))

    def filter_processes_again(self, excludes: Callable[[Process], bool]) -> None:
        """Tell the kernel side about all processes anew, because ``tap.filters`` have changed."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                pid = int(entry.name)
                if excludes(self.processes.get(pid)):
                    self.receiver.exclude(pid)
                else:
                    self.receiver.include(pid)

    def follow(self, event: ProcessEvent, excludes: Callable[[Process], bool]) -> None:
        """Learn what a process became, and tell the kernel side whether to leave it alone."""
        self.processes.consume(event)
        self._watch.follow(event)
        if not self.config.tap.filters.custom and not self.config.tap.filters.groups:
            return
        pid = event.process_id
        if event.step is ProcessStep.EXITED:
            self.receiver.include(pid)
        elif event.step is ProcessStep.EXECUTED:
            if excludes(self.processes.get(pid)):
                self.receiver.exclude(pid)
            elif pid != os.getpid():
                self.receiver.include(pid)

    def loop(self, take: Callable[[memoryview], None], until_s: float = float("inf")) -> None:
        """Drain the ring until told to stop; what is in it by then is drained as well."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        gc.collect()
        gc.freeze()  # what start-up made stays for good; never look at it again
        gc.set_threshold(50_000, 20, 50)
        pace = Pace(self.options.ring_bytes, self.counters, may_hurry=self.options.may_hurry)
        pace.give_way()
        if self.tap_first is not None:
            pace.tap_first = self.tap_first
        next_tick_s = next_housekeeping_s = 0.0
        while not self._is_stopping:
            worked = False
            seen_ns = time.monotonic_ns()
            for record in self.receiver.drain():
                worked = True
                take(record)
            self.seen_ns = max(self.seen_ns, self.receiver.newest_ns) if worked else seen_ns
            self.after_drain()
            now_s = time.monotonic()
            if now_s >= next_tick_s:
                next_tick_s = now_s + _TICK_S
                self.tick()
                self._watch.look_after_probes()
                if now_s >= next_housekeeping_s:
                    next_housekeeping_s = now_s + _HOUSEKEEPING_S
                    self.housekeep(now_s)
            if now_s >= until_s:
                break
            pace.rest(self.receiver.pending_bytes, worked=worked)
        self.is_ready = False
        self.receiver.detach()
        self._drain_rest(take)
        self.housekeep(time.monotonic())

    def _drain_rest(self, take: Callable[[memoryview], None]) -> None:
        """Take what was there when the kernel side was told to stop, as far as there is time."""
        deadline_s = time.monotonic() + self.options.flush_deadline_s
        while self.receiver.pending_bytes:
            before = self.receiver.pending_bytes
            for record in self.receiver.drain():
                take(record)
            if self.receiver.pending_bytes == before:
                break  # a record that its writer never finished
            if time.monotonic() > deadline_s:
                count = self.receiver.give_up()
                log.warning("stopped with %d events that there was no time to process", count)
                self.on_loss(LostEvent(time.monotonic_ns(), "unread", count))

    def after_drain(self) -> None:
        """Do what cannot wait for ``tick``: every few milliseconds."""

    def tick(self) -> None:
        """Do what is due between two drains, about every quarter of a second."""

    def housekeep(self, now_s: float) -> None:
        """Look after what is not on the path of an event, about once a second."""
        self._watch.tick(now_s)
        for reason, amount in self.receiver.losses():
            self.on_loss(LostEvent(time.monotonic_ns(), reason, amount))
            if reason == "ring_full":
                self._watch.lose(now_s)
            if now_s - self._last_loss_log_s >= 60 or not self._last_loss_log_s:
                self._last_loss_log_s = now_s
                log.warning(
                    "the kernel side could not hand over everything (%s: %d); see "
                    "otel_qtap_receiver_lost_total on /metrics",
                    reason, amount,
                )  # fmt: skip

    def on_loss(self, event: LostEvent) -> None:
        """Something was lost."""

    def _watch_log(self) -> None:
        """Watch what HAProxy writes to stdout while one logs there; on the thread of the names."""
        problem = self.receiver.watch_log(is_wanted=self.names.logs_to_descriptor)
        if problem:
            log.warning("HAProxy's log on its stdout cannot be seen: %s", problem)

    def close(self) -> None:
        """Give everything back."""
        self.names.close()
        self.containers.close()
        self.receiver.close()
