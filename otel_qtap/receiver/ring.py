"""
The kernel's ring buffer, mapped into this process and emptied by timer.

Layout (``kernel/bpf/ringbuf.c``, 5.8 and later): a page with the consumer's position,
which we write; a page with the producer's, which the kernel writes; the data, mapped
twice in a row so that no record ever wraps. Each record has an 8-byte header: length
with a busy bit (being written) and a discard bit, then padding to 8 bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

__all__ = ["Ring"]

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8


class Ring:
    """
    Reader of one ring; there must be no other.

    The loads and stores of positions are single 8-byte accesses. On x86-64 that is
    all the ordering there has to be; on arm64 a reader this slow cannot overtake the
    writer either, but nothing guarantees it.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        """Map the ring behind ``descriptor``, which holds ``size`` bytes of data."""
        page = mmap.PAGESIZE
        self.size = size
        self._mask = size - 1
        self._consumer_map = mmap.mmap(
            descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._producer_map = mmap.mmap(
            descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._consumer = memoryview(self._consumer_map).cast("Q")
        whole = memoryview(self._producer_map)
        self._producer = whole[:8].cast("Q")
        self._data = whole[page:]
        self._headers = self._data.cast("I")

    @property
    def written_bytes(self) -> int:
        """How far it has been written, since it was made."""
        return int(self._producer[0])

    @property
    def read_bytes(self) -> int:
        """How far it has been read; up to ``written_bytes``."""
        return int(self._consumer[0])

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be read."""
        return self._producer[0] - self._consumer[0]

    def records(self, limit_bytes: int) -> Iterator[memoryview]:
        """
        Yield the records that are complete, at most about ``limit_bytes`` of them.

        A view is valid until the next one is asked for at the latest by the end of
        the loop; the room is given back to the kernel when the loop ends.
        """
        position = start = self._consumer[0]
        end = min(self._producer[0], position + limit_bytes)
        mask, headers, data = self._mask, self._headers, self._data
        try:
            while position < end:
                at = position & mask
                header = headers[at >> 2]
                if header & _BUSY:
                    break
                size = header & 0x3FFFFFFF
                position += (size + _HEADER + 7) & ~7
                if not header & _DISCARD:
                    yield data[at + _HEADER : at + _HEADER + size]
        finally:
            if position != start:
                self._consumer[0] = position

    def close(self) -> None:
        """Unmap the ring."""
        for view in (self._consumer, self._producer, self._headers, self._data):
            view.release()
        # A view handed out and still referenced keeps the mapping; it goes with the process.
        for mapping in (self._consumer_map, self._producer_map):
            try:
                mapping.close()
            except BufferError:
                continue
