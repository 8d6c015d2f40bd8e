"""
The ``access_logs`` plugin: one line, or one section by section account, per transaction.

For people at a console (``format: console``) or for a log collector (``json``), in the
shapes of Qtap's plugin of that name. It writes through the same queue as the stdout
store, so lines and blocks of both never mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.protocol.events import Headers
from otel_qtap.stores.json_record import json_line, rfc3339
from otel_qtap.stores.stdout import StdoutWriter
from otel_qtap.transaction.model import Request, Response, Transaction
from otel_qtap.transaction.readable import (
    escape_block,
    escape_line,
    readable_body,
    readable_text,
    status_phrase,
)

__all__ = ["AccessLogFormat", "AccessLogRule", "AccessLogs"]

MAX_BODY_SIZE = 1024 * 1024

_COLOURS = {2: "32", 3: "34", 4: "33", 5: "31"}  # by class of status: green, blue, yellow, red
_BAND = "=" * 80
_DASHES = "-" * 18


class AccessLogFormat(Enum):
    """How access logs are written."""

    CONSOLE = "console"
    JSON = "json"


class AccessLogRule(Protocol):
    """A compiled entry of ``rules``."""

    @property
    def mode(self) -> CaptureLevel:
        """What to print of what it matches."""

    def matches(self, transaction: Transaction) -> bool:
        """Whether this rule decides about ``transaction``."""


class AccessLogs:
    """Print each transaction, redacted, as far as the first matching rule or ``mode`` says."""

    def __init__(
        self,
        *,
        mode: CaptureLevel,
        format: AccessLogFormat = AccessLogFormat.CONSOLE,  # noqa: A002 - the key of the Qtap file
        redactor: Redactor,
        writer: StdoutWriter,
        rules: Sequence[AccessLogRule] = (),
        is_coloured: bool | None = None,
    ) -> None:
        self._mode = mode
        self._redactor = redactor
        self._writer = writer
        self._rules = tuple(rules)
        self._is_coloured = writer.is_terminal if is_coloured is None else is_coloured
        self._render = self._render_json if format is AccessLogFormat.JSON else self._render_console

    def consume(self, transaction: Transaction) -> None:
        """Queue the lines for ``transaction``; none when its mode is ``none``."""
        mode = self._mode
        for rule in self._rules:
            if rule.matches(transaction):
                mode = rule.mode
                break
        if mode is not CaptureLevel.NONE:
            self._writer.put(self._redactor.redact(transaction).reduced_to(mode), self._render)

    def _render_console(self, transaction: Transaction) -> str:
        summary = _summary_line(transaction, is_coloured=self._is_coloured)
        if not transaction.level.has_headers:
            return summary + "\n"
        request, response = transaction.request, transaction.response
        meta = [f"{name}: {escape_line(value)}" for name, value in _meta(transaction).items()]
        lines = [_BAND, summary, _BAND, *_section("META", meta)]
        lines += _section("REQUEST", [_request_line(transaction), *_header_lines(request.headers)])
        if transaction.level.has_bodies:
            lines += _section("REQUEST BODY", [_body_text(request)])
        if response is not None:
            status = f"{response.status} {_line(status_phrase(response))}".rstrip()
            head = [f"HTTP/{response.version} {status}", *_header_lines(response.headers)]
            lines += _section("RESPONSE", head)
            if transaction.level.has_bodies:
                lines += _section("RESPONSE BODY", [_body_text(response)])
        return "\n".join([*lines, _BAND, ""])

    def _render_json(self, transaction: Transaction) -> str:
        response = transaction.response
        record: dict[str, Any] = {
            "level": "info",
            "ts": rfc3339(transaction.timings.end_ns or transaction.timings.request_start_ns),
            "msg": "HTTP transaction",
        }
        if transaction.level.has_headers:
            record |= {
                "meta": _meta(transaction),
                "direction": transaction.direction.value,
                "request": _json_request(transaction),
                "response": _json_response(transaction),
            }
        else:
            record |= {
                "bin": readable_text(transaction.process.name),
                "direction": transaction.direction.value,
                "method": readable_text(transaction.request.method),
                "url": readable_text(transaction.url),
                "status": response.status if response else 0,
                "qpoint_request_id": transaction.request_id,
            }
        return json_line(record) + "\n"


def _summary_line(transaction: Transaction, *, is_coloured: bool) -> str:
    response = transaction.response
    arrow = "←" if transaction.direction.is_ingress else "→"
    status = f"- {transaction.ending.value}"
    mark = "■"
    if response is not None:
        status = f"{response.status} {_line(status_phrase(response))}".rstrip()
        colour = _COLOURS.get(response.status // 100)
        if is_coloured and colour:
            mark = f"\x1b[{colour}m{mark}\x1b[0m"
    name, method = _line(transaction.process.name), _line(transaction.request.method)
    return f"{mark} {name} {arrow} {method} {_line(transaction.url)} {status}"


def _meta(transaction: Transaction) -> dict[str, str]:
    """Return the facts about both ends, as strings."""
    container = transaction.container
    meta = {
        "request_id": transaction.request_id,
        "connection_id": transaction.connection_id,
        "process_id": str(transaction.process.pid),
        "process_exe": readable_text(transaction.process.executable),
        "container_name": readable_text(container.name) if container else "",
        "container_image": readable_text(container.image) if container else "",
        "local": transaction.local.authority(),
        "remote": transaction.remote.authority(),
        "time": rfc3339(transaction.timings.request_start_ns),
        "duration_ms": f"{transaction.timings.duration_ns / 1e6:.3f}",
        "ending": transaction.ending.value,
    }
    return {name: value for name, value in meta.items() if value}


def _request_line(transaction: Transaction) -> str:
    request = transaction.request
    return f"{_line(request.method)} {_line(transaction.url)} HTTP/{request.version}"


def _section(title: str, content: list[str]) -> list[str]:
    return [f"{_DASHES} {title} {_DASHES}", *content]


def _header_lines(headers: Headers) -> list[str]:
    return [f"{_line(name)}: {_line(value)}" for name, value in headers]


def _body_text(message: Request | Response) -> str:
    if not message.body.content:
        return "(empty)"
    text = readable_body(message, MAX_BODY_SIZE).text
    if text is None:
        return "Body is in binary format"
    # A line that looks like a band or a title is set off, so no body can forge one.
    return "\n".join(
        f"\\{line}" if line.startswith(("====", _DASHES, "■")) else line
        for line in escape_block(text).removesuffix("\n").split("\n")
    )


def _json_request(transaction: Transaction) -> dict[str, Any]:
    request = transaction.request
    return {
        "url": readable_text(transaction.url),
        "method": readable_text(request.method),
        "proto": f"HTTP/{request.version}",
        "qpoint_request_id": transaction.request_id,
    } | _json_content(transaction, request)


def _json_response(transaction: Transaction) -> dict[str, Any]:
    response = transaction.response
    if response is None:
        return {"status": 0}
    return {"status": response.status} | _json_content(transaction, response)


def _json_content(transaction: Transaction, message: Request | Response) -> dict[str, Any]:
    content: dict[str, Any] = {"headers": _first_values(message.headers)}
    if transaction.level.has_bodies:
        text = readable_body(message, MAX_BODY_SIZE).text
        content["body"] = "Body is in binary format" if text is None else text
    return content


def _first_values(headers: Headers) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in headers:
        values.setdefault(readable_text(name), readable_text(value))
    return values


def _line(value: str) -> str:
    return escape_line(readable_text(value))
