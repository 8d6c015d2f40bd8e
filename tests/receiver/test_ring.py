"""The ring buffer's reader, over memory that is laid out as the kernel lays it out."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from otel_qtap.receiver.ring import Ring

SIZE = 4096
_BUSY, _DISCARD = 1 << 31, 1 << 30


class Kernel:
    """The writer's side: a page with each position, then the data twice."""

    def __init__(self) -> None:
        self.page = mmap.PAGESIZE
        self.descriptor = os.memfd_create("ring")
        os.ftruncate(self.descriptor, 2 * self.page + 2 * SIZE)
        self.position = 0

    @property
    def consumed(self) -> int:
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


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    os.close(kernel.descriptor)


@pytest.fixture
def ring(kernel) -> Iterator[Ring]:
    ring = Ring(kernel.descriptor, SIZE)
    yield ring
    ring.close()


def take(ring: Ring, limit: int = SIZE) -> list[bytes]:
    return [bytes(record) for record in ring.records(limit)]


def test_records_come_in_order_and_make_room(kernel, ring) -> None:
    """Of every length; the position that the kernel reads moves behind the last of them."""
    records = [b"x" * size for size in (0, 1, 7, 8, 9, 40)]
    for record in records:
        kernel.write(record)
    assert ring.pending_bytes == kernel.position

    assert take(ring) == records
    assert kernel.consumed == kernel.position
    assert ring.pending_bytes == 0
    assert take(ring) == []


def test_a_record_that_is_being_written_stops_the_reader(kernel, ring) -> None:
    """What lies behind it waits, too: order is kept."""
    kernel.write(b"first")
    start = kernel.write(b"....", _BUSY)
    kernel.write(b"third")

    assert take(ring) == [b"first"]
    assert ring.pending_bytes > 0
    kernel.finish(start, 4)
    assert take(ring) == [b"....", b"third"]


def test_a_discarded_record_is_passed_over(kernel, ring) -> None:
    """The kernel side changed its mind; its room is given back."""
    kernel.write(b"first")
    kernel.write(b"never", _DISCARD)
    kernel.write(b"third")

    assert take(ring) == [b"first", b"third"]
    assert kernel.consumed == kernel.position


def test_a_record_may_wrap_around_the_end(kernel, ring) -> None:
    """The second mapping makes it one piece, whatever its place."""
    for number in range(60):
        record = bytes([number]) * (200 + number)
        kernel.write(record)
        assert take(ring) == [record]
    assert kernel.position > 3 * SIZE


def test_no_more_is_taken_at_a_time_than_asked_for(kernel, ring) -> None:
    """So that room is given back in time; the rest comes with the next call."""
    for number in range(10):
        kernel.write(bytes([number]) * 92)

    first = take(ring, limit=250)
    assert len(first) == 3
    assert ring.pending_bytes == 7 * 104
    assert len(take(ring)) == 7


def test_a_reader_that_stops_early_keeps_what_it_did_not_see(kernel, ring) -> None:
    """The record it had in hand counts as taken."""
    for data in (b"one", b"two", b"three"):
        kernel.write(data)
    records = ring.records(SIZE)
    assert bytes(next(records)) == b"one"
    records.close()

    assert take(ring) == [b"two", b"three"]


def test_a_ring_can_be_closed_with_a_record_in_use(kernel) -> None:
    """Closing never fails."""
    ring = Ring(kernel.descriptor, SIZE)
    kernel.write(b"one")
    records = ring.records(SIZE)
    view = next(records)
    records.close()

    ring.close()

    assert bytes(view) == b"one"
    view.release()
