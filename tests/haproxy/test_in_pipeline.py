"""What HAProxy says takes part in the chain from events to what leaves the agent."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conversations import EPOCH_OFFSET_NS, NoFacts, Script, encode
from messages import GET, OK

from otel_qtap.config import Config
from otel_qtap.config.filters import CustomFilterConfig, FiltersConfig
from otel_qtap.config.tap import TapConfig
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import CloseStep, LogEvent, Role, StreamMark, StreamState
from otel_qtap.haproxy import CheckedServer, NameTables, ServerName
from otel_qtap.pipeline import Pipeline, PipelineOptions
from otel_qtap.receiver.recording import Recording, RecordingWriter
from otel_qtap.replay import recorded_transactions
from otel_qtap.transaction.link import ProxyName
from otel_qtap.transaction.model import Transaction

MS = 1_000_000
PID = 987
SERVER = ServerName("back", "a", 3, 1)
TABLES = NameTables(
    servers={("172.18.0.3", 8001): SERVER},
    checked={("172.18.0.3", 8001): CheckedServer(SERVER, 2, 3, 2)},
    frontends={("", 80): "front"},
    has_log=True,
)
IN_NO_STREAM = StreamMark(StreamState.OTHER, 0, 0)


class Run:
    """A pipeline whose HAProxy has names; what comes out of it is kept."""

    def __init__(self, config: Config | None = None) -> None:
        self.out: list[Transaction] = []
        self.counters = CounterSet()
        self.pipeline = Pipeline(
            config or Config(), NoFacts(), self.counters, io.BytesIO(),
            options=PipelineOptions(observers=(self,)),
            epoch_offset_ns=EPOCH_OFFSET_NS,
            names=self,
        )  # fmt: skip

    def tables_of(self, pid: int) -> NameTables | None:
        return TABLES if pid == PID else None

    def consume(self, transaction: Transaction) -> None:
        self.out.append(transaction)

    def play(self, script: Script, *more: LogEvent) -> Run:
        for event in (*script.events, *more):
            self.pipeline.accept_event(event)
        return self

    def lines(self, result: str) -> int:
        return self.counters.value("otel_qtap.haproxy.log.lines", result=result)


@pytest.fixture
def run():
    """``run(config)``: a pipeline, closed afterwards."""
    runs = []

    def start(config: Config | None = None) -> Run:
        runs.append(Run(config))
        return runs[-1]

    yield start
    for each in runs:
        each.pipeline.stop_connections(10**12)
        each.pipeline.close(5)


def exchange(role: Role = Role.SERVER, **changes) -> Script:
    script = Script(role, **changes)
    script.ask(GET)
    script.answer(OK)
    return script


def line_about(script: Script, client: str = "192.0.2.7:51234") -> LogEvent:
    """Return the line that HAProxy writes about the last request of ``script``."""
    epoch_ns = script.now_ns + EPOCH_OFFSET_NS
    begun = datetime.fromtimestamp(epoch_ns // MS / 1000, UTC)
    date = f"{begun:%d/%b/%Y:%H:%M:%S}.{epoch_ns // MS % 1000:03}"
    text = (
        f"{client} [{date}] front back/a 0/0/1/2/3 200 10 - - ---- 1/1/1/1/0 0/0"
        ' "GET /a HTTP/1.1"\n'
    )
    return LogEvent(script.now_ns + MS // 10, PID, 1, text.encode())


def test_a_transaction_comes_out_with_its_line_and_its_names(run) -> None:
    """The line comes as an event of its own."""
    script = exchange()
    started = run().play(script)
    assert started.out == []
    started.play(Script(connection_id=1, process_id=5), line_about(script))

    (transaction,) = started.out
    assert transaction.proxy_name == ProxyName("front", "FRONTEND")
    assert transaction.haproxy_log is not None
    assert transaction.haproxy_log.server == "a"


def test_without_its_line_it_comes_out_in_time(run) -> None:
    """By the clock of events."""
    script = exchange()
    started = run().play(script)
    started.pipeline.settle(script.now_ns + 99 * MS)
    assert started.out == []
    started.pipeline.settle(script.now_ns + 101 * MS)

    assert [transaction.haproxy_log for transaction in started.out] == [None]


@pytest.mark.parametrize(
    ("settings", "client", "result"),
    [
        pytest.param({"loopback": True}, "127.0.0.1:4711", "filtered", id="loopback-left-out"),
        pytest.param({"loopback": False}, "127.0.0.1:4711", "unmatched", id="loopback-captured"),
        pytest.param({"direction": "egress"}, "192.0.2.7:4711", "filtered", id="egress-only"),
        pytest.param({"loopback": True}, "somebody:4711", "unmatched", id="no-address"),
    ],
)
def test_lines_count_where_their_requests_are_captured(
    configure, run, settings, client, result
) -> None:
    """``tap.direction`` and ``tap.ignore_loopback`` are no loss."""
    script = Script()
    started = run(configure(**settings)).play(script, line_about(script, client))
    started.pipeline.settle(script.now_ns + 6000 * MS)

    assert started.lines(result) == 1


def test_lines_of_programs_that_are_left_out_do_not_count(run) -> None:
    """``tap.filters``."""
    filters = FiltersConfig(custom=(CustomFilterConfig(exe="/usr/sbin/haproxy", strategy="exact"),))
    script = Script()
    started = run(Config(tap=TapConfig(filters=filters))).play(script, line_about(script))

    assert started.lines("filtered") == 1


def test_a_failed_connect_of_a_health_check_counts_and_is_no_transaction(run) -> None:
    """Nothing was asked, and on nobody's behalf."""
    script = Script(Role.CLIENT, connecting=IN_NO_STREAM, established_ns=0)
    script.step(CloseStep.CONNECT_FAILED)
    started = run().play(script)

    assert started.out == []
    assert started.counters.value(
        "otel_qtap.haproxy.health_checks", result="failed", backend="back", server="a"
    ) == 1  # fmt: skip
    assert started.counters.value(
        "otel_qtap.haproxy.health_transitions", to="down", backend="back", server="a"
    ) == 1  # fmt: skip


def test_a_replay_has_lines_and_names_as_the_recorded_agent_had_them(tmp_path: Path) -> None:
    """Names hold from where they stand in the recording."""
    path = tmp_path / "r"
    writer = RecordingWriter(path, epoch_offset_ns=EPOCH_OFFSET_NS, limit_bytes=10**9)
    writer.write_process(Process(pid=PID, executable="/usr/sbin/haproxy"), None)
    before, after = exchange(), exchange(connection_id=78, remote_port=51235)
    for event in before.events:
        writer.write_record(encode(event))
    writer.write_names(PID, TABLES)
    for event in (*after.events, line_about(after, "192.0.2.7:51235")):
        writer.write_record(encode(event))
    writer.close("stopped")

    found = [
        (transaction.proxy_name, transaction.haproxy_log is not None)
        for transaction in recorded_transactions(Recording(path))
    ]
    assert found == [(None, False), (ProxyName("front", "FRONTEND"), True)]
