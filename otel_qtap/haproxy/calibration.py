"""
Find and verify where a HAProxy keeps the stream that a thread is processing.

Sans-I/O: snapshots in, a verdict out. A snapshot is taken by the kernel side while the
thread is in a system call, so its memory stands still. Nothing is believed because of a
version number: each of the offsets must explain every snapshot.

    current, process   the only place where, whenever a client is being answered, a word of
                       the thread's context points to what holds the address of
                       ``process_stream``
    the argument       points to something that holds the address of the task (stream->task)
    serial             never falls at one address, names one stream only, and rises with
                       every answer on a client's connection and, where HAProxy passes bytes
                       through (mode tcp), with every client whose first bytes it gets
"""

from __future__ import annotations

import struct
from collections import Counter
from enum import Enum

from otel_qtap.events import DataEvent, Flow, Role, SnapshotEvent
from otel_qtap.haproxy.layout import Layout, Offsets

__all__ = ["Calibration", "Verdict"]

_WORDS = struct.Struct("<8Q")
_SERIALS = struct.Struct("<16I")
_ENOUGH = 64  # snapshots inside process_stream
_SOME = 16  # answers: enough to see that the offsets in force explain none of them
_FAILED_READS = 16  # a page that is being moved fails for a moment; a wrong address always does
_NEARLY_ALL = 0.9
_TOO_MANY = 1024  # if these do not decide it, nothing will


class Verdict(Enum):
    """What is known about the offsets that are in force."""

    OPEN = "open"
    """Not enough was seen."""
    VERIFIED = "verified"
    CHANGED = "changed"
    """They were wrong, others explain what was seen: see ``Calibration.offsets``."""
    REFUTED = "refuted"
    """Nothing explains what was seen; ``Calibration.reason`` says what."""


class Calibration:
    """Looks for the offsets of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.offsets = layout.offsets
        self.reason = ""
        self._answers = 0
        self._explained: Counter[tuple[int, int]] = Counter()
        """How often each place would have explained that a client was being answered."""
        self._hits = 0
        self._checks = 0
        self._failed_reads = 0
        self._owners: set[int] | None = None
        """Offsets in the stream at which the task stood each time."""
        self._serials = _SerialSearch()
        self._misfit = ""
        """Why the streams found with the offsets in force are none."""
        self._is_changed = False

    @property
    def is_plausible(self) -> bool:
        """Whether something speaks for the offsets in force, and nothing against them."""
        return (
            not self.reason
            and not self._misfit
            and not self._is_changed
            and self._hits > 0
            and self.offsets.serial in self._serials.candidates
        )

    @property
    def knows_tasks(self) -> bool:
        """Whether the running task is where it is looked for, also if no stream was seen yet."""
        return self.is_plausible or (self._checks > 0 and not self.reason and not self._is_changed)

    @property
    def verdict(self) -> Verdict:
        """What the snapshots so far say."""
        if self.reason:
            return Verdict.REFUTED
        if self._is_changed:
            return Verdict.CHANGED
        if self._misfit or self._hits < _ENOUGH or not self._serials.is_tried:
            return Verdict.OPEN
        candidates = self._serials.candidates
        if len(candidates) == 1:
            return Verdict.VERIFIED if self.offsets.serial in candidates else Verdict.CHANGED
        if self._hits > _TOO_MANY:
            self.reason = "the number of a stream is not to be told from other fields"
            return Verdict.REFUTED
        return Verdict.OPEN

    @property
    def contradiction(self) -> str:
        """What speaks against the offsets in force, however little was seen; or nothing."""
        if self.reason or self._misfit:
            return self.reason or self._misfit
        if self._is_changed:
            return "the running task is elsewhere"
        if self.offsets.serial not in self._serials.candidates:
            return "the number of a stream is elsewhere"
        return ""

    @property
    def found(self) -> Offsets:
        """The offsets that explain the snapshots."""
        candidates = self._serials.candidates
        if len(candidates) == 1:
            return self.offsets._replace(serial=next(iter(candidates)))
        return self.offsets

    def observe(self, snapshot: SnapshotEvent, data: DataEvent) -> None:
        """Take a snapshot and the bytes that the thread was sending meanwhile."""
        if not self._is_readable(snapshot):
            return
        hits = _places_of(self._layout.process_stream, snapshot)
        is_answer = snapshot.role is Role.SERVER and _begins_answer(data)
        if hits and is_answer:
            self._weigh(hits)
        if (self.offsets.current, self.offsets.process) in hits and not self._is_changed:
            is_new = is_answer or data.flow is Flow.RECEIVE
            self._look_at_stream(snapshot, is_new=is_new)

    def observe_connect(self, snapshot: SnapshotEvent) -> None:
        """
        Take a snapshot of a thread that opens a connection: for a stream, or to check a server.

        A stream may open several, so this tells nothing new of its number.
        """
        if not self._is_readable(snapshot):
            return
        ours = (self.offsets.current, self.offsets.process)
        if self._layout.process_check:
            self._checks += ours in _places_of(self._layout.process_check, snapshot)
        if ours in _places_of(self._layout.process_stream, snapshot):
            self._look_at_stream(snapshot, is_new=False)

    def _is_readable(self, snapshot: SnapshotEvent) -> bool:
        """Whether a snapshot can tell anything, and is still wanted."""
        if self.reason or self._is_changed or self._hits > 2 * _TOO_MANY:
            return False
        layout = self._layout
        if not snapshot.context_address and self._may_fail():
            return False
        if not 0 <= snapshot.context_address - layout.contexts < layout.contexts_size:
            self.reason = "the thread's context is not where its thread-local storage says"
            return False
        return True

    def _weigh(self, hits: set[tuple[int, int]]) -> None:
        """
        Take the places at which the function was found while a client was being answered.

        HAProxy does that in ``process_stream``, nearly always (a request that it cannot read
        has no stream). Tasks that wait for their turn hold the function, too: what is found
        now and then means nothing, and on a busy thread some place may hold it nearly always.
        So the place that explains most counts, and those in force if they explain as much;
        whether they are right shows in the numbers of the streams as well.
        """
        self._answers += 1
        self._explained.update(hits)
        if self._answers < _SOME:
            return
        ours = (self.offsets.current, self.offsets.process)
        candidates = {
            p: times for p, times in self._explained.items() if p != ours or not self._misfit
        }
        most = max(candidates.values(), default=0)
        places = [place for place, times in candidates.items() if times == most]
        if most < self._answers * _NEARLY_ALL:
            if self._answers >= _ENOUGH:
                self.reason = "the running task is not at the same place each time"
        elif ours in places:
            return
        elif len(places) == 1:
            self.offsets = Offsets(*places[0], self.offsets.serial)
            self._is_changed = True
        elif self._answers >= _ENOUGH:
            self.reason = "the running task is at several places"

    def _may_fail(self) -> bool:
        """Count a read that failed, so that there are zeros; say whether it tells nothing."""
        self._failed_reads += 1
        return self._failed_reads < max(_FAILED_READS, self._hits)

    def _look_at_stream(self, snapshot: SnapshotEvent, *, is_new: bool) -> None:
        """Take one for which the offsets in force lead to ``process_stream``."""
        if snapshot.stream_address and not any(snapshot.stream) and self._may_fail():
            return
        self._hits += 1
        if not snapshot.task or not snapshot.stream_address:
            return  # taken before the offsets came into force
        if not self._misfit:
            self._misfit = self._find_misfit(snapshot, is_new=is_new)
        if self._misfit and self._hits >= _SOME:  # else another place may explain it all
            self.reason = self._misfit

    def _find_misfit(self, snapshot: SnapshotEvent, *, is_new: bool) -> str:
        """Return why this cannot be the stream being processed, or nothing."""
        words = struct.iter_unpack("<Q", snapshot.stream)
        owners = {i for i, (word,) in enumerate(words) if word == snapshot.task}
        owners = owners if self._owners is None else self._owners & owners
        if not owners:
            return "the argument of process_stream does not point back to its task"
        self._owners = owners
        self._serials.observe(snapshot, is_new=is_new)
        return "" if self._serials.candidates else "no field of a stream behaves like its number"


class _SerialSearch:
    """Rules out the fields of a stream that cannot be its number."""

    def __init__(self) -> None:
        self.candidates = set(range(0, 64, 4))
        self._owner: dict[tuple[int, int, int], int] = {}
        """Address of the stream, by offset, process and value: processes count on their own."""
        self._newest: dict[tuple[int, int, int], int] = {}
        self._last: dict[tuple[int, int, str, int], int] = {}
        self._seen = 0

    @property
    def is_tried(self) -> bool:
        """Whether there were two streams at least for the number to tell apart."""
        return self._seen > 1

    def observe(self, snapshot: SnapshotEvent, *, is_new: bool) -> None:
        """Take the start of a stream; ``is_new``: what it does now, each stream does once."""
        values = _SERIALS.unpack_from(snapshot.stream)
        process, address = snapshot.process_id, snapshot.stream_address
        connection = snapshot.connection_id
        self._seen += is_new
        for offset in tuple(self.candidates):
            value = values[offset // 4]
            is_possible = self._owner.setdefault((offset, process, value), address) == address
            is_possible &= value >= self._newest.get((offset, process, address), 0)
            self._newest[offset, process, address] = value
            if is_new:
                at, on = (offset, process, "at", address), (offset, process, "on", connection)
                for key in (at, on):
                    is_possible &= value > self._last.get(key, -1)
                    self._last[key] = value
            if not is_possible:
                self.candidates.discard(offset)


def _places_of(function: int, snapshot: SnapshotEvent) -> set[tuple[int, int]]:
    """Return all (current, process) that lead from the context to the function."""
    return {
        (8 * i, 8 * j)
        for i, (word, target) in enumerate(zip(snapshot.context, snapshot.targets, strict=True))
        if word
        for j, value in enumerate(_WORDS.unpack_from(target)[:-1])
        if value == function
    }


def _begins_answer(data: DataEvent) -> bool:
    """Whether the bytes begin the final answer to a client's request."""
    return data.data.startswith(b"HTTP/1.") and data.data[9:10] != b"1"
