r"""
HAProxy's access log: one line of text becomes one ``AccessLogLine``.

Sans-I/O. The formats are those that HAProxy declares itself (configuration manual,
sections 8.2.3 and 8.2.4, the same from 2.4 to 3.2): ``option httplog``, ``option
httplog clf`` and ``option httpslog``. Anything else, a custom ``log-format`` included, is
not recognised; nothing is guessed, since a client chooses part of what a line says.
What HAProxy puts in front of a line (``format rfc3164``, ``rfc5424``, …) is taken off.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

__all__ = ["AccessLogLine", "LogFormat", "parse_line", "split_lines"]

MAX_LINE_SIZE = 64 * 1024  # "len" of a "log" line goes up to 65,535

NOT_REACHED = -1
"""What a timer says when the request ended before that step."""


class LogFormat(Enum):
    """Which of HAProxy's formats a line is in."""

    HTTP = "httplog"
    HTTPS = "httpslog"
    CLF = "httplog clf"


class AccessLogLine(NamedTuple):
    """
    What HAProxy says of one request.

    Times are milliseconds, -1 where the request ended before that step. Captured cookies
    are not kept: they are what people capture to follow sessions.
    """

    format: LogFormat
    client_address: str
    """``unix`` for a client of a Unix socket; its port is then the id of the listener."""
    client_port: int
    start_ms: int
    """
    First byte of the request by the wall clock of the HAProxy process, in milliseconds
    from 1970-01-01 00:00 of *its* time zone, which the line does not name; in seconds
    and UTC for CLF.
    """
    frontend: str
    is_tls: bool
    """Whether the client used TLS (the ``~`` behind the frontend's name)."""
    backend: str
    server: str
    """Name of the last server tried; empty when there was none."""
    handler: str
    """What answered in place of a server: ``STATS``, ``CACHE``, ``NOSRV``; else empty."""
    request_ms: int
    """TR: until the head of the request was complete."""
    queue_ms: int
    """Tw: in the queues of server and backend."""
    connect_ms: int
    """Tc: until the connection to the server was up, retries included; 0 when reused."""
    response_ms: int
    """Tr: until the head of the server's response was complete."""
    active_ms: int
    """Ta: from the first byte of the request to the last byte of the response."""
    status: int
    """Status sent to the client; -1 or 0 when none was."""
    bytes_read: int
    """Bytes sent to the client, heads included."""
    termination_state: str
    """Four characters (manual, section 8.5): who ended it, in which phase, cookie states."""
    process_connections: int
    frontend_connections: int
    backend_connections: int
    server_connections: int
    retries: int
    is_redispatched: bool
    """Whether the request went to another server than the one first chosen."""
    server_queue: int
    """Requests that were before this one in the queue of the server."""
    backend_queue: int
    captures: tuple[tuple[str, ...], ...]
    """
    Captured headers as the line groups them, request before response. With one group the
    line does not say which of the two it is. Not shown by ``repr``.
    """
    method: str
    """Empty when HAProxy could not read the request (``<BADREQ>``), as target and version."""
    target: str
    """As the client sent it, escapes undone. Not shown by ``repr``."""
    version: str
    """``1.1``, ``2.0``; empty when the line was cut before it."""
    is_cut: bool
    """Whether the request is not whole: ``len`` and ``tune.http.logurilen`` are 1,024."""
    is_early: bool
    """Whether it was written before the end of the response (``option logasap``)."""
    tls_name: str
    """Server name that a TLS client asked for; HTTPS format only, as the next two."""
    tls_version: str
    tls_cipher: str

    def without_request(self) -> AccessLogLine:
        """Return it without what may be secret: what the client asked and what was captured."""
        return _new(AccessLogLine, (*self[:_CAPTURES], (), "", "", *self[_CAPTURES + 3 :]))

    @property
    def has_request(self) -> bool:
        """Whether HAProxy could read what the client asked for."""
        return bool(self.method)

    def __repr__(self) -> str:
        """Say which request without what may be secret in it."""
        return (
            f"AccessLogLine({self.client_address}:{self.client_port} {self.frontend}"
            f" {self.backend}/{self.server or self.handler} {self.status}"
            f" {self.termination_state})"
        )


_CAPTURES = AccessLogLine._fields.index("captures")  # method and target follow
# What a named tuple's own constructor calls, which is Python code and takes twice as long.
_new = tuple.__new__


def split_lines(data: bytes) -> list[bytes]:
    """
    Return the lines of what one system call wrote, empty ones left out.

    HAProxy writes one line per call to a descriptor and per datagram. A ring that forwards
    to a server over TCP collects several: with a newline each, or behind their size
    (``log-proto octet-count``, RFC 6587, section 3.4.1).
    """
    lines: list[bytes] = []
    at = 0
    while counted := _COUNT.match(data, at):
        at = counted.end() + int(counted[1])
        lines.append(data[counted.end() : at])
    rest = data[at:] if at else data
    if rest.find(b"\n", 0, -1) < 0:
        return [*lines, rest] if rest.strip() else lines
    return lines + [line for line in rest.split(b"\n") if line]


def parse_line(data: bytes) -> AccessLogLine | None:
    """Return what one line says, ``None`` for what is none of the formats; never raises."""
    if len(data) > MAX_LINE_SIZE:
        return None
    text = data.decode("latin-1").rstrip("\r\n\0")  # every byte is one character, as HTTP has it
    header = _HEADER.match(text)
    start = header.end() if header else 0
    try:
        found = _HTTP.match(text, start)
        if found is not None:
            return _line(found, text, LogFormat.HTTP)
        found = _CLF.match(text, start)
        return _line(found, text, LogFormat.CLF) if found is not None else None
    except ValueError:  # the shape of a date, but none: 31 February
        return None


# What may stand in front of a line ----------------------------------------------------
# log ... format local (default), rfc3164, rfc5424, priority, short, timed, iso, raw.

_COUNT = re.compile(rb"(\d{1,5}) (?=<)")
_HEADER = re.compile(
    r"(?:<\d{1,3}>)?"
    r"(?:1 \S+ \S+ \S+ \S+ \S+ (?:-|(?:\[(?:[^\]\\]|\\.)*\])+) "  # RFC 5424
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (?:[^ :]+ )?[^ :\[]{1,64}(?:\[\d{1,10}\])?: "
    r"|\d{4}-\d\d-\d\dT[\d:.]{8,18}(?:Z|[+-]\d\d:\d\d) )?"
)

# The lines ----------------------------------------------------------------------------

_CLIENT = r"(?P<address>\S+)"
_TIMERS = (
    r" (?P<request>-?\d{1,10})~(?P<queue>-?\d{1,10})~(?P<connect>-?\d{1,10})"
    r"~(?P<response>-?\d{1,10})~\+?(?P<active>-?\d{1,10})"
)
_SIZE = r"(?P<status>-?\d{1,3}) (?P<early>\+?)(?P<bytes>\d{1,19})"
_STATE = (
    r"(?P<state>[A-Za-z-]{4})%s (?P<process>\d{1,10})~(?P<front>\d{1,10})~(?P<back>\d{1,10})"
    r"~(?P<of_server>\d{1,10})~(?P<redispatched>\+?)(?P<retries>\d{1,10})"
    r" (?P<server_queue>\d{1,10})~(?P<backend_queue>\d{1,10})"
)
_HTTP = re.compile(
    _CLIENT
    + r":(?P<port>\d{1,10}) \[(?P<date>[^\]]{24})\]"
    + r" (?P<frontend>\S+) (?P<backend>[^ /]+)/(?P<server>\S+)"
    + _TIMERS.replace("~", "/")
    + f" {_SIZE}"
    + r" (?:\S+|.{1,128}?) (?:\S+|.{1,128}?) "  # cookies; a captured value may hold spaces
    + (_STATE % "").replace("~", "/")
    + r'(?: \{(?P<first>[^{}"]*)\})?(?: \{(?P<second>[^{}"]*)\})?'
    + r' "(?P<line>[^"]*)(?P<quote>"?)'
)
_HTTPS_TAIL = re.compile(r" [\d-]+/[\dA-Fa-f-]+/[\d-]+/[\d-]+/[\d-]+ ([^ /]*)/([^ /]*)/([^ /]*)")
_CLF = re.compile(
    _CLIENT
    + r' - - \[(?P<date>[^\]]{26})\] "(?P<line>[^"]*)'
    + rf'(?P<quote>") {_SIZE}'
    + r' "" "" (?P<port>\d{1,10}) \d{1,3}'
    + r' "(?P<frontend>[^" ]+)" "(?P<backend>[^" ]+)" "(?P<server>[^" ]+)"'
    + _TIMERS.replace("~", " ")
    + (' "?' + _STATE % '"?').replace("~", " ")
    + r' "[^"]*" "[^"]*"'  # cookies
    + r"(?P<first>)(?P<second>)"
)
_GROUPS = (  # in the order that they have in _HTTP
    "address", "port", "date", "frontend", "backend", "server",
    "request", "queue", "connect", "response", "active", "status", "early", "bytes",
    "state", "process", "front", "back", "of_server", "redispatched", "retries",
    "server_queue", "backend_queue", "first", "second", "line", "quote",
)  # fmt: skip
_ESCAPE = re.compile("#([0-9A-F]{2})")
_CLF_CAPTURE = re.compile(r' "([^"]*)"')


def _line(found: re.Match[str], text: str, format_: LogFormat) -> AccessLogLine | None:
    (
        address, port, date, frontend, backend, server,
        request_ms, queue_ms, connect_ms, response_ms, active_ms, status, early, bytes_read,
        state, process, front, back, of_server, redispatched, retries,
        server_queue, backend_queue, first, second, request, quote,
    ) = found.groups() if format_ is LogFormat.HTTP else found.group(*_GROUPS)  # fmt: skip
    tls = _NO_TLS
    captures: tuple[tuple[str, ...], ...] = ()
    if format_ is LogFormat.CLF:
        start_ms = _utc_date(date)
        captures = _clf_captures(text, found.end())
    else:
        start_ms = _local_date(date[:20]) + _milliseconds(date[20:])
        if first is not None:
            captures = _captures(first, second)
        if quote and found.end() < len(text):
            tail = _HTTPS_TAIL.fullmatch(text, found.end())
            if tail is None:
                return None  # somebody's own format that begins like the default one
            format_ = LogFormat.HTTPS
            tls = _Tls(*("" if part == "-" else part for part in tail.groups()))
    is_handler = server[0] == "<" and server[-1] == ">"
    method, target, version = _request(request, is_cut=not quote)
    is_cut = not quote or (bool(method) and not version)
    return _new(AccessLogLine, (
        format_, address, int(port), start_ms,
        frontend.removesuffix("~"), frontend[-1] == "~", backend,
        "" if is_handler else server, server[1:-1] if is_handler else "",
        int(request_ms), int(queue_ms), int(connect_ms), int(response_ms), int(active_ms),
        int(status), int(bytes_read), state,
        int(process), int(front), int(back), int(of_server), int(retries), bool(redispatched),
        int(server_queue), int(backend_queue), captures,
        method, target, version, is_cut, bool(early), *tls,
    ))  # fmt: skip


class _Tls(NamedTuple):
    name: str = ""
    version: str = ""
    cipher: str = ""


_NO_TLS = _Tls()


def _request(line: str, *, is_cut: bool) -> tuple[str, str, str]:
    """Return (method, target, version) of the request line; all empty for ``<BADREQ>``."""
    method, separator, rest = line.partition(" ")
    if not separator or method[:1] == "<":
        return "", "", ""
    target, _, version = rest.rpartition(" ")
    if not version.startswith("HTTP/") or not target:  # cut; or HTTP/0.9, which says none
        target, version = rest, ""
        if is_cut:
            target = target.partition(" ")[0]
    if "#" in target:
        target = _unescape(target)
    return method, target, version[5:]


def _captures(first: str, second: str | None) -> tuple[tuple[str, ...], ...]:
    groups = (first,) if second is None else (first, second)
    return tuple(tuple(_unescape(value) for value in group.split("|")) for group in groups)


def _clf_captures(text: str, start: int) -> tuple[tuple[str, ...], ...]:
    values = tuple(_unescape(value) for value in _CLF_CAPTURE.findall(text, start))
    return (values,) if values else ()


def _unescape(text: str) -> str:
    """Undo HAProxy's escapes, ``#`` and two hexadecimal digits (manual, section 8.6)."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


@lru_cache(maxsize=64)  # lines of the same second come together
def _local_date(date: str) -> int:
    """Return the milliseconds of ``21/Nov/2026:14:49:12``, taken as if it were UTC."""
    return _to_ms(int(date[7:11]), date[3:6], date[:2], date[12:])


@lru_cache(maxsize=64)
def _utc_date(date: str) -> int:
    """Return the milliseconds since the epoch of ``21/Nov/2026:14:49:12 +0000``."""
    hours, minutes = int(date[22:24]), int(date[24:26])
    offset_ms = (hours * 60 + minutes) * 60_000
    return _local_date(date[:20]) - (-offset_ms if date[21] == "-" else offset_ms)


def _to_ms(year: int, month: str, day: str, clock: str) -> int:
    hour, minute, second = clock.split(":")
    moment = datetime(year, _MONTHS.index(month) + 1, int(day), int(hour), int(minute), tzinfo=UTC)
    return int(moment.timestamp() + int(second)) * 1000  # a leap second is 60


def _milliseconds(text: str) -> int:
    if text[0] != ".":
        raise ValueError("no milliseconds")
    return int(text[1:])


_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
