"""
What a loss leaves behind, found in the kernel's own account.

A hole in a stream is noticed with the next bytes of it. But the end of a connection may be
lost, and the last bytes before a long silence: then nothing follows that would tell. The
kernel side counts what passes on each connection whether it can hand it over or not, so some
time after a loss its table is compared with what arrived.

The table is read while traffic goes on; what was written to the ring by then has to be
drained before the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["Account", "Reconciler"]

Account = Mapping[int, tuple[int, int]]
"""By the id of a connection: bytes that have passed on it, received and sent."""

QUIET_NS = 5_000_000_000  # without another loss


class KernelTable(Protocol):
    """Where the account is kept: a ``KernelReceiver``."""

    @property
    def written_bytes(self) -> int:
        """How far the ring has been written."""

    @property
    def read_bytes(self) -> int:
        """How far the ring has been drained."""

    def living_connections(self) -> dict[int, tuple[int, int]]:
        """Return all connections in the kernel's table, with the bytes that have passed."""


class Reconciler:
    """Compares, once it has been quiet for a while after a loss."""

    def __init__(self, table: KernelTable, reconcile: Callable[[Account, int], None]) -> None:
        """``reconcile`` gets the account and when it was read, in monotonic nanoseconds."""
        self._table = table
        self._reconcile = reconcile
        self._due_ns = 0
        self._account: Account | None = None
        self._read_ns = 0
        self._until = -1

    def lose(self, now_ns: int) -> None:
        """Something was lost up to now."""
        self._due_ns = now_ns + QUIET_NS
        self._account = None

    def tick(self, now_ns: int, *, is_holding: bool) -> None:
        """
        Do the next step; to be called about once a second, between two drains.

        ``is_holding``: some of what was drained has not gone to the connections yet.
        """
        if self._account is not None:
            if self._until < 0:  # by now every program has written what the table says
                self._until = self._table.written_bytes
            elif not is_holding and self._table.read_bytes >= self._until:
                account, self._account = self._account, None
                self._reconcile(account, self._read_ns)
        elif self._due_ns and now_ns > self._due_ns:
            self._due_ns = 0
            self._account = self._table.living_connections()
            self._read_ns = now_ns
            self._until = -1
