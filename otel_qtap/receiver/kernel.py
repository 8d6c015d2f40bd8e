"""
The receiver that watches the running kernel: records out of the ring, settings into it.

It hands raw records on, so that the same bytes can be decoded at once or recorded.
Nothing here blocks: ``drain`` takes what is there, and the caller decides how long to
sleep before the next call.
"""

from __future__ import annotations

import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from otel_qtap.counters import CounterSet
from otel_qtap.haproxy.layout import Layout
from otel_qtap.receiver.backlog import DEFAULT_BACKLOG_BYTES, Backlog
from otel_qtap.receiver.loader import LoadedPrograms, attach_hook, kernel_release, load
from otel_qtap.receiver.maps import KernelMap, missed_runs, possible_cpus
from otel_qtap.receiver.programs import LOG_HOOK, MachineError, Rung
from otel_qtap.receiver.ring import Ring
from otel_qtap.receiver.uprobes import attach, may_probe_returns, stream_places
from otel_qtap.receiver.wire import LOST_REASONS

__all__ = ["DEFAULT_RING_BYTES", "KernelReceiver", "KernelSettings"]

DEFAULT_RING_BYTES = 16 * 1024 * 1024
"""Holds what HAProxy moves in 0.5 s at 20,000 requests/s; only touched pages are resident."""

_DRAIN_BYTES = 256 * 1024  # given back to the kernel at once, so that writers find room
_PROTOCOL_HTTP1_REQUEST, _PROTOCOL_HTTP1_RESPONSE, _PROTOCOL_PROXY = 1, 2, 4
_SETTINGS = struct.Struct("<IIIIIIIII")
_KEY = struct.Struct("<I")
_LAYOUT_BYTES = 32
LAYOUTS = 512
_CONNECTION = struct.Struct("<QQQ")  # the first fields of struct connection
_CONNECTION_VALUE_BYTES = 256  # more than struct connection has


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """What the kernel side should hand over; changed at any time without loss."""

    ingress: bool = True
    egress_internal: bool = True
    egress_external: bool = True
    ignore_loopback: bool = False
    turn_limit: int = 2 * 1024 * 1024 + 65536
    """Bytes copied of what one side sends in a row: the head, and the body if it is wanted."""
    beyond_limit: int = 256
    """Bytes copied of each further call, enough for chunk sizes."""

    def pack(self, generation: int, changes: int, *, has_haproxy: bool) -> bytes:
        """Return ``struct settings`` of ``bpf/maps.h``."""
        directions = self.ingress | self.egress_internal << 1 | self.egress_external << 2
        protocols = (
            1 << _PROTOCOL_HTTP1_REQUEST | 1 << _PROTOCOL_HTTP1_RESPONSE | 1 << _PROTOCOL_PROXY
        )
        return _SETTINGS.pack(
            generation,
            directions,
            self.ignore_loopback,
            self.turn_limit,
            self.beyond_limit,
            protocols,
            changes,
            os.getpid(),
            has_haproxy,
        )


class KernelReceiver:
    """The attached programs and what they need to know."""

    def __init__(
        self,
        settings: KernelSettings,
        counters: CounterSet,
        *,
        rung: Rung | None = None,
        ring_bytes: int = DEFAULT_RING_BYTES,
        backlog_bytes: int = DEFAULT_BACKLOG_BYTES,
        loader: Callable[[Rung | None, int], LoadedPrograms] = load,
    ) -> None:
        """
        Load and attach; raises ``MachineError`` when this machine cannot.

        The agent's own process is excluded before anything is handed over.
        """
        self._loaded = loader(rung, ring_bytes)
        self.rung = self._loaded.rung
        self._ring = Ring(self._loaded.maps["records"], ring_bytes)
        self._backlog = Backlog(self._ring, backlog_bytes)
        self._settings = KernelMap(self._loaded.maps["settings_map"], _SETTINGS.size)
        self._excluded = KernelMap(self._loaded.maps["excluded"], 1)
        self._layouts = KernelMap(self._loaded.maps["layouts"], _LAYOUT_BYTES)
        self._haproxies = KernelMap(self._loaded.maps["haproxies"], _KEY.size)
        self._lost = KernelMap(self._loaded.maps["lost"], 8 * possible_cpus())
        self._lost_seen = [0] * len(LOST_REASONS)
        self._missed_seen = 0
        self._attaching = threading.Lock()
        self._is_detached = False
        self._log_lock = threading.Lock()
        self._log_attachment = -1
        self._may_watch_log = True
        self._generation = 0
        self._changes = 0
        self._in_force = settings
        self._has_haproxy = False
        self._lost_counters = {
            reason: counters.counter(
                "otel_qtap.receiver.lost", "{event}",
                "Events the kernel side could not hand over whole", reason=reason,
            )
            for reason in (*LOST_REASONS, "missed_run", "unread")
        }  # fmt: skip
        counters.gauge(
            "otel_qtap.receiver.ring.pending", "By", "Bytes in the ring buffer",
            lambda: self._ring.pending_bytes,
        )  # fmt: skip
        counters.gauge(
            "otel_qtap.receiver.backlog.pending", "By",
            "Bytes that were in the ring buffer and wait to be processed",
            lambda: self._backlog.size,
        )  # fmt: skip
        self._excluded.write(_KEY.pack(os.getpid()), b"\1")
        self.apply(settings)

    def apply(self, settings: KernelSettings) -> None:
        """Put settings into force; connections refused before are thought over."""
        self._generation = self._generation % 0xFFFF + 1
        self._in_force = settings
        self._write_settings()

    def exclude(self, process_id: int) -> bool:
        """Hand over nothing more of this process; returns whether the table had room for it."""
        had_room = self._excluded.write(_KEY.pack(process_id), b"\1")
        self._raise_changes()
        return had_room

    def include(self, process_id: int) -> None:
        """Undo ``exclude``."""
        self._excluded.remove(_KEY.pack(process_id))

    def write_layout(self, layout: Layout, snapshots: int = 0) -> None:
        """
        Put a layout of HAProxy's memory into force.

        With the next ``snapshots`` sends of its processes a ``SnapshotEvent`` comes.
        """
        if not 0 < layout.number < LAYOUTS:
            raise ValueError(f"no layout number: {layout.number}")
        self._layouts.write(_KEY.pack(layout.number), layout.pack(snapshots))

    def assign_layout(self, process_id: int, number: int) -> bool:
        """
        Say which layout a process has; returns whether the table had room for it.

        The kernel side passes it on to forked processes, and forgets it when the process
        executes another program.
        """
        had_room = self._haproxies.write(_KEY.pack(process_id), _KEY.pack(number))
        self._has_haproxy = True
        self._raise_changes()
        return had_room

    def attach_probes(
        self, executable: Path, process_stream: int, stream_free: int, leaving_poll: int = 0
    ) -> str:
        """
        Attach to these functions of HAProxy, by their offsets in its executable.

        Any thread may call; it may take a while. ``leaving_poll`` is called by each thread when
        it has waited for events; where a probe on a return might do harm, a probe there takes
        its place. Returns why it could not be done, or nothing.
        """
        chosen = stream_places(
            executable, process_stream, stream_free, leaving_poll,
            may_probe_returns=may_probe_returns(kernel_release(), platform.machine()),
        )  # fmt: skip
        if not chosen:
            return (
                "on this kernel a probe on the return of process_stream could end a process "
                "that has a seccomp filter, and nothing can take its place"
            )
        functions = [function for function, _ in chosen]
        with self._attaching:
            if self._is_detached:
                return "the agent stops"
            if any(name not in self._loaded.programs for name in functions):
                return "this kernel refuses probes"
            # They might be closed meanwhile, and their numbers used again.
            programs = [os.dup(self._loaded.programs[name]) for name in functions]
        try:
            attached = attach([place for _, place in chosen], programs)
        except MachineError as error:
            return str(error)
        finally:
            for program in programs:
                os.close(program)
        with self._attaching:
            number = len(self._loaded.attachments)
            if self._is_detached:
                for descriptor in attached.values():
                    os.close(descriptor)
                return "the agent stops"
            for name, descriptor in attached.items():
                self._loaded.attachments[f"{name}_{number}"] = descriptor
        return ""

    def watch_log(self, *, is_wanted: bool) -> str:
        """
        Hand over, or no longer, what HAProxy writes to its stdout and stderr.

        Any thread may call; it takes a second. Returns why it could not be done, or nothing;
        it is not tried again then.
        """
        with self._log_lock:
            if not self._may_watch_log or is_wanted == (self._log_attachment >= 0):
                return ""
            if not is_wanted:
                os.close(self._log_attachment)
                self._log_attachment = -1
                return ""
            if self.rung is Rung.SYSCALLS:
                return ""  # it sees all calls anyway
            program = self._loaded.programs.get(LOG_HOOK.function)
            problem = ""
            if program is None:
                problem = "this kernel refuses the program"
            else:
                try:
                    self._log_attachment = attach_hook(LOG_HOOK, program)[LOG_HOOK.tracepoint]
                except MachineError as error:
                    problem = str(error)
            self._may_watch_log = not problem
            return problem

    def drain(self) -> Iterator[memoryview]:
        """Yield the records that wait; each is valid until the next is asked for."""
        return self._backlog.records(_DRAIN_BYTES)

    @property
    def newest_ns(self) -> int:
        """Kernel time of the last record that was drained; monotonic."""
        return self._backlog.newest_ns

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be drained."""
        return self._backlog.pending_bytes

    @property
    def written_bytes(self) -> int:
        """How far the ring has been written."""
        return self._backlog.written_bytes

    @property
    def read_bytes(self) -> int:
        """How far what was written has been drained."""
        return self._backlog.read_bytes

    def give_up(self) -> int:
        """Forget what waits to be drained; returns how many records, and counts them as lost."""
        count = self._backlog.give_up()
        self._lost_counters["unread"].add(count)
        return count

    def losses(self) -> list[tuple[str, int]]:
        """Return what was lost since the last call, as (reason, count), and count it."""
        found = []
        for index, reason in enumerate(LOST_REASONS):
            raw = self._lost.read(_KEY.pack(index)) or b""
            total = sum(value for (value,) in struct.iter_unpack("<Q", raw))
            if total > self._lost_seen[index]:
                found.append((reason, total - self._lost_seen[index]))
                self._lost_seen[index] = total
        missed = sum(missed_runs(program) for program in self._loaded.programs.values())
        if missed > self._missed_seen:
            found.append(("missed_run", missed - self._missed_seen))
            self._missed_seen = missed
        for reason, amount in found:
            self._lost_counters[reason].add(amount)
        return found

    def _raise_changes(self) -> None:
        """Make the kernel side look up the process of each connection again."""
        self._changes = (self._changes + 1) & 0xFFFF
        self._write_settings()

    def _write_settings(self) -> None:
        packed = self._in_force.pack(self._generation, self._changes, has_haproxy=self._has_haproxy)
        self._settings.write(_KEY.pack(0), packed)

    def living_connections(self) -> dict[int, tuple[int, int]]:
        """
        Return all connections in the kernel's table, with the bytes that have passed.

        By id: received and sent. Takes up to 0.2 s.
        """
        table = KernelMap(self._loaded.maps["connections"], _CONNECTION_VALUE_BYTES)
        found = map(_CONNECTION.unpack_from, table.values(8))
        return {number: (received, sent) for number, received, sent in found}

    def detach(self) -> None:
        """Stop watching; what is in the ring can still be drained."""
        # At once for all programs: detaching takes some 20 ms for each, and an end that is
        # missed would make another connection at the same address look like its own.
        self._in_force = replace(
            self._in_force, ingress=False, egress_internal=False, egress_external=False
        )
        self._raise_changes()
        self.watch_log(is_wanted=False)
        with self._log_lock:
            self._may_watch_log = False
        with self._attaching:
            self._is_detached = True
            for descriptor in self._loaded.attachments.values():
                os.close(descriptor)
            self._loaded.attachments.clear()

    def close(self) -> None:
        """Detach and give everything back to the kernel."""
        self._ring.close()
        with self._attaching:
            self._is_detached = True
            self._loaded.close()
