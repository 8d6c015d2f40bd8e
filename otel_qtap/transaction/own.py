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
    """Who asks less often than that is met anew each time."""
    SETTLED_NS = 30_000_000_000
    """A loss that is noticed later than that has not hidden the client who asked."""

    def __init__(self) -> None:
        self._met: OrderedDict[tuple[int, bool], tuple[int, int]] = OrderedDict()
        """When each was met first and last; of each whether it was while no client waited."""

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

    def lose(self, timestamp_ns: int) -> None:
        """There may have been clients until then that nobody saw."""
        doubtful = [
            key for key, times in self._met.items() if times[0] > timestamp_ns - self.SETTLED_NS
        ]
        for key in doubtful:
            del self._met[key]

    def _meet(self, key: tuple[int, bool], now_ns: int) -> None:
        first_ns, last_ns = self._met.pop(key, (now_ns, now_ns))
        if now_ns - last_ns > self.REMEMBERED_NS:
            first_ns = now_ns
        self._met[key] = first_ns, now_ns
        if len(self._met) > self.CAPACITY:
            self._met.popitem(last=False)

    def _knows(self, key: tuple[int, bool], now_ns: int) -> bool:
        times = self._met.get(key)
        return times is not None and now_ns - times[1] <= self.REMEMBERED_NS
