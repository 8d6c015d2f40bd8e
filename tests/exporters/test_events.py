"""Qtap's events as log records, as Qtap's own OTLP event store has them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from exporters.test_otlp import Receiver
from opentelemetry.sdk.resources import Resource

from otel_qtap.connection.model import Peer
from otel_qtap.exporters import OtlpExporter, TransportOptions
from otel_qtap.exporters.identity import SpanIdentifier
from otel_qtap.exporters.logs import LogBuilder
from otel_qtap.exporters.resource import ResourceTable
from otel_qtap.stores import ArtifactRecord, ConnectionEvent, IssueEvent, RequestEvent, System
from otel_qtap.transaction.model import Direction


@pytest.fixture
def record_of():
    """``record_of(event, identity=None)``: the log record of an event."""
    logs = LogBuilder(resource_of=ResourceTable(service_name="edge"))

    def build(event, identity=None):
        return logs.build_event(event, identity)

    return build


@pytest.fixture
def connection(make_process, make_container) -> ConnectionEvent:
    return ConnectionEvent(
        connection_id="d3kq1f0t8s4c73a1b2bg", endpoint_id="shop", part=2, is_finalized=True,
        timestamp_ns=1_788_000_001_000_000_000, created_ns=1_788_000_000_000_000_000,
        direction=Direction.INGRESS, l7_protocol="http1", local=Peer("172.18.0.2", 80),
        remote=Peer("192.0.2.7", 51234), process=make_process(), container=make_container(),
        bytes_sent=10, bytes_received=20, system=System(hostname="h", instance="i"),
        tags={"bin": ["haproxy"]},
    )  # fmt: skip


def test_a_request_event(record_of, make_transaction, factories) -> None:
    """Type, body, time and severity; the ids of the span; keys joined with dots."""
    transaction = make_transaction()
    event = RequestEvent(transaction=transaction, tags=("bin:haproxy",))
    readable = record_of(event, SpanIdentifier(b"key")(transaction))
    record, span = readable.log_record, SpanIdentifier(b"key")(transaction).context

    assert record.event_name == "qtap.request"
    assert record.body == "HTTP GET (200) http://localhost:8085/api/users"
    assert record.timestamp == factories.START_NS
    assert (record.severity_text, record.severity_number.value) == ("INFO", 9)
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    assert record.attributes["event.type"] == "request"
    assert record.attributes["event"]["requestId"] == transaction.request_id
    assert list(record.attributes["event"]["tags"]) == ["bin:haproxy"]
    assert readable.resource.attributes["process.pid"] == 987
    assert readable.resource.attributes["service.name"] == "edge"


def test_an_issue_is_an_error(record_of, make_transaction) -> None:
    """As in Qtap; everything else is information."""
    event = IssueEvent(
        transaction=make_transaction(status=500), error="oops", conditions=("c",), reasons=("r",)
    )
    record = record_of(event).log_record

    assert (record.severity_text, record.severity_number.value) == ("ERROR", 17)
    assert record.attributes["event.type"] == "issue"
    assert record.body.startswith("oops: HTTP GET (500)")


def test_an_artifact_record_has_a_type_of_its_own(record_of, make_transaction) -> None:
    """It does not hide the type of the event."""
    record = record_of(ArtifactRecord(transaction=make_transaction())).log_record

    assert record.attributes["event.type"] == "artifact_record"
    assert record.attributes["event"]["type"] == "http_transaction"
    assert record.attributes["event"]["summary.request_method"] == "GET"


def test_a_connection_has_a_process_and_no_span(record_of, connection) -> None:
    """Its resource is that of the process; it belongs to no trace."""
    readable = record_of(connection)
    record = readable.log_record

    assert (record.trace_id, record.span_id) == (0, 0)
    assert record.timestamp == 1_788_000_001_000_000_000
    assert record.attributes["event"]["meta.connectionId"] == "d3kq1f0t8s4c73a1b2bg"
    assert record.attributes["event"]["destination.container.name"] == "haproxy-demo"
    assert list(record.attributes["event"]["tags.bin"]) == ["haproxy"]
    assert readable.resource.attributes["container.name"] == "haproxy-demo"
    assert isinstance(readable.resource, Resource)


def test_what_a_client_sent_cannot_drive_a_terminal(record_of, make_transaction) -> None:
    """The body is one line of printable text."""
    record = record_of(
        RequestEvent(transaction=make_transaction(target="/\x1b[2J\r\nx"))
    ).log_record

    assert record.body.isprintable()


@dataclass
class Broken:
    """An event whose JSON cannot be made."""

    event_type = "request"
    timestamp_ns = 1
    held_bytes = 10

    def record(self) -> dict:
        raise ValueError("secret")

    def describe(self) -> str:
        return "broken"


def test_events_and_transactions_share_a_queue(make_transaction, connection, counters) -> None:
    """Each arrives, in order; one that cannot be made costs no other, and is counted."""
    receiver = Receiver()
    exporter = OtlpExporter(
        transport=TransportOptions(endpoint=receiver.endpoint, protocol="http", timeout_s=1.0),
        counters=counters,
        max_delay_s=0.2,
    )
    exporter.consume_event(connection)
    exporter.consume_event(Broken())
    exporter.consume(make_transaction())
    exporter.consume_event(RequestEvent(transaction=make_transaction()))
    assert not exporter.flush(20)  # not everything arrived
    exporter.close(5)
    names = [record.event_name for record in receiver.records()]
    receiver.shutdown()
    receiver.server_close()

    assert sorted(names) == ["otel_qtap.http.transaction", "qtap.connection", "qtap.request"]
    assert len(receiver.spans()) == 1
    assert counters.value("otel_qtap.exporter.build_failed", destination="otlp") == 1
    assert counters.value("otel_qtap.delivery.delivered", destination="otlp") == 3
    assert counters.value("otel_qtap.delivery.dropped", destination="otlp", reason="failed") == 1
