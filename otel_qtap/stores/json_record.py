"""
``format: json``: a transaction as one line of JSON with the keys that Qtap's stores use.

Key for key Qtap's record, so what reads that reads this. Keys of ours only add:

- ``request.body_size``, ``response.body_size``: bytes that passed, captured or not;
- ``request.body_truncated``, ``response.body_truncated``: true when the body is not whole;
- ``request.headers_multi``, ``response.headers_multi``: every value of the names that
  came more than once (``headers`` holds the first value only);
- ``request.trailers``, ``response.trailers``: like ``headers``, after the body;
- ``ending``: how the transaction ended.

``metadata.tags`` holds what belongs to the transaction; the name of this host, which
belongs to the reader, stands in events only.

A transaction without a response has the status that Qtap makes up: 499, or 422 when
there was one that could not be read. Spans never carry these; ``ending`` tells which.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from otel_qtap.protocol.events import Headers
from otel_qtap.stores.qtap_fields import (
    endpoint_of,
    head_duration_ms,
    known,
    process_facts,
    protocol_of,
    status_of,
    transferred,
)
from otel_qtap.stores.tags import process_tags
from otel_qtap.transaction.model import Request, Response, Transaction, split_target
from otel_qtap.transaction.readable import readable_text

__all__ = ["json_line", "json_record", "render_json", "rfc3339"]

Record = dict[str, Any]


def render_json(transaction: Transaction) -> str:
    """Return the record of ``transaction`` as one line of ASCII, without its line end."""
    return json_line(json_record(transaction))


def json_line(record: Record) -> str:
    """Return ``record`` as one line of printable ASCII, without its line end."""
    line = json.dumps(record, ensure_ascii=True, separators=(",", ":"))
    return line.replace("\x7f", "\\u007f")  # the one control character that JSON lets through


def json_record(transaction: Transaction) -> Record:
    """Return the record of ``transaction``; keys whose value is empty or unknown are left out."""
    return {
        "metadata": _metadata(transaction),
        "request": _request(transaction),
        "response": _response(transaction),
        "transaction_time": rfc3339(transaction.timings.request_start_ns),
        "duration_ms": head_duration_ms(transaction),
        "direction": transaction.direction.value,
        "ending": transaction.ending.value,
    }


def rfc3339(time_ns: int) -> str:
    """Return a time since the Unix epoch as ``2026-08-29T10:40:00.123456789Z``."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"


def _metadata(transaction: Transaction) -> Record:
    sent, received = transferred(transaction)
    return {
        "process_id": str(transaction.process.pid),
        **process_facts(transaction.process, transaction.container),
        "bytes_sent": sent,
        "bytes_received": received,
        "request_id": transaction.request_id,
        "connection_id": transaction.connection_id,
        "endpoint_id": endpoint_of(transaction),
        "tags": list(
            process_tags(transaction.process, transaction.container, "", protocol_of(transaction))
        ),
    }


def _request(transaction: Transaction) -> Record:
    request = transaction.request
    authority = readable_text(transaction.authority)
    path = readable_text(_path(request))
    record = known(
        method=readable_text(request.method),
        url=readable_text(transaction.url),
        scheme=transaction.scheme,
        path=path,
        authority=authority,
        protocol=f"HTTP/{request.version}",
        request_id=transaction.request_id,
        user_agent=readable_text(request.header("user-agent") or ""),
    )
    pseudo = known(
        **{
            ":authority": authority,
            ":method": record["method"],
            ":path": path,
            ":scheme": transaction.scheme,
        }
    )
    return record | _content(transaction, request, pseudo)


def _response(transaction: Transaction) -> Record:
    response = transaction.response
    if response is None:
        return {"status": status_of(transaction)}
    record: Record = {"status": response.status}
    return record | _content(transaction, response, {":status": str(response.status)})


def _content(transaction: Transaction, message: Request | Response, pseudo: Record) -> Record:
    """Return what a message carries at the level of ``transaction``."""
    record = known(content_type=readable_text(message.header("content-type") or ""))
    level, body = transaction.level, message.body
    if level.has_headers:
        first, several = _by_name(message.headers)
        record["headers"] = pseudo | first
        record |= known(headers_multi=several)
        if level.has_bodies:
            record |= known(trailers=_by_name(message.trailers)[0])
    if body.size:
        record["body_size"] = body.size
    if level.has_bodies:
        if body.content:
            record["body"] = base64.b64encode(body.content).decode("ascii")
        if body.is_truncated:
            record["body_truncated"] = True
    return record


def _by_name(headers: Headers) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the first value of each name, and all values of names that came again."""
    spelling: dict[str, str] = {}
    values: dict[str, list[str]] = {}
    for name, value in headers:
        key = spelling.setdefault(name.lower(), readable_text(name))
        values.setdefault(key, []).append(readable_text(value))
    first = {key: found[0] for key, found in values.items()}
    return first, {key: found for key, found in values.items() if len(found) > 1}


def _path(request: Request) -> str:
    return "" if request.method == "CONNECT" else split_target(request.target)[1]
