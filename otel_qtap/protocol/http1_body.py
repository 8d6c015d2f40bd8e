"""
The part of an HTTP/1.x parser that reads bodies: how long they are, chunks, trailers.

A base class of the parsers and not an object of theirs, because a call more for each
message would cost more than most bodies do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, TypeAlias

from otel_qtap.protocol.events import (
    BodyData,
    Headers,
    HttpEvent,
    MessageEnd,
    MessageEnding,
    ParseError,
)
from otel_qtap.protocol.http1_fields import read_fields, split_lines

__all__ = ["WAIT", "BodyReader", "State", "Step"]

WAIT = -1
"""What a step returns when it can do nothing with the bytes there are."""

Step: TypeAlias = Callable[[Any, bytes, int], int]
"""Reads, for a parser, what one state says: gets bytes and a position, returns the next one."""

_BLANK_LINE = re.compile(rb"\n\r?\n")  # a bare LF ends a line too: RFC 9112, section 2.2
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")


class State(IntEnum):
    """What the next byte of the stream is a part of."""

    PREFACE = 0
    """A PROXY protocol header, or the first head."""
    HEAD = 1
    """A head, or the empty lines in front of it."""
    SIZED_BODY = 2
    OPEN_BODY = 3
    """One that ends with the stream."""
    CHUNK_SIZE = 4
    CHUNK = 5
    CHUNK_END = 6
    """The line break after a chunk."""
    TRAILERS = 7
    UNKNOWN = 8
    """Anything: the parser is lost."""
    AFTER_HTTP = 9
    """Another protocol, or nothing."""


# Looking up a member of an enumeration takes longer than comparing with it.
_AT_HEAD = State.HEAD
_COMPLETE = MessageEnding.COMPLETE

# What a named tuple's own constructor calls, which is Python code and takes twice as long.
_new = tuple.__new__


class BodyReader:
    """What a parser knows of the message it is in, and the steps that read its body."""

    MAX_HEAD_SIZE: ClassVar = 64 * 1024
    """Of a trailer section as well. HAProxy's own limit is ``tune.bufsize``, 16 KiB."""
    MAX_CHUNK_LINE_SIZE: ClassVar = 4 * 1024

    __slots__ = (
        "_events",
        "_in_message",
        "_remaining",
        "_searched",
        "_state",
        "_wire_body_size",
    )

    def __init__(self) -> None:
        self._events: list[HttpEvent | ParseError] = []
        self._state = _AT_HEAD
        self._searched = 0
        """How much of what waits for more bytes is known to hold no blank line."""
        self._in_message = False
        """Between a head and its end."""
        self._remaining = 0
        """Bytes to come of the body or of the chunk."""
        self._wire_body_size = 0

    def _start_body(self, state: State, size: int = 0) -> None:
        self._in_message = True
        self._wire_body_size = 0
        self._remaining = size
        self._state = state

    def _pass_body(self, data: bytes, size: int) -> None:
        if size:
            self._wire_body_size += size
            self._events.append(_new(BodyData, (data, size)))

    def _end_part(self) -> None:
        """All bytes of the body or of the chunk have passed."""
        if self._state is State.CHUNK:
            self._state = State.CHUNK_END
        else:
            self._end_message(MessageEnding.COMPLETE)

    def _end_message(self, ending: MessageEnding, trailers: Headers = ()) -> None:
        self._in_message = False
        self._state = _AT_HEAD
        self._events.append(MessageEnd(ending, trailers, self._wire_body_size))

    def _read_sized(self, data: bytes, position: int) -> int:
        size = self._remaining
        end = position + size
        if end <= len(data):  # the rest of the body is here, as it mostly is
            events = self._events
            events.append(_new(BodyData, (data[position:end], size)))
            self._in_message = False
            self._state = _AT_HEAD
            events.append(_new(MessageEnd, (_COMPLETE, (), self._wire_body_size + size)))
            return end
        piece = data[position:]
        self._pass_body(piece, len(piece))
        self._remaining = size - len(piece)
        return len(data)

    def _read_chunk(self, data: bytes, position: int) -> int:
        piece = data[position : position + self._remaining]
        self._pass_body(piece, len(piece))
        self._remaining -= len(piece)
        if not self._remaining:
            self._end_part()
        return position + len(piece)

    def _read_until_close(self, data: bytes, position: int) -> int:
        piece = data[position:]
        self._pass_body(piece, len(piece))
        return len(data)

    def _read_chunk_size(self, data: bytes, position: int) -> int:
        line = _CHUNK_SIZE.match(data, position)
        if line is None or line.end() - position > self.MAX_CHUNK_LINE_SIZE:
            if b"\n" in data[position:] or len(data) - position > self.MAX_CHUNK_LINE_SIZE:
                raise ParseError("malformed chunk size")
            return WAIT
        start = line.end()
        size = int(line[1], 16)
        end = start + size
        if size and data.startswith(b"\r\n", end):  # all of the chunk is here, as it mostly is
            self._wire_body_size += end + 2 - position
            self._events.append(_new(BodyData, (data[start:end], size)))
            return end + 2
        self._wire_body_size += start - position
        self._remaining = size
        self._state = State.CHUNK if size else State.TRAILERS
        return start

    def _read_chunk_end(self, data: bytes, position: int) -> int:
        end = _line_break(data, position)
        if end != WAIT:
            self._wire_body_size += end - position
            self._state = State.CHUNK_SIZE
        return end

    def _read_trailers(self, data: bytes, position: int) -> int:
        if data[position] in b"\r\n":
            end = _line_break(data, position)
            if end == WAIT:
                return WAIT
            trailers: Headers = ()
        else:
            blank = _BLANK_LINE.search(data, position + self._searched)
            end = blank.end() if blank else len(data)
            if end - position > self.MAX_HEAD_SIZE:
                raise ParseError(f"trailer section exceeds {self.MAX_HEAD_SIZE} bytes")
            if blank is None:
                self._searched = max(0, end - position - 2)
                return WAIT
            self._searched = 0
            trailers, _ = read_fields(split_lines(data[position : blank.start()]))
        self._wire_body_size += end - position
        self._end_message(MessageEnding.COMPLETE, trailers)
        return end

    STEPS: ClassVar[dict[State, Step]] = {
        State.SIZED_BODY: _read_sized,
        State.OPEN_BODY: _read_until_close,
        State.CHUNK_SIZE: _read_chunk_size,
        State.CHUNK: _read_chunk,
        State.CHUNK_END: _read_chunk_end,
        State.TRAILERS: _read_trailers,
    }


def _line_break(data: bytes, position: int) -> int:
    """Return where the line break at ``position`` ends, or ``WAIT`` if it is cut."""
    if data.startswith(b"\n", position):
        return position + 1
    if data.startswith(b"\r\n", position):
        return position + 2
    if data[position:] == b"\r":
        return WAIT
    raise ParseError("line break expected where a chunk or the chunked body ends")
