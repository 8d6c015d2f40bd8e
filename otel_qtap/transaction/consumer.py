"""What takes transactions: the assembler's next, every plugin, store and exporter."""

from __future__ import annotations

from typing import Protocol

from otel_qtap.transaction.model import Transaction

__all__ = ["Consumer"]


class Consumer(Protocol):
    """Anything that one transaction at a time can be given to."""

    def consume(self, transaction: Transaction) -> None:
        """Take ``transaction``; called on the tap thread, so it must not wait for anything."""
