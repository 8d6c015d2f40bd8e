"""
Probes on functions of running executables, through perf_event_open(2).

The programs are loaded by then, so no compiler and no loader process is needed: the kernel is
asked directly. It puts a breakpoint into every process that runs the executable, now or
later, for as long as the descriptor is open.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from otel_qtap.receiver.programs import MachineError

__all__ = ["ProbePlace", "attach", "may_probe_returns", "stream_places"]

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PMU = Path("/sys/bus/event_source/devices/uprobe/type")
_FLAG_CLOEXEC = 8
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
# struct perf_event_attr (include/uapi/linux/perf_event.h), its version 1 of 72 bytes: type,
# size, config (bit 0: on the return), period, …, wakeup_events, bp_type, path, offset.
_ATTRIBUTES = struct.Struct("<IIQQQQQIIQQ")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ProbePlace:
    """A function of an executable, for a probe."""

    name: str
    """Of the attachment."""
    executable: Path
    offset: int
    """In the file."""
    is_return: bool = False


def may_probe_returns(kernel: tuple[int, int], machine: str) -> bool:
    """
    Whether a probe on the return of a function does no harm to any process.

    From Linux 6.11 on, it makes the process execute a system call of its own on x86-64
    (``uretprobe``), and a seccomp filter that does not know that one kills the process. Later
    kernels let it pass, but which do is nothing to guess about; and to look at the filters is
    no help: the next process that runs the executable may have others.
    """
    return machine != "x86_64" or kernel < (6, 11)


def stream_places(
    executable: Path,
    process_stream: int,
    stream_free: int,
    leaving_poll: int,
    *,
    may_probe_returns: bool,
) -> list[tuple[str, ProbePlace]]:
    """
    Return what to attach where, so that HAProxy's streams are known, in this order.

    Each program of ``bpf/haproxy.h`` with its place. What ends a call comes before what begins
    one. Empty if it cannot be done: a probe on the return is not allowed, and there is no
    ``leaving_poll`` to put another one.
    """
    places = [("on_stream_free", ProbePlace("stream_free", executable, stream_free))]
    begin = ProbePlace("process_stream", executable, process_stream)
    if may_probe_returns:
        end = ProbePlace("process_stream_return", executable, process_stream, is_return=True)
        return [*places, ("on_process_stream_return", end), ("on_process_stream", begin)]
    if leaving_poll:
        end = ProbePlace("leaving_poll", executable, leaving_poll)
        return [*places, ("on_process_stream_return", end), ("on_process_stream_called", begin)]
    return []


def attach(places: Sequence[ProbePlace], programs: Sequence[int]) -> dict[str, int]:
    """
    Attach loaded programs, one to each place, in their order.

    Takes some milliseconds for each. Returns the descriptors that keep them attached, by
    name. Raises ``MachineError``; nothing is attached then.
    """
    attached: dict[str, int] = {}
    try:
        for place, program in zip(places, programs, strict=True):
            attached[place.name] = descriptor = _open(place)
            fcntl.ioctl(descriptor, _IOC_SET_BPF, program)
            fcntl.ioctl(descriptor, _IOC_ENABLE, 0)
    except OSError as error:
        for descriptor in attached.values():
            os.close(descriptor)
        raise MachineError(f"cannot attach to {place.name}: {error.strerror}") from None
    return attached


def _open(place: ProbePlace) -> int:
    kind = int(_PMU.read_text())
    path = ctypes.create_string_buffer(os.fsencode(place.executable))
    attributes = _ATTRIBUTES.pack(
        kind, _ATTRIBUTES.size, place.is_return, 1, 0, 0, 0, 1, 0, ctypes.addressof(path),
        place.offset,
    )  # fmt: skip
    every_process, some_processor, no_group = -1, 0, -1
    ctypes.set_errno(0)
    descriptor = _libc.syscall(
        _SYS_PERF_EVENT_OPEN[platform.machine()], attributes, every_process, some_processor,
        no_group, _FLAG_CLOEXEC,
    )  # fmt: skip
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(descriptor)
