"""
Request and connection ids in the form Qtap gives them: xid.

Twelve bytes (seconds, 5 random bytes, a 3-byte counter) as 20 characters of
base32hex: unique without agreement and sorted by time.
"""

from __future__ import annotations

import os

__all__ = ["IdGenerator"]

_NANOSECONDS = 1_000_000_000
_DIGITS = "0123456789abcdefghijklmnopqrstuv"  # base32hex, RFC 4648 section 7
_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)


class IdGenerator:
    """Makes ids; two generators never agree unless they are given the same ``seed``."""

    def __init__(self, seed: bytes | None = None) -> None:
        """``seed`` (8 bytes) makes the ids repeatable, as a replay wants them."""
        random = os.urandom(8) if seed is None else seed
        self._origin = random[:5]
        self._next = int.from_bytes(random[5:8], "big")
        self._seconds = -1
        self._prefix = ""

    def new(self, epoch_ns: int) -> str:
        """Return a new id for something that began at ``epoch_ns``."""
        seconds = epoch_ns // _NANOSECONDS
        if seconds != self._seconds:
            self._start_second(seconds)
        number = self._next
        self._next = (number + 1) & 0xFFFFFF
        # The prefix ends within its 15th digit: two bits of the last random byte, the
        # counter and four zero bits make the six digits that are left.
        rest = ((self._origin[4] & 3) << 24 | number) << 4
        return self._prefix + _PAIRS[rest >> 20] + _PAIRS[rest >> 10 & 1023] + _PAIRS[rest & 1023]

    def _start_second(self, seconds: int) -> None:
        self._seconds = seconds
        bits = int.from_bytes((seconds & 0xFFFFFFFF).to_bytes(4, "big") + self._origin, "big") >> 2
        self._prefix = "".join(_PAIRS[bits >> shift & 1023] for shift in range(60, -1, -10))
