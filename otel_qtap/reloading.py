"""
The configuration read again while the agent runs, beside the tap.

To read and check a file and to make ready what it asks for takes up to a second, and more
than the ring buffer has room for when much is going on. So a thread does it, and the tap
swaps what is ready between two drains. Whatever goes wrong, the old configuration stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple

from otel_qtap.config import Config, LoadedConfig, Reload, Severity, reload_config
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import describe_error
from otel_qtap.destinations import DestinationError
from otel_qtap.pipeline import Setup

__all__ = ["Reloaded", "Reloader"]

log = logging.getLogger("otel_qtap")


class Reloaded(NamedTuple):
    """A new configuration, ready to be put into force."""

    reload: Reload
    setup: Setup


class Reloader:
    """Reads the file of ``loaded`` again whenever it is asked to."""

    def __init__(
        self, loaded: LoadedConfig, prepare: Callable[[Config], Setup], counters: CounterSet
    ) -> None:
        """``prepare`` makes ready what a configuration asks for; it is called on a thread."""
        self._loaded = loaded
        self._prepare = prepare
        self._is_asked = False
        self._thread: Thread | None = None
        self._ready: Reloaded | None = None
        self._results = {
            result: counters.counter(
                "otel_qtap.config.reloads", "{reload}",
                "Times the configuration was read again, by what came of it", result=result,
            )
            for result in ("done", "failed")
        }  # fmt: skip

    def ask(self) -> None:
        """Have the file read again; safe to call from a signal handler, at any time."""
        self._is_asked = True

    def take(self) -> Reloaded | None:
        """
        Return the new configuration once there is one; for the tap, every now and then.

        The caller puts it into force and then calls ``confirm``.
        """
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread = None
            ready, self._ready = self._ready, None
            if ready is None:
                self._results["failed"].value += 1
            return ready
        if self._is_asked:
            self._is_asked = False
            self._thread = Thread(target=self._read, name="reload", daemon=True)
            self._thread.start()
        return None

    def confirm(self, reloaded: Reloaded) -> None:
        """Note that a configuration is in force."""
        assert reloaded.reload.loaded is not None  # noqa: S101 - for the type checker
        self._loaded = reloaded.reload.loaded
        self._results["done"].value += 1
        log.info("%s", reloaded.reload.summary())

    def _read(self) -> None:
        try:
            reload = reload_config(self._loaded)
            for problem in reload.problems:
                is_error = problem.severity is Severity.ERROR
                log.log(logging.ERROR if is_error else logging.WARNING, "%s", problem)
            if reload.loaded is None:
                log.error("%s", reload.summary())
            else:
                self._ready = Reloaded(reload, self._prepare(reload.loaded.config))
        except Exception as error:  # shields the agent: it goes on as it was
            reason = error if isinstance(error, DestinationError) else describe_error(error)
            log.error("configuration not reloaded, the old one stays: %s", reason)  # noqa: TRY400 - the reason says it
