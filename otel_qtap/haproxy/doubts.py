"""
When marks contradict something, and how often that may be.

The first two contradictions within ten minutes cost little: what is known is verified anew,
as for a process that was just found, and nothing that was marked before is linked. A cause that
has gone (a lost record that nobody has missed, a defect of ours in some rare exchange) is over
with that. The third shows that verification is no help, as it has passed twice since: then
the next way of linking is taken, for this process image as long as it lives. An image that is
started or reloaded begins anew.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

__all__ = ["Doubt", "Doubts"]

_TOO_MANY = 3
_WITHIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A contradiction to act on."""

    check: str
    """That has failed."""
    what: str
    """For people to read."""
    history: str
    """How often each check has failed lately."""
    is_one_too_many: bool
    """Whether to take the next way; else to verify anew."""


class Doubts:
    """About the marks of one process image."""

    def __init__(self) -> None:
        self._noted: tuple[str, str] | None = None
        self._acted_on: list[tuple[float, str]] = []

    def note(self, check: str, why: str = "") -> None:
        """Keep a contradiction until somebody acts on it; further ones are its company."""
        self._noted = self._noted or (check, why or check)

    def take(self, now_s: float) -> Doubt | None:
        """Return what to act on, if anything was noted."""
        if self._noted is None:
            return None
        (check, what), self._noted = self._noted, None
        self._acted_on = [each for each in self._acted_on if now_s - each[0] < _WITHIN_S]
        self._acted_on.append((now_s, check))
        counts = Counter(check for _, check in self._acted_on)
        is_one_too_many = len(self._acted_on) >= _TOO_MANY
        if is_one_too_many:
            self._acted_on.clear()
        return Doubt(
            check=check,
            what=what,
            history=", ".join(f"{each}: {counts[each]}" for each in sorted(counts))
            + f" within {_WITHIN_S / 60:.0f} minutes",
            is_one_too_many=is_one_too_many,
        )
