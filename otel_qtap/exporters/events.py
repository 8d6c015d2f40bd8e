"""
What else event stores take besides transactions: Qtap's events, and where objects are.

Both come from the stores, which exporters do not know; these are the parts of them that
an exporter needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

from otel_qtap.exporters import semconv
from otel_qtap.exporters.resource import Subject
from otel_qtap.exporters.spans import Attributes
from otel_qtap.transaction.consumer import Event
from otel_qtap.transaction.model import Transaction

__all__ = [
    "ObjectPlace",
    "event_attributes",
    "object_attributes",
    "subject_of",
    "transaction_of",
]

# Qtap's own names, which are no part of the conventions.
EVENT_TYPE: Final = "event.type"
EVENT: Final = "event"
EVENT_NAME_PREFIX: Final = "qtap."


class ObjectPlace(Protocol):
    """Where a whole transaction is stored."""

    @property
    def bucket(self) -> str:
        """Name of its bucket."""

    @property
    def key(self) -> str:
        """Its key there, which is the SHA-1 of its content in hex."""

    @property
    def url(self) -> str:
        """The address that is told of it."""


def subject_of(event: Event) -> Subject:
    """Return the transaction that ``event`` is about, or else the event itself."""
    return transaction_of(event) or cast("Subject", event)


def transaction_of(event: Event) -> Transaction | None:
    """Return the transaction that ``event`` is about, ``None`` where it is a connection."""
    return getattr(event, "transaction", None)


def event_attributes(event: Event) -> Attributes:
    """Return the attributes of the log record of ``event``, as Qtap has them."""
    return {EVENT_TYPE: event.event_type, EVENT: _flattened(event.record(), "")}


def object_attributes(place: ObjectPlace) -> Attributes:
    """Return what span and log record say of the object that a transaction is stored as."""
    return {
        semconv.AWS_S3_BUCKET: place.bucket,
        semconv.AWS_S3_KEY: place.key,
        semconv.OTEL_QTAP_OBJECT_SHA1: place.key,
        semconv.OTEL_QTAP_OBJECT_URL: place.url,
    }


def _flattened(record: Mapping[str, Any], prefix: str) -> Attributes:
    """Return the values of a JSON object by their keys, those of nested ones joined with dots."""
    values: Attributes = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            values |= _flattened(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values
