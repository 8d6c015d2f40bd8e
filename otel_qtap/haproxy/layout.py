"""Where things lie in the memory of a HAProxy process, as the kernel side needs it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["DEFAULT_OFFSETS", "Layout", "Offsets", "StreamSource"]

_LAYOUT = struct.Struct("<QqHHHBxIxxxx")


class StreamSource(Enum):
    """How the kernel side learns which stream a HAProxy thread is processing."""

    NOTHING = 0
    THREAD = 1
    """From the thread's own context in the memory of HAProxy."""
    PROBE = 2
    """From probes on HAProxy's functions."""


class Offsets(NamedTuple):
    """Of the fields that lead from a thread to the stream it is processing, in bytes."""

    current: int
    """In the thread's context: the pointer to the running task."""
    process: int
    """In the task: the pointer to its function; that to the function's argument follows."""
    serial: int
    """In the stream: its number, ``uniq_id``."""


DEFAULT_OFFSETS = Offsets(32, 8, 12)
"""Where every release from 2.6 to 3.2 that was looked at has them; nothing but a first guess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One process image: forked processes share it, another ``exec`` makes another."""

    number: int
    """From 1; names the layout in the kernel."""
    process_stream: int
    """Address of the function."""
    process_check: int = 0
    """Address of ``process_chk``, the function of health checks; 0 where it is not exported."""
    thread_context: int
    """Offset of the thread-local ``th_ctx`` from the thread pointer; negative on x86-64."""
    contexts: int
    """Address of the array that ``th_ctx`` points into."""
    contexts_size: int
    source: StreamSource
    offsets: Offsets = DEFAULT_OFFSETS
    since_ns: int = 0
    """Kernel time at which it took the place of another; 0 if it is the first."""

    def pack(self, snapshots: int) -> bytes:
        """Return ``struct layout`` of ``bpf/haproxy.h``; ``snapshots`` are still to be taken."""
        return _LAYOUT.pack(
            self.process_stream, self.thread_context, *self.offsets, self.source.value, snapshots
        )
