"""
Kernel maps through bpf(2): counters out, settings and exclusions in.

The agent has descriptors and no bcc, so this speaks to the kernel itself. None of it
is on the path of an event.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["KernelMap", "missed_runs", "possible_cpus"]

_BPF_MAP_LOOKUP, _BPF_MAP_UPDATE, _BPF_MAP_DELETE, _BPF_MAP_GET_NEXT_KEY = 1, 2, 3, 4
_BPF_OBJ_GET_INFO = 15
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


class KernelMap:
    """One map, by its descriptor; keys and values are bytes of the size it was made with."""

    def __init__(self, descriptor: int, value_size: int) -> None:
        self._descriptor = descriptor
        self._value_size = value_size

    def read(self, key: bytes) -> bytes | None:
        """Return the value, or ``None`` if there is none."""
        value = ctypes.create_string_buffer(self._value_size)
        done = self._call(_BPF_MAP_LOOKUP, key, value)
        return value.raw if done else None

    def write(self, key: bytes, value: bytes) -> bool:
        """Set the value; returns whether there was room for it."""
        return self._call(_BPF_MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def remove(self, key: bytes) -> bool:
        """Remove the entry; returns whether there was one."""
        return self._call(_BPF_MAP_DELETE, key, None)

    def values(self, key_size: int) -> Iterator[bytes]:
        """Yield all values; entries that come or go meanwhile may be missed or seen."""
        key = ctypes.create_string_buffer(key_size)
        following = ctypes.create_string_buffer(key_size)
        is_first = True
        while True:
            attributes = struct.pack(
                "<IxxxxQQQ",
                self._descriptor,
                0 if is_first else ctypes.addressof(key),
                ctypes.addressof(following),
                0,
            )
            if _bpf(_BPF_MAP_GET_NEXT_KEY, attributes)[0] < 0:
                return
            is_first = False
            key.raw = following.raw
            value = self.read(key.raw)
            if value is not None:
                yield value

    def _call(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> bool:
        key_buffer = ctypes.create_string_buffer(key, len(key))
        attributes = struct.pack(
            "<IxxxxQQQ",
            self._descriptor,
            ctypes.addressof(key_buffer),
            ctypes.addressof(value) if value is not None else 0,
            0,
        )
        result, error = _bpf(command, attributes)
        if result < 0 and error not in (errno.ENOENT, errno.E2BIG, errno.ENOMEM):
            raise OSError(error, f"bpf(2): {os.strerror(error)}")
        return result >= 0


def missed_runs(program_descriptor: int) -> int:
    """
    Return how often the kernel skipped a program because it was already running.

    ``bpf_prog_info.recursion_misses``, kernel 5.12 and later; 0 where it is not told.
    """
    info = ctypes.create_string_buffer(256)
    attributes = struct.pack("<IIQ", program_descriptor, len(info), ctypes.addressof(info))
    result, _ = _bpf(_BPF_OBJ_GET_INFO, attributes)
    if result < 0:
        return 0
    misses: int = struct.unpack_from("<Q", info.raw, 208)[0]
    return misses


def possible_cpus(path: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """Return the number of processors that could be there: values in a per-CPU map."""
    last = path.read_text().strip().rpartition(",")[2].rpartition("-")[2]
    return int(last) + 1


def _bpf(command: int, attributes: bytes) -> tuple[int, int]:
    buffer = ctypes.create_string_buffer(attributes, 128)
    ctypes.set_errno(0)
    result = _libc.syscall(_SYS_BPF[platform.machine()], command, buffer, len(attributes))
    return result, ctypes.get_errno()
