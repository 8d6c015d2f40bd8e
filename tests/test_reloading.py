"""Reading the configuration again beside the tap, and what is said of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, current_thread

import pytest

from otel_qtap.config import Config, load_config
from otel_qtap.counters import CounterSet
from otel_qtap.destinations import DestinationError
from otel_qtap.reloading import Reloaded, Reloader


class Prepare:
    """Makes a setup of a configuration when it is let, or fails as it is told."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.is_asked, self.may_go_on = Event(), Event()
        self.may_go_on.set()
        self.threads: list[str] = []

    def __call__(self, config: Config) -> object:
        self.threads.append(current_thread().name)
        self.is_asked.set()
        assert self.may_go_on.wait(10)
        if self.failure is not None:
            raise self.failure
        return ("setup", config)


class Tap:
    """What asks, takes and confirms."""

    def __init__(self, path: Path | None, counters: CounterSet) -> None:
        self.prepare = Prepare()
        self.reloader = Reloader(load_config(path), self.prepare, counters)  # type: ignore[arg-type]
        self._counters = counters

    def take(self) -> Reloaded | None:
        """Return what comes of having asked, waiting for it."""
        before = self.counts()
        for _ in range(1000):
            ready = self.reloader.take()
            if ready is not None or self.counts() != before:
                return ready
            time.sleep(0.01)
        return None

    def counts(self) -> tuple[int, int]:
        done, failed = (
            self._counters.value("otel_qtap.config.reloads", result=result)
            for result in ("done", "failed")
        )
        return done, failed


@pytest.fixture
def path(write_config) -> Path:
    return write_config(level="summary")


@pytest.fixture
def tap(path, counters) -> Tap:
    return Tap(path, counters)


@pytest.fixture
def told(caplog) -> Callable[[], list[tuple[str, str]]]:
    caplog.set_level(logging.INFO, "otel_qtap")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_nothing_happens_unasked(tap) -> None:
    """However often somebody looks."""
    assert [tap.reloader.take() for _ in range(3)] == [None] * 3
    assert tap.prepare.threads == []


def test_a_new_configuration_is_made_ready_on_another_thread(tap, write_config, told) -> None:
    """The tap goes on meanwhile, and confirms what it has put into force."""
    write_config(level="full")
    tap.prepare.may_go_on.clear()
    tap.reloader.ask()
    assert [tap.reloader.take() for _ in range(3)] == [None] * 3
    tap.prepare.may_go_on.set()
    ready = tap.take()

    assert tap.prepare.threads == ["reload"]
    assert ready.setup == ("setup", ready.reload.loaded.config)
    assert tap.counts() == (0, 0)
    tap.reloader.confirm(ready)
    assert tap.counts() == (1, 0)
    ((level, text),) = told()
    assert level == "INFO"
    assert text.endswith(": stacks.s.plugins.0.config.level")
    assert [tap.reloader.take() for _ in range(3)] == [None] * 3
    assert len(tap.prepare.threads) == 1


def test_the_next_one_is_compared_with_the_last(tap, write_config) -> None:
    """Not with the one of the start."""
    for level in ("full", "summary"):
        write_config(level=level)
        tap.reloader.ask()
        ready = tap.take()
        assert ready.reload.changed == ("stacks.s.plugins.0.config.level",)
        tap.reloader.confirm(ready)


def test_asking_again_meanwhile_is_not_forgotten(tap, write_config) -> None:
    """The file may have changed since it was read."""
    tap.prepare.may_go_on.clear()
    tap.reloader.ask()
    tap.reloader.take()
    assert tap.prepare.is_asked.wait(10)  # so the file was read
    write_config(level="full")
    tap.reloader.ask()
    tap.prepare.may_go_on.set()
    tap.reloader.confirm(tap.take())
    second = tap.take()

    assert second.reload.changed == ("stacks.s.plugins.0.config.level",)


def test_a_wrong_file_is_told_whole_and_changes_nothing(tap, path, told) -> None:
    """Every problem with its place, then that the old configuration stays."""
    good = path.read_text()
    path.write_text(good.replace("summary", "sumary").replace("direction", "directoin"))
    tap.reloader.ask()

    assert tap.take() is None
    assert tap.counts() == (0, 1)
    assert {level for level, _ in told()} == {"ERROR"}
    lines = [text for _, text in told()]
    assert any("did you mean 'summary'?" in line for line in lines)
    assert any("directoin" in line for line in lines)
    assert "the old one stays" in lines[-1]

    path.write_text(good)  # and the next one is taken
    tap.reloader.ask()
    assert tap.take() is not None


def test_warnings_are_told_and_the_file_is_taken(tap, path, told) -> None:
    """As at the start."""
    path.write_text(path.read_text().replace("plugins:", "plugins:\n      - {type: llm}", 1))
    tap.reloader.ask()

    assert tap.take() is not None
    assert [level for level, text in told() if "llm" in text] == ["WARNING"]


FAILURES = [
    (DestinationError("the object store s3 cannot be used: no"), "the object store s3 cannot"),
    (RuntimeError("secret"), "RuntimeError at test_reloading.py:"),
]


@pytest.mark.parametrize(("failure", "text"), FAILURES, ids=["expected", "not-expected"])
def test_what_cannot_be_made_ready_changes_nothing(tap, told, failure, text) -> None:
    """Nothing that goes wrong may end the agent, and nothing secret is told."""
    tap.prepare.failure = failure
    tap.reloader.ask()

    assert tap.take() is None
    assert tap.counts() == (0, 1)
    ((level, line),) = told()
    assert level == "ERROR"
    assert line.startswith(f"configuration not reloaded, the old one stays: {text}")
    assert "secret" not in line


def test_a_file_that_is_gone_changes_nothing(tap, path, told) -> None:
    """It is said which."""
    path.unlink()
    tap.reloader.ask()

    assert tap.take() is None
    assert tap.counts() == (0, 1)
    assert f"{path}: no such file" in told()[0][1]


def test_the_built_in_configuration_is_always_the_same(counters, told) -> None:
    """Asking for it again is no error."""
    tap = Tap(None, counters)
    tap.reloader.ask()
    tap.reloader.confirm(tap.take())

    assert tap.counts() == (1, 0)
    assert told()[-1][1].endswith("nothing is different")
