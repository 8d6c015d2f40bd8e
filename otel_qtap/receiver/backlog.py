"""
What was taken out of the ring before there was time to look at it.

The ring holds what HAProxy moves in half a second. When more comes than can be processed,
records are moved from there to here, so that the kernel side finds room; they are processed
in order later. HTTP traffic is so repetitive that it takes a tenth of its size and more when
compressed at the lowest level, which costs a twentieth of the time that processing takes.

Both in bytes and in time there is a bound. Once it is reached the ring fills up, and the
kernel side counts what it cannot hand over.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator

from otel_qtap.receiver.ring import Ring, records_in, timestamp_ns

__all__ = ["DEFAULT_BACKLOG_BYTES", "Backlog"]

DEFAULT_BACKLOG_BYTES = 32 * 1024 * 1024

_LONGEST_NS = 15_000_000_000
_MOVED_ABOVE, _MOVED_BELOW = 1 / 4, 1 / 16  # of the ring: when to begin to move, and to end
_PIECE_BYTES = 512 * 1024
_STEP_BYTES = 64 * 1024
_UNPACKED_FOR = 16  # pieces, after one that was hardly smaller when compressed


class _Piece:
    """Records as they lay in the ring, one after the other."""

    __slots__ = ("_content", "count", "is_packed", "size", "stored", "taken_ns")

    def __init__(self, content: bytes, count: int, *, may_pack: bool, taken_ns: int) -> None:
        self.count = count
        """Records in it."""
        self.size = len(content)
        """Bytes that they had in the ring."""
        self.taken_ns = taken_ns
        packed = zlib.compress(content, 1) if may_pack else content
        self.is_packed = 2 * len(packed) < len(content)
        """Whether it is worth it."""
        self._content = packed if self.is_packed else content
        self.stored = len(self._content)
        """Bytes that it takes here."""

    def content(self) -> memoryview:
        """Return the records as they lay in the ring."""
        return memoryview(zlib.decompress(self._content) if self.is_packed else self._content)


class Backlog:
    """A ring with room for more."""

    def __init__(
        self,
        ring: Ring,
        limit_bytes: int = DEFAULT_BACKLOG_BYTES,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._ring = ring
        self._limit_bytes = limit_bytes
        self._clock_ns = clock_ns
        self._pieces: deque[_Piece] = deque()
        self._content = memoryview(b"")
        """What is left of the first of them, once it is being read."""
        self._size = 0
        """Bytes that what waits here had in the ring."""
        self._stored = 0
        self._unpacked_left = 0
        """How many more pieces to keep as they are, because compressing is no use."""
        self._newest_ns = 0

    @property
    def newest_ns(self) -> int:
        """Kernel time of the last record that was read."""
        return max(self._newest_ns, self._ring.newest_ns)

    @property
    def size(self) -> int:
        """Bytes that wait here, as many as they were in the ring."""
        return self._size

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait, here and in the ring."""
        return self._size + self._ring.pending_bytes

    @property
    def written_bytes(self) -> int:
        """How far the ring has been written."""
        return self._ring.written_bytes

    @property
    def read_bytes(self) -> int:
        """How far it has been read by whom it is for."""
        return self._ring.read_bytes - self._size

    def records(self, limit_bytes: int) -> Iterator[memoryview]:
        """Yield about ``limit_bytes`` of the records that wait, see ``Ring.records``."""
        if self._ring.pending_bytes > self._ring.size * _MOVED_ABOVE:
            self._move()
        if self._size:  # the ring fills up meanwhile, so look after it soon
            return self._stored_records(min(limit_bytes, _STEP_BYTES))
        return self._ring.records(limit_bytes)

    def give_up(self) -> int:
        """Forget what waits, here and in the ring; returns how many records."""
        count = sum(1 for _ in records_in(self._content))
        count += sum(piece.count for piece in list(self._pieces)[bool(self._content) :])
        self._pieces.clear()
        self._content = memoryview(b"")
        self._size = self._stored = 0
        while True:
            _, in_ring = self._ring.take(self._ring.size)
            if not in_ring:
                return count
            count += in_ring

    def _move(self) -> None:
        """Make room in the ring, as far as the bounds allow."""
        now_ns = self._clock_ns()
        if self._pieces and now_ns - self._pieces[0].taken_ns > _LONGEST_NS:
            return
        while self._ring.pending_bytes > self._ring.size * _MOVED_BELOW:
            if self._stored >= self._limit_bytes:
                return
            content, count = self._ring.take(_PIECE_BYTES)
            if not content:
                return  # the first record is being written
            if self._unpacked_left:
                self._unpacked_left -= 1
                piece = _Piece(content, count, may_pack=False, taken_ns=now_ns)
            else:
                piece = _Piece(content, count, may_pack=True, taken_ns=now_ns)
                self._unpacked_left = 0 if piece.is_packed else _UNPACKED_FOR
            self._pieces.append(piece)
            self._size += piece.size
            self._stored += piece.stored

    def _stored_records(self, limit_bytes: int) -> Iterator[memoryview]:
        if not self._content:
            self._content = self._pieces[0].content()
        content, position, record = self._content, 0, None
        try:
            for position, record in records_in(content):
                yield record
                if position >= limit_bytes:
                    break
            else:
                position = len(content)
        finally:
            if record is not None:
                self._newest_ns = timestamp_ns(record)
            self._content = content[position:]
            self._size -= position
            if not self._content:
                self._stored -= self._pieces.popleft().stored
