"""What is taken out of the ring before there is time to look at it comes later, in order."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

import pytest
from receiver.ring_writer import BUSY, DISCARD, SIZE, RingWriter

from otel_qtap.receiver.backlog import Backlog
from otel_qtap.receiver.ring import Ring

SECOND_NS = 1_000_000_000


class Burst:
    """Numbered records that are written and read in turns."""

    def __init__(self, limit_bytes: int = 1 << 20) -> None:
        self.kernel = RingWriter()
        self.now_ns = 0
        ring = Ring(self.kernel.descriptor, SIZE)
        self.backlog = Backlog(ring, limit_bytes, lambda: self.now_ns)
        self.written: list[bytes] = []
        self.read: list[bytes] = []
        self.refused = 0

    def record(self, payload: bytes) -> bytes:
        """Return the next record, with its number as its time."""
        return struct.pack("<QQ", 0, len(self.written) + 1) + payload

    def write(self, payload: bytes = b"alike" * 20, flags: int = 0) -> int:
        """Write a record if there is room in the ring; returns where its header stands."""
        record = self.record(payload)
        if self.kernel.position + len(record) + 16 - self.kernel.consumed > SIZE:
            self.refused += 1
            return -1
        if flags != DISCARD:
            self.written.append(record)
        return self.kernel.write(record, flags)

    def take(self, limit_bytes: int = 600) -> None:
        """Read some."""
        self.read += [bytes(record) for record in self.backlog.records(limit_bytes)]


@pytest.fixture
def burst() -> Iterator[Burst]:
    """A ring with room for some thirty records, and a backlog."""
    burst = Burst()
    yield burst
    os.close(burst.kernel.descriptor)


def test_a_ring_that_is_read_in_time_needs_none(burst) -> None:
    """Nothing is copied then."""
    for _ in range(100):
        burst.write()
        burst.take()
        assert burst.backlog.size == 0
    assert burst.read == burst.written


def test_a_burst_is_kept_and_read_in_order(burst) -> None:
    """Six records come for each that is read, twenty times what the ring holds."""
    for _ in range(100):
        for _ in range(6):
            burst.write()
        burst.take(limit_bytes=100)
        assert burst.backlog.newest_ns == len(burst.read)
        assert burst.backlog.read_bytes == burst.kernel.consumed - burst.backlog.size
    assert burst.refused == 0
    assert burst.backlog.pending_bytes > 10 * SIZE

    while burst.backlog.pending_bytes:
        burst.take()
    assert burst.read == burst.written
    assert burst.backlog.read_bytes == burst.backlog.written_bytes == burst.kernel.position


def test_any_mixture_comes_in_order() -> None:
    """Of lengths, of records that are discarded, of what can be compressed and what cannot."""
    for seed in range(30):
        chance = random.Random(seed)  # noqa: S311 - no secret
        burst = Burst()
        for _ in range(300):
            for _ in range(chance.choice([0, 1, 5, 9])):
                size = chance.choice([0, 3, 80, 200])
                payload = chance.randbytes(size) if chance.random() < 0.5 else b"x" * size
                burst.write(payload, DISCARD if chance.random() < 0.1 else 0)
            burst.take(chance.choice([1, 200, 5000]))
        while burst.backlog.pending_bytes:
            burst.take()
        assert burst.read == burst.written
        os.close(burst.kernel.descriptor)


def test_a_record_that_is_being_written_stops_it(burst) -> None:
    """What lies behind it waits in the ring."""
    for _ in range(20):
        burst.write()
    start = burst.write(b"....", BUSY)
    for _ in range(5):
        burst.write()
    for _ in range(30):
        burst.take()
    assert burst.read == burst.written[:20]
    burst.kernel.finish(start, 20)
    burst.take(SIZE)
    assert burst.read == burst.written


def test_a_reader_that_stops_early_keeps_what_it_did_not_see(burst) -> None:
    """The record it had in hand counts as taken."""
    for _ in range(20):
        burst.write()
    records = burst.backlog.records(10_000)
    burst.read.append(bytes(next(records)))
    records.close()
    while burst.backlog.pending_bytes:
        burst.take()
    assert burst.read == burst.written


def test_it_has_a_bound_in_bytes() -> None:
    """Then the ring fills up; what was taken still comes in order."""
    burst = Burst(limit_bytes=3000)
    for _ in range(400):
        burst.write(os.urandom(80))
        burst.backlog.records(0).close()  # nobody has time
    assert burst.refused > 0
    assert 3000 <= burst.backlog.size < 3000 + SIZE
    while burst.backlog.pending_bytes:
        burst.take()
    assert burst.read == burst.written


def test_what_is_alike_takes_less_than_it_did_in_the_ring() -> None:
    """So much more of it fits."""
    burst = Burst(limit_bytes=3000)
    for _ in range(200):
        burst.write(b"x" * 400)
        burst.backlog.records(0).close()
    assert burst.refused == 0
    assert burst.backlog.size > 10 * 3000
    os.close(burst.kernel.descriptor)


def test_it_has_a_bound_in_time(burst) -> None:
    """What has waited for long is not joined by more."""
    for second in range(40):
        burst.now_ns = second * SECOND_NS
        for _ in range(10):
            burst.write(b"x" * 400)
        burst.backlog.records(0).close()
    assert 15 * 2 < len(burst.written) < 20 * 10
    assert burst.refused > 0


def test_what_there_is_no_time_for_is_counted(burst) -> None:
    """Wherever it is: in the ring, waiting, or half read."""
    for _ in range(10):
        for _ in range(5):
            burst.write()
        burst.take(limit_bytes=100)
    assert 0 < len(burst.read) < len(burst.written)

    assert burst.backlog.give_up() == len(burst.written) - len(burst.read)

    assert burst.backlog.pending_bytes == 0
    burst.write()
    burst.take()
    assert burst.read[-1] == burst.written[-1]
