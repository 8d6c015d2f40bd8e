"""The words of Qtap's ``http_capture`` plugin that other layers share."""

from __future__ import annotations

from enum import Enum

__all__ = ["CaptureFormat", "CaptureLevel"]


class CaptureLevel(Enum):
    """How much of a transaction is kept."""

    NONE = "none"
    SUMMARY = "summary"
    HEADERS = "headers"
    """Also spelled ``details`` in Qtap's older guides."""
    FULL = "full"

    @property
    def has_headers(self) -> bool:
        """Whether header fields are kept."""
        return self in (CaptureLevel.HEADERS, CaptureLevel.FULL)

    @property
    def has_bodies(self) -> bool:
        """Whether bodies are kept."""
        return self is CaptureLevel.FULL


class CaptureFormat(Enum):
    """How a stored transaction is written."""

    JSON = "json"
    TEXT = "text"
