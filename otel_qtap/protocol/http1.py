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
once; and lines and names that were checked before are not checked again.

What the two directions share is below them: ``http1_message.py`` (heads and loss) stands
on ``http1_body.py`` (bodies), and both on ``http1_fields.py``.
"""

from __future__ import annotations

import re
from collections import deque
from typing import ClassVar

from otel_qtap.protocol.events import (
    MessageEnd,
    MessageEnding,
    ParseError,
    RequestHead,
    ResponseHead,
    TunnelStart,
)
from otel_qtap.protocol.http1_body import WAIT, State, Step
from otel_qtap.protocol.http1_fields import content_length, is_chunked, read_fields
from otel_qtap.protocol.http1_message import MessageParser
from otel_qtap.protocol.proxy_header import read_proxy_header

__all__ = ["ParseError", "RequestParser", "ResponseParser"]

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
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

_KNOWN_STATUS_LINES: dict[str, tuple[str, int, str]] = {}
_MAX_KNOWN_STATUS_LINES = 512
_MAX_KNOWN_STATUS_LINE_SIZE = 64
_NO_BODY_END = MessageEnd(MessageEnding.COMPLETE, (), 0)
_NO_FRAMING: dict[str, str] = {}

# Looking up a member of an enumeration takes longer than comparing with it.
_AT_HEAD = State.HEAD
_AT_SIZED_BODY = State.SIZED_BODY

# What a named tuple's own constructor calls, which is Python code and takes twice as long.
_new = tuple.__new__


class RequestParser(MessageParser):
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
            self._state = State.PREFACE

    def _read_preface(self, data: bytes, position: int) -> int:
        found = read_proxy_header(data, position)
        if found is None:
            return WAIT
        header, end = found
        if header is not None:
            self._events.append(header)
        self._state = _AT_HEAD
        return end

    def _check_start_line(self, line: str) -> None:
        _split_request_line(line)

    def _open_message(self, lines: list[str], size: int) -> None:
        method, target, version = _split_request_line(lines[0])
        del lines[0]
        headers, framing = read_fields(lines)
        self._asked_for_tunnel = method == "CONNECT"
        length: int | None = None
        if framing:
            self._asked_for_tunnel |= "upgrade" in framing
            if "transfer-encoding" in framing:
                if not is_chunked(framing):
                    # RFC 9112, section 6.3: nobody can tell where it ends
                    raise ParseError("transfer coding of a request does not end in chunked")
                head = _new(RequestHead, (method, target, version, headers, size, None))
                self._events.append(head)
                self._start_body(State.CHUNK_SIZE)
                return
            length = content_length(framing)
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

    STEPS: ClassVar[dict[State, Step]] = {
        **MessageParser.STEPS,
        State.PREFACE: _read_preface,
    }


class ResponseParser(MessageParser):
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
        headers, fields = read_fields(lines)
        framing = fields or _NO_FRAMING
        is_coded = "transfer-encoding" in framing
        length = None if is_coded else content_length(framing)
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
        elif is_coded and is_chunked(framing):
            self._start_body(State.CHUNK_SIZE)
        elif length is None:
            self._start_body(State.OPEN_BODY)
        elif length:
            self._start_body(State.SIZED_BODY, length)
        else:
            self._end_without_body()

    def _end_without_body(self) -> None:
        self._state = _AT_HEAD
        self._events.append(_NO_BODY_END)

    def _start_tunnel(self, protocol: str) -> None:
        self._state = State.AFTER_HTTP
        self._events.append(TunnelStart(protocol))

    def _lose(self) -> None:
        super()._lose()
        self._expected.clear()
        self._unremembered = 0

    def _start_certainty(self, line: bytes) -> int:
        return 2 if self._LINE.fullmatch(line) else 0

    def _may_start(self, beginning: bytes) -> bool:
        return b"HTTP/1.".startswith(beginning[:7])


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
