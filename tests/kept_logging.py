"""Loggers as pytest has set them up, whatever a command does to them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept_logging"]


@contextmanager
def kept_logging() -> Iterator[None]:
    """Put handlers and levels back at the end."""
    root, own = logging.getLogger(), logging.getLogger("otel_qtap")
    before = root.handlers[:], root.level, own.level
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])
