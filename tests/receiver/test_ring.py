"""The ring buffer's reader, over memory that is laid out as the kernel lays it out."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from receiver.ring_writer import BUSY, DISCARD, SIZE, RingWriter

from otel_qtap.receiver.ring import Ring, records_in


@pytest.fixture
def kernel() -> Iterator[RingWriter]:
    kernel = RingWriter()
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
    start = kernel.write(b"....", BUSY)
    kernel.write(b"third")

    assert take(ring) == [b"first"]
    assert ring.pending_bytes > 0
    kernel.finish(start, 4)
    assert take(ring) == [b"....", b"third"]


def test_a_discarded_record_is_passed_over(kernel, ring) -> None:
    """The kernel side changed its mind; its room is given back."""
    kernel.write(b"first")
    kernel.write(b"never", DISCARD)
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


def test_records_can_be_taken_out_together(kernel, ring) -> None:
    """Up to one that is being written; they are the same as if they had been read one by one."""
    for number in range(40):  # around the end, too
        records = [bytes([number]) * size for size in (0, 9, 300)]
        for record in records:
            kernel.write(record)
        kernel.write(b"never", DISCARD)
        start = kernel.write(b"....", BUSY)

        content, count = ring.take(SIZE)

        assert count == len(records)
        assert [bytes(record) for _, record in records_in(memoryview(content))] == records
        assert ring.take(SIZE) == (b"", 0)
        kernel.finish(start, 4)
        assert take(ring) == [b"...."]
        assert kernel.consumed == ring.read_bytes == ring.written_bytes


def test_the_time_of_the_last_record_is_kept(kernel, ring) -> None:
    """Of what was read, not of what waits."""
    for number in range(3):
        kernel.write(struct.pack("<QQ", 0, 100 + number))
    take(ring, limit=2 * 24)
    assert ring.newest_ns == 101
    take(ring)
    assert ring.newest_ns == 102


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
