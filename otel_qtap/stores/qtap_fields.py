"""
Qtap's answers about a transaction that no field of it gives, for records and events alike.

Stored objects, events and metrics must agree on them: they are how a reader joins one
with the other.
"""

from __future__ import annotations

from typing import Any

from otel_qtap.connection.model import Container, Process
from otel_qtap.transaction.model import Ending, Transaction
from otel_qtap.transaction.readable import readable_text

__all__ = [
    "STATUS_NEVER_SEEN",
    "STATUS_UNREADABLE",
    "authority_host",
    "category_of",
    "endpoint_of",
    "head_duration_ms",
    "known",
    "process_facts",
    "protocol_of",
    "status_of",
    "transferred",
]

STATUS_NEVER_SEEN = 499
STATUS_UNREADABLE = 422

_APP_TYPES = frozenset(
    {
        "application/graphql",
        "application/grpc",
        "application/json",
        "application/protobuf",
        "application/x-protobuf",
        "application/x-www-form-urlencoded",
        "application/xhtml+xml",
        "application/xml",
        "multipart/form-data",
        "text/html",
        "text/plain",
        "text/xml",
    }
)
_SCRIPT_TYPES = frozenset(
    {"application/ecmascript", "application/x-javascript", "text/ecmascript", "text/javascript"}
    | {"application/javascript"}
)
_FAMILIES = {"font": "font", "image": "image", "audio": "media", "video": "media"}


def status_of(transaction: Transaction) -> int:
    """
    Return the status, or the one that Qtap makes up for a transaction without a response.

    499 when none was seen, 422 when there was one that could not be read.
    """
    if transaction.response is not None:
        return transaction.response.status
    return STATUS_UNREADABLE if transaction.ending is Ending.LOST else STATUS_NEVER_SEEN


def endpoint_of(transaction: Transaction) -> str:
    """Return the name of the server side, else its address, without port."""
    if not transaction.direction.is_ingress and transaction.remote_name:
        return transaction.remote_name
    authority = readable_text(transaction.authority)
    if authority:
        return authority_host(authority)
    return (transaction.local if transaction.direction.is_ingress else transaction.remote).address


def authority_host(authority: str) -> str:
    """Return the host of ``host:port``, brackets of an IPv6 address removed."""
    host, _, port = authority.rpartition(":")
    return (host if host and port.isdigit() else authority).strip("[]")


def transferred(transaction: Transaction) -> tuple[int, int]:
    """Return (bytes sent, bytes received) as the captured process counts them."""
    request, response = transaction.request, transaction.response
    asked = request.head_size + request.body.wire_size
    answered = 0 if response is None else response.head_size + response.body.wire_size
    return (answered, asked) if transaction.direction.is_ingress else (asked, answered)


def head_duration_ms(transaction: Transaction) -> int:
    """
    Return request head to response head in milliseconds, at least 1, as Qtap measures.

    Without a response, to the end.
    """
    timings = transaction.timings
    duration_ns = timings.duration_ns
    if timings.response_head_ns:
        duration_ns = timings.response_head_ns - (
            timings.request_head_ns or timings.request_start_ns
        )
    return max(1, duration_ns // 1_000_000)


def protocol_of(transaction: Transaction) -> str:
    """Return Qtap's name of the protocol: ``http1``, ``http2``, ``grpc``."""
    if not transaction.request.version.startswith("2"):
        return "http1"
    content_type = transaction.request.header("content-type") or ""
    return "grpc" if content_type.startswith("application/grpc") else "http2"


def process_facts(process: Process, container: Container | None) -> dict[str, str]:
    """Return ``process_exe``, ``container_…`` and ``pod_…``, those that are known."""
    labels = dict(container.labels) if container else {}
    return known(
        process_exe=readable_text(process.executable),
        container_name=readable_text(container.name) if container else "",
        container_image=readable_text(container.image) if container else "",
        pod_name=labels.get("io.kubernetes.pod.name", ""),
        pod_namespace=labels.get("io.kubernetes.pod.namespace", ""),
    )


def category_of(content_type: str) -> str:
    """
    Return Qtap's category of a media type.

    One of ``app``, ``css``, ``js``, ``font``, ``image``, ``media``, ``other``; what
    programs exchange (JSON, XML, forms, HTML, plain text, protobuf) is ``app``.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "text/css":
        return "css"
    if media_type in _SCRIPT_TYPES:
        return "js"
    family, _, subtype = media_type.partition("/")
    if family in _FAMILIES:
        return _FAMILIES[family]
    if subtype.startswith(("font", "x-font", "vnd.ms-fontobject")):
        return "font"
    if media_type in _APP_TYPES or subtype.endswith(("+json", "+xml", "+proto")):
        return "app"
    return "app" if subtype.startswith("grpc") else "other"


def known(**values: Any) -> dict[str, Any]:
    """Return ``values`` without those that are empty, zero or ``None``."""
    return {name: value for name, value in values.items() if value}
