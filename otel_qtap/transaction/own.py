"""
What a process asks of its own accord: a poller, a cache that is kept fresh, a health check.

Its answers may be what clients are answered at the same time, and its requests what clients
ask. ``proof.py`` does not take either as evidence where the process was seen to make such
requests without having been asked.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["OwnRequests"]


class OwnRequests:
    """The forms of requests that one process was seen to make without having been asked."""

    CAPACITY = 256
    REMEMBERED_NS = 600_000_000_000
    """Who asks less often than that is met anew; a client whom a loss hid counts that long."""

    def __init__(self) -> None:
        self._met: OrderedDict[tuple[int, bool], int] = OrderedDict()
        """When each was met last; of each whether it was while no client waited at all."""

    def note(self, form: int, now_ns: int, *, is_alone: bool) -> None:
        """Such a request was made though no client waited for the path, or none for anything."""
        self._meet((form, False), now_ns)
        if is_alone:
            self._meet((form, True), now_ns)

    def has(self, form: int, now_ns: int, *, is_path_asked: bool) -> bool:
        """
        Whether such a request may be the process's own.

        If the client asks for another path, only one that was made while nobody waited tells:
        a proxy may ask for other paths than its clients do.
        """
        return self._knows((form, True), now_ns) or (
            is_path_asked and self._knows((form, False), now_ns)
        )

    def _meet(self, key: tuple[int, bool], now_ns: int) -> None:
        self._met.pop(key, None)
        self._met[key] = now_ns
        if len(self._met) > self.CAPACITY:
            self._met.popitem(last=False)

    def _knows(self, key: tuple[int, bool], now_ns: int) -> bool:
        met_ns = self._met.get(key)
        return met_ns is not None and now_ns - met_ns <= self.REMEMBERED_NS
