"""
Reads back the lines of ``format: json``, as far as a report needs them.

A line names the server of an egress transaction and what an ingress one was asked for,
but not the frontend: its host and port stand for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from otel_qtap.connection.model import Container, Peer, Process
from otel_qtap.transaction.link import Link, LinkMethod, ProxyHop
from otel_qtap.transaction.model import (
    Direction,
    Ending,
    Request,
    Response,
    Timings,
    Transaction,
)

__all__ = ["read_record"]

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def read_record(line: str) -> Transaction | None:
    """
    Return the transaction of a line, ``None`` when it is not about one.

    Headers and bodies are left out.
    """
    try:
        record = json.loads(line)
        return _transaction(record)
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # an event, an access log line, text of another program


def _transaction(record: Mapping[str, Any]) -> Transaction:
    metadata, request = record["metadata"], record["request"]
    direction = Direction(record["direction"])
    url = urlsplit(request["url"])
    end = Peer(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
    nobody = Peer("", 0)
    start_ns = _nanoseconds(record["transaction_time"])
    end_ns = start_ns + int(record["duration_ms"]) * _NS_PER_MS
    ending = Ending(record.get("ending", Ending.COMPLETE.value))
    response = _response(record.get("response") or {}, ending)
    exe, container = metadata.get("process_exe", ""), metadata.get("container_name", "")
    return Transaction(
        request_id=metadata["request_id"],
        connection_id=metadata["connection_id"],
        index=0,
        direction=direction,
        process=Process(pid=int(metadata["process_id"]), executable=exe),
        container=Container(id="", name=container) if container else None,
        local=end if direction.is_ingress else nobody,
        remote=nobody if direction.is_ingress else end,
        request=Request(method=request["method"], target=request.get("path", ""), version="1.1"),
        response=response,
        timings=Timings(
            request_start_ns=start_ns, response_end_ns=end_ns if response else 0, end_ns=end_ns
        ),
        ending=ending,
        **_place(record),
    )


def _response(response: Mapping[str, Any], ending: Ending) -> Response | None:
    status = int(response.get("status", 0))
    # A record without a response has a status that Qtap makes up, and nothing else.
    is_made_up = ending is not Ending.COMPLETE and set(response) <= {"status"}
    if is_made_up and status in (0, 422, 499):
        return None
    return Response(status=status, reason="", version="1.1")


def _place(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of the other side of a proxy."""
    place: dict[str, Any] = {"is_health_check": bool(record.get("health_check", False))}
    if "link" in record:
        link = record["link"]
        place["resend_count"] = int(link.get("resend_count", 0))
        place["link"] = Link(
            method=LinkMethod(link["method"]), parent_id=link["parent_request_id"], root_id=""
        )
    if "proxy" in record:
        proxy = record["proxy"]
        place["hop"] = ProxyHop(
            attempts=int(proxy["attempts"]), overhead_ns=round(proxy["overhead_ms"] * _NS_PER_MS)
        )
    return place


def _nanoseconds(time: str) -> int:
    """Read RFC 3339 with any number of digits; ``datetime`` keeps six."""
    whole, _, fraction = time.rstrip("Z").partition(".")
    since = datetime.fromisoformat(f"{whole}+00:00") - _EPOCH
    seconds = since.days * 86400 + since.seconds
    return seconds * _NS_PER_S + int(fraction[:9].ljust(9, "0") or 0)
