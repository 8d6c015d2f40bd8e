"""
What takes transactions: the assembler's next, every plugin, store and exporter.

And what takes Qtap's events, which plugins make of transactions and connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from otel_qtap.transaction.model import Transaction

__all__ = ["Consumer", "Event", "EventConsumer"]


class Consumer(Protocol):
    """Anything that one transaction at a time can be given to."""

    def consume(self, transaction: Transaction) -> None:
        """Take ``transaction``; called on the tap thread, so it must not wait for anything."""


class Event(Protocol):
    """Anything that event stores take besides transactions."""

    @property
    def event_type(self) -> str:
        """Qtap's word for what it is: ``connection``, ``request``, ``artifact_record``, …"""

    @property
    def timestamp_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""

    @property
    def held_bytes(self) -> int:
        """What it holds in memory, estimated."""

    def record(self) -> Mapping[str, Any]:
        """Return its JSON object; for workers, because it may take long."""

    def describe(self) -> str:
        """Return it as one line for people; may hold characters that drive terminals."""


class EventConsumer(Protocol):
    """An event store, or an exporter that takes events."""

    def consume_event(self, event: Event) -> None:
        """Take ``event``; called on the tap thread, so it must not wait for anything."""
