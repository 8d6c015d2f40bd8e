"""
The ``report_usage`` plugin: a Request event for every transaction.

It says who asked for what and how that went, without headers or bodies. Of a credential
in the request it tells the kind, a hash and a mask, as Qtap does, so that users of an
API can be told apart; these are the only traces of it that leave the agent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.protocol.events import Headers
from otel_qtap.stores.events import AuthToken, RequestEvent
from otel_qtap.stores.qtap_fields import protocol_of
from otel_qtap.stores.tags import normalised_tags, process_tags
from otel_qtap.transaction.consumer import EventConsumer
from otel_qtap.transaction.model import Transaction

__all__ = ["ReportUsage", "auth_token"]

# In Qtap's order: the first of them that a request has is its credential.
_TOKEN_HEADERS = ("Authorization", "X-API-Key", "Api-Key", "APIKey", "X-Auth-Token")
_RANK = {name.lower(): rank for rank, name in enumerate(_TOKEN_HEADERS)}
_SCHEME = re.compile(r"(basic|bearer|oauth)\s+", re.IGNORECASE)


class ReportUsage:
    """Make a Request event of each transaction, for every event store."""

    def __init__(
        self,
        *,
        redactor: Redactor,
        consumers: Sequence[EventConsumer],
        hostname: str,
        tags: Iterable[str] = (),
    ) -> None:
        """``tags``: ``key:value``, for every event, beside those of its process."""
        self._redactor = redactor
        self._consumers = tuple(consumers)
        self._hostname = hostname
        self._tags = normalised_tags(tags)

    def consume(self, transaction: Transaction) -> None:
        """Hand on the event for ``transaction``."""
        automatic = process_tags(
            transaction.process, transaction.container, self._hostname, protocol_of(transaction)
        )
        event = RequestEvent(
            transaction=self._redactor.redact(transaction).reduced_to(CaptureLevel.SUMMARY),
            token=auth_token(transaction.request.headers),
            tags=(*self._tags, *automatic),
        )
        for consumer in self._consumers:
            consumer.consume_event(event)


def auth_token(headers: Headers) -> AuthToken | None:
    """Return what may be told of the credential in ``headers``, ``None`` when there is none."""
    best, value = len(_TOKEN_HEADERS), ""
    for name, content in headers:
        rank = _RANK.get(name.lower(), best)
        if rank < best and content:
            best, value = rank, content
    if not value:
        return None
    source = _TOKEN_HEADERS[best]
    kind = _kind_of(source, value)
    secret = value[scheme.end() :] if (scheme := _SCHEME.match(value)) else value
    octets = value.encode("latin-1", "replace")
    return AuthToken(
        mask=_masked(secret), hash=hashlib.sha256(octets).hexdigest(), source=source, type=kind
    )


def _kind_of(source: str, value: str) -> str:
    name, lower = source.lower(), value.lower()
    if _is_jwt(value):
        kind = "jwt"
    elif lower.startswith("basic "):
        kind = "basic_auth"
    elif lower.startswith("bearer "):
        kind = "bearer_token"
    elif "oauth" in lower:
        kind = "oauth_token"
    elif "api" in name or "key" in name:
        kind = "api_key"
    else:
        kind = "unknown"
    return kind


def _is_jwt(value: str) -> bool:
    """Whether ``value`` has three parts, the second of them an object in JSON (RFC 7519)."""
    parts = value.split(".")
    if len(parts) != 3:
        return False
    payload = parts[1]
    try:
        decoded = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return isinstance(json.loads(decoded), dict)
    except (binascii.Error, ValueError, RecursionError):
        return False


def _masked(secret: str) -> str:
    """Return as much of a credential as Qtap shows: 8 characters of a long one, none of a short."""
    size = len(secret)
    if size <= 8:
        return "*" * size
    if size <= 16:
        return f"{secret[:2]}{'*' * (size - 4)}{secret[-2:]}"
    return f"{secret[:4]}***({size - 8})***{secret[-4:]}"
