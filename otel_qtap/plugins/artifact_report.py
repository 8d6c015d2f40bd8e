"""The events that join a captured transaction with the object it was stored as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from otel_qtap.stores.events import ArtifactRecord
from otel_qtap.transaction.consumer import EventConsumer
from otel_qtap.transaction.model import Transaction

__all__ = ["ArtifactReporter"]


class ArtifactReporter:
    """
    Make an ArtifactRecord of each transaction that plugins hand to the object stores.

    It stands beside them, as one more consumer of a plugin. The record names the object
    by its digest, wherever and whenever it arrives; what a store could not take is
    counted there.
    """

    def __init__(
        self,
        *,
        urls_of: Sequence[Callable[[str], str]],
        consumers: Sequence[EventConsumer],
    ) -> None:
        """``urls_of``: for each store whose objects have addresses, from digest to address."""
        self._urls_of: tuple[Callable[[str], str] | None, ...] = tuple(urls_of) or (None,)
        self._consumers = tuple(consumers)

    def consume(self, transaction: Transaction) -> None:
        """Hand on one record for each address that the object will have, at least one."""
        for url_of in self._urls_of:
            event = ArtifactRecord(transaction=transaction, url_of=url_of)
            for consumer in self._consumers:
                consumer.consume_event(event)
