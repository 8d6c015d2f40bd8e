"""What ``otel-qtap report`` says: the right numbers, from every source, in bounded memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conversations import Script, encode
from hypothesis import given
from hypothesis import strategies as st
from messages import GET, OK

from otel_qtap import report_command
from otel_qtap.connection.model import Peer, Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import Role
from otel_qtap.receiver.recording import AddressName, RecordingWriter
from otel_qtap.report import (
    Report,
    ReportSnapshot,
    ReportTable,
    rates_between,
    read_record,
    render_report,
)
from otel_qtap.report.aggregate import OTHER
from otel_qtap.report.quantiles import EXACT_VALUES, Quantiles
from otel_qtap.status import StatusServer
from otel_qtap.stores.json_record import render_json
from otel_qtap.transaction.link import Link, LinkMethod, ProxyHop, ProxyName
from otel_qtap.transaction.model import Direction, Ending

EGRESS = Direction.EGRESS_INTERNAL
MS = 1_000_000


# Quantiles -----------------------------------------------------------------------------


def nearest_rank(values: list[int], fraction: float) -> int:
    """The definition, by sorting."""
    return sorted(values)[max(1, math.ceil(fraction * len(values))) - 1]


def quantiles_of(values: list[int]) -> Quantiles:
    quantiles = Quantiles()
    for value in values:
        quantiles.record(value)
    return quantiles


DURATIONS = st.integers(min_value=0, max_value=10**14)
FRACTIONS = st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99, 1.0])


@given(st.lists(DURATIONS, min_size=1, max_size=EXACT_VALUES), FRACTIONS)
def test_a_few_values_give_exact_quantiles(values, fraction) -> None:
    """As many as are kept as they are."""
    assert quantiles_of(values).at(fraction) == nearest_rank(values, fraction)


@given(st.lists(DURATIONS, min_size=1, max_size=40), FRACTIONS)
def test_many_values_give_quantiles_within_one_percent(values, fraction) -> None:
    """Whatever the scale, from nanoseconds to a day."""
    values = values * 10
    found, right = quantiles_of(values).at(fraction), nearest_rank(values, fraction)
    assert abs(found - right) <= right * 0.0079


@given(st.lists(st.lists(DURATIONS, max_size=2 * EXACT_VALUES), max_size=4), FRACTIONS)
def test_merged_quantiles_are_those_of_all_values(parts, fraction) -> None:
    """So a sum of rows is as good as its rows."""
    merged = Quantiles()
    for part in parts:
        merged.merge(quantiles_of(part))
    whole = [value for part in parts for value in part]

    assert merged.count == len(whole)
    assert merged.maximum == max(whole, default=0)
    right = nearest_rank(whole, fraction) if whole else 0
    assert abs(merged.at(fraction) - right) <= right * 0.0079


def test_memory_for_quantiles_is_bounded() -> None:
    """Ten thousand different durations from 1 ms to 1 s take less than a thousand numbers."""
    quantiles = quantiles_of([1_000_000 + 99_900 * number for number in range(10_000)])
    assert len(quantiles._buckets) < 1000


# Rows ----------------------------------------------------------------------------------


def rows_of(table: ReportTable) -> dict[str, object]:
    return {row.name: row for row in table.rows}


ENDINGS = [
    pytest.param({"status": 200}, {"requests": 1}, id="answered"),
    pytest.param({"status": 404}, {"requests": 1, "client_errors": 1}, id="4xx"),
    pytest.param({"status": 503}, {"requests": 1, "server_errors": 1}, id="5xx"),
    pytest.param(
        {"status": None, "ending": Ending.CONNECT_FAILED},
        {"requests": 1, "failed": 1},
        id="connect-failed",
    ),
    pytest.param(
        {"status": 200, "ending": Ending.SERVER_CLOSED}, {"requests": 1, "failed": 1}, id="cut-off"
    ),
    pytest.param(
        {"status": None, "ending": Ending.CLIENT_CLOSED}, {"requests": 1, "aborted": 1}, id="gone"
    ),
    pytest.param({"status": None, "ending": Ending.LOST}, {"requests": 1, "unseen": 1}, id="lost"),
    pytest.param({"resend_count": 1}, {"requests": 1, "retries": 1}, id="retry"),
    pytest.param({"is_health_check": True}, {"requests": 0, "health_checks_passed": 1}, id="check"),
    pytest.param(
        {"is_health_check": True, "status": 503},
        {"requests": 0, "health_checks_failed": 1},
        id="failed-check",
    ),
    pytest.param(
        {"is_health_check": True, "status": None, "ending": Ending.TIMED_OUT},
        {"requests": 0, "health_checks_failed": 1},
        id="check-without-answer",
    ),
]
COUNTS = (
    "requests", "client_errors", "server_errors", "failed", "aborted", "unseen", "retries",
    "answered_by_proxy", "health_checks_passed", "health_checks_failed",
)  # fmt: skip


@pytest.mark.parametrize(("changes", "counts"), ENDINGS)
def test_each_request_counts_once_for_what_became_of_it(changes, counts, make_transaction) -> None:
    """An error of the client, of the server, no whole answer, or a health check."""
    report = Report()
    report.consume(make_transaction(direction=EGRESS, **changes))

    (row,) = report.snapshot().backend.rows
    assert {name: getattr(row, name) for name in COUNTS} == dict.fromkeys(COUNTS, 0) | counts


def test_only_whole_answers_have_a_latency(make_transaction) -> None:
    """A failed connect is fast, and says nothing about how fast the backend is."""
    report = Report()
    for ending, duration_ms in ((Ending.COMPLETE, 40), (Ending.COMPLETE, 80), (Ending.RESET, 1)):
        report.consume(
            make_transaction(direction=EGRESS, ending=ending, duration_ns=duration_ms * MS)
        )

    (row,) = report.snapshot().backend.rows
    latency = row.latency_ms
    assert (row.requests, latency.p50, latency.p99, latency.max) == (3, 40, 80, 80)


def test_the_three_tables_show_the_same_requests(make_transaction) -> None:
    """Backends are whom a process asked, frontends where it was asked, paths without query."""
    report = Report()
    for number in range(10):
        report.consume(make_transaction(target=f"/a?n={number}"))
        server = Peer(f"172.18.0.{3 + (number > 7)}", 8001)
        name = f"backend-{1 + (number > 7)}"
        report.consume(
            make_transaction(direction=EGRESS, target="/a", remote=server, remote_name=name)
        )

    snapshot = report.snapshot()
    shares = [(row.name, row.requests, row.share) for row in snapshot.backend.rows]
    assert shares == [("backend-1:8001", 8, 0.8), ("backend-2:8001", 2, 0.2)]
    assert [(row.name, row.requests) for row in snapshot.frontend.rows] == [("172.18.0.2:80", 10)]
    assert [(row.name, row.requests) for row in snapshot.path.rows] == [("/a", 10)]
    assert [total.requests for total in snapshot.backend.totals] == [10]
    assert snapshot.transactions == 20


def test_paths_are_those_that_were_asked_where_only_egress_is_captured(make_transaction) -> None:
    """As half of the guide's configurations do."""
    report = Report()
    report.consume(make_transaction(direction=EGRESS, target="/b"))
    assert [row.name for row in report.snapshot().path.rows] == ["/b"]


def test_programs_and_containers_are_told_apart_and_workers_are_not(
    make_transaction, make_process, make_container
) -> None:
    """A reload of HAProxy makes a new process and no new row."""
    report = Report()
    for pid in (1, 2):
        report.consume(make_transaction(process=make_process(pid=pid), container=None))
    report.consume(make_transaction(container=make_container(name="edge")))

    totals = report.snapshot().frontend.totals
    assert [(total.process, total.requests) for total in totals] == [
        ("haproxy", 2),
        ("haproxy (edge)", 1),
    ]


def test_a_name_of_haproxy_holds_for_what_came_before_it_was_known(make_transaction) -> None:
    """Names are found out in the background; one server must not be two rows."""
    report = Report()
    report.consume(make_transaction(direction=EGRESS))
    report.consume(
        make_transaction(direction=EGRESS, target="/b", proxy_name=ProxyName("api", "api1"))
    )
    report.consume(make_transaction(proxy_name=ProxyName("http_front", "FRONTEND")))

    snapshot = report.snapshot()
    assert [(row.name, row.requests) for row in snapshot.backend.rows] == [("api/api1", 2)]
    assert [row.name for row in snapshot.frontend.rows] == ["http_front"]


def attempt(make_transaction, number: int, **changes):
    link = Link(method=LinkMethod.STREAM, parent_id="client-1", root_id="client-1")
    server = Peer(f"172.18.0.{number}", 8001)
    return make_transaction(
        direction=EGRESS, link=link, resend_count=number - 1, remote=server, remote_name="",
        **changes,
    )  # fmt: skip


@pytest.mark.parametrize("is_client_first", [False, True])
def test_overhead_is_put_down_to_the_backend_that_answered(
    is_client_first, make_transaction
) -> None:
    """The last attempt, whichever side of HAProxy is over first."""
    served = make_transaction(request_id="client-1", hop=ProxyHop(attempts=2, overhead_ns=3 * MS))
    failed = attempt(make_transaction, 1, status=None, ending=Ending.CONNECT_FAILED)
    answered = attempt(make_transaction, 2)
    order = [failed, served, answered] if is_client_first else [failed, answered, served]
    report = Report()
    for transaction in order:
        report.consume(transaction)

    snapshot = report.snapshot()
    frontend = snapshot.frontend.rows[0]
    assert (frontend.overhead_ms.p50, frontend.retries) == (3, 1)
    if not is_client_first:
        backends = rows_of(snapshot.backend)
        assert backends["172.18.0.2:8001"].overhead_ms.p50 == 3
        assert backends["172.18.0.1:8001"].overhead_ms is None


def test_what_haproxy_answers_itself_is_told(make_transaction) -> None:
    """A denied request has no backend."""
    report = Report()
    report.consume(make_transaction(status=403, hop=ProxyHop(attempts=0, overhead_ns=5)))
    (row,) = report.snapshot().frontend.rows
    assert (row.answered_by_proxy, row.client_errors, row.overhead_ms) == (1, 1, None)


def test_rows_are_bounded_and_nothing_is_left_out(make_transaction) -> None:
    """First paths, then backends, then programs that come too late share a row."""
    report = Report(max_rows=10)
    for number in range(40):
        for end in range(3):
            report.consume(
                make_transaction(
                    direction=EGRESS, target=f"/{number}", remote=Peer(f"10.0.{number}.{end}", 80),
                    remote_name="", process=Process(pid=number, executable=f"/bin/p{number % 4}"),
                    container=None,
                )
            )  # fmt: skip

    snapshot = report.snapshot()
    assert len(report._rows) <= 31 + 1
    assert snapshot.transactions == 120
    assert sum(total.requests for total in snapshot.backend.totals) == 120
    assert sum(row.requests for row in snapshot.path.rows) == 120
    assert OTHER in {row.name for row in snapshot.path.rows}
    assert OTHER in {row.name for row in snapshot.backend.rows}


def test_clients_that_never_come_to_an_end_are_forgotten(make_transaction) -> None:
    """Attempts of which the agent never sees the client's side do not pile up."""
    report = Report()
    for number in range(5000):
        link = Link(method=LinkMethod.STREAM, parent_id=str(number), root_id="")
        report.consume(make_transaction(direction=EGRESS, link=link))
    assert len(report._asked_by) <= 4096


def test_a_snapshot_can_be_had_while_transactions_come_in(make_transaction) -> None:
    """The tap adds on one thread, the status server asks on another."""
    report = Report()
    stop = threading.Event()
    problems: list[Exception] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                report.snapshot()
            except Exception as error:
                problems.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for number in range(3000):
        report.consume(
            make_transaction(direction=EGRESS, target=f"/{number % 300}", duration_ns=number * MS)
        )
    stop.set()
    asking.join()

    assert problems == []
    assert report.snapshot().transactions == 3000


# Text ----------------------------------------------------------------------------------


@pytest.fixture
def filled(make_transaction) -> Report:
    """Two requests to one backend, one of them an error, one to another."""
    report = Report()
    for number, status in ((3, 200), (3, 500), (4, 200)):
        server = Peer(f"172.18.0.{number}", 8001)
        report.consume(
            make_transaction(
                direction=EGRESS, status=status, remote=server, remote_name=f"api-{number}",
                duration_ns=number * 10 * MS, container=None,
            )
        )  # fmt: skip
    return report


def test_the_table_is_readable(filled) -> None:
    """Title, columns, rows by number of requests, the sum."""
    assert render_report(filled.snapshot(), "backend").splitlines() == [
        "haproxy by backend, 2026-08-29 10:40:00 to 10:40:00 UTC (0.0 s)",
        "  backend     requests   share  4xx  5xx  failed  p50 ms  p95 ms  p99 ms",
        "  api-3:8001         2   66.7%    0    1       0    30.0    30.0    30.0",
        "  api-4:8001         1   33.3%    0    0       0    40.0    40.0    40.0",
        "  all                3  100.0%    0    1       0    30.0    40.0    40.0",
    ]


def test_large_numbers_and_long_names_stay_readable(filled) -> None:
    """A day of traffic on a name that no screen has room for."""
    snapshot = filled.snapshot()
    row, *others = snapshot.backend.rows
    large = row.model_copy(update={"name": "x" * 200 + ":8001", "requests": 1_234_567})
    text = render_report(
        snapshot.model_copy(
            update={
                "until_ns": snapshot.since_ns + 90_061 * 1000 * MS,
                "backend": snapshot.backend.model_copy(update={"rows": (large, *others)}),
            }
        ),
        "backend",
    )
    title, heading, first, *_ = text.splitlines()
    assert title.endswith("UTC (1 d 1 h)")
    assert "1,234,567" in first
    assert first.lstrip().startswith("…xxx")
    assert len(first) == len(heading) < 130


def test_columns_appear_when_there_is_something_in_them(filled, make_transaction) -> None:
    """Retries, aborted requests, health checks and overhead are not always there."""
    filled.consume(make_transaction(direction=EGRESS, is_health_check=True, status=500))
    filled.consume(make_transaction(direction=EGRESS, resend_count=2))
    text = render_report(filled.snapshot(), "backend")
    assert "retries" in text
    assert "health checks" in text
    assert "1 (1 failed)" in text
    assert "aborted" not in text
    assert "overhead" not in text


def test_the_table_can_be_limited(filled) -> None:
    """To some rows, or to some programs; what is left out is said."""
    snapshot = filled.snapshot()
    text = render_report(snapshot, "backend", limit=1)
    assert "api-4" not in text
    assert "… 1 more" in text
    assert render_report(snapshot, "backend", process="nginx") == (
        "no HTTP request asked of others by nginx was seen (3 transactions)\n"
    )


def test_rates_are_those_between_two_looks(filled, make_transaction) -> None:
    """Requests per second, by row and in all."""
    before = filled.snapshot()
    for _ in range(5):
        filled.consume(
            make_transaction(
                direction=EGRESS, remote=Peer("172.18.0.4", 8001), remote_name="api-4",
                container=None,
            )
        )  # fmt: skip
    after = filled.snapshot()

    rates = rates_between(before, after, "backend", 2.0)
    assert rates == {
        ("haproxy", "api-3:8001"): 0,
        ("haproxy", "api-4:8001"): 2.5,
        ("haproxy", ""): 2.5,
    }
    assert "per s" in render_report(after, "backend", rates=rates)


# JSON lines ----------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "counts"), ENDINGS[:7])
@pytest.mark.parametrize("direction", [EGRESS, Direction.INGRESS])
def test_a_report_of_json_lines_counts_like_that_of_the_transactions(
    direction, changes, counts, make_transaction
) -> None:
    """Each ending leaves its mark on the line."""
    transaction = make_transaction(direction=direction, **changes)
    read = read_record(render_json(transaction) + "\n")
    report = Report(is_coarse=True)
    report.consume(read)

    snapshot = report.snapshot()
    (row,) = (snapshot.backend if direction is EGRESS else snapshot.frontend).rows
    assert {name: getattr(row, name) for name in COUNTS} == dict.fromkeys(COUNTS, 0) | counts
    assert row.process == "haproxy (haproxy-demo)"
    assert row.name == ("backend-api-1:8001" if direction is EGRESS else "localhost:8085")
    assert snapshot.since_ns == transaction.timings.request_start_ns


def test_lines_that_say_how_the_sides_belong_together_give_the_whole_report(
    make_transaction,
) -> None:
    """Overhead per backend, retries, health checks: as from the transactions themselves."""
    link = {"method": "stream", "parent_request_id": "client-1", "resend_count": 1}
    lines = [
        (make_transaction(direction=EGRESS), {"link": link}),
        (make_transaction(direction=EGRESS), {"health_check": True}),
        (
            make_transaction(request_id="client-1"),
            {"proxy": {"attempts": 2, "overhead_ms": 0.75}},
        ),
        (make_transaction(status=403), {"proxy": {"attempts": 0, "overhead_ms": 0.01}}),
    ]
    report = Report(is_coarse=True)
    for transaction, more in lines:
        report.consume(read_record(json.dumps(json.loads(render_json(transaction)) | more)))

    snapshot = report.snapshot()
    (backend,), (frontend,) = snapshot.backend.rows, snapshot.frontend.rows
    assert (backend.requests, backend.retries, backend.health_checks_passed) == (1, 1, 1)
    assert backend.overhead_ms.p50 == frontend.overhead_ms.p50 == 0.75
    assert (frontend.requests, frontend.answered_by_proxy) == (2, 1)


NOT_TRANSACTIONS = [
    "",
    "\n",
    "=== HTTP Transaction ===\n",
    '{"time": "2026-11-21T11:07:22Z", "level": "info", "message": "READY"}\n',
    '{"finalized": true, "direction": "egress-external", "meta": {}}\n',
    '{"metadata": {}, "request": {}, "response": {}, "direction": "sideways"}\n',
    '{"metadata": null, "request": 5}\n',
    "[1, 2]\n",
    "17\n",
    "[" * 100_000,
]


@pytest.mark.parametrize("line", NOT_TRANSACTIONS, ids=range(len(NOT_TRANSACTIONS)))
def test_other_lines_are_no_transactions(line) -> None:
    """Events, access logs and whatever else is on an agent's output."""
    assert read_record(line) is None


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["metadata", "request", "response", "direction", "url", "duration_ms"]),
        inner,
    ),
))  # fmt: skip
def test_no_json_makes_it_fail(value) -> None:
    """Whatever another program prints."""
    read_record(json.dumps(value))


# The command ---------------------------------------------------------------------------


@pytest.fixture
def json_file(tmp_path, make_transaction) -> Path:
    """Two transactions, and a line of something else."""
    path = tmp_path / "transactions.jsonl"
    lines = [render_json(make_transaction(direction=d)) for d in (Direction.INGRESS, EGRESS)]
    path.write_text("\n".join(["READY", *lines, ""]))
    return path


def test_a_file_of_json_lines_is_reported(json_file, capsys) -> None:
    """With the remark that its latencies are coarse, and how many lines were something else."""
    assert report_command.main([str(json_file)]) == 0
    out, err = capsys.readouterr()
    assert "backend-api-1:8001" in out
    assert "whole milliseconds" in out
    assert err == "otel-qtap report: 1 other lines were passed over\n"


def test_standard_input_is_reported(json_file, capsys, monkeypatch) -> None:
    """For logs that come from elsewhere."""
    with json_file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert report_command.main(["-", "--by", "frontend"]) == 0
    assert "localhost:8085" in capsys.readouterr().out


def test_text_output_is_refused_with_the_way_out(tmp_path, capsys) -> None:
    """A report needs JSON."""
    path = tmp_path / "text"
    path.write_text("=== HTTP Transaction ===\nSource Process: haproxy (PID: 1)\n")
    assert report_command.main([str(path)]) == 1
    assert "format: json" in capsys.readouterr().err


def test_a_recording_is_reported(tmp_path, capsys) -> None:
    """Both sides, in full precision, whatever any configuration says."""
    path = tmp_path / "r.qtaprec"
    writer = RecordingWriter(path, epoch_offset_ns=1_788_000_000 * 10**9, limit_bytes=10**9)
    writer.write_process(Process(pid=987, executable="/usr/sbin/haproxy"), None)
    writer.write_name(AddressName(987, "172.18.0.3", "backend-api-1"))
    for number, role in enumerate((Role.SERVER, Role.CLIENT)):
        script = Script(role, connection_id=number)
        for _ in range(3):
            script.ask(GET)
            script.answer(OK)
        for event in script.events:
            writer.write_record(encode(event))
    writer.close("stopped")

    assert report_command.main([str(path), "--json"]) == 0
    snapshot = ReportSnapshot.model_validate_json(capsys.readouterr().out)
    assert [(row.name, row.requests) for row in snapshot.backend.rows] == [
        ("backend-api-1:8001", 3)
    ]
    assert [row.requests for row in snapshot.frontend.rows] == [3]
    assert not snapshot.is_coarse


def test_a_damaged_recording_is_told(tmp_path, capsys) -> None:
    """Not a table of what happened to be readable."""
    path = tmp_path / "r.qtaprec"
    path.write_bytes(b"\x1f\x8bgarbage")
    assert report_command.main([str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_a_running_agent_is_asked(filled, capsys) -> None:
    """Its status server answers with the whole report."""
    pages = {"/report.json": lambda: filled.snapshot().model_dump_json()}
    server = StatusServer("127.0.0.1", 0, CounterSet(), lambda: True, pages)
    try:
        assert report_command.main([f"127.0.0.1:{server.port}"]) == 0
        assert "api-3:8001" in capsys.readouterr().out
        assert report_command.main([f"http://127.0.0.1:{server.port}/", "--json"]) == 0
        assert ReportSnapshot.model_validate_json(capsys.readouterr().out) == filled.snapshot()
    finally:
        server.close()


@pytest.mark.parametrize("answer", [None, "ready"])
def test_who_is_no_agent_is_told(answer, capsys) -> None:
    """Nothing there, no such page, or something else on that page."""
    pages = {} if answer is None else {"/report.json": lambda: answer}
    server = StatusServer("127.0.0.1", 0, CounterSet(), lambda: True, pages)
    address = f"127.0.0.1:{server.port}"
    try:
        assert report_command.main([address]) == 1
    finally:
        server.close()
    assert f"http://{address} answers" in capsys.readouterr().err

    assert report_command.main([address]) == 1
    assert f"no agent answers on http://{address}" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told(capsys) -> None:
    """With the reason of the operating system."""
    assert report_command.main(["/nowhere/x.jsonl"]) == 1
    assert "cannot read /nowhere/x.jsonl: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--watch", "0"], ["--limit", "x"], ["--by", "colour"]])
def test_wrong_usage_ends_with_status_2(words, capsys) -> None:
    """And says which option it is."""
    with pytest.raises(SystemExit) as ending:
        report_command.main(words)
    assert ending.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_watching_follows_a_file_that_grows(json_file, capsys, monkeypatch) -> None:
    """Each look shows what has come, whole lines only; the rate is since the last look."""
    line = json_file.read_text().splitlines()[2] + "\n"
    looks = iter([line[:50], line[50:] + line])

    def grow(_seconds: float) -> None:
        with json_file.open("a") as file:
            file.write(next(looks, None) or _interrupt())
        real_sleep(0.01)

    real_sleep = time.sleep
    monkeypatch.setattr(time, "sleep", grow)
    assert report_command.main([str(json_file), "--watch", "--json"]) == 0

    counts = [
        ReportSnapshot.model_validate_json(text).backend.rows[0].requests
        for text in capsys.readouterr().out.split("\n")
        if text
    ]
    assert counts == [1, 1, 3]


def _interrupt() -> str:
    raise KeyboardInterrupt


def test_watching_a_pipe_ends_with_it(json_file, capsys, monkeypatch) -> None:
    """The last table is printed once more, whole."""

    read_end, write_end = os.pipe()
    os.write(write_end, json_file.read_bytes().rstrip(b"\n"))
    os.close(write_end)
    with open(read_end) as stdin:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdin", stdin)
        assert report_command.main(["-", "--watch", "0.1"]) == 0
    assert capsys.readouterr().out.rstrip().split("\n\n")[-2].count("backend-api-1:8001") == 1


def test_a_named_pipe_is_reported_from_its_first_byte(json_file, tmp_path, capsys) -> None:
    """As ``<(zcat old.jsonl.gz)`` in a shell."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(json_file.read_bytes()[6:]))
    writer.start()
    assert report_command.main([str(pipe), "--json"]) == 0
    writer.join()
    assert ReportSnapshot.model_validate_json(capsys.readouterr().out).transactions == 2


def test_leaving_while_a_pipe_is_silent_is_no_crash(json_file) -> None:
    """Ctrl-C while the agent has nothing to say."""
    command = [sys.executable, "-m", "otel_qtap.cli", "report", "-", "--watch", "0.1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json_file.read_bytes())
        program.stdin.flush()
        while b"by backend" not in program.stdout.readline():
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=20)
    assert (program.returncode, errors) == (0, b"")
