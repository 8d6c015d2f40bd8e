"""Standard output: whole blocks in order, and no reader that can stall or end the agent."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from otel_qtap.config.capture import CaptureFormat
from otel_qtap.stores.artifact import make_artifact
from otel_qtap.stores.events import ArtifactRecord, RequestEvent
from otel_qtap.stores.stdout import StdoutEventStore, StdoutStore, StdoutWriter

WAIT_S = 30.0


@pytest.fixture
def pipe():
    """A pipe: the reading end as a descriptor, the writing end as a stream."""
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as stream:  # noqa: PTH123 - a descriptor
        yield reading, stream
    os.close(reading)


def test_format_of_each_transaction(make_transaction, counters) -> None:
    """Text blocks and JSON lines, in order of arrival, blocks parted by an empty line."""
    stream = io.BytesIO()
    store = StdoutStore(StdoutWriter(stream, counters=counters))
    for format_ in (CaptureFormat.TEXT, CaptureFormat.JSON, CaptureFormat.TEXT):
        store.consume(make_transaction(format=format_))
    assert store.close(WAIT_S)

    text = stream.getvalue().decode()
    assert text.count("=== HTTP Transaction ===\n") == 2
    assert text.startswith("=== HTTP Transaction ===\n")
    between = text.split("========================\n\n")[1]
    line, _, second = between.partition("\n")
    assert json.loads(line)["direction"] == "ingress"
    assert second.startswith("=== HTTP Transaction ===\n")
    assert text.endswith("========================\n\n")


def test_through_a_descriptor(pipe, make_transaction, counters) -> None:
    """A real stream gets the same bytes, however large the batch."""
    reading, stream = pipe
    writer = StdoutWriter(stream, counters=counters)
    received = bytearray()

    def read() -> None:
        while chunk := os.read(reading, 1000):
            received.extend(chunk)
            if received.count(b"\n") == 200:
                break

    reader = threading.Thread(target=read)
    reader.start()
    store = StdoutStore(writer)
    for _ in range(200):
        store.consume(make_transaction(response_body=b"x" * 1000))
    assert store.close(WAIT_S)
    reader.join(WAIT_S)
    assert [json.loads(line)["ending"] for line in received.splitlines()] == ["complete"] * 200


def test_non_blocking_descriptor(pipe, make_transaction, counters) -> None:
    """O_NONBLOCK set by somebody who shares the descriptor costs nothing but time."""
    reading, stream = pipe
    os.set_blocking(stream.fileno(), False)
    store = StdoutStore(StdoutWriter(stream, counters=counters))
    for _ in range(30):
        store.consume(make_transaction(response_body=b"x" * 10_000))
    assert not store.flush(0.2)
    received = bytearray()
    while received.count(b"\n") < 30:
        received += os.read(reading, 65536)
    assert store.close(WAIT_S)


def test_closed_reader(make_transaction, counters, caplog) -> None:
    """``otel-qtap | head``: what nobody reads is counted, the log tells it once."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as stream:  # noqa: PTH123 - a descriptor
        store = StdoutStore(StdoutWriter(stream, counters=counters))
        for _ in range(3):
            store.consume(make_transaction())
            assert not store.flush(WAIT_S)
        store.close(WAIT_S)

    assert counters.value("otel_qtap.delivery.dropped", destination="stdout", reason="failed") == 3
    assert [record.getMessage() for record in caplog.records] == [
        "stdout: delivery fails (BrokenPipeError: Broken pipe); what is lost meanwhile is counted"
    ]


def test_one_bad_transaction_costs_only_itself(make_transaction, counters) -> None:
    """A renderer that fails takes no other block with it."""
    stream = io.BytesIO()
    writer = StdoutWriter(stream, counters=counters)
    writer.put(make_transaction(), lambda _: "first\n")
    writer.put(make_transaction(), lambda _: {}["missing"])
    writer.put(make_transaction(), lambda _: "last\n")
    assert not writer.close(WAIT_S)
    assert stream.getvalue() == b"first\nlast\n"
    assert counters.value("otel_qtap.delivery.dropped", destination="stdout", reason="failed") == 1


BLOCKED = textwrap.dedent(
    """
    import importlib.util, sys, time
    spec = importlib.util.spec_from_file_location("factories", sys.argv[1])
    factories = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(factories)
    from otel_qtap.counters import CounterSet
    from otel_qtap.stores.stdout import StdoutStore, StdoutWriter

    counters = CounterSet()
    store = StdoutStore(StdoutWriter(sys.stdout.buffer, counters=counters, max_bytes=1_000_000))
    slowest = 0.0
    for _ in range(500):
        started = time.monotonic()
        store.consume(factories.make_transaction(response_body=b"x" * 5000))
        slowest = max(slowest, time.monotonic() - started)
    closed = store.close(0.2)
    print(slowest < 1, closed, counters.total("otel_qtap.delivery.dropped") > 400, file=sys.stderr)
    """
)


def test_a_blocked_reader_stalls_neither_the_tap_nor_the_exit(factories) -> None:
    """A full pipe that nobody reads: puts return at once, and the process still ends cleanly."""
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", BLOCKED, factories.__file__],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=WAIT_S,
            check=False,
        )
    finally:
        os.close(writing)
        os.close(reading)
    assert done.stderr.decode().split()[-3:] == ["True", "False", "True"]
    assert done.returncode == 0


def test_events_as_lines(make_transaction, counters) -> None:
    """One object of JSON per line, between whole blocks of transactions, in order."""
    stream = io.BytesIO()
    writer = StdoutWriter(stream, counters=counters)
    store, events = StdoutStore(writer), StdoutEventStore(writer)
    transaction = make_transaction(format=CaptureFormat.TEXT)
    events.consume_event(RequestEvent(transaction=transaction))
    store.consume(transaction)
    events.consume_event(ArtifactRecord(transaction=transaction))
    assert writer.close(WAIT_S)

    first, *block, last = stream.getvalue().decode().splitlines()
    assert block[0] == "=== HTTP Transaction ==="
    request, artifact = json.loads(first), json.loads(last)
    assert request == {
        "level": "info",
        "ts": "2026-08-29T10:40:00.123456789Z",
        "msg": "event store submission",
        "event.type": "request",
        "event": RequestEvent(transaction=transaction).record(),
    }
    assert artifact["event.type"] == "artifact_record"
    assert artifact["event"]["digest"] == make_artifact(transaction).digest


def test_an_event_stays_one_line(make_transaction, make_process, counters) -> None:
    """Whatever passes in methods, URLs and names."""
    nasty = "".join(map(chr, range(256)))
    stream = io.BytesIO()
    writer = StdoutWriter(stream, counters=counters)
    transaction = make_transaction(
        method=nasty,
        target=f"/{nasty}",
        request_headers=(("user-agent", nasty), ("host", nasty)),
        process=make_process(executable="/bin/\udcff\u2028"),
    )
    StdoutEventStore(writer).consume_event(RequestEvent(transaction=transaction))
    StdoutEventStore(writer).consume_event(ArtifactRecord(transaction=transaction))
    assert writer.close(WAIT_S)
    lines = stream.getvalue().decode("ascii").splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() and json.loads(line) for line in lines)
