r"""
``format: text``: a transaction as a block for people, in the shape that Qtap's guides show.

Header names are shown in their usual capitals (``content-type`` as ``Content-Type``);
JSON and telemetry keep the spelling of the wire. Whatever could drive a terminal is
escaped as ``\x1b``, and a body line that reads like a line of the block itself gets a
backslash in front, so no peer can forge or end a block.
"""

from __future__ import annotations

from collections.abc import Iterator

from otel_qtap.connection.model import Container, Process
from otel_qtap.protocol.events import Headers
from otel_qtap.transaction.model import Direction, Ending, Request, Response, Transaction
from otel_qtap.transaction.readable import (
    escape_block,
    escape_line,
    readable_body,
    readable_text,
    status_phrase,
)

__all__ = ["canonical_name", "direction_line", "duration_text", "render_text", "status_line"]

MAX_BODY_SIZE = 1024 * 1024
"""Bytes of a decoded body that are shown: what was captured is bounded, what it unpacks to not."""

_TITLE = "=== HTTP Transaction ==="
_END = "=" * 24
_SECTIONS = ("Request Headers", "Request Body", "Response Headers", "Response Body")
_MARKERS = frozenset({_TITLE, _END, *(f"--- {name} ---" for name in _SECTIONS)})

_QUIET_ENDINGS = (Ending.COMPLETE, Ending.UPGRADED)

# Names whose usual spelling is not the capitalised one.
_SPELLINGS = {
    "content-md5": "Content-MD5",
    "dnt": "DNT",
    "etag": "ETag",
    "sec-websocket-accept": "Sec-WebSocket-Accept",
    "sec-websocket-extensions": "Sec-WebSocket-Extensions",
    "sec-websocket-key": "Sec-WebSocket-Key",
    "sec-websocket-protocol": "Sec-WebSocket-Protocol",
    "sec-websocket-version": "Sec-WebSocket-Version",
    "te": "TE",
    "www-authenticate": "WWW-Authenticate",
    "x-request-id": "X-Request-ID",
    "x-ua-compatible": "X-UA-Compatible",
    "x-xss-protection": "X-XSS-Protection",
}


def render_text(transaction: Transaction) -> str:
    """Return the block for ``transaction``, its last line ended."""
    request, response = transaction.request, transaction.response
    lines = [
        _TITLE,
        f"Source Process: {_source(transaction.process, transaction.container)}",
        f"Direction: {direction_line(transaction)}",
        f"Method: {_line(request.method)}",
        f"URL: {_line(transaction.url)}",
        f"Status: {status_line(transaction)}",
        f"Duration: {duration_text(transaction.timings.duration_ns)}",
    ]
    if transaction.level.has_headers:
        lines += _section("Request Headers", _header_lines(request.headers))
    if transaction.level.has_bodies:
        lines += _section("Request Body", _body_lines(request))
    if response is not None:
        if transaction.level.has_headers:
            lines += _section("Response Headers", _header_lines(response.headers))
        if transaction.level.has_bodies:
            lines += _section("Response Body", _body_lines(response))
    lines += [_END, ""]
    return "\n".join(lines)


def direction_line(transaction: Transaction) -> str:
    """Return who talks to whom: ``INGRESS ← (client to haproxy)``."""
    name = _line(transaction.process.name)
    if transaction.direction is Direction.INGRESS:
        return f"INGRESS ← (client to {name})"
    return f"EGRESS → ({name} to backend)"


def status_line(transaction: Transaction) -> str:
    """Return ``200 OK``, with the ending in brackets if the answer is not whole."""
    response, ending = transaction.response, transaction.ending
    if response is None:
        return f"- ({ending.value})"
    status = f"{response.status} {_line(status_phrase(response))}".rstrip()
    return status if ending in _QUIET_ENDINGS else f"{status} ({ending.value})"


def duration_text(duration_ns: int) -> str:
    """Return whole milliseconds, ``12ms``; below one, tenths: ``0.4ms``. Never rounded up."""
    if duration_ns < 1_000_000:
        return f"0.{duration_ns // 100_000}ms"
    return f"{duration_ns // 1_000_000}ms"


def canonical_name(name: str) -> str:
    """Return a field name as people write it, whatever its spelling on the wire."""
    lower = name.lower()
    known = _SPELLINGS.get(lower)
    return known or "-".join(word.capitalize() for word in lower.split("-"))


def _source(process: Process, container: Container | None) -> str:
    where = ""
    if container is not None:
        where = f", Container: {_line(container.name or container.id[:12])}"
    return f"{_line(process.name)} (PID: {process.pid}{where})"


def _section(title: str, content: list[str]) -> list[str]:
    return ["", f"--- {title} ---", *content] if content else []


def _header_lines(headers: Headers) -> list[str]:
    return [
        f"{escape_line(canonical_name(readable_text(name)))}: {_line(value)}".rstrip()
        for name, value in headers
    ]


def _body_lines(message: Request | Response) -> list[str]:
    body = message.body
    if not body.size:
        return []
    readable = readable_body(message, MAX_BODY_SIZE)
    lines: list[str] = []
    if readable.text is None:
        content_type = _line(readable.content_type) or "unknown type"
        lines.append(f"(binary, {body.size} bytes, {content_type})")
    elif readable.text:
        lines += _unforged(escape_block(readable.text).removesuffix("\n"))
    if body.is_truncated:
        lines.append(f"(truncated: captured {len(body.content)} of {body.size} bytes)")
    elif readable.is_cut and readable.text is not None:
        lines.append(f"(truncated: shows {len(readable.data)} decoded bytes)")
    return lines


def _unforged(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        yield f"\\{line}" if line.strip() in _MARKERS else line


def _line(value: str) -> str:
    return escape_line(readable_text(value))
