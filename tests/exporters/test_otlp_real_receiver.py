"""
The exporter against a receiver that others wrote: rotel, which prints what it understood.

Over gRPC and over HTTP the same transactions must come out the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from haproxy_demo.receiver import Receiver

from otel_qtap.connection.model import Peer
from otel_qtap.exporters import OtlpExporter, TransportOptions
from otel_qtap.transaction.model import Direction, Ending

WAIT_S = 30.0
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
MS = 1_000_000


@pytest.fixture
def rotel(tmp_path) -> Iterator[Receiver]:
    if not Receiver.is_available():
        pytest.skip("rotel is not installed")
    receiver = Receiver(tmp_path)
    try:
        receiver.wait_until_ready(WAIT_S)
        yield receiver
    finally:
        receiver.program.stop()


def fields(block: str) -> dict[str, str]:
    """Return ``name: value`` lines, attributes and others alike."""
    lines = (re.sub(r"^\s*(->)?\s*", "", line).partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, separator, value in lines if separator}


def blocks(text: str, title: str) -> list[dict[str, str]]:
    """Return the fields of each ``Span #n`` or ``LogRecord #n``, in order."""
    parts = re.split(
        r"^(Span #\d+|LogRecord #\d+|Resource(?:Spans|Log) #\d+).*$", text, flags=re.MULTILINE
    )
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [fields(block) for found, block in pairs if found.startswith(title)]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_a_real_receiver_understands(
    protocol, rotel, make_transaction, factories, counters
) -> None:
    """Ids, parent, kind, status, times, attributes, bodies, events and resource arrive intact."""
    start = factories.START_NS
    port = {"grpc": rotel.grpc_port, "http": rotel.port}[protocol]
    transport = TransportOptions(endpoint=f"127.0.0.1:{port}", protocol=protocol)
    exporter = OtlpExporter(counters=counters, transport=transport, max_delay_s=0.01)
    exporter.consume(
        make_transaction(
            request_id="d3kq1f0t8s4c73a1b2c0",
            method="POST",
            target="/api/create?x=1",
            request_headers=(
                ("host", "localhost:8085"),
                ("traceparent", f"00-{TRACE}-{CALLER}-01"),
                ("accept", "a"),
                ("accept", "b"),
            ),
            request_body=b"\x00\x01",
            response_body='{"name":"Zoë"}'.encode(),
        )
    )
    exporter.consume(
        make_transaction(
            request_id="d3kq1f0t8s4c73a1b2cg",
            direction=Direction.EGRESS_INTERNAL,
            status=None,
            ending=Ending.CONNECT_FAILED,
            remote=Peer("2001:db8::9", 8001),
            timings=factories.make_timings(
                connect_start_ns=start - MS, response_end_ns=0, response_head_ns=0
            ),
        )
    )
    assert exporter.flush(WAIT_S)
    assert exporter.close(WAIT_S)

    printed = rotel.program.output
    rotel.program.wait_until(lambda: printed().count("\nFlags: ") >= 2, WAIT_S, "two log records")
    text = printed()
    server, client = blocks(text, "Span")
    assert {
        "Trace ID": TRACE,
        "Parent ID": CALLER,
        "Name": "POST",
        "Kind": "SPAN_KIND_SERVER",
        "Start time": str(start),
        "End time": str(start + 12 * MS),
        "Status code": "STATUS_CODE_UNSET",
        "http.request.method": "Str(POST)",
        "url.path": "Str(/api/create)",
        "url.query": "Str(x=1)",
        "server.address": "Str(localhost)",
        "server.port": "Int(8085)",
        "client.address": "Str(192.0.2.7)",
        "client.port": "Int(51234)",
        "network.protocol.version": "Str(1.1)",
        "http.response.status_code": "Int(200)",
        "http.request.header.accept": "Slice(Str(a), Str(b))",
        "otel_qtap.request_id": "Str(d3kq1f0t8s4c73a1b2c0)",
    }.items() <= server.items()
    assert {
        "Parent ID": "",
        "Name": "GET",
        "Kind": "SPAN_KIND_CLIENT",
        "Start time": str(start - MS),
        "Status code": "STATUS_CODE_ERROR",
        "error.type": "Str(connect_failed)",
        "url.full": "Str(http://backend-api-1:8001/api/users)",
        "network.peer.address": "Str(2001:db8::9)",
        "otel_qtap.ending": "Str(connect_failed)",
    }.items() <= client.items()
    assert "http.response.status_code" not in client
    assert re.fullmatch("[0-9a-f]{32}", client["Trace ID"])
    assert client["Trace ID"] != TRACE

    first, second = blocks(text, "LogRecord")
    for record, span in ((first, server), (second, client)):
        assert record["EventName"] == "otel_qtap.http.transaction"
        assert (record["Trace ID"], record["Span ID"]) == (span["Trace ID"], span["ID"])
        assert record["Timestamp"] == span["End time"]
    assert (first["SeverityText"], second["SeverityText"]) == ("INFO", "ERROR")
    assert first["Body"] == "Str(POST http://localhost:8085/api/create?x=1 200 12.0ms)"
    assert first["http.request.body.content"] == "Bytes([0, 1])"
    assert first["http.response.body.content"] == 'Str({"name":"Zoë"})'

    resource = fields(text.partition("ScopeSpans #0")[0])
    assert resource["service.name"] == "Str(haproxy)"
    assert resource["process.pid"] == "Int(987)"
    assert resource["container.image.tags"] == "Slice(Str(2.9-alpine))"
    assert "InstrumentationScope otel_qtap 0.1.0" in text
    assert text.count("SchemaURL: https://opentelemetry.io/schemas/1.44.0") == 4
    for signal in ("traces", "logs"):
        labels = {"signal": signal, "destination": "otlp"}
        assert counters.value("otel_qtap.exporter.exported", **labels) == 2
