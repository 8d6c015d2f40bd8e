"""
The agent: what the tap drains goes through the pipeline to the destinations.

One thread, the tap, drains the ring and runs the pipeline; stores and exporters have
threads of their own behind bounded queues. After start-up nothing that traffic or a
destination does may end the process.
"""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import BinaryIO

from otel_qtap.clock import epoch_offset_ns
from otel_qtap.config import LoadedConfig
from otel_qtap.counters import CounterSet
from otel_qtap.events import DataEvent, LostEvent, ProcessEvent
from otel_qtap.pipeline import Pipeline
from otel_qtap.receiver.reconciler import Reconciler
from otel_qtap.receiver.wire import WireError, decode
from otel_qtap.reloading import Reloaded, Reloader
from otel_qtap.tap import AgentOptions, Tap, kernel_settings

__all__ = ["Agent"]

log = logging.getLogger("otel_qtap")

_CLOCK_TOLERANCE_NS = 500_000


class Agent(Tap):
    """Captures traffic on this machine and delivers transactions."""

    def __init__(
        self, loaded: LoadedConfig, options: AgentOptions, counters: CounterSet, stdout: BinaryIO
    ) -> None:
        """
        Attach to the kernel.

        Raises ``MachineError`` when this machine cannot, ``DestinationError`` when
        something could never be delivered.
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
        super().__init__(loaded.config, options, counters)
        self._pipeline = Pipeline(
            loaded.config, self.facts, counters, stdout,
            options=options.pipeline, epoch_offset_ns=epoch_offset_ns(), names=self.names,
        )  # fmt: skip
        self._reloader = Reloader(loaded, self._pipeline.prepare, counters)
        signal.signal(signal.SIGHUP, self.reload)
        self.tap_first = self._pipeline.tap_first
        self._reconciler = Reconciler(self.receiver, self._pipeline.reconcile_connections)
        self._accept = self._pipeline.accept_event
        self._accept_data = self._pipeline.accept_data
        self._streams = self._pipeline.streams
        self.watch_haproxy(self._streams, self._streams.learn)
        self._pipeline.assembler.linker.on_violation = self._watch.doubt
        self._failed = counters.counter(
            "otel_qtap.pipeline.failed", "{event}",
            "Events that a defect of the agent kept from being processed",
        )  # fmt: skip
        self.exclude_filtered_processes(self._pipeline.excludes)
        self.is_ready = True  # attached: what happens from now on waits in the ring

    def reload(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask for the configuration to be read again; safe to call from a signal handler."""
        self._reloader.ask()

    def run(self) -> bool:
        """Capture until told to stop; returns whether everything captured was delivered."""
        self.loop(self._take)
        deadline_s = self.options.flush_deadline_s
        self._pipeline.stop_connections(time.monotonic_ns())
        delivered = self._pipeline.close(deadline_s)
        self.close()
        return delivered

    def after_drain(self) -> None:
        """Let go of what waited for HAProxy's log; what is still in the ring may be the line."""
        self._pipeline.settle(self.seen_ns)

    def tick(self) -> None:
        """Do what is due in the pipeline, and swap the configuration if there is a new one."""
        self._pipeline.tick(self.seen_ns)
        reloaded = self._reloader.take()
        if reloaded is not None:
            self._adopt(reloaded)

    def _adopt(self, reloaded: Reloaded) -> None:
        """Put a new configuration into force; no connection is lost."""
        before, reload = self.config, reloaded.reload
        self.config = reloaded.setup.config
        self._pipeline.adopt(reloaded.setup)
        buffer_bytes = self.options.pipeline.http_buffer_bytes
        settings = kernel_settings(self.config, buffer_bytes)
        if reload.touches("tap.filters"):
            self.filter_processes_again(self._pipeline.excludes)
            self.receiver.apply(settings)  # connections passed over are thought over
        elif settings != kernel_settings(before, buffer_bytes):
            self.receiver.apply(settings)
        if reload.touches("tap.link"):
            log.warning("a new tap.link is in force from the next start of the agent on")
        self._reloader.confirm(reloaded)

    def housekeep(self, now_s: float) -> None:
        """Also follow the adjustments of the wall clock."""
        super().housekeep(now_s)
        self._reconciler.tick(time.monotonic_ns(), is_holding=self._streams.is_holding)
        offset = epoch_offset_ns()
        if abs(offset - self._pipeline.assembler.epoch_offset_ns) > _CLOCK_TOLERANCE_NS:
            self._pipeline.assembler.epoch_offset_ns = offset

    def on_loss(self, event: LostEvent) -> None:
        """Remember to look for ends of connections and streams among what was lost."""
        if event.reason == "ring_full":
            self._reconciler.lose(event.timestamp_ns)

    def _take(self, record: memoryview) -> None:
        try:
            event = decode(record)
            if type(event) is DataEvent:
                if self._streams.is_needed:
                    self._accept(event)
                else:
                    self._accept_data(event)
            elif type(event) is ProcessEvent:
                self._accept(event)
                self.follow(event, self._pipeline.excludes)
            else:
                self._accept(event)
        except WireError:
            self._undecodable.value += 1
        except Exception:
            # A defect of ours must cost one event, not the capture; the first is told.
            if not self._failed.value:
                log.exception("an event could not be processed; further ones are only counted")
            self._failed.value += 1
