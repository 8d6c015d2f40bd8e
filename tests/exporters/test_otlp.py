"""The exporter against receivers of the test: what arrives, what is counted, what is said."""

from __future__ import annotations

import dataclasses
import gzip
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from otel_qtap.counters import CounterSet
from otel_qtap.exporters import OtlpExporter, SpanIdentifier, TransportOptions
from otel_qtap.transaction.model import Direction

WAIT_S = 20.0


class Receiver(ThreadingHTTPServer):
    """An OTLP/HTTP receiver that keeps what it gets and answers as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = 200
        self.ca_file = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> list[bytes]:
        return [body for found, _, body in self.requests if found == path]

    def spans(self) -> list:
        return [
            span
            for body in self.bodies("/v1/traces")
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def records(self) -> list:
        return [
            record
            for body in self.bodies("/v1/logs")
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        self.send_response(self.server.answer)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - of the base class
        pass


@pytest.fixture
def receiver():
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def make_exporter(counters):
    """Make exporters, options of the transport among theirs; all are closed afterwards."""
    exporters = []

    def make(**options):
        of_transport = {field.name for field in dataclasses.fields(TransportOptions)}
        transport = {name: options.pop(name) for name in of_transport & options.keys()}
        exporter = OtlpExporter(
            transport=TransportOptions(**({"timeout_s": 1.0} | transport)),
            **({"counters": counters, "max_delay_s": 0.01} | options),
        )
        exporters.append(exporter)
        return exporter

    yield make
    for exporter in exporters:
        exporter.close(0.1)


@pytest.fixture
def agent_log():
    """
    The messages that reach the root logger, as the agent's log shows them.

    Not ``caplog``: that also shows what loggers keep from the root.
    """
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep()
    logging.getLogger().addHandler(handler)
    yield messages
    logging.getLogger().removeHandler(handler)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def count(counters, name: str, signal: str) -> int:
    return counters.value(f"otel_qtap.exporter.{name}", signal=signal, destination="otlp")


def test_span_and_record_of_a_transaction_agree(
    receiver, make_exporter, make_transaction, counters
) -> None:
    """One of each per transaction, with the same ids and the facts of the transaction."""
    exporter = make_exporter(endpoint=receiver.endpoint, protocol="http")
    for number in range(3):
        exporter.consume(make_transaction(request_id=f"{number:020}"))
    assert exporter.flush(WAIT_S)

    spans, records = receiver.spans(), receiver.records()
    assert len({span.span_id for span in spans}) == 3
    assert [(record.trace_id, record.span_id) for record in records] == [
        (span.trace_id, span.span_id) for span in spans
    ]
    assert {record.event_name for record in records} == {"otel_qtap.http.transaction"}
    assert count(counters, "exported", "traces") == count(counters, "exported", "logs") == 3
    assert counters.total("otel_qtap.exporter.failed") == 0


def test_exporters_that_share_an_identifier_agree(
    receiver, make_exporter, make_transaction
) -> None:
    """Two destinations show the same trace."""
    identify = SpanIdentifier()
    for name in ("one", "two"):
        exporter = make_exporter(
            endpoint=receiver.endpoint, protocol="http", identify=identify, name=name
        )
        exporter.consume(make_transaction())
        assert exporter.flush(WAIT_S)
    first, second = receiver.spans()
    assert (first.trace_id, first.span_id) == (second.trace_id, second.span_id)


@pytest.mark.parametrize(
    ("signals", "paths"),
    [(["traces"], {"/v1/traces"}), (["logs"], {"/v1/logs"}), ([], set())],
)
def test_signals(signals, paths, receiver, make_exporter, make_transaction) -> None:
    """Only what is asked for is sent."""
    exporter = make_exporter(endpoint=receiver.endpoint, protocol="http", signals=signals)
    exporter.consume(make_transaction())
    assert exporter.flush(WAIT_S)
    assert {path for path, _, _ in receiver.requests} == paths


def test_headers_and_compression(receiver, make_exporter, make_transaction) -> None:
    """Headers go with every request; gzip when asked for."""
    exporter = make_exporter(
        endpoint=receiver.endpoint,
        protocol="http",
        headers={"X-Tenant": "edge"},
        compression="gzip",
    )
    exporter.consume(make_transaction())
    assert exporter.flush(WAIT_S)
    for _, headers, _ in receiver.requests:
        assert headers["x-tenant"] == "edge"
        assert headers["content-encoding"] == "gzip"
    assert len(receiver.spans()) == 1


def test_wrong_options_stop_the_start(make_exporter) -> None:
    """What can never work is said when it is configured."""
    with pytest.raises(ValueError, match="'stdin' is not one of grpc, http"):
        make_exporter(protocol="stdin")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        make_exporter(protocol="http", ca_file="/nowhere.pem")


def test_standard_variables(receiver, make_exporter, make_transaction, monkeypatch) -> None:
    """Without options the standard environment decides where to and what with."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{receiver.endpoint}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=edge")
    exporter = make_exporter()
    exporter.consume(make_transaction())
    assert exporter.flush(WAIT_S)
    assert {headers["x-tenant"] for _, headers, _ in receiver.requests} == {"edge"}
    assert len(receiver.spans()) == 1


@pytest.mark.parametrize(("protocol", "cause"), [("http", "Failed to export"), ("grpc", "refused")])
def test_a_receiver_that_is_away_is_no_error(
    protocol, cause, make_exporter, make_transaction, agent_log
) -> None:
    """The start succeeds; losses are counted by signal; the log has one line, with the cause."""
    counters = CounterSet()
    exporter = make_exporter(
        endpoint=f"127.0.0.1:{closed_port()}", protocol=protocol, timeout_s=0.3, counters=counters
    )
    for _ in range(2):
        exporter.consume(make_transaction())
        assert not exporter.flush(WAIT_S)

    assert count(counters, "failed", "traces") == count(counters, "failed", "logs") == 2
    assert counters.value("otel_qtap.delivery.dropped", destination="otlp", reason="failed") == 2
    (line,) = agent_log
    assert line.startswith("otlp: delivery fails (traces: ")
    assert cause in line


def test_the_cause_is_told_when_retries_do_not_help(
    receiver, make_exporter, make_transaction, agent_log
) -> None:
    """Not that the time was up, but why nothing arrived in it."""
    receiver.answer = 503
    exporter = make_exporter(
        endpoint=receiver.endpoint, protocol="http", timeout_s=1.5, signals=["logs"]
    )
    exporter.consume(make_transaction())
    assert not exporter.flush(WAIT_S)
    (line,) = agent_log
    assert "Service Unavailable" in line
    assert len(receiver.requests) > 1


def test_back_again(receiver, make_exporter, make_transaction, counters, agent_log) -> None:
    """One line when it goes, one when it is back; then everything arrives."""
    exporter = make_exporter(endpoint=receiver.endpoint, protocol="http")
    for answer in (400, 400, 200, 200):
        receiver.answer = answer
        exporter.consume(make_transaction())
        assert exporter.flush(WAIT_S) == (answer == 200)

    assert len(agent_log) == 2
    assert "code: 400" in agent_log[0]
    assert agent_log[1] == "otlp: delivery works again"
    assert (count(counters, "exported", "logs"), count(counters, "failed", "logs")) == (2, 2)


def test_one_signal_may_fail_alone(receiver, make_exporter, make_transaction, counters) -> None:
    """Spans arrive although logs are refused, and each is counted for itself."""

    class OnlyTraces(_Handler):
        def do_POST(self) -> None:
            self.server.answer = 200 if self.path == "/v1/traces" else 400
            super().do_POST()

    receiver.RequestHandlerClass = OnlyTraces
    exporter = make_exporter(endpoint=receiver.endpoint, protocol="http")
    exporter.consume(make_transaction())
    assert not exporter.flush(WAIT_S)
    assert (count(counters, "exported", "traces"), count(counters, "failed", "logs")) == (1, 1)


def test_batches_stay_below_what_receivers_take(receiver, make_exporter, make_transaction) -> None:
    """Many large bodies go in several requests, none above the usual 4 MiB."""
    exporter = make_exporter(endpoint=receiver.endpoint, protocol="http", timeout_s=10)
    for number in range(150):
        exporter.consume(
            make_transaction(
                request_id=f"{number:020}",
                request_body=b"x" * 64_000,
                response_body=b'"' + b"x" * 64_000 + b'"',
            )
        )
    assert exporter.flush(WAIT_S)
    sizes = [len(body) for body in receiver.bodies("/v1/logs")]
    assert len(receiver.records()) == 150
    assert len(sizes) > 1
    assert max(sizes) < 4 * 1024 * 1024


def test_a_transaction_that_cannot_be_built_costs_only_itself(
    receiver, make_exporter, make_transaction, counters
) -> None:
    """One failure of ours is counted, and the rest of the batch is sent."""
    identify = SpanIdentifier()

    def choosy(transaction):
        if transaction.request.method == "BAD":
            raise RuntimeError("bad")
        return identify(transaction)

    exporter = make_exporter(
        endpoint=receiver.endpoint,
        protocol="http",
        identify=choosy,
        max_delay_s=5,
        max_batch_items=3,
    )
    for method in ("GET", "BAD", "PUT"):
        exporter.consume(make_transaction(method=method))
    assert not exporter.flush(WAIT_S)
    assert [span.name for span in receiver.spans()] == ["GET", "PUT"]
    assert counters.value("otel_qtap.exporter.build_failed", destination="otlp") == 1
    assert counters.value("otel_qtap.delivery.dropped", destination="otlp", reason="failed") == 1


def test_consume_never_waits(make_exporter, make_transaction) -> None:
    """A receiver that accepts and says nothing holds up the worker, not the tap or the close."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        exporter = make_exporter(
            endpoint=f"127.0.0.1:{silent.getsockname()[1]}", protocol="http", timeout_s=2
        )
        started = time.monotonic()
        for _ in range(1000):
            exporter.consume(make_transaction(direction=Direction.EGRESS_EXTERNAL))
        assert time.monotonic() - started < 1
        assert not exporter.close(0.1)
        assert time.monotonic() - started < 2


def test_grpc_is_loaded_only_when_used() -> None:
    """HTTP and stdout users do not pay for gRPC's memory."""
    program = (
        "import sys, otel_qtap.exporters as e, otel_qtap.counters as c;"
        "t = e.TransportOptions(endpoint='localhost:1', protocol='http');"
        "e.OtlpExporter(counters=c.CounterSet(), transport=t).close(1);"
        "print('grpc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"False\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that is its own CA, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, crt = folder / "key.pem", folder / "crt.pem"
    try:
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                ),
                *("-nodes", "-keyout", key, "-out", crt, "-days", "2", "-subj", "/CN=test"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return crt, key


@pytest.fixture
def tls_receiver(receiver, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    receiver.ca_file = str(certificate[0])
    return receiver


@pytest.mark.parametrize("bundle", [None, "/etc/ssl/certs/ca-certificates.crt"])
def test_ca_file_is_not_overruled(
    bundle, tls_receiver, make_exporter, make_transaction, monkeypatch
) -> None:
    """The configured CA file counts, whatever REQUESTS_CA_BUNDLE says."""
    if bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    exporter = make_exporter(
        endpoint=tls_receiver.endpoint, protocol="http", ca_file=tls_receiver.ca_file
    )
    exporter.consume(make_transaction())
    assert exporter.flush(WAIT_S)
    assert len(tls_receiver.spans()) == 1


def test_ca_bundle_of_the_environment_still_counts(
    tls_receiver, make_exporter, make_transaction, monkeypatch
) -> None:
    """Without a configured file, the variable that requests knows is followed."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", tls_receiver.ca_file)
    exporter = make_exporter(endpoint=f"https://{tls_receiver.endpoint}", protocol="http")
    exporter.consume(make_transaction())
    assert exporter.flush(WAIT_S)


def test_unknown_ca_is_refused(tls_receiver, make_exporter, make_transaction, agent_log) -> None:
    """A receiver that nobody vouches for gets nothing."""
    exporter = make_exporter(
        endpoint=f"https://{tls_receiver.endpoint}",
        protocol="http",
        signals=["traces"],
        timeout_s=1.5,  # longer than the first pause before a retry, which tells the cause
    )
    exporter.consume(make_transaction())
    assert not exporter.flush(WAIT_S)
    assert tls_receiver.requests == []
    assert "certificate" in agent_log[0].lower()


@pytest.mark.parametrize(("has_ca", "arrives"), [(True, True), (False, False)])
def test_grpc_over_tls(has_ca, arrives, certificate, make_exporter, make_transaction) -> None:
    """A CA file turns TLS on for ``host:port``; without it a TLS receiver gets nothing."""
    received: list[ExportTraceServiceRequest] = []

    class Service(TraceServiceServicer):
        def Export(self, request, _context):  # noqa: N802 - of the base class
            received.append(request)
            return ExportTraceServiceResponse()

    crt, key = certificate
    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Service(), server)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), crt.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        exporter = make_exporter(
            endpoint=f"127.0.0.1:{port}",
            protocol="grpc",
            ca_file=str(crt) if has_ca else None,
            signals=["traces"],
            headers={"X-Tenant": "edge"},
        )
        exporter.consume(make_transaction())
        assert exporter.flush(WAIT_S) is arrives
    finally:
        server.stop(None).wait()
    assert len(received) == arrives
