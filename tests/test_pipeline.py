"""From a configuration to the chain it asks for, and what goes through it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial

import pytest
from configs import stack_config
from conversations import EPOCH_OFFSET_NS, NoFacts, Script
from exporters.test_otlp import Receiver
from messages import GET, OK

from otel_qtap.config import Config, load_config
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.destinations import DestinationError
from otel_qtap.events import CloseStep, Role
from otel_qtap.pipeline import Pipeline, PipelineOptions, is_wanted


@pytest.fixture
def configure(configure) -> Callable[..., Config]:
    """Lines of JSON, which a test reads more easily than text."""
    return partial(configure, format="json")


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
            self.pipeline.settle(script.now_ns + 10**9)  # no log of HAProxy will come
        return self

    def records(self) -> list[dict]:
        self.pipeline.settle(10**12)
        assert self.pipeline.flush(5)
        return [json.loads(line) for line in self.stdout.getvalue().decode().splitlines()]

    def adopt(self, config: Config) -> Run:
        self.pipeline.adopt(self.pipeline.prepare(config))
        return self

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
    started.pipeline.reconcile_connections({77: (len(GET), 0)}, 10**15)
    assert started.counters.value("otel_qtap.connection.ends_lost") == 0
    started.pipeline.reconcile_connections({}, 10**15)

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


def test_a_store_that_is_away_does_not_hinder_the_others(write_config, monkeypatch) -> None:
    """A collector that nobody runs: what is printed is printed; closing says the truth."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    path = write_config(format="json")
    path.write_text(
        path.read_text().replace(
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


# Another configuration ----------------------------------------------------------------


def test_what_runs_ends_under_the_new_configuration(configure, run) -> None:
    """A request that was asked before and answered after: one transaction, at the new level."""
    started = run(configure(level="headers"))
    script = Script()
    script.ask(GET)
    started.play(script)
    started.adopt(configure(level="full"))
    script.answer(OK)

    (record,) = started.play(script).records()
    assert record["ending"] == "complete"
    assert "body" in record["response"]
    assert started.counters.value("otel_qtap.connection.opened") == 1


def test_less_is_held_once_less_is_wanted(configure, run) -> None:
    """Memory follows the configuration."""
    started = run(configure(level="full")).adopt(configure(level="summary"))
    script = Script()
    script.ask(GET)
    script.answer(OK[:-1])
    started.play(script)

    assert started.pipeline.assembler.budget.used == 0


def test_destinations_stay_where_nothing_is_said_about_them(configure, run) -> None:
    """A new rule costs no connection to a collector, and delivery goes on."""
    started = run(configure(level="full"))
    setup = started.pipeline.prepare(configure(level="none"))
    assert setup.destinations is started.pipeline.prepare(configure()).destinations
    started.pipeline.adopt(setup)
    started.adopt(configure(level="summary"))

    assert len(started.play(_exchange()).records()) == 1


def _otel(receiver: Receiver) -> str:
    return (
        "object_stores: [{type: stdout}]\n"
        f"event_stores: [{{type: otel, protocol: http, endpoint: '{receiver.endpoint}'}}]"
    )


CAPTURE = "- {type: http_capture, config: {level: summary, format: json}}"


def test_new_destinations_take_over_and_old_ones_deliver(run) -> None:
    """Each span arrives once, at the one or the other; ids of spans stay what they were."""
    first, second = Receiver(), Receiver()
    started = run(stack_config(CAPTURE, services=_otel(first)))
    started.play(_exchange(connection_id=1))
    started.adopt(stack_config(CAPTURE, services=_otel(second)))
    started.play(_exchange(connection_id=2), _exchange(Role.CLIENT, connection_id=3))
    started.pipeline.stop_connections(10**12)
    assert started.pipeline.close(10)
    spans = [[span.kind for span in receiver.spans()] for receiver in (first, second)]
    for receiver in (first, second):
        receiver.shutdown()
        receiver.server_close()

    assert spans == [[2], [2, 3]]
    assert started.counters.value("otel_qtap.delivery.dropped", destination="otlp") == 0


def test_what_cannot_be_made_changes_nothing(run, monkeypatch) -> None:
    """The old configuration goes on."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")
    started = run(stack_config(CAPTURE))
    bad = stack_config(CAPTURE, services="event_stores: [{type: otel}]")
    with pytest.raises(DestinationError):
        started.pipeline.prepare(bad)

    assert len(started.play(_exchange()).records()) == 1


@pytest.mark.parametrize("more", ["direction: ingress", "ignore_loopback: true"])
def test_connections_that_are_not_wanted_any_more_fall_silent(run, more) -> None:
    """The kernel side decides once on each; what it still hands over is passed over here."""
    address = {} if "direction" in more else {"remote_address": "127.0.0.1"}
    script = _exchange(Role.CLIENT, **address)
    started = run(stack_config(CAPTURE)).play(script)
    assert len(started.records()) == 1
    started.adopt(stack_config(CAPTURE, tap=more))
    script.ask(GET)
    script.answer(OK)

    assert len(started.play(script).records()) == 1


def test_connections_are_reported_on_where_somebody_asks(run) -> None:
    """Also when the asking begins, or ends, while connections are open."""
    receiver = Receiver()
    started = run(stack_config(CAPTURE))
    old = _exchange(connection_id=1)
    started.play(old)
    started.adopt(stack_config(CAPTURE, services=_otel(receiver)))
    new = _exchange(connection_id=2)
    started.play(new)
    started.adopt(stack_config(CAPTURE))
    for script in (old, new):
        script.step(CloseStep.DESTROYED)
    started.play(new).adopt(stack_config(CAPTURE, services=_otel(receiver))).play(old)
    last = _exchange(connection_id=3)
    last.step(CloseStep.DESTROYED)
    started.play(last)
    started.pipeline.stop_connections(10**12)
    assert started.pipeline.close(10)
    names = [record.event_name for record in receiver.records()]
    receiver.shutdown()
    receiver.server_close()

    assert names.count("qtap.connection") == 1  # the last; the new one ended when nobody asked
    assert started.counters.value("qtap.connection.open", direction="ingress") == 2


def test_metrics_are_counted_on(run) -> None:
    """A new configuration does not begin them anew."""
    started = run(stack_config("- type: http_metrics")).play(_exchange(connection_id=1))
    started.adopt(stack_config("- type: http_metrics\n- type: access_logs"))
    started.play(_exchange(connection_id=2))

    assert started.counters.total("qtap.http.requests") == 2


def test_observers_see_everything(run, configure) -> None:
    """Whatever the configuration keeps."""
    seen = []

    class Observer:
        def consume(self, transaction) -> None:
            seen.append(transaction.request.target)

    started = run(configure(level="none"), observers=(Observer(),))
    started.play(_exchange()).adopt(configure(level="none"))
    started.play(_exchange(connection_id=78))

    assert seen == ["/a", "/a"]
