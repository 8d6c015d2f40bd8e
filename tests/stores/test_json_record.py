"""The JSON record: Qtap's keys, one line of plain ASCII, our additions only where they add."""

from __future__ import annotations

import base64
import json

import pytest

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.stores.json_record import render_json, rfc3339
from otel_qtap.transaction.model import Direction, Ending

FULL = {
    "metadata": {
        "process_id": "987",
        "process_exe": "/usr/local/sbin/haproxy",
        "container_name": "haproxy-demo",
        "container_image": "haproxy:2.9-alpine",
        "bytes_sent": 82,
        "bytes_received": 105,
        "request_id": "d3kq1f0t8s4c73a1b2c0",
        "connection_id": "d3kq1f0t8s4c73a1b2bg",
        "endpoint_id": "localhost",
        "tags": ["bin:haproxy", "protocol:http1", "strategy:observe"],
    },
    "request": {
        "method": "POST",
        "url": "http://localhost:8085/api/create?x=1",
        "scheme": "http",
        "path": "/api/create",
        "authority": "localhost:8085",
        "protocol": "HTTP/1.1",
        "request_id": "d3kq1f0t8s4c73a1b2c0",
        "user_agent": "curl/7.81.0",
        "content_type": "text/plain",
        "headers": {
            ":authority": "localhost:8085",
            ":method": "POST",
            ":path": "/api/create",
            ":scheme": "http",
            "host": "localhost:8085",
            "User-Agent": "curl/7.81.0",
            "content-type": "text/plain",
        },
        "body": "aGVsbG8=",
        "body_size": 5,
    },
    "response": {
        "status": 200,
        "content_type": "application/json",
        "headers": {":status": "200", "content-type": "application/json"},
        "body": "b2s=",
        "body_size": 2,
    },
    "transaction_time": "2026-08-29T10:40:00.123456789Z",
    "duration_ms": 6,
    "direction": "ingress",
    "ending": "complete",
}


@pytest.fixture
def posted(make_transaction, make_request):
    """A POST with a body in both directions."""
    return make_transaction(
        request=make_request(
            "POST",
            "/api/create?x=1",
            headers=(
                ("host", "localhost:8085"),
                ("User-Agent", "curl/7.81.0"),
                ("content-type", "text/plain"),
            ),
            body=b"hello",
        ),
        response_body=b"ok",
    )


def test_full_record_key_by_key(posted) -> None:
    """All keys of a full record, and no other."""
    assert json.loads(render_json(posted)) == FULL


def test_headers_and_summary_have_less(posted) -> None:
    """``headers`` drops the bodies, ``summary`` the headers too; sizes and types stay."""
    headers = json.loads(render_json(posted.reduced_to(CaptureLevel.HEADERS)))
    summary = json.loads(render_json(posted.reduced_to(CaptureLevel.SUMMARY)))
    for name in ("request", "response"):
        without_body = {key: value for key, value in FULL[name].items() if key != "body"}
        assert headers[name] == without_body
        del without_body["headers"]
        assert summary[name] == without_body
    assert headers["metadata"] == summary["metadata"] == FULL["metadata"]


def test_egress_names_the_server_that_was_chosen(make_transaction) -> None:
    """Sent and received swap; URL and endpoint name the backend."""
    record = json.loads(
        render_json(make_transaction(direction=Direction.EGRESS_INTERNAL, request_body=b"hello"))
    )
    assert record["direction"] == "egress-internal"
    assert record["request"]["url"] == "http://backend-api-1:8001/api/users"
    assert record["request"]["authority"] == "localhost:8085"
    assert record["metadata"]["endpoint_id"] == "backend-api-1"
    assert (record["metadata"]["bytes_sent"], record["metadata"]["bytes_received"]) == (105, 80)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Ending.CLIENT_CLOSED, 499),
        (Ending.TIMED_OUT, 499),
        (Ending.LOST, 422),
    ],
)
def test_no_response(ending, status, make_transaction) -> None:
    """Qtap's made-up status, with the truth beside it."""
    record = json.loads(render_json(make_transaction(status=None, ending=ending)))
    assert record["response"] == {"status": status}
    assert record["ending"] == ending.value
    assert record["duration_ms"] == 12


def test_several_values(make_transaction) -> None:
    """``headers`` holds the first value; all are in ``headers_multi``; names match in any case."""
    record = json.loads(
        render_json(
            make_transaction(
                response_headers=(("Vary", "a"), ("Set-Cookie", "1"), ("set-cookie", "2"))
            )
        )
    )
    assert record["response"]["headers"] == {":status": "200", "Vary": "a", "Set-Cookie": "1"}
    assert record["response"]["headers_multi"] == {"Set-Cookie": ["1", "2"]}


def test_truncated_body_and_trailers(make_transaction, make_body, make_response) -> None:
    """A body that is not whole says so and how much there was."""
    record = json.loads(
        render_json(
            make_transaction(
                response=make_response(
                    body=make_body(b"par", size=10), trailers=(("x-checksum", "1"),)
                )
            )
        )
    )
    response = record["response"]
    assert base64.b64decode(response["body"]) == b"par"
    assert (response["body_size"], response["body_truncated"]) == (10, True)
    assert response["trailers"] == {"x-checksum": "1"}


def test_shortest_duration_is_one(make_transaction) -> None:
    """As Qtap: never 0 ms."""
    assert json.loads(render_json(make_transaction(duration_ns=1000)))["duration_ms"] == 1


def test_one_line_of_printable_ascii(make_transaction, make_process) -> None:
    """Whatever passes, a line stays a line, and every reader of JSON reads it."""
    nasty = "".join(map(chr, range(256)))
    line = render_json(
        make_transaction(
            method=nasty,
            target=f"/{nasty}",
            request_headers=((nasty, nasty), ("host", nasty), ("user-agent", nasty)),
            process=make_process(executable="/bin/\udcff\u2028"),
        )
    )
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["request"]["user_agent"] == nasty
    assert json.loads(line)["metadata"]["process_exe"] == "/bin/?\u2028"


def test_utf8_values_are_read_as_such(make_transaction) -> None:
    """Octets that are valid UTF-8 become the characters that were meant."""
    raw = "Zoë".encode().decode("latin-1")
    record = json.loads(render_json(make_transaction(request_headers=(("x-name", raw),))))
    assert record["request"]["headers"]["x-name"] == "Zoë"


def test_pod_of_kubernetes(make_transaction, make_container) -> None:
    """The labels of the container runtime name the pod."""
    labels = (("io.kubernetes.pod.name", "edge-1"), ("io.kubernetes.pod.namespace", "web"))
    metadata = json.loads(render_json(make_transaction(container=make_container(labels=labels))))[
        "metadata"
    ]
    assert (metadata["pod_name"], metadata["pod_namespace"]) == ("edge-1", "web")


def test_nothing_known_nothing_said(make_transaction, make_process) -> None:
    """Empty keys are left out rather than written empty."""
    record = json.loads(
        render_json(
            make_transaction(
                process=make_process(executable=""),
                container=None,
                request_headers=(),
                target="*",
                method="OPTIONS",
            )
        )
    )
    assert "process_exe" not in record["metadata"]
    assert "container_name" not in record["metadata"]
    assert record["metadata"]["endpoint_id"] == "172.18.0.2"
    assert record["request"]["url"] == "http://172.18.0.2:80/*"
    assert "authority" not in record["request"]


def test_rfc3339() -> None:
    """Nanoseconds are kept, all nine digits."""
    assert rfc3339(5) == "1970-01-01T00:00:00.000000005Z"
