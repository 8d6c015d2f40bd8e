"""
The memory of a HAProxy that does not exist: threads, tasks and streams at chosen offsets.

``Memory.send`` is what the kernel side would hand over for one send call while snapshots are
wanted: the snapshot, by the offsets that it believes in, and the bytes with the mark that it
would give them; ``truth`` has the mark that they should have. What else stands in these
structures is noise of the kinds that real ones have: constants, pointers, flags, clocks,
counters of other things.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from otel_qtap.events import (
    CloseEvent,
    CloseStep,
    DataEvent,
    Flow,
    OpenEvent,
    Role,
    SnapshotEvent,
    StreamMark,
    StreamState,
)
from otel_qtap.haproxy.layout import DEFAULT_OFFSETS, Layout, Offsets, StreamSource

__all__ = ["ANSWER", "LAYOUT", "Memory", "Stream", "traffic"]

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"

_PROCESS_STREAM = 0x5555_0010_0000
_OTHER_FUNCTION = 0x5555_0020_0000
_CONTEXTS = 0x5555_0030_0000
_STRIDE = 512
_HEAP = 0x7F00_0000_0000
_CONTEXT_BYTES, _TARGET_BYTES, _STREAM_BYTES = 128, 64, 1024

LAYOUT = Layout(
    number=1, process_stream=_PROCESS_STREAM, thread_context=-96, contexts=_CONTEXTS,
    contexts_size=64 * _STRIDE, source=StreamSource.THREAD,
)  # fmt: skip


@dataclass(eq=False)
class Stream:
    """One request in the hands of HAProxy."""

    address: int
    task: int
    serial: int
    connection_id: int


Field = Callable[["Memory", Stream], int]
"""What four bytes at the start of a stream hold, next to its number."""


class Memory:
    """One process: where it keeps things, what it works on, and what is seen of it."""

    def __init__(
        self,
        offsets: Offsets = DEFAULT_OFFSETS,
        *,
        owner: int = 216,
        threads: int = 1,
        serials: bool = True,
        fields: dict[int, Field] | None = None,
        seed: int = 1,
    ) -> None:
        """``fields`` are by offset; ``owner`` is where a stream points back to its task."""
        self.offsets = offsets
        self.believed = LAYOUT
        """By which the kernel side reads."""
        self.owner = owner
        self.serials = serials
        self.fields = fields or {}
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self.now_ns = 1_000_000
        self.tick_ns = 1000
        """Between two events."""
        self.truth: dict[int, StreamMark] = {}
        """The marks that events should have, by the time at which they were made."""
        self.process_id = 987
        self._starts: list[int] = []
        self._objects: list[bytearray] = []
        self._heap = _HEAP
        self._free: list[tuple[int, int]] = []
        self.serial = self.chance.randrange(1, 5000)
        """Of the newest stream."""
        for thread in range(threads):
            self._add(_CONTEXTS + thread * _STRIDE, bytearray(_CONTEXT_BYTES))
        self._noise = [self._new(256) for _ in range(8)]
        for address in self._noise:
            for word in range(0, 256, 8):
                self.put(address + word, self.chance.getrandbits(64))
        self.other_task = self._make_task(_OTHER_FUNCTION, self._noise[0])
        for thread in range(threads):
            for word in range(_CONTEXT_BYTES // 8):
                self.put(_CONTEXTS + thread * _STRIDE + 8 * word, self._word())

    # What happens in HAProxy ---------------------------------------------------------------

    def begin(self, connection_id: int) -> Stream:
        """A client's request comes in; the memory of the last that ended is used again."""
        if self._free:
            address, task = self._free.pop()
        else:
            address = self._new(_STREAM_BYTES)
            task = self._make_task(_PROCESS_STREAM, address)
            for word in range(64, _STREAM_BYTES, 8):
                self.put(address + word, self._word())
        self.put(task + self.offsets.process, _PROCESS_STREAM)
        self.serial += 1
        stream = Stream(address, task, self.serial, connection_id)
        for offset in range(0, 64, 4):
            value = self.fields.get(offset, _constant)(self, stream)
            self.put(address + offset, value, 4)
        if self.serials:
            self.put(address + self.offsets.serial, stream.serial, 4)
        self.put(address + self.owner, task)
        return stream

    def end(self, stream: Stream) -> None:
        """The request is over."""
        self.put(stream.task + self.offsets.process, 0)
        self._free.append((stream.address, stream.task))

    def send(
        self,
        stream: Stream | None,
        data: bytes = REQUEST,
        role: Role = Role.CLIENT,
        *,
        thread: int = 0,
        connection_id: int = 0,
        in_task: bool = True,
    ) -> tuple[SnapshotEvent, DataEvent]:
        """A thread sends bytes: for a stream, in another task, or (``in_task``) in none."""
        self._enter(stream, thread, in_task=in_task)
        context = _CONTEXTS + thread * _STRIDE
        connection_id = connection_id or (stream.connection_id if stream else 1)
        snapshot = self._snapshot(context, connection_id, role)
        event = DataEvent(
            connection_id, self.now_ns, self.process_id, self.process_id + thread, Flow.SEND,
            0, len(data), True, data, self._mark(context),
        )  # fmt: skip
        return snapshot, event

    def connect(self, stream: Stream | None, connection_id: int, thread: int = 0) -> OpenEvent:
        """A thread opens a connection; what the kernel side says of it may come later."""
        self._enter(stream, thread)
        return OpenEvent(
            connection_id, self.now_ns, self.process_id, Role.CLIENT, "10.0.0.1", 40000,
            "10.0.0.2", 80, self.now_ns, self.now_ns, False, 0,
            self._mark(_CONTEXTS + thread * _STRIDE),
        )  # fmt: skip

    def close(self, stream: Stream | None, connection_id: int, thread: int = 0) -> CloseEvent:
        """A thread closes a connection; the kernel side does not say of which process."""
        self._enter(stream, thread)
        mark = self._mark(_CONTEXTS + thread * _STRIDE)
        return CloseEvent(connection_id, self.now_ns, 0, CloseStep.LOCAL_CLOSED, 0, mark)

    def _enter(self, stream: Stream | None, thread: int, *, in_task: bool = True) -> None:
        task = stream.task if stream else self.other_task if in_task else 0
        self.put(_CONTEXTS + thread * _STRIDE + self.offsets.current, task)
        self.now_ns += self.tick_ns

    def believe(self, offsets: Offsets) -> None:
        """Let the kernel side read by other offsets."""
        self.believed = replace(self.believed, offsets=offsets)

    # What the kernel side does (bpf/haproxy.h) -----------------------------------------------

    def _snapshot(self, context: int, connection_id: int, role: Role) -> SnapshotEvent:
        current, process, _ = self.believed.offsets
        words = struct.unpack(f"<{_CONTEXT_BYTES // 8}Q", self.read(context, _CONTEXT_BYTES))
        task = self._pointer(context + current)
        function, argument = struct.unpack("<QQ", self.read(task + process, 16))
        is_in_stream = task != 0 and function == _PROCESS_STREAM
        return SnapshotEvent(
            connection_id, self.now_ns, self.process_id, role, context, words,
            tuple(self.read(word, _TARGET_BYTES) for word in words),
            task if is_in_stream else 0, argument if is_in_stream else 0,
            self.read(argument, _STREAM_BYTES),
        )  # fmt: skip

    def _mark(self, context: int) -> StreamMark:
        self.truth[self.now_ns] = self._mark_by(self.offsets, context)
        return self._mark_by(self.believed.offsets, context)

    def _mark_by(self, offsets: Offsets, context: int) -> StreamMark:
        current, process, serial = offsets
        task = self._pointer(context + current)
        if not task:
            return StreamMark(StreamState.NONE, 0, 0)
        if self._find(task + process, 16) is None:
            return StreamMark(StreamState.UNREADABLE, 0, 0)
        function, argument = struct.unpack("<QQ", self.read(task + process, 16))
        if function != _PROCESS_STREAM:
            return StreamMark(StreamState.OTHER, 0, 0, task)
        (number,) = struct.unpack("<I", self.read(argument + serial, 4))
        return StreamMark(StreamState.KNOWN, argument, number, task)

    # Memory ----------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Return what is there; zeros where nothing is, as after a read that failed."""
        found = self._find(address, size)
        if found is None:
            return bytes(size)
        content, at = found
        return bytes(content[at : at + size])

    def put(self, address: int, value: int, size: int = 8) -> None:
        """Write a number."""
        found = self._find(address, size)
        assert found, hex(address)
        content, at = found
        content[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def put_context(self, offset: int, value: int, thread: int = 0) -> None:
        """Write a word of a thread's context."""
        self.put(_CONTEXTS + thread * _STRIDE + offset, value)

    def _find(self, address: int, size: int) -> tuple[bytearray, int] | None:
        """Return the object that holds these bytes, and where they begin in it."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            at = address - self._starts[index]
            content = self._objects[index]
            if at + size <= len(content):
                return content, at
        return None

    def _pointer(self, address: int) -> int:
        (value,) = struct.unpack("<Q", self.read(address, 8))
        return int(value)

    def _new(self, size: int) -> int:
        address = self._heap
        self._heap += size + 64
        self._add(address, bytearray(size))
        return address

    def _add(self, address: int, content: bytearray) -> None:
        self._starts.append(address)  # they come in this order
        self._objects.append(content)

    def _make_task(self, function: int, argument: int) -> int:
        address = self._new(128)
        for word in range(0, 128, 8):
            self.put(address + word, self._word())
        self.put(address + self.offsets.process, function)
        self.put(address + self.offsets.process + 8, argument)
        return address

    def _word(self) -> int:
        kind = self.chance.randrange(4)
        if kind == 0:
            return 0
        if kind == 1:
            return self.chance.randrange(1000)
        if kind == 2:
            return self.chance.choice(self._noise) + 8 * self.chance.randrange(24)
        return self.chance.getrandbits(64)


def _constant(_memory: Memory, _stream: Stream) -> int:
    return 3


def traffic(
    memory: Memory, requests: int, *, connections: int = 3, threads: int = 1
) -> Iterator[tuple[SnapshotEvent, DataEvent]]:
    """Yield what is seen of so many requests, some of them at the same time."""
    chance = memory.chance
    running: dict[int, Stream] = {}
    for _ in range(requests):
        connection = chance.randrange(1, connections + 1)
        for other in [c for c in running if c == connection or chance.random() < 0.4]:
            stream = running.pop(other)
            if chance.random() < 0.2:
                yield memory.send(stream, b"HTTP/1.1 100 Continue\r\n\r\n", Role.SERVER)
            yield memory.send(stream, ANSWER, Role.SERVER, thread=other % threads)
            if chance.random() < 0.3:
                yield memory.send(stream, b"more", Role.SERVER, thread=other % threads)
            memory.end(stream)
        stream = running[connection] = memory.begin(connection)
        kind = chance.randrange(4)
        yield memory.send(
            stream if kind < 2 else None, thread=connection % threads,
            connection_id=100 + connection, in_task=kind != 3,
        )  # fmt: skip
