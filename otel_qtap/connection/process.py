"""
Facts about processes, asked of ``/proc`` once and remembered.

The tap thread owns the table and asks it for every transaction, so a known process
costs one dictionary lookup. Everything read here is under the control of the observed
process: names may hold any byte, files may be gone, huge or not what they seem.
"""

from __future__ import annotations

import os
import pwd
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from otel_qtap.connection.container import container_id_from_cgroup, container_id_from_mountinfo
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import ProcessEvent, ProcessStep

__all__ = ["ENVIRONMENT_NAMES", "ProcessTable"]

ENVIRONMENT_NAMES = frozenset(
    {"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "QPOINT_STRATEGY", "QPOINT_TAGS"}
)
"""The only environment variables that leave ``/proc``: all others may be secrets."""

MAX_STAT_SIZE = 4096
MAX_STATUS_SIZE = 16 * 1024
MAX_ARGUMENTS_SIZE = 4096
MAX_ARGUMENTS = 64
MAX_ENVIRONMENT_SIZE = 256 * 1024
MAX_VARIABLE_SIZE = 8192  # a longer one is left out: half a list of attributes is a wrong one
MAX_CGROUP_SIZE = 64 * 1024
MAX_MOUNTINFO_SIZE = 256 * 1024

_START_TIME_FIELD = 22 - 3  # of proc(5) stat, counted from the third: the first after ")"
_NANOSECONDS = 1_000_000_000
_DELETED = " (deleted)"
_BOOT_TIME = re.compile(rb"^btime (\d+)", re.MULTILINE)
_EFFECTIVE_USER = re.compile(rb"^Uid:\s+\d+\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Origin:
    """What events said about a process, for when it is gone before it can be asked."""

    executable: str
    parent: Process | None


class ProcessTable:
    """
    Processes by their id.

    Process ids are used again. ``consume`` keeps up with that as long as the events
    arrive; for a process that ended, the start time in ``/proc`` decides whether its
    id belongs to another one by now.
    """

    def __init__(
        self, *, proc: Path = Path("/proc"), counters: CounterSet, capacity: int = 4096
    ) -> None:
        self._proc = str(proc)
        self._capacity = capacity
        self._running: dict[int, Process] = {}
        self._exited: OrderedDict[int, Process] = OrderedDict()
        self._origins: OrderedDict[int, _Origin] = OrderedDict()
        self._user_names: dict[int, str] = {}
        self._boot_time_ns: int | None = None
        self._gone = counters.counter(
            "otel_qtap.process.gone",
            "{process}",
            "Processes that had ended, or were not accessible, before they could be asked.",
        )
        self._evicted = counters.counter(
            "otel_qtap.process.evicted",
            "{process}",
            "Running processes that were forgotten to keep within the bound of the table.",
        )

    def get(self, pid: int) -> Process:
        """Return what is known of ``pid``, asking ``/proc`` the first time; never raises."""
        return self._running.get(pid) or self._ask(pid)

    def snapshot(self, pid: int) -> Process | None:
        """Return what was learned of ``pid`` so far, without asking anybody."""
        return self._running.get(pid) or self._exited.get(pid)

    def add(self, process: Process) -> None:
        """Enter a process that was learned of elsewhere: from a recording, say."""
        self._exited.pop(process.pid, None)
        self._remember(process)

    def consume(self, event: ProcessEvent) -> None:
        """Keep up with what happens to processes."""
        pid = event.process_id
        if event.step is ProcessStep.EXITED:
            process = self._running.pop(pid, None)
            if process is not None:  # its last data may still be on the way
                self._end(process)
            return
        origin: _Origin | None = None
        if event.step is ProcessStep.FORKED:
            parent = self.snapshot(event.parent_id)
            # A parent that nobody has asked about may be known from events of its own.
            origin = _Origin("", parent) if parent else self._origins.get(event.parent_id)
        self._running.pop(pid, None)
        self._exited.pop(pid, None)
        self._origins[pid] = origin or _Origin(event.executable[:MAX_ARGUMENTS_SIZE], None)
        self._origins.move_to_end(pid)
        _shrink(self._origins, self._capacity)

    def _ask(self, pid: int) -> Process:
        """Find a process that is not known to be running."""
        ended = self._exited.get(pid)
        process = self._read(pid)
        if ended is not None and (
            process is None or process.start_time_ns in (0, ended.start_time_ns)
        ):
            return ended  # not yet used again: a zombie, or really gone
        if process is None or not process.executable:
            self._gone.add()
            gone, process = process is None, self._from_origin(pid, process)
            if gone:  # to be asked for again, in case the id gets a process nobody announced
                self._end(process)
                return process
        self._exited.pop(pid, None)
        self._remember(process)
        return process

    def _from_origin(self, pid: int, read: Process | None) -> Process:
        """Fill what ``/proc`` did not say from the events that came before."""
        process = read or Process(pid=pid)
        origin = self._origins.get(pid)
        if origin is None:
            return process
        if origin.executable:
            return replace(process, executable=origin.executable)
        if origin.parent is not None:  # forked and not yet on a program of its own
            return replace(origin.parent, pid=pid, start_time_ns=process.start_time_ns)
        return process

    def _remember(self, process: Process) -> None:
        if len(self._running) >= self._capacity and process.pid not in self._running:
            self._running.pop(next(iter(self._running)))
            self._evicted.add()
        self._running[process.pid] = process

    def _end(self, process: Process) -> None:
        self._exited[process.pid] = process
        _shrink(self._exited, self._capacity // 4)

    # What /proc says -----------------------------------------------------------------

    def _read(self, pid: int) -> Process | None:
        """
        Return what ``/proc`` says of ``pid``; ``None`` when there is no such process.

        All files are opened below one directory descriptor, which keeps belonging to
        this process: once it has ended they fail, whoever uses its id then.
        """
        with suppress(OSError), _directory(f"{self._proc}/{pid}") as directory:
            ticks = _start_ticks(_read_below(directory, "stat", MAX_STAT_SIZE))
            user_id = _user_id(_read_below(directory, "status", MAX_STATUS_SIZE))
            return Process(
                pid=pid,
                start_time_ns=self._to_epoch(ticks),
                executable=_executable(directory),
                arguments=_arguments(_read_below(directory, "cmdline", MAX_ARGUMENTS_SIZE)),
                user_id=user_id,
                user=self._user_name(user_id),
                container_id=_container_id(directory),
                environment=_environment(_read_below(directory, "environ", MAX_ENVIRONMENT_SIZE)),
            )
        return None

    def _to_epoch(self, ticks: int) -> int:
        if self._boot_time_ns is None:
            self._boot_time_ns = 0
            with suppress(OSError), _directory(self._proc) as directory:
                # "btime" follows the lines of all CPUs and the long one of interrupts.
                found = _BOOT_TIME.search(_read_below(directory, "stat", MAX_ENVIRONMENT_SIZE))
                self._boot_time_ns = int(found[1]) * _NANOSECONDS if found else 0
        if not ticks or not self._boot_time_ns:
            return 0
        return self._boot_time_ns + ticks * _NANOSECONDS // os.sysconf("SC_CLK_TCK")

    def _user_name(self, user_id: int) -> str:
        name = self._user_names.get(user_id)
        if name is None:
            try:
                name = pwd.getpwuid(user_id).pw_name if user_id >= 0 else ""
            except (KeyError, OverflowError):
                name = str(user_id)
            if len(self._user_names) < self._capacity:
                self._user_names[user_id] = name
        return name


def _shrink(table: OrderedDict[int, Process] | OrderedDict[int, _Origin], size: int) -> None:
    while len(table) > max(1, size):
        table.popitem(last=False)


@contextmanager
def _directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_below(directory: int, name: str, limit: int) -> bytes:
    """Return the first ``limit`` bytes of a file; empty when it cannot be read."""
    parts: list[bytes] = []
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        while limit > 0 and (part := os.read(descriptor, limit)):  # /proc reads come short
            parts.append(part)
            limit -= len(part)
    except OSError:  # ended in between: what was read is of no use
        return b""
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _link(directory: int, name: str) -> str:
    try:
        target = os.readlink(os.fsencode(name), dir_fd=directory)
    except OSError:
        return ""
    return target.decode("utf-8", "replace")


def _executable(directory: int) -> str:
    path = _link(directory, "exe").removesuffix(_DELETED)
    root = _link(directory, "root").rstrip("/")
    if root and path.startswith(f"{root}/"):  # started inside a changed root
        path = path[len(root) :]
    return path


def _start_ticks(stat: bytes) -> int:
    # The second field is "(comm)" and comm may itself hold ")" and spaces.
    fields = stat[stat.rfind(b")") + 1 :].split()
    with suppress(IndexError, ValueError):
        return int(fields[_START_TIME_FIELD])
    return 0


def _user_id(status: bytes) -> int:
    # Not the owner of the directory: that is root for every process that changed its user.
    found = _EFFECTIVE_USER.search(status)
    return int(found[1]) if found else -1


def _arguments(command_line: bytes) -> tuple[str, ...]:
    arguments = command_line.removesuffix(b"\0").split(b"\0")[:MAX_ARGUMENTS]
    return tuple(a.decode("utf-8", "replace") for a in arguments) if command_line else ()


def _environment(block: bytes) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for entry in block.split(b"\0"):
        name_bytes, separator, value = entry.partition(b"=")
        if not separator or len(value) > MAX_VARIABLE_SIZE or len(name_bytes) > 64:
            continue
        name = name_bytes.decode("ascii", "replace")
        if name in ENVIRONMENT_NAMES:
            found.setdefault(name, value.decode("utf-8", "replace"))  # the first, as getenv does
    return tuple(found.items())


def _container_id(directory: int) -> str:
    cgroup = _read_below(directory, "cgroup", MAX_CGROUP_SIZE).decode("utf-8", "replace")
    found = container_id_from_cgroup(cgroup)
    if not found:
        mounts = _read_below(directory, "mountinfo", MAX_MOUNTINFO_SIZE)
        found = container_id_from_mountinfo(mounts.decode("utf-8", "replace"))
    return found
