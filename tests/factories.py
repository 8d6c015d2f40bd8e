"""
Values for tests: keyword factories that fill in what a case does not care about.

``tests/conftest.py`` hands them out as fixtures of the same names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.connection.model import Container, Peer, Process
from otel_qtap.transaction.model import (
    Body,
    Direction,
    Ending,
    Request,
    Response,
    Timings,
    Transaction,
)

START_NS = 1_788_000_000_123_456_789
"""2026-08-29T10:40:00.123456789Z"""

MS = 1_000_000

HAPROXY = Process(
    pid=987,
    start_time_ns=START_NS - 3_600_000 * MS,
    executable="/usr/local/sbin/haproxy",
    user_id=99,
    user="haproxy",
    container_id="c0ffee" + "0" * 58,
)

HAPROXY_CONTAINER = Container(
    id="c0ffee" + "0" * 58, name="haproxy-demo", image="haproxy:2.9-alpine"
)


def make_process(**changes: Any) -> Process:
    """HAProxy, process 987, in its container."""
    return replace(HAPROXY, **changes)


def make_container(**changes: Any) -> Container:
    """The container of the guide, ``haproxy-demo``."""
    return replace(HAPROXY_CONTAINER, **changes)


def make_body(
    content: bytes = b"", *, size: int | None = None, wire_size: int | None = None
) -> Body:
    """A body that was captured whole unless ``size`` says otherwise."""
    size = len(content) if size is None else size
    return Body(content=content, size=size, wire_size=size if wire_size is None else wire_size)


def make_request(
    method: str = "GET",
    target: str = "/api/users",
    *,
    headers: tuple[tuple[str, str], ...] = (("host", "localhost:8085"),),
    body: bytes | Body = b"",
    **changes: Any,
) -> Request:
    """``GET /api/users`` for ``localhost:8085``."""
    return Request(
        method=method,
        target=target,
        version=changes.pop("version", "1.1"),
        headers=headers,
        body=body if isinstance(body, Body) else make_body(body),
        head_size=changes.pop("head_size", 100),
        **changes,
    )


def make_response(
    status: int = 200,
    *,
    reason: str = "OK",
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),),
    body: bytes | Body = b"",
    **changes: Any,
) -> Response:
    """``200 OK`` with a JSON content type and an empty body."""
    return Response(
        status=status,
        reason=reason,
        version=changes.pop("version", "1.1"),
        headers=headers,
        body=body if isinstance(body, Body) else make_body(body),
        head_size=changes.pop("head_size", 80),
        **changes,
    )


def make_timings(
    *, start_ns: int = START_NS, duration_ns: int = 12 * MS, **changes: Any
) -> Timings:
    """A request that took ``duration_ns``, its response head half of that."""
    times = {
        "request_start_ns": start_ns,
        "request_head_ns": start_ns,
        "request_end_ns": start_ns,
        "response_start_ns": start_ns + duration_ns // 2,
        "response_head_ns": start_ns + duration_ns // 2,
        "response_end_ns": start_ns + duration_ns,
        "end_ns": start_ns + duration_ns,
    }
    return Timings(**(times | changes))


_ANSWERED = object()


def make_transaction(
    *,
    direction: Direction = Direction.INGRESS,
    method: str = "GET",
    target: str = "/api/users",
    status: int | None = 200,
    request: Request | None = None,
    response: Any = _ANSWERED,
    request_headers: tuple[tuple[str, str], ...] | None = None,
    response_headers: tuple[tuple[str, str], ...] | None = None,
    request_body: bytes | Body = b"",
    response_body: bytes | Body = b"",
    timings: Timings | None = None,
    duration_ns: int = 12 * MS,
    level: CaptureLevel = CaptureLevel.FULL,
    format: CaptureFormat = CaptureFormat.JSON,  # noqa: A002 - the name of the field
    **changes: Any,
) -> Transaction:
    """
    A complete transaction as HAProxy of the guide sees it.

    ``status=None`` or ``response=None`` leaves the response out. Ingress comes from
    192.0.2.7 to port 80; egress goes to 172.18.0.3:8001, known as ``backend-api-1``.
    """
    if request is None:
        known: dict[str, Any] = {} if request_headers is None else {"headers": request_headers}
        request = make_request(method, target, body=request_body, **known)
    if response is _ANSWERED:
        known = {} if response_headers is None else {"headers": response_headers}
        reason = "OK" if status == 200 else ""
        response = (
            None
            if status is None
            else make_response(status, reason=reason, body=response_body, **known)
        )
    if timings is None:
        unanswered = {"response_start_ns": 0, "response_head_ns": 0, "response_end_ns": 0}
        timings = make_timings(duration_ns=duration_ns, **(unanswered if response is None else {}))
    if direction.is_ingress:
        ends = {"local": Peer("172.18.0.2", 80), "remote": Peer("192.0.2.7", 51234)}
    else:
        ends = {
            "local": Peer("172.18.0.2", 40404),
            "remote": Peer("172.18.0.3", 8001),
            "remote_name": "backend-api-1",
        }
    fields: dict[str, Any] = {
        "request_id": "d3kq1f0t8s4c73a1b2c0",
        "connection_id": "d3kq1f0t8s4c73a1b2bg",
        "index": 0,
        "direction": direction,
        "process": HAPROXY,
        "container": HAPROXY_CONTAINER,
        "request": request,
        "response": response,
        "timings": timings,
        "ending": Ending.COMPLETE if response is not None else Ending.CLIENT_CLOSED,
        "level": level,
        "format": format,
    }
    return Transaction(**(fields | ends | changes))
