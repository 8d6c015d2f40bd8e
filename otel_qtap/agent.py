"""
The life of an agent: attach, drain, deliver, stop.

One thread, the tap, drains the ring and runs the pipeline; stores and exporters have
threads of their own behind bounded queues. After start-up nothing that traffic or a
destination does may end the process.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import Config, TapDirection
from otel_qtap.connection.container import ContainerTable
from otel_qtap.connection.facts import HostFacts
from otel_qtap.connection.hosts import HostNames
from otel_qtap.connection.model import Container, Process
from otel_qtap.connection.process import ProcessTable
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst
from otel_qtap.events import DataEvent, LostEvent, OpenEvent, ProcessEvent, ProcessStep, Role
from otel_qtap.pipeline import Pipeline, PipelineOptions
from otel_qtap.receiver.kernel import DEFAULT_RING_BYTES, KernelReceiver, KernelSettings
from otel_qtap.receiver.programs import Rung
from otel_qtap.receiver.recording import (
    AddressName,
    RecordedProcess,
    Recording,
    RecordingWriter,
)
from otel_qtap.receiver.wire import WireError, decode

__all__ = ["Agent", "AgentOptions", "Recorder", "epoch_offset_ns", "kernel_settings", "replay"]

log = logging.getLogger("otel_qtap")

_HEAD_BYTES = 16 * 1024  # HAProxy's own limit for a head (tune.bufsize)
_SHORTEST_SLEEP_S = 0.002
_LONGEST_SLEEP_S = 0.05
_BUSY_BYTES = 64 * 1024  # with more than that in the ring there is no time to sleep
_HOUSEKEEPING_S = 1.0
_CLOCK_TOLERANCE_NS = 500_000
_RECONCILE_AFTER_NS = 5_000_000_000  # without another loss


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What the command line says about an agent on this machine."""

    rung: Rung | None = None
    ring_bytes: int = DEFAULT_RING_BYTES
    docker_socket: Path = Path("/var/run/docker.sock")
    flush_deadline_s: float = 5.0
    may_hurry: bool = True
    """Whether the tap may raise its priority while its ring fills up, see ``Pace``."""
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


def epoch_offset_ns() -> int:
    """Return what turns ``CLOCK_MONOTONIC`` into nanoseconds since the epoch, as of now."""
    # The shortest of a few readings is the one least disturbed in between.
    readings = []
    for _ in range(5):
        before = time.monotonic_ns()
        epoch = time.time_ns()
        after = time.monotonic_ns()
        readings.append((after - before, epoch - (before + after) // 2))
    return min(readings)[1]


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


class Pace:
    """
    How the tap keeps up with the ring: when to sleep, when to give way, when to hurry.

    As a rule it gives way: a batch thread (``SCHED_BATCH``, sched(7)) does not push a
    running thread aside when its timer fires, so HAProxy's slowest requests do not wait
    for it, and the ring keeps what comes meanwhile.

    On a machine whose processors are all busy its share may be too small to empty the
    ring in time. Rather than lose events it then hurries: it competes like any thread,
    with a nice value of -5 (three times the weight), until the ring is nearly empty. It
    never takes more than the one processor a thread can use, and where one is idle it
    changes nothing.
    """

    BEHIND_ABOVE = 0.03
    HURRY_ABOVE = 0.125
    RELAX_BELOW = 0.03
    HURRIED_NICE = -5

    def __init__(self, ring_bytes: int, counters: CounterSet, *, may_hurry: bool) -> None:
        self._hurry_bytes = int(ring_bytes * self.HURRY_ABOVE)
        self._relax_bytes = int(ring_bytes * self.RELAX_BELOW)
        self._behind_bytes = int(ring_bytes * self.BEHIND_ABOVE)
        self._may_hurry = may_hurry
        self.tap_first = TapFirst()
        """Holds back the workers of the destinations; the pipeline's, when there is one."""
        self._is_hurried = False
        self._normal_nice = 0
        self._sleep_s = _SHORTEST_SLEEP_S
        self._hurries = counters.counter(
            "otel_qtap.receiver.hurries", "{hurry}",
            "Times the tap raised its priority because its ring filled up",
        )  # fmt: skip

    def rest(self, pending_bytes: int, *, worked: bool) -> None:
        """Sleep as long as the ring allows; called after each round."""
        if self._may_hurry:
            if not self._is_hurried and pending_bytes > self._hurry_bytes:
                self._set_hurried(hurried=True)
            elif self._is_hurried and pending_bytes < self._relax_bytes:
                self._set_hurried(hurried=False)
        if worked:
            self._sleep_s = _SHORTEST_SLEEP_S
        else:
            self._sleep_s = min(self._sleep_s * 1.5, _LONGEST_SLEEP_S)
        self.tap_first.is_behind = pending_bytes >= self._behind_bytes
        if pending_bytes < _BUSY_BYTES:
            time.sleep(self._sleep_s)

    def give_way(self) -> None:
        """Take the tap's usual place among the threads of the machine; called by the tap."""
        with contextlib.suppress(OSError):  # a sandbox may forbid it; then without
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def _set_hurried(self, *, hurried: bool) -> None:
        thread = threading.get_native_id()  # on Linux a nice value belongs to a thread
        try:
            if hurried:
                self._normal_nice = os.getpriority(os.PRIO_PROCESS, thread)
                nice = min(self._normal_nice, self.HURRIED_NICE)
                os.setpriority(os.PRIO_PROCESS, thread, nice)  # first: it may be refused
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, thread, self._normal_nice)
                self.give_way()
        except PermissionError:  # no CAP_SYS_NICE: then without
            self._may_hurry = False
            return
        self._is_hurried = hurried
        self._hurries.value += hurried


class _Tap:
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
        self.receiver = KernelReceiver(
            kernel_settings(config, options.pipeline.http_buffer_bytes),
            counters,
            rung=options.rung,
            ring_bytes=options.ring_bytes,
        )

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

    def follow(self, event: ProcessEvent, excludes: Callable[[Process], bool]) -> None:
        """Learn what a process became, and tell the kernel side whether to leave it alone."""
        self.processes.consume(event)
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
        next_housekeeping_s = 0.0
        while not self._is_stopping:
            worked = False
            for record in self.receiver.drain():
                worked = True
                take(record)
            now_s = time.monotonic()
            if now_s >= next_housekeeping_s:
                next_housekeeping_s = now_s + _HOUSEKEEPING_S
                self.housekeep(now_s)
            if now_s >= until_s:
                break
            pace.rest(self.receiver.pending_bytes, worked=worked)
        self.is_ready = False
        self.receiver.detach()
        while self.receiver.pending_bytes:
            before = self.receiver.pending_bytes
            for record in self.receiver.drain():
                take(record)
            if self.receiver.pending_bytes == before:
                break  # a record that its writer never finished
        self.housekeep(time.monotonic())

    def housekeep(self, now_s: float) -> None:
        """Look after what is not on the path of an event, about once a second."""
        for reason, amount in self.receiver.losses():
            self.on_loss(LostEvent(time.monotonic_ns(), reason, amount))
            if now_s - self._last_loss_log_s >= 60 or not self._last_loss_log_s:
                self._last_loss_log_s = now_s
                log.warning(
                    "the kernel side could not hand over everything (%s: %d); see "
                    "otel_qtap_receiver_lost_total on /metrics",
                    reason, amount,
                )  # fmt: skip

    def on_loss(self, event: LostEvent) -> None:
        """Something was lost."""

    def close(self) -> None:
        """Give everything back."""
        self.containers.close()
        self.receiver.close()


class Agent(_Tap):
    """Captures traffic on this machine and delivers transactions."""

    def __init__(
        self, config: Config, options: AgentOptions, counters: CounterSet, stdout: BinaryIO
    ) -> None:
        """Attach to the kernel; raises ``MachineError`` when this machine cannot."""
        super().__init__(config, options, counters)
        self._pipeline = Pipeline(
            config, self.facts, counters, stdout,
            options=options.pipeline, epoch_offset_ns=epoch_offset_ns(),
        )  # fmt: skip
        self.tap_first = self._pipeline.tap_first
        self._reconcile_at_ns = 0
        self._accept = self._pipeline.accept_event
        self._accept_data = self._pipeline.accept_data
        self._failed = counters.counter(
            "otel_qtap.pipeline.failed", "{event}",
            "Events that a defect of the agent kept from being processed",
        )  # fmt: skip
        self.exclude_filtered_processes(self._pipeline.excludes)
        self.is_ready = True  # attached: what happens from now on waits in the ring

    def run(self) -> bool:
        """Capture until told to stop; returns whether everything captured was delivered."""
        self.loop(self._take)
        deadline_s = self.options.flush_deadline_s
        self._pipeline.stop_connections(time.monotonic_ns())
        delivered = self._pipeline.close(deadline_s)
        self.close()
        return delivered

    def housekeep(self, now_s: float) -> None:
        """Also follow the adjustments of the wall clock."""
        super().housekeep(now_s)
        self._reconcile()
        offset = epoch_offset_ns()
        if abs(offset - self._pipeline.assembler.epoch_offset_ns) > _CLOCK_TOLERANCE_NS:
            self._pipeline.assembler.epoch_offset_ns = offset

    def on_loss(self, event: LostEvent) -> None:
        """Remember to look for connections whose end may be among what was lost."""
        if event.reason == "ring_full":
            self._reconcile_at_ns = event.timestamp_ns + _RECONCILE_AFTER_NS

    def _reconcile(self) -> None:
        now_ns = time.monotonic_ns()
        if self._reconcile_at_ns and now_ns > self._reconcile_at_ns:
            self._reconcile_at_ns = 0
            living = self.receiver.living_connections()
            self._pipeline.retain_connections(living, now_ns - _RECONCILE_AFTER_NS)

    def _take(self, record: memoryview) -> None:
        try:
            event = decode(record)
            if type(event) is DataEvent:
                self._accept_data(event)
            elif type(event) is ProcessEvent:
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


class Recorder(_Tap):
    """Writes what the receiver emits to a file, with the facts that a replay needs."""

    def __init__(
        self, config: Config, options: AgentOptions, counters: CounterSet, writer: RecordingWriter
    ) -> None:
        """Attach to the kernel; raises ``MachineError`` when this machine cannot."""
        super().__init__(config, options, counters)
        self._writer = writer
        self._known: set[int] = set()
        self._named: set[tuple[int, str]] = set()
        self.exclude_filtered_processes(self._excludes)

    def run(self, duration_s: float) -> str:
        """Record until told to stop; returns why it ended. Raises ``RecordingError``."""
        until_s = time.monotonic() + duration_s
        self.loop(self._take, until_s)
        reason = "stopped"
        if self._writer.is_full:
            reason = "the size limit was reached"
        elif not self._is_stopping:
            reason = "the duration was over"
        self._writer.close(reason)
        self.close()
        return reason

    def _excludes(self, process: Process) -> bool:
        return self.config.tap.filters.excludes(process.executable)

    def on_loss(self, event: LostEvent) -> None:
        """Keep the news of a loss in the recording."""
        self._writer.write_loss(event)

    def _take(self, record: memoryview) -> None:
        try:
            event = decode(record)
        except WireError:
            self._undecodable.value += 1
            return
        if isinstance(event, ProcessEvent):
            self.follow(event, self._excludes)
            self._known.discard(event.process_id)
        elif isinstance(event, DataEvent | OpenEvent):
            self._learn(event)
        self._writer.write_record(record)
        if self._writer.is_full:
            self.stop()

    def _learn(self, event: DataEvent | OpenEvent) -> None:
        pid = event.process_id
        if pid not in self._known:
            self._known.add(pid)
            process = self.processes.get(pid)
            self._writer.write_process(process, self.facts.container(process))
        if isinstance(event, OpenEvent) and event.role is Role.CLIENT:
            key = (pid, event.remote_address)
            if key not in self._named:
                self._named.add(key)
                name = self.facts.name_of(*key)
                if name:
                    self._writer.write_name(AddressName(*key, name))


class RecordedFacts:
    """The facts that a recording holds; nothing of the replaying machine is asked."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}
        self._containers: dict[str, Container] = {}
        self._names: dict[tuple[int, str], str] = {}

    def learn(self, item: RecordedProcess | AddressName) -> None:
        """Take a fact out of the recording."""
        if isinstance(item, AddressName):
            self._names[item.process_id, item.address] = item.name
            return
        self._processes[item.process.pid] = item.process
        if item.container is not None:
            self._containers[item.container.id] = item.container

    def process(self, process_id: int) -> Process:
        """Return what the recording says of a process."""
        return self._processes.get(process_id) or Process(pid=process_id)

    def container(self, process: Process) -> Container | None:
        """Return the container that the recording says a process ran in."""
        return self._containers.get(process.container_id)

    def name_of(self, process_id: int, address: str) -> str:
        """Return the name that the recording has for an address."""
        return self._names.get((process_id, address), "")


_REPLAY_SEED = bytes(8)
_REPLAY_FLUSH_BYTES = 1024 * 1024


def replay(
    recording: Recording,
    config: Config,
    counters: CounterSet,
    stdout: BinaryIO,
    options: PipelineOptions,
    deadline_s: float = 30.0,
) -> bool:
    """
    Run a recording through the pipeline, without a kernel and without root.

    The same recording gives the same transactions, ids included. Returns whether
    everything was delivered. Raises ``RecordingError`` if the file is damaged.
    """
    facts = RecordedFacts()
    pipeline = Pipeline(
        config, facts, counters, stdout,
        options=PipelineOptions(
            http_buffer_bytes=options.http_buffer_bytes,
            max_connections=options.max_connections,
            id_seed=_REPLAY_SEED,
        ),
        epoch_offset_ns=recording.epoch_offset_ns,
    )  # fmt: skip
    undecodable = counters.counter(
        "otel_qtap.receiver.undecodable", "{record}", "Records that could not be read"
    )
    last_ns = waiting_bytes = 0
    for item in recording:
        if isinstance(item, RecordedProcess | AddressName):
            facts.learn(item)
        elif isinstance(item, LostEvent):
            counters.counter(
                "otel_qtap.receiver.lost", "{event}",
                "Events the kernel side could not hand over whole", reason=item.reason,
            ).add(item.amount)  # fmt: skip
        else:
            try:
                event = decode(item)
            except WireError:
                undecodable.add()
                continue
            last_ns = event.timestamp_ns
            pipeline.accept_event(event)
            waiting_bytes += len(item)
            if waiting_bytes > _REPLAY_FLUSH_BYTES:  # a file is faster than any destination
                waiting_bytes = 0
                pipeline.flush(deadline_s)
    pipeline.stop_connections(last_ns)
    return pipeline.close(deadline_s)
