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
        self._stem = -1
        self._stem_text = ""

    def new(self, epoch_ns: int) -> str:
        """Return a new id for something that began at ``epoch_ns``."""
        seconds = epoch_ns // _NANOSECONDS
        if seconds != self._seconds:
            self._start_second(seconds)
        number = self._next
        self._next = (number + 1) & 0xFFFFFF
        # The last two digits are six bits of the counter and four zero bits; what stands
        # before them is the same for 64 ids in a row.
        if number >> 6 != self._stem:
            self._start_stem(number >> 6)
        return self._stem_text + _PAIRS[(number & 63) << 4]

    def _start_second(self, seconds: int) -> None:
        self._seconds = seconds
        bits = int.from_bytes((seconds & 0xFFFFFFFF).to_bytes(4, "big") + self._origin, "big") >> 2
        self._prefix = "".join(_PAIRS[bits >> shift & 1023] for shift in range(60, -1, -10))
        self._stem = -1

    def _start_stem(self, stem: int) -> None:
        self._stem = stem
        # The prefix ends within its 15th digit: two bits of the last random byte and what
        # is left of the counter make four digits.
        digits = (self._origin[4] & 3) << 18 | stem
        self._stem_text = self._prefix + _PAIRS[digits >> 10] + _PAIRS[digits & 1023]
