"""
HTTP/1.x from captured bytes (RFC 9112), for an observer who can ask nobody to repeat.

Sans-I/O: bytes in, events out; no clock, no file, no socket. How the stream is sliced
into ``feed`` calls makes no difference to the events, apart from where a ``BodyData``
is cut in two. One parser reads one direction of one connection. Whatever the head of a
message says, a ``MessageEnd`` follows it, after interim responses too.

What sets this parser apart from one that serves is how it deals with loss. Where the
framing of a body says how many bytes are still to come, missing bytes (``gap``) are
only counted. Anywhere else the parser is lost: it gives up the message it was in and
looks at the places its caller marked with ``boundary`` for one that begins with a start
line, and goes on from there. Malformed bytes cost a ``ParseError`` and the same search.

Three things keep heads cheap (``tests/benchmarks/parser_cost.py``): bytes are read where
they arrived and buffered only when a head is not complete; a head is decoded and split
once; and header names that were checked before are not checked again. The module is
longer than its neighbours because both directions are one machine with one set of states.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from otel_qtap.protocol.events import (
    BodyData,
    Headers,
    HttpEvent,
    MessageEnd,
    MessageEnding,
    ProxyHeader,
    RequestHead,
    ResponseHead,
    TunnelStart,
)

__all__ = ["ParseError", "RequestParser", "ResponseParser"]

_WAIT = -1  # what a step returns when it can do nothing with the bytes there are

_BLANK_LINE = re.compile(rb"\n\r?\n")  # a bare LF ends a line too: RFC 9112, section 2.2
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_FIELD_NAME = re.compile(r"[!-9;-~\x80-\xff]+")  # wider than a token: proxies can let it pass
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_AROUND_VALUE = " \t\r"  # not what str.strip takes: ISO-8859-1 has more white space, UTF-8 uses it
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_VERSIONS = {
    f"HTTP/1.{minor}{line_end}": f"1.{minor}" for minor in range(10) for line_end in ("", "\r")
}

# IANA's method registry and what caches add. A method outside of it is as good as any,
# but settles no doubt about where a request began.
_METHOD_REGISTRY = """
    ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE
    MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST
    PROPFIND PROPPATCH PUT QUERY REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE
    UPDATEREDIRECTREF VERSION-CONTROL M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE BAN
"""
_REGISTERED_METHODS = frozenset(_METHOD_REGISTRY.split())
_FRAMING_FIELDS = {
    spelling: name
    for name in ("content-length", "transfer-encoding", "upgrade")
    for spelling in (name, name.title())
}

# Names that need no second look: neither malformed nor one of the above. Learned as they
# come, up to a bound; a memo, so what is in it changes no result.
_ORDINARY_NAMES: set[str] = set()
_MAX_ORDINARY_NAMES = 4096
_MAX_ORDINARY_NAME_SIZE = 64

_PROXY_V1 = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
_PROXY_V1_MAX_SIZE = 107
_PROXY_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY_V2_FIXED_SIZE = 16
_PROXY_V2_ADDRESS_SIZES = {0x10: 4, 0x20: 16}  # AF_INET, AF_INET6

_NO_BODY_END = MessageEnd(MessageEnding.COMPLETE, (), 0)
_NO_FRAMING: dict[str, str] = {}

# Header lines that came before, with what they say: most lines of most heads. Only names
# whose values are few and no secret, so that the memo stays small and holds nothing that
# has to be redacted. A memo, so what is in it changes no result.
_KNOWN_LINES: dict[str, tuple[str, str]] = {}
_MAX_KNOWN_LINES = 4096
_MAX_KNOWN_LINE_SIZE = 256
_KNOWN_STATUS_LINES: dict[str, tuple[str, int, str]] = {}
_MAX_KNOWN_STATUS_LINES = 512
_MAX_KNOWN_STATUS_LINE_SIZE = 64
_REPEATED_NAMES = frozenset(
    name
    for spelling in (str.lower, str.title)
    for name in map(
        spelling,
        (
            "accept", "accept-charset", "accept-encoding", "accept-language", "accept-ranges",
            "access-control-allow-origin", "age", "alt-svc", "cache-control", "connection",
            "content-encoding", "content-language", "content-type", "date", "expect", "expires",
            "host", "keep-alive", "origin", "pragma", "server", "te", "trailer",
            "upgrade-insecure-requests", "user-agent", "vary", "via", "x-content-type-options",
            "x-frame-options", "x-forwarded-host", "x-forwarded-port",
            "x-forwarded-proto", "x-powered-by",
        ),
    )
)  # fmt: skip


class ParseError(Exception):
    """The stream is not HTTP/1.x, or breaks its rules; the text never quotes the stream."""


class _State(IntEnum):
    """What the next byte of the stream is a part of."""

    PREFACE = 0
    """A PROXY protocol header, or the first head."""
    PROXY_LINE = 1
    PROXY_BLOCK = 2
    HEAD = 3
    """A head, or the empty lines in front of it."""
    SIZED_BODY = 4
    OPEN_BODY = 5
    """One that ends with the stream."""
    CHUNK_SIZE = 6
    CHUNK = 7
    CHUNK_END = 8
    """The line break after a chunk."""
    TRAILERS = 9
    UNKNOWN = 10
    """Anything: the parser is lost."""
    AFTER_HTTP = 11
    """Another protocol, or nothing."""


# Looking up a member of an enumeration takes longer than comparing with it.
_AT_HEAD = _State.HEAD
_AT_SIZED_BODY = _State.SIZED_BODY
_LOST = _State.UNKNOWN
_COMPLETE = MessageEnding.COMPLETE

# What a named tuple's own constructor calls, which is Python code and takes twice as long.
_new = tuple.__new__


class _MessageParser:
    """
    What both directions have in common: bodies, loss and the way bytes are taken in.

    Each state has a function that reads what it says, in the table ``_STEPS`` at the end
    of the class. It gets bytes and a position and returns the next position, or ``_WAIT``.
    """

    MAX_HEAD_SIZE: ClassVar = 64 * 1024
    """HAProxy's own limit is ``tune.bufsize``, 16 KiB; leaves room for raised ones."""
    MAX_CHUNK_LINE_SIZE: ClassVar = 4 * 1024
    MAX_CANDIDATES: ClassVar = 16
    """Places that are under suspicion at a time of being the start of a message."""
    _TELLING_SIZE: ClassVar = 40  # bytes that clear most places of it; a method has up to 32

    __slots__ = (
        "_buffer",
        "_candidates",
        "_events",
        "_in_message",
        "_is_line_checked",
        "_remaining",
        "_searched",
        "_state",
        "_wire_body_size",
    )

    def __init__(self, *, joined_late: bool = False) -> None:
        self._events: list[HttpEvent | ParseError] = []
        self._state = _State.UNKNOWN if joined_late else _State.HEAD
        self._buffer = bytearray()
        """Bytes that wait for more: part of a head, a line or a candidate."""
        self._searched = 0
        """How much of the buffer is known to hold no blank line; keeps the search linear."""
        self._is_line_checked = False
        """Whether the start line of the head in the buffer is known to be one."""
        self._candidates: list[int] = []
        """While lost: where in the buffer a message may begin."""
        self._in_message = False
        """Between a head and its end."""
        self._remaining = 0
        """Bytes to come of the body or of the chunk."""
        self._wire_body_size = 0

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
                reached = self._STEPS[self._state](self, data, position)
                if reached < 0:
                    self._buffer += data[position:]
                    return
                position = reached
        except ParseError as error:
            self._fail(error)

    def gap(self, size: int) -> None:
        """Say that ``size`` bytes are missing from the stream here."""
        if size <= 0 or self._state is _State.AFTER_HTTP:
            return
        if self._state is _State.OPEN_BODY:
            self._pass_body(b"", size)
            return
        if self._state in (_State.SIZED_BODY, _State.CHUNK):
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
        if self._state is _State.UNKNOWN:
            place = len(self._buffer)
            known = self._candidates
            if len(known) < self.MAX_CANDIDATES and (not known or known[-1] != place):
                known.append(place)

    def end(self) -> None:
        """Say that the stream ended; bytes fed from now on are ignored."""
        if self._state is _State.OPEN_BODY:
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
        self._open_message(_split_lines(data[position:start]), size)
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
        return _WAIT

    def _check_start_line(self, line: str) -> None:
        """Raise ``ParseError`` if ``line`` does not start a message."""
        raise NotImplementedError

    def _open_message(self, lines: list[str], size: int) -> None:
        """Emit the head that ``lines`` hold and set the step that reads what follows it."""
        raise NotImplementedError

    # Bodies

    def _start_body(self, state: _State, size: int = 0) -> None:
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
        if self._state is _State.CHUNK:
            self._state = _State.CHUNK_END
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
            return _WAIT
        start = line.end()
        size = int(line[1], 16)
        end = start + size
        if size and data.startswith(b"\r\n", end):  # all of the chunk is here, as it mostly is
            self._wire_body_size += end + 2 - position
            self._events.append(_new(BodyData, (data[start:end], size)))
            return end + 2
        self._wire_body_size += start - position
        self._remaining = size
        self._state = _State.CHUNK if size else _State.TRAILERS
        return start

    def _read_chunk_end(self, data: bytes, position: int) -> int:
        end = _line_break(data, position)
        if end != _WAIT:
            self._wire_body_size += end - position
            self._state = _State.CHUNK_SIZE
        return end

    def _read_trailers(self, data: bytes, position: int) -> int:
        if data[position] in b"\r\n":
            end = _line_break(data, position)
            if end == _WAIT:
                return _WAIT
            trailers: Headers = ()
        else:
            blank = _BLANK_LINE.search(data, position + self._searched)
            end = blank.end() if blank else len(data)
            if end - position > self.MAX_HEAD_SIZE:
                raise ParseError(f"trailer section exceeds {self.MAX_HEAD_SIZE} bytes")
            if blank is None:
                self._searched = max(0, end - position - 2)
                return _WAIT
            self._searched = 0
            trailers, _ = _read_fields(_split_lines(data[position : blank.start()]))
        self._wire_body_size += end - position
        self._end_message(MessageEnding.COMPLETE, trailers)
        return end

    # Loss

    def _lose(self) -> None:
        if self._in_message:
            self._wire_body_size += len(self._buffer)
            self._end_message(MessageEnding.LOST)
        self._forget()
        self._state = _State.UNKNOWN

    def _fail(self, error: ParseError) -> None:
        self._lose()
        self._events.append(error.with_traceback(None))  # its frames hold traffic

    def _stop(self) -> None:
        if self._in_message:
            self._wire_body_size += len(self._buffer)
            self._end_message(MessageEnding.INCOMPLETE)
        self._forget()
        self._state = _State.AFTER_HTTP

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
            self._state in (_State.HEAD, _State.TRAILERS)
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
        return position + offset if offset else _WAIT

    def _start_certainty(self, line: bytes) -> int:
        """Return 0 if ``line`` starts no message, 1 if it may, 2 if it does beyond doubt."""
        raise NotImplementedError

    def _may_start(self, beginning: bytes) -> bool:
        """Return whether a line that begins so can still become a start line."""
        raise NotImplementedError

    # The PROXY protocol; only a RequestParser starts with it

    def _read_preface(self, data: bytes, position: int) -> int:
        """Tell a PROXY protocol header from the beginning of a request."""
        beginning = data[position:]
        if beginning.startswith(_PROXY_V2_SIGNATURE):
            self._state = _State.PROXY_BLOCK
        elif beginning.startswith(_PROXY_V1):
            self._state = _State.PROXY_LINE
        elif any(mark.startswith(beginning) for mark in (_PROXY_V2_SIGNATURE, *_PROXY_V1)):
            return _WAIT
        else:
            self._state = _AT_HEAD
        return position

    def _read_proxy_line(self, data: bytes, position: int) -> int:
        end = data.find(b"\n", position, position + _PROXY_V1_MAX_SIZE) + 1
        if not end:
            if len(data) - position >= _PROXY_V1_MAX_SIZE:
                raise ParseError("PROXY protocol line has no end")
            return _WAIT
        self._events.append(_proxy_v1(data[position:end].decode("latin-1").rstrip("\r\n")))
        self._state = _AT_HEAD
        return end

    def _read_proxy_block(self, data: bytes, position: int) -> int:
        start = position + _PROXY_V2_FIXED_SIZE
        if len(data) < start:
            return _WAIT
        end = start + int.from_bytes(data[start - 2 : start])
        if data[start - 4] not in (0x20, 0x21):  # version 2, LOCAL or PROXY
            raise ParseError("unknown version or command of the PROXY protocol")
        if len(data) < end:
            return _WAIT
        is_local = data[start - 4] == 0x20
        self._events.append(_proxy_v2(0 if is_local else data[start - 3], data[start:end]))
        self._state = _AT_HEAD
        return end

    _STEPS: ClassVar[dict[_State, Callable[[_MessageParser, bytes, int], int]]] = {
        _State.PREFACE: _read_preface,
        _State.PROXY_LINE: _read_proxy_line,
        _State.PROXY_BLOCK: _read_proxy_block,
        _State.HEAD: _read_head,
        _State.SIZED_BODY: _read_sized,
        _State.OPEN_BODY: _read_until_close,
        _State.CHUNK_SIZE: _read_chunk_size,
        _State.CHUNK: _read_chunk,
        _State.CHUNK_END: _read_chunk_end,
        _State.TRAILERS: _read_trailers,
        _State.UNKNOWN: _find_message,
        _State.AFTER_HTTP: _ignore,
    }


class RequestParser(_MessageParser):
    """
    Read requests, and a PROXY protocol header in front of the first one.

    After a request that asked for a tunnel (CONNECT, Upgrade) the parser reads on as if
    it had been refused, until ``start_tunnel``. A client may use the tunnel before that
    call; so what cannot be read then is passed over without a ``ParseError``.
    """

    __slots__ = ("_asked_for_tunnel",)

    _LINE: ClassVar = re.compile(rb"([A-Z][A-Z0-9_-]{0,31}) [!-~\x80-\xff]+ HTTP/1\.[01]\r?\n")
    _LINE_START: ClassVar = re.compile(
        rb"[A-Z][A-Z0-9_-]{0,31}(?: (?:[!-~\x80-\xff]+(?: [HTP/1.0]{0,8}\r?)?)?)?"
    )

    def __init__(self, *, joined_late: bool = False) -> None:
        super().__init__(joined_late=joined_late)
        self._asked_for_tunnel = False
        if not joined_late:
            self._state = _State.PREFACE

    def _check_start_line(self, line: str) -> None:
        _split_request_line(line)

    def _open_message(self, lines: list[str], size: int) -> None:
        method, target, version = _split_request_line(lines[0])
        del lines[0]
        headers, framing = _read_fields(lines)
        self._asked_for_tunnel = method == "CONNECT"
        length: int | None = None
        if framing:
            self._asked_for_tunnel |= "upgrade" in framing
            if "transfer-encoding" in framing:
                if not _is_chunked(framing):
                    # RFC 9112, section 6.3: nobody can tell where it ends
                    raise ParseError("transfer coding of a request does not end in chunked")
                head = _new(RequestHead, (method, target, version, headers, size, None))
                self._events.append(head)
                self._start_body(_State.CHUNK_SIZE)
                return
            length = _content_length(framing)
        self._events.append(_new(RequestHead, (method, target, version, headers, size, length)))
        if length:
            self._start_body(_AT_SIZED_BODY, length)
        else:
            self._state = _AT_HEAD
            self._events.append(_NO_BODY_END)

    def _fail(self, error: ParseError) -> None:
        if self._asked_for_tunnel and not self._in_message:
            self._lose()
        else:
            super()._fail(error)

    def _start_certainty(self, line: bytes) -> int:
        match = self._LINE.fullmatch(line)
        if match is None:
            return 0
        return 2 if match[1].decode("ascii") in _REGISTERED_METHODS else 1

    def _may_start(self, beginning: bytes) -> bool:
        return self._LINE_START.fullmatch(beginning) is not None


class ResponseParser(_MessageParser):
    """
    Read responses, which only make sense with the methods they answer.

    A response of which nobody said the method is read as one to GET. Loss makes the
    parser forget which methods are outstanding, since it cannot tell how many responses
    went with it.
    """

    MAX_EXPECTED: ClassVar = 1024

    __slots__ = ("_expected", "_unremembered")

    _LINE: ClassVar = re.compile(rb"HTTP/1\.[01] [1-5][0-9]{2}(?: [\t -~\x80-\xff]*)?\r?\n")

    def __init__(self, *, joined_late: bool = False) -> None:
        super().__init__(joined_late=joined_late)
        self._expected: deque[str] = deque()
        self._unremembered = 0
        """Requests after the last of ``_expected``, beyond the bound."""

    def expect(self, method: str) -> None:
        """Say that a request with ``method`` was sent; call it in order of the requests."""
        if self._unremembered or len(self._expected) >= self.MAX_EXPECTED:
            self._unremembered += 1
        else:
            self._expected.append(method)

    def _take_forgotten(self) -> str:
        if self._unremembered:
            self._unremembered -= 1
        return ""

    def _check_start_line(self, line: str) -> None:
        _split_status_line(line)

    def _open_message(self, lines: list[str], size: int) -> None:
        version, status, reason = _split_status_line(lines[0])
        del lines[0]
        headers, fields = _read_fields(lines)
        framing = fields or _NO_FRAMING
        is_coded = "transfer-encoding" in framing
        length = None if is_coded else _content_length(framing)
        self._events.append(_new(ResponseHead, (status, reason, version, headers, size, length)))
        method = ""
        if status >= 200:
            method = self._expected.popleft() if self._expected else self._take_forgotten()
        if length and status == 200 and method not in {"HEAD", "CONNECT"}:
            self._start_body(_AT_SIZED_BODY, length)
        elif status < 200 or status in (204, 304) or method == "HEAD":
            self._end_without_body()
            if status == 101:
                self._start_tunnel(framing.get("upgrade", "").lower())
        elif method == "CONNECT" and status < 300:
            self._end_without_body()
            self._start_tunnel("connect")
        elif is_coded and _is_chunked(framing):
            self._start_body(_State.CHUNK_SIZE)
        elif length is None:
            self._start_body(_State.OPEN_BODY)
        elif length:
            self._start_body(_State.SIZED_BODY, length)
        else:
            self._end_without_body()

    def _end_without_body(self) -> None:
        self._state = _AT_HEAD
        self._events.append(_NO_BODY_END)

    def _start_tunnel(self, protocol: str) -> None:
        self._state = _State.AFTER_HTTP
        self._events.append(TunnelStart(protocol))

    def _lose(self) -> None:
        super()._lose()
        self._expected.clear()
        self._unremembered = 0

    def _start_certainty(self, line: bytes) -> int:
        return 2 if self._LINE.fullmatch(line) else 0

    def _may_start(self, beginning: bytes) -> bool:
        return b"HTTP/1.".startswith(beginning[:7])


def _line_break(data: bytes, position: int) -> int:
    """Return where the line break at ``position`` ends, or ``_WAIT`` if it is cut."""
    if data.startswith(b"\n", position):
        return position + 1
    if data.startswith(b"\r\n", position):
        return position + 2
    if data[position:] == b"\r":
        return _WAIT
    raise ParseError("line break expected where a chunk or the chunked body ends")


def _split_lines(block: bytes) -> list[str]:
    """Return the lines of a head or trailer section, a CR at the end of each left on."""
    text = block.decode("latin-1")
    if "\0" in text:
        raise ParseError("message head contains NUL")
    return text.split("\n")


def _split_request_line(line: str) -> tuple[str, str, str]:
    parts = line.split(" ")
    if len(parts) != 3:
        raise ParseError("malformed request line")
    method, target, protocol = parts
    version = _VERSIONS.get(protocol)
    if version is None:
        raise ParseError("request line names no version of HTTP/1")
    if method not in _REGISTERED_METHODS and not _METHOD.fullmatch(method):
        raise ParseError("malformed request method")
    if not target or not (target.isprintable() or not _CONTROL.search(target)):
        raise ParseError("malformed request target")
    return method, target, version


def _split_status_line(line: str) -> tuple[str, int, str]:
    known = _KNOWN_STATUS_LINES.get(line)
    if known is not None:
        return known
    protocol, _, rest = line.partition(" ")
    code, _, reason = rest.rstrip("\r").partition(" ")
    version = _VERSIONS.get(protocol)
    # isdecimal is isdigit without the superscripts of ISO-8859-1
    if version is None or len(code) != 3 or not code.isdecimal() or code < "100":
        raise ParseError("malformed status line")
    if not (reason.isprintable() or not _CONTROL.search(reason.replace("\t", " "))):
        raise ParseError("malformed reason phrase")
    status_line = version, int(code), reason
    if len(line) <= _MAX_KNOWN_STATUS_LINE_SIZE:
        if len(_KNOWN_STATUS_LINES) >= _MAX_KNOWN_STATUS_LINES:
            _KNOWN_STATUS_LINES.clear()
        _KNOWN_STATUS_LINES[line] = status_line
    return status_line


def _read_fields(lines: list[str]) -> tuple[Headers, dict[str, str] | None]:
    """
    Return the header fields, and those among them that frame messages, if there are any.

    Of the latter the name is in lower case, and the values of one name are joined by
    commas, which for each of them means the same (RFC 9110, section 5.3).
    """
    fields: list[tuple[str, str]] = []
    values: dict[str, str] | None = None
    is_folded = False
    known_lines, ordinary, around = _KNOWN_LINES, _ORDINARY_NAMES, _AROUND_VALUE
    for line in lines:
        field = known_lines.get(line)
        if field is None:
            name, colon, value = line.partition(":")
            if name in ordinary and colon:
                field = (name, value.strip(around))
                if name in _REPEATED_NAMES:
                    _remember_line(line, field)
            elif name in _FRAMING_FIELDS and colon:
                field = (name, value.strip(around))
                values = _add_value(values, _FRAMING_FIELDS[name], field[1])
            elif line[0] in " \t":  # obs-fold: RFC 9112, section 5.2
                _unfold(fields, line)
                is_folded = True
                continue
            else:
                field = (_checked_name(name, colon), value.strip(around))
                if field[0].lower() in _FRAMING_FIELDS:
                    values = _add_value(values, field[0].lower(), field[1])
        fields.append(field)
    if values is not None and is_folded:  # one of them may be longer than it was
        values = _framing_of(fields)
    return tuple(fields), values


def _remember_line(line: str, field: tuple[str, str]) -> None:
    if len(line) <= _MAX_KNOWN_LINE_SIZE:
        if len(_KNOWN_LINES) >= _MAX_KNOWN_LINES:
            _KNOWN_LINES.clear()
        _KNOWN_LINES[line] = field


def _unfold(fields: list[tuple[str, str]], line: str) -> None:
    """Add a continuation line to the last of ``fields``."""
    if not fields:
        raise ParseError("first header line is folded")
    name, value = fields[-1]
    fields[-1] = (name, f"{value} {line.strip(_AROUND_VALUE)}".strip(" "))


def _framing_of(fields: list[tuple[str, str]]) -> dict[str, str] | None:
    """Return the values of those fields that frame messages, by name in lower case."""
    values: dict[str, str] | None = None
    for name, value in fields:
        if name.lower() in _FRAMING_FIELDS:
            values = _add_value(values, name.lower(), value)
    return values


def _add_value(values: dict[str, str] | None, name: str, value: str) -> dict[str, str]:
    if values is None:
        return {name: value}
    values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _checked_name(name: str, colon: str) -> str:
    """Return the name of a field without the white space some leave before the colon."""
    name = name.rstrip(" \t")
    if not colon or not _FIELD_NAME.fullmatch(name):
        raise ParseError("malformed header line")
    if (
        len(_ORDINARY_NAMES) < _MAX_ORDINARY_NAMES
        and len(name) <= _MAX_ORDINARY_NAME_SIZE
        and name.lower() not in _FRAMING_FIELDS
    ):
        _ORDINARY_NAMES.add(name)
    return name


def _content_length(framing: dict[str, str]) -> int | None:
    value = framing.get("content-length")
    if value is None:
        return None
    if "," in value:
        value, *others = {part.strip(" \t") for part in value.split(",")}
        if others:
            raise ParseError("content lengths contradict each other")
    if not value.isdecimal() or len(value) > 18:
        raise ParseError("malformed content length")
    return int(value)


def _is_chunked(framing: dict[str, str]) -> bool:
    return framing["transfer-encoding"].lower().rpartition(",")[2].strip(" \t") == "chunked"


def _proxy_v1(line: str) -> ProxyHeader:
    words = line.split(" ")
    if words[1] == "UNKNOWN":
        return ProxyHeader(1, "", 0, "", 0)
    if len(words) != 6:
        raise ParseError("malformed PROXY protocol line")
    family = IPv4Address if words[1] == "TCP4" else IPv6Address
    source, destination = _address(family, words[2]), _address(family, words[3])
    ports = [int(word) if word.isdecimal() and len(word) <= 5 else 65536 for word in words[4:]]
    if not source or not destination or max(ports) > 65535:
        raise ParseError("malformed PROXY protocol line")
    return ProxyHeader(1, source, ports[0], destination, ports[1])


def _address(family: type[IPv4Address | IPv6Address], text: str) -> str:
    """Return the address in its canonical form, or nothing if it is none."""
    try:
        return str(family(text))
    except ValueError:
        return ""


def _proxy_v2(family: int, block: bytes) -> ProxyHeader:
    size = _PROXY_V2_ADDRESS_SIZES.get(family & 0xF0)
    if size is None:  # no addresses, or those of Unix sockets
        return ProxyHeader(2, "", 0, "", 0)
    if len(block) < 2 * size + 4:
        raise ParseError("PROXY protocol header is too short for its addresses")
    address = IPv4Address if size == 4 else IPv6Address
    return ProxyHeader(
        2,
        str(address(block[:size])),
        int.from_bytes(block[2 * size : 2 * size + 2]),
        str(address(block[size : 2 * size])),
        int.from_bytes(block[2 * size + 2 : 2 * size + 4]),
    )
