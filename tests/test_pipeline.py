"""From a configuration to the chain it asks for, and what goes through it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conversations import EPOCH_OFFSET_NS, NoFacts, Script

from otel_qtap.config import Config, load_config
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import Role
from otel_qtap.pipeline import Pipeline, PipelineOptions, is_wanted

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

_BASE = """\
version: 2
services:
  object_stores: [{{type: stdout}}]
stacks:
  s:
    plugins:
      - type: http_capture
        config: {{level: {level}, format: json}}
tap:
  direction: {direction}
  ignore_loopback: {loopback}
  http: {{stack: s}}
"""


@pytest.fixture
def configure(tmp_path) -> Callable[..., Config]:
    """``configure(level=…, direction=…, loopback=…, more="…") -> Config``."""

    def make(
        *, level: str = "full", direction: str = "all", loopback: str = "false", more: str = ""
    ) -> Config:
        path: Path = tmp_path / "qtap.yaml"
        text = _BASE.format(level=level, direction=direction, loopback=loopback)
        path.write_text(text + more)
        return load_config(path).config

    return make


class Run:
    """A pipeline in memory."""

    def __init__(self, config: Config, **options: int | bytes) -> None:
        self.stdout = io.BytesIO()
        self.counters = CounterSet()
        self.pipeline = Pipeline(
            config, NoFacts(), self.counters, self.stdout,
            options=PipelineOptions(id_seed=bytes(8), **options),  # type: ignore[arg-type]
            epoch_offset_ns=EPOCH_OFFSET_NS,
        )  # fmt: skip

    def play(self, *scripts: Script) -> Run:
        for script in scripts:
            for event in script.events:
                self.pipeline.accept_event(event)
            script.events = []
        return self

    def records(self) -> list[dict]:
        assert self.pipeline.flush(5)
        return [json.loads(line) for line in self.stdout.getvalue().decode().splitlines()]

    def close(self) -> None:
        self.pipeline.stop_connections(10**12)
        assert self.pipeline.close(5)


@pytest.fixture
def run() -> Callable[..., Run]:
    runs: list[Run] = []

    def start(config: Config, **options: int | bytes) -> Run:
        runs.append(Run(config, **options))
        return runs[-1]

    yield start
    for each in runs:
        each.close()


def _exchange(role: Role = Role.SERVER, **changes: object) -> Script:
    script = Script(role, **changes)
    script.ask(GET)
    script.answer(OK)
    return script


def test_an_exchange_comes_out_as_the_store_writes_it(configure, run) -> None:
    """Events in, one line of JSON out."""
    (record,) = run(configure()).play(_exchange()).records()

    assert (record["request"]["method"], record["request"]["path"]) == ("GET", "/a")
    assert record["response"]["status"] == 200
    assert record["direction"] == "ingress"


@pytest.mark.parametrize(("level", "keeps"), [("full", 5), ("headers", 0), ("summary", 0)])
def test_bodies_are_held_only_where_the_level_wants_them(configure, run, level, keeps) -> None:
    """Otherwise they are not even kept in memory while the exchange runs."""
    started = run(configure(level=level))
    script = Script()
    script.ask(GET)
    script.answer(OK[:-1])
    started.play(script)

    assert started.pipeline.assembler.budget.used == max(0, keeps - 1)
    script.answer(OK[-1:])
    assert len(started.play(script).records()) == 1
    assert started.pipeline.assembler.budget.used == 0


def test_no_more_of_a_body_is_held_than_the_command_line_says(configure, run) -> None:
    """``--http-buffer-size``."""
    started = run(configure(), http_buffer_bytes=3)
    script = Script()
    script.ask(GET)
    script.answer(OK[:-1])
    started.play(script)

    assert started.pipeline.assembler.budget.used == 3


def test_level_none_counts_and_writes_nothing(configure, run) -> None:
    """Metrics count everything."""
    started = run(configure(level="none")).play(_exchange())

    assert started.records() == []
    assert started.counters.total("otel_qtap.transactions") == 1


_DIRECTIONS = [
    # direction, ingress, to a private address, to a public one
    ("all", True, True, True),
    ("ingress", True, False, False),
    ("egress", False, True, True),
    ("egress-internal", False, True, False),
    ("egress-external", False, False, True),
]


@pytest.mark.parametrize(("direction", "ingress", "internal", "external"), _DIRECTIONS)
def test_a_direction_wants_its_connections(
    configure, direction, ingress, internal, external
) -> None:
    """And no others."""
    config = configure(direction=direction)

    assert is_wanted(config, Role.SERVER, "192.0.2.7") is ingress
    assert is_wanted(config, Role.SERVER, "10.0.0.7") is ingress
    assert is_wanted(config, Role.CLIENT, "10.0.0.7") is internal
    assert is_wanted(config, Role.CLIENT, "fe80::1") is internal
    assert is_wanted(config, Role.CLIENT, "192.0.2.7") is external
    assert is_wanted(config, Role.CLIENT, "2001:db8::1") is external


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "::1", "169.254.1.1", "0.0.0.0", "::"]
)
def test_loopback_can_be_left_out(configure, address) -> None:
    """What Qtap's ignore_loopback takes for loopback, in both directions."""
    for role in (Role.SERVER, Role.CLIENT):
        assert is_wanted(configure(loopback="false"), role, address)
        assert not is_wanted(configure(loopback="true"), role, address)
        assert is_wanted(configure(loopback="true"), role, "10.0.0.1")


def test_an_unwanted_connection_is_counted_and_costs_nothing_more(configure, run) -> None:
    """A recording may hold more than a configuration asks for."""
    started = run(configure(direction="ingress")).play(
        _exchange(Role.CLIENT, connection_id=1), _exchange(Role.SERVER, connection_id=2)
    )

    assert [record["direction"] for record in started.records()] == ["ingress"]
    assert started.counters.value("otel_qtap.connection.filtered") == 1
    assert started.counters.value("otel_qtap.connection.strays") == 0


def test_a_filtered_process_is_left_alone(configure, run) -> None:
    """By its executable, as ``tap.filters`` says."""
    more = "  filters:\n    custom:\n      - {exe: /usr/sbin/haproxy, strategy: exact}\n"
    started = run(configure(more=more)).play(_exchange())

    assert started.pipeline.excludes(Process(pid=1, executable="/usr/sbin/haproxy"))
    assert not started.pipeline.excludes(Process(pid=1, executable="/usr/sbin/nginx"))
    assert started.records() == []
    assert started.counters.value("otel_qtap.connection.filtered") == 1


def test_more_connections_than_allowed_push_the_silent_ones_out(configure, run) -> None:
    """The command line's bound reaches the tracker."""
    started = run(configure(), max_connections=2).play(
        *(Script(connection_id=number) for number in range(3))
    )

    assert started.counters.value("otel_qtap.connection.evicted") == 1


def test_stopping_lets_go_of_what_runs(configure, run) -> None:
    """A request without an answer is told as unfinished."""
    started = run(configure())
    script = Script()
    script.ask(GET)
    started.play(script)
    started.pipeline.stop_connections(script.now_ns)

    (record,) = started.records()
    assert record["ending"] == "unfinished"


def test_connections_that_are_gone_are_let_go_of(configure, run) -> None:
    """After a loss, by the kernel's own table."""
    started = run(configure())
    script = Script()
    script.ask(GET)
    started.play(script)
    started.pipeline.retain_connections({77}, 10**15)
    assert started.counters.value("otel_qtap.connection.ends_lost") == 0
    started.pipeline.retain_connections(set(), 10**15)

    assert started.counters.value("otel_qtap.connection.ends_lost") == 1
    assert len(started.records()) == 1


def test_the_built_in_configuration_prints_what_leaves_the_host(run) -> None:
    """Every request to another machine, for people to read."""
    started = run(load_config(None).config).play(
        _exchange(Role.CLIENT, connection_id=1), _exchange(Role.SERVER, connection_id=2)
    )
    assert started.pipeline.flush(5)

    text = started.stdout.getvalue().decode()
    assert "/a" in text
    assert started.counters.value("otel_qtap.connection.filtered") == 1


def test_a_store_that_is_away_does_not_hinder_the_others(configure, tmp_path, monkeypatch) -> None:
    """A collector that nobody runs: what is printed is printed; closing says the truth."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    path = tmp_path / "with-otel.yaml"
    path.write_text(
        _BASE.format(level="full", direction="all", loopback="false").replace(
            "services:",
            "services:\n  event_stores:\n"
            "    - {type: otel, protocol: http, endpoint: 'http://127.0.0.1:9'}",
        )
    )
    started = Run(load_config(path).config)
    started.play(_exchange())
    started.pipeline.flush(0.5)

    assert b'"/a"' in started.stdout.getvalue()
    started.pipeline.stop_connections(10**12)
    assert not started.pipeline.close(0.5)
