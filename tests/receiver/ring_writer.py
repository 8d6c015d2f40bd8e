"""The kernel's side of a ring buffer, over memory laid out as the kernel lays it out."""

from __future__ import annotations

import mmap
import os
import struct

__all__ = ["BUSY", "DISCARD", "SIZE", "RingWriter"]

SIZE = 4096
BUSY, DISCARD = 1 << 31, 1 << 30


class RingWriter:
    """The writer's side: a page with each position, then the data twice."""

    def __init__(self) -> None:
        self.page = mmap.PAGESIZE
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, 2 * self.page + 2 * SIZE)
        self.position = 0

    @property
    def consumed(self) -> int:
        """How far the reader says that it has read."""
        return struct.unpack("<Q", os.pread(self.descriptor, 8, 0))[0]

    def write(self, data: bytes, flags: int = 0) -> int:
        """Add a record and return where its header stands."""
        start = self.position
        self._put(start, struct.pack("<II", len(data) | flags, 0) + data)
        self.position += (8 + len(data) + 7) & ~7
        os.pwrite(self.descriptor, struct.pack("<Q", self.position), self.page)
        return start

    def finish(self, start: int, size: int, flags: int = 0) -> None:
        """Take the busy bit away."""
        self._put(start, struct.pack("<I", size | flags))

    def _put(self, position: int, data: bytes) -> None:
        # The kernel maps the same pages twice in a row; here every byte is written twice.
        for index, byte in enumerate(data):
            place = (position + index) % SIZE
            for copy in (0, SIZE):
                os.pwrite(self.descriptor, bytes([byte]), 2 * self.page + copy + place)
