"""
The kernel's ring buffer, mapped into this process and emptied by timer.

Layout (``kernel/bpf/ringbuf.c``, 5.8 and later): a page with the consumer's position,
which we write; a page with the producer's, which the kernel writes; the data, mapped
twice in a row so that no record ever wraps. Each record has an 8-byte header: length
with a busy bit (being written) and a discard bit, then padding to 8 bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

__all__ = ["Ring", "records_in", "timestamp_ns"]

_BUSY = 1 << 31
_DISCARD = 1 << 30
_SIZE = _DISCARD - 1
_HEADER = 8
_TIMESTAMP = struct.Struct("<8xQ")  # in what our own records begin with


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
        self.newest_ns = 0
        """Kernel time of the last record that ``records`` yielded."""

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
        newest = -1
        try:
            while position < end:
                at = position & mask
                header = headers[at >> 2]
                if header & _BUSY:
                    break
                size = header & _SIZE
                position += (size + _HEADER + 7) & ~7
                if not header & _DISCARD:
                    newest = at
                    yield data[at + _HEADER : at + _HEADER + size]
        finally:
            if newest >= 0:
                self.newest_ns = timestamp_ns(data, newest + _HEADER)
            if position != start:
                self._consumer[0] = position

    def take(self, limit_bytes: int) -> tuple[bytes, int]:
        """
        Take out the records that are complete, at most about ``limit_bytes`` of them.

        Returns them as they lay in the ring, for ``records_in``, and how many. Their room is
        given back at once.
        """
        position = start = self._consumer[0]
        end = min(self._producer[0], position + limit_bytes)
        mask, headers = self._mask, self._headers
        count = 0
        while position < end:
            header = headers[(position & mask) >> 2]
            if header & _BUSY:
                break
            position += ((header & _SIZE) + _HEADER + 7) & ~7
            count += not header & _DISCARD
        at = start & mask
        content = bytes(self._data[at : at + position - start])
        if position != start:
            self._consumer[0] = position
        return content, count

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


def timestamp_ns(data: memoryview, at: int = 0) -> int:
    """Return the kernel time of the record that begins there."""
    (time_ns,) = _TIMESTAMP.unpack_from(data, at)
    return int(time_ns)


def records_in(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the records of what was taken out of a ring, each with the place where it ends."""
    headers = content.cast("B").cast("I")
    position, end = 0, len(content)
    while position < end:
        header = headers[position >> 2]
        start = position + _HEADER
        size = header & _SIZE
        position += (size + _HEADER + 7) & ~7
        if not header & _DISCARD:
            yield position, content[start : start + size]
