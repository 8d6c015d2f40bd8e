"""
A captured transaction as the object that is stored: its bytes, and the key they give.

The key is Qtap's: the SHA-1 of the content in lower-case hex, nothing before or behind
it, so that whoever holds an object can tell whether it is whole, and the same content
is stored once.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from otel_qtap.config.capture import CaptureFormat
from otel_qtap.stores.json_record import render_json
from otel_qtap.stores.text import render_text
from otel_qtap.transaction.model import Transaction

__all__ = ["Artifact", "StoredObject", "held_bytes", "make_artifact"]

_TRANSACTION_OVERHEAD = 4096  # measured: 3 kB in memory with 20 header fields and no bodies


class Artifact(NamedTuple):
    """What is stored of one transaction."""

    content: bytes
    content_type: str
    """``application/json`` or ``text/plain``."""
    digest: str
    """SHA-1 of ``content``, 40 hex digits: the key of the object."""


class StoredObject(NamedTuple):
    """Where an object is, or will be as soon as its bucket has taken it."""

    bucket: str
    key: str
    """Its digest."""
    url: str


def make_artifact(transaction: Transaction) -> Artifact:
    """Return the object for ``transaction``, in its format; for workers, as it renders bodies."""
    if transaction.format is CaptureFormat.TEXT:
        content = render_text(transaction).encode("utf-8", "backslashreplace")
        content_type = "text/plain"
    else:
        content = render_json(transaction).encode("ascii")
        content_type = "application/json"
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return Artifact(content, content_type, digest)


def held_bytes(transaction: Transaction) -> int:
    """Estimate what ``transaction`` holds in memory."""
    request, response = transaction.request, transaction.response
    size = _TRANSACTION_OVERHEAD + len(request.body.content) + request.head_size
    if response is not None:
        size += len(response.body.content) + response.head_size
    return size
