"""
Numbers with a unit, as people write them: sizes, spans of time, shares.

Each function takes a text and raises ``ValueError`` with a sentence that says what may be
written. The text is not repeated in it: it stands in the file, one line away.
"""

from __future__ import annotations

import re
from datetime import timedelta

__all__ = ["parse_duration", "parse_rate", "parse_size"]

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(b|kb|mb|gb)?", re.IGNORECASE | re.ASCII)
_SIZE_UNITS = {"": 1, "b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_DIGITS = 20  # beyond it nothing that is counted here exists


def parse_size(value: object) -> int:
    """Return bytes; ``64mb`` is 64 x 1024 x 1024 of them, a bare number counts bytes."""
    text = str(value).strip()
    found = _SIZE.fullmatch(text) if len(text) <= _MAX_DIGITS else None
    if found is None:
        raise ValueError("must be a size: a number with b, kb, mb or gb")
    return int(float(found[1]) * _SIZE_UNITS[(found[2] or "").lower()])


def parse_duration(value: object) -> timedelta:
    """
    Return the span of time that ``1m30s`` or ``500ms`` stands for.

    As in Go (package time, ParseDuration), which reads these values in Qtap: a number
    without a unit is refused, because nobody could tell milliseconds from seconds.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    parts = _DURATION_PART.findall(text) if len(text) <= 2 * _MAX_DIGITS else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("must be a span of time with its unit, as in 500ms, 1.5s or 2m")
    try:
        return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError("must be a shorter span of time") from None


def parse_rate(value: object) -> float:
    """Return a share from 0 to 1."""
    try:
        rate = float(str(value))
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:  # neither is a number that is none
        raise ValueError("must be a number from 0 (keep nothing) to 1 (keep everything)")
    return rate
