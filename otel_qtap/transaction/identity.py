"""
Request and connection ids in the form Qtap gives them: xid.

Twelve bytes (seconds, 5 random bytes, a 3-byte counter) as 20 characters of
base32hex: unique without agreement and sorted by time.
"""

from __future__ import annotations

import base64
import os

__all__ = ["IdGenerator"]

_NANOSECONDS = 1_000_000_000


class IdGenerator:
    """Makes ids; two generators never agree unless they are given the same ``seed``."""

    def __init__(self, seed: bytes | None = None) -> None:
        """``seed`` (8 bytes) makes the ids repeatable, as a replay wants them."""
        random = os.urandom(8) if seed is None else seed
        self._origin = random[:5]
        self._next = int.from_bytes(random[5:8], "big")

    def new(self, epoch_ns: int) -> str:
        """Return a new id for something that began at ``epoch_ns``."""
        number = self._next
        self._next = (number + 1) & 0xFFFFFF
        seconds = (epoch_ns // _NANOSECONDS) & 0xFFFFFFFF
        raw = seconds.to_bytes(4, "big") + self._origin + number.to_bytes(3, "big")
        return base64.b32hexencode(raw)[:20].decode().lower()
