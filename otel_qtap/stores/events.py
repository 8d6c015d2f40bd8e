"""
What event stores get: facts about requests, stored objects, issues and connections.

The keys are Qtap's (camelCase). Events join each other and the stored objects by
``connectionId`` and ``requestId``; an artifact record names its object by ``digest``,
which is the object's key. Events are made on the tap and written by workers, so making
one is cheap and ``record`` does the work. All of them are redacted before they are made.
Connection events have a module of their own, ``connection_event.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from otel_qtap.stores.artifact import held_bytes, make_artifact
from otel_qtap.stores.json_record import rfc3339
from otel_qtap.stores.qtap_fields import (
    category_of,
    endpoint_of,
    head_duration_ms,
    known,
    process_facts,
    status_of,
    transferred,
)
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.readable import readable_text

__all__ = [
    "ArtifactRecord",
    "AuthToken",
    "IssueEvent",
    "RequestEvent",
]

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthToken:
    """What may be told of the credential of a request; never the credential."""

    mask: str
    hash: str
    """SHA-256 of the whole header value, in hex."""
    source: str
    """Name of the header."""
    type: str
    """``jwt``, ``basic_auth``, ``bearer_token``, ``oauth_token``, ``api_key`` or ``unknown``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEvent:
    """One request, as ``report_usage`` reports it."""

    event_type: ClassVar[str] = "request"

    transaction: Transaction
    """Redacted; no more than a summary is needed."""
    token: AuthToken | None = None
    tags: tuple[str, ...] = ()
    """``key:value``."""

    @property
    def timestamp_ns(self) -> int:
        """When the request began."""
        return self.transaction.timings.request_start_ns

    @property
    def held_bytes(self) -> int:
        """What it holds in memory, estimated."""
        return held_bytes(self.transaction)

    def record(self) -> Record:
        """Return the Request event."""
        transaction, token = self.transaction, self.token
        request, response = transaction.request, transaction.response
        content_type = readable_text((response and response.header("content-type")) or "")
        sent, received = transferred(transaction)
        return {
            **_meta(transaction),
            "timestamp": rfc3339(self.timestamp_ns),
            "direction": transaction.direction.value,
            "url": readable_text(transaction.url),
            "path": readable_text(transaction.path),
            "method": readable_text(request.method),
            "status": status_of(transaction),
            "duration": max(1, transaction.timings.duration_ns // 1_000_000),
            **known(contentType=content_type),
            "category": category_of(content_type),
            **known(agent=readable_text(request.header("user-agent") or "")),
            "bytesSent": sent,
            "bytesReceived": received,
            **known(
                authTokenMask=readable_text(token.mask) if token else "",
                authTokenHash=token.hash if token else "",
                authTokenSource=token.source if token else "",
                authTokenType=token.type if token else "",
                tags=list(self.tags),
            ),
        }

    def describe(self) -> str:
        """Return ``HTTP GET (200) http://…``."""
        return _describe(self.transaction)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueEvent:
    """A request that a rule of ``detect_errors`` found faulty."""

    event_type: ClassVar[str] = "issue"

    transaction: Transaction
    """Redacted; no more than a summary is needed."""
    error: str
    """Name of the rule, or what it found."""
    conditions: tuple[str, ...]
    """What triggered it: ``detect_errors:status_code``."""
    reasons: tuple[str, ...]
    """The same in words, one for each of ``conditions``."""
    tags: tuple[str, ...] = ()

    @property
    def timestamp_ns(self) -> int:
        """When the request was over, and so the fault was known."""
        timings = self.transaction.timings
        return timings.end_ns or timings.request_start_ns

    @property
    def held_bytes(self) -> int:
        """What it holds in memory, estimated."""
        return held_bytes(self.transaction)

    def record(self) -> Record:
        """Return the Issue event."""
        transaction = self.transaction
        return {
            **_meta(transaction),
            "timestamp": rfc3339(self.timestamp_ns),
            "error": self.error,
            "direction": transaction.direction.value,
            "url": readable_text(transaction.url),
            "path": readable_text(transaction.path),
            "method": readable_text(transaction.request.method),
            "status": status_of(transaction),
            "triggerConditions": list(self.conditions),
            "triggerReasons": list(self.reasons),
            **known(tags=list(self.tags)),
        }

    def describe(self) -> str:
        """Return ``<rule>: HTTP GET (500) http://…``."""
        return f"{self.error}: {_describe(self.transaction)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """That a transaction was handed to an object store, and how to find the object."""

    event_type: ClassVar[str] = "artifact_record"

    transaction: Transaction = field(repr=False)
    """As the object store got it: the digest depends on every byte."""
    url_of: Callable[[str], str] | None = field(default=None, repr=False)
    """From the digest to the address of the object; ``None`` where it has none."""

    @property
    def timestamp_ns(self) -> int:
        """When the transaction began."""
        return self.transaction.timings.request_start_ns

    @property
    def held_bytes(self) -> int:
        """What it holds in memory, estimated."""
        return held_bytes(self.transaction)

    def record(self) -> Record:
        """Return the ArtifactRecord; renders the object once more for its digest."""
        transaction = self.transaction
        digest = make_artifact(transaction).digest
        return {
            **_meta(transaction),
            "timestamp": rfc3339(self.timestamp_ns),
            "type": "http_transaction",
            "digest": digest,
            **known(url=self.url_of(digest) if self.url_of else ""),
            "summary": _summary(transaction),
        }

    def describe(self) -> str:
        """Return ``HTTP GET (200) http://…``."""
        return _describe(self.transaction)


def _meta(transaction: Transaction) -> Record:
    return {
        "connectionId": transaction.connection_id,
        "endpointId": endpoint_of(transaction),
        "requestId": transaction.request_id,
    }


def _describe(transaction: Transaction) -> str:
    method, url = readable_text(transaction.request.method), readable_text(transaction.url)
    return f"HTTP {method} ({status_of(transaction)}) {url}"


def _summary(transaction: Transaction) -> Record:
    request, response = transaction.request, transaction.response
    answer = (response and response.header("content-type")) or ""
    return {
        **process_facts(transaction.process, transaction.container),
        "request_id": transaction.request_id,
        "connection_id": transaction.connection_id,
        **known(
            request_method=readable_text(request.method),
            request_scheme=transaction.scheme,
            request_host=readable_text(transaction.authority),
            request_protocol=f"HTTP/{request.version}",
            request_content_type=readable_text(request.header("content-type") or ""),
        ),
        "response_status": status_of(transaction),
        **known(response_content_type=readable_text(answer)),
        "duration_ms": head_duration_ms(transaction),
        "direction": transaction.direction.value,
    }
