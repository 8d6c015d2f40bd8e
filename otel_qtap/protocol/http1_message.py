"""What the HTTP/1.x parsers of both directions have in common: heads, and loss."""

from __future__ import annotations

from typing import ClassVar

from otel_qtap.protocol.events import HttpEvent, MessageEnding, ParseError
from otel_qtap.protocol.http1_body import WAIT, BodyReader, State, Step
from otel_qtap.protocol.http1_fields import split_lines

__all__ = ["MessageParser"]

# Looking up a member of an enumeration takes longer than comparing with it.
_LOST = State.UNKNOWN
_AT_HEAD = State.HEAD


class MessageParser(BodyReader):
    """
    Takes bytes in, finds heads, and goes on after a loss.

    Each state has a function that reads what it says, in the table ``STEPS`` at the end
    of the class. It gets bytes and a position and returns the next position, or ``WAIT``.
    """

    MAX_CANDIDATES: ClassVar = 16
    """Places that are under suspicion at a time of being the start of a message."""
    _TELLING_SIZE: ClassVar = 40  # bytes that clear most places of it; a method has up to 32

    __slots__ = ("_buffer", "_candidates", "_is_line_checked")

    def __init__(self, *, joined_late: bool = False) -> None:
        super().__init__()
        if joined_late:
            self._state = _LOST
        self._buffer = bytearray()
        """Bytes that wait for more: part of a head, a line or a candidate."""
        self._is_line_checked = False
        """Whether the start line of the head in the buffer is known to be one."""
        self._candidates: list[int] = []
        """While lost: where in the buffer a message may begin."""

    @property
    def is_idle(self) -> bool:
        """
        Whether no byte of an unfinished message has been seen.

        If it is true before ``feed``, a message that begins then begins with those bytes.
        A PROXY protocol header that is not complete counts as the beginning of a message.
        """
        if self._in_message:
            return False
        return not self._buffer or not self._buffer.lstrip(b"\r\n")

    @property
    def is_lost(self) -> bool:
        """Whether bytes are passed over until one of the marked places begins a message."""
        return self._state == _LOST

    def feed(self, data: bytes) -> None:
        """Take in the next bytes of the stream."""
        position = 0
        if self._buffer:
            self._buffer += data
            if self._needs_line_feed() and b"\n" not in data:
                return  # looking again at every byte of a slow head would cost its square
            data = bytes(self._buffer)
            self._buffer.clear()
        size = len(data)
        try:
            while position < size:
                reached = self.STEPS[self._state](self, data, position)
                if reached < 0:
                    self._buffer += data[position:]
                    return
                position = reached
        except ParseError as error:
            self._fail(error)

    def gap(self, size: int) -> None:
        """Say that ``size`` bytes are missing from the stream here."""
        if size <= 0 or self._state is State.AFTER_HTTP:
            return
        if self._state is State.OPEN_BODY:
            self._pass_body(b"", size)
            return
        if self._state in (State.SIZED_BODY, State.CHUNK):
            known = min(size, self._remaining)
            self._pass_body(b"", known)
            self._remaining -= known
            if not self._remaining:
                self._end_part()
            if known == size:
                return
        self._lose()

    def boundary(self) -> None:
        """
        Say that the next byte fed begins the data of a system call.

        That is where a message may begin whose predecessor was lost; a parser that is
        not lost does not care.
        """
        if self._state is State.UNKNOWN:
            place = len(self._buffer)
            known = self._candidates
            if len(known) < self.MAX_CANDIDATES and (not known or known[-1] != place):
                known.append(place)

    def end(self) -> None:
        """Say that the stream ended; bytes fed from now on are ignored."""
        if self._state is State.OPEN_BODY:
            self._end_message(MessageEnding.CLOSED)
        self._stop()

    def start_tunnel(self) -> None:
        """Say that the other direction showed the end of HTTP: ignore all that follows."""
        self._stop()

    def next_event(self) -> HttpEvent | None:
        """
        Return the next event, or ``None`` when more bytes are needed.

        Raise ``ParseError`` once for every place where the stream could not be read; if
        that was within a message, its ``MessageEnd`` comes before. Go on calling.
        """
        if not self._events:
            return None
        event = self._events.pop(0)
        if isinstance(event, ParseError):
            raise event
        return event

    def read(self, data: bytes) -> list[HttpEvent | ParseError]:
        """
        Take in the data of one system call and return all events at once.

        The same as ``boundary``, ``feed`` and ``next_event`` until there is none, in half
        the time; an error stands in the list where it would have been raised.
        """
        if self._state == _LOST:
            self.boundary()
        self.feed(data)
        events = self._events
        if events:
            self._events = []
        return events

    # Heads

    def _read_head(self, data: bytes, position: int) -> int:
        if data[position] in b"\r\n":  # empty lines in front: RFC 9112, section 2.2
            return len(data) - len(data[position:].lstrip(b"\r\n"))
        # What the blank-line expression finds, in a third of the time: nearly every line
        # ends in CRLF, so a bare LF twice is looked for only in front of that.
        first = position + self._searched
        start = data.find(b"\n\r\n", first)
        end = start + 3
        bare = data.find(b"\n\n", first, end if start >= 0 else len(data))
        if bare >= 0:
            start, end = bare, bare + 2
        elif start < 0:
            return self._await_head(data, position)
        size = end - position
        if size > self.MAX_HEAD_SIZE:
            raise ParseError(f"message head exceeds {self.MAX_HEAD_SIZE} bytes")
        self._searched = 0
        self._is_line_checked = False
        self._open_message(split_lines(data[position:start]), size)
        return end

    def _await_head(self, data: bytes, position: int) -> int:
        size = len(data) - position
        self._searched = max(0, size - 2)  # a blank line is three bytes at most
        if size > self.MAX_HEAD_SIZE:
            raise ParseError(f"message head exceeds {self.MAX_HEAD_SIZE} bytes")
        if not self._is_line_checked:
            line_end = data.find(b"\n", position)
            if line_end >= 0:
                self._check_start_line(data[position:line_end].decode("latin-1"))
                self._is_line_checked = True
        return WAIT

    def _check_start_line(self, line: str) -> None:
        """Raise ``ParseError`` if ``line`` does not start a message."""
        raise NotImplementedError

    def _open_message(self, lines: list[str], size: int) -> None:
        """Emit the head that ``lines`` hold and set the step that reads what follows it."""
        raise NotImplementedError

    # Loss

    def _lose(self) -> None:
        if self._in_message:
            self._wire_body_size += len(self._buffer)
            self._end_message(MessageEnding.LOST)
        self._forget()
        self._state = State.UNKNOWN

    def _fail(self, error: ParseError) -> None:
        self._lose()
        self._events.append(error.with_traceback(None))  # its frames hold traffic

    def _stop(self) -> None:
        if self._in_message:
            self._wire_body_size += len(self._buffer)
            self._end_message(MessageEnding.INCOMPLETE)
        self._forget()
        self._state = State.AFTER_HTTP

    def _forget(self) -> None:
        self._buffer.clear()
        self._candidates.clear()
        self._searched = 0
        self._is_line_checked = False

    def _ignore(self, data: bytes, _position: int) -> int:
        return len(data)

    def _needs_line_feed(self) -> bool:
        """Whether what is in the buffer is within its bound and can only end with a LF."""
        return (
            self._state in (State.HEAD, State.TRAILERS)
            and len(self._buffer) <= self.MAX_HEAD_SIZE
            and not self._buffer.startswith(b"\r")  # the end of a trailer section, if a LF comes
        )

    def _find_message(self, data: bytes, position: int) -> int:
        """
        Look for a start line at the candidates, which count from ``position``.

        Two of them can claim the same line: ``OK``, the rest of a lost body, before
        ``GET / HTTP/1.1``, or ``GE`` before ``T / HTTP/1.1``. The first that makes a
        start line beyond doubt has it, else the first that makes one at all.
        """
        possible: list[int] = []
        best_certainty = best_start = 0
        for candidate in self._candidates:
            start = position + candidate
            line_end = data.find(b"\n", start, start + self.MAX_HEAD_SIZE)
            if line_end >= 0:
                certainty = self._start_certainty(data[start : line_end + 1])
                if certainty > best_certainty:
                    best_certainty, best_start = certainty, start
            elif len(data) - start < self.MAX_HEAD_SIZE and self._may_start(
                data[start : start + self._TELLING_SIZE]
            ):
                possible.append(candidate)
        if best_certainty:
            self._candidates.clear()
            self._state = _AT_HEAD
            return best_start
        if not possible:
            self._candidates.clear()
            return len(data)
        offset = possible[0]
        self._candidates = [candidate - offset for candidate in possible]
        return position + offset if offset else WAIT

    def _start_certainty(self, line: bytes) -> int:
        """Return 0 if ``line`` starts no message, 1 if it may, 2 if it does beyond doubt."""
        raise NotImplementedError

    def _may_start(self, beginning: bytes) -> bool:
        """Return whether a line that begins so can still become a start line."""
        raise NotImplementedError

    STEPS: ClassVar[dict[State, Step]] = {
        **BodyReader.STEPS,
        State.HEAD: _read_head,
        State.UNKNOWN: _find_message,
        State.AFTER_HTTP: _ignore,
    }
