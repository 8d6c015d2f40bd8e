"""The JSON of events, key by key, and what joins them with each other and with objects."""

from __future__ import annotations

import json

import pytest

from otel_qtap.stores.artifact import make_artifact
from otel_qtap.stores.events import (
    ArtifactRecord,
    AuthToken,
    IssueEvent,
    RequestEvent,
)
from otel_qtap.stores.json_record import json_record
from otel_qtap.transaction.model import Direction, Ending

META = {
    "connectionId": "d3kq1f0t8s4c73a1b2bg",
    "endpointId": "localhost",
    "requestId": "d3kq1f0t8s4c73a1b2c0",
}
START = "2026-08-29T10:40:00.123456789Z"
END = "2026-08-29T10:40:00.135456789Z"


def test_request_event(make_transaction) -> None:
    """All keys of one, and no other."""
    event = RequestEvent(
        transaction=make_transaction(
            method="POST",
            target="/api/create?x=1",
            request_headers=(("host", "localhost:8085"), ("user-agent", "curl/7.81.0")),
            request_body=b"hello",
            response_body=b"ok",
        ),
        token=AuthToken(mask="abcd***(9)***wxyz", hash="0f" * 32, source="Api-Key", type="api_key"),
        tags=("bin:haproxy", "host:edge"),
    )
    assert event.event_type == "request"
    assert event.record() == {
        **META,
        "timestamp": START,
        "direction": "ingress",
        "url": "http://localhost:8085/api/create?x=1",
        "path": "/api/create",
        "method": "POST",
        "status": 200,
        "duration": 12,
        "contentType": "application/json",
        "category": "app",
        "agent": "curl/7.81.0",
        "bytesSent": 82,
        "bytesReceived": 105,
        "authTokenMask": "abcd***(9)***wxyz",
        "authTokenHash": "0f" * 32,
        "authTokenSource": "Api-Key",
        "authTokenType": "api_key",
        "tags": ["bin:haproxy", "host:edge"],
    }
    assert event.describe() == "HTTP POST (200) http://localhost:8085/api/create?x=1"


def test_request_event_of_a_bare_request(make_transaction) -> None:
    """What is not known is not said; a status and a duration there always are."""
    record = RequestEvent(
        transaction=make_transaction(
            direction=Direction.EGRESS_INTERNAL, status=None, ending=Ending.RESET, duration_ns=1
        )
    ).record()
    assert (record["status"], record["duration"], record["category"]) == (499, 1, "other")
    assert record["url"] == "http://backend-api-1:8001/api/users"
    assert record["endpointId"] == "backend-api-1"
    assert not {"contentType", "agent", "tags", "authTokenMask"} & set(record)


def test_issue_event(make_transaction) -> None:
    """What was wrong, by which rule and condition, when it was known."""
    event = IssueEvent(
        transaction=make_transaction(status=503),
        error="Backend down",
        conditions=("detect_errors:status_code", "detect_errors:empty_body"),
        reasons=("status is 503", "the response has no body"),
        tags=("team:edge",),
    )
    assert event.event_type == "issue"
    assert event.record() == {
        **META,
        "timestamp": END,
        "error": "Backend down",
        "direction": "ingress",
        "url": "http://localhost:8085/api/users",
        "path": "/api/users",
        "method": "GET",
        "status": 503,
        "triggerConditions": ["detect_errors:status_code", "detect_errors:empty_body"],
        "triggerReasons": ["status is 503", "the response has no body"],
        "tags": ["team:edge"],
    }
    assert event.describe() == "Backend down: HTTP GET (503) http://localhost:8085/api/users"


def test_artifact_record(make_transaction) -> None:
    """The digest is the object's key; the ids are those inside the object."""
    transaction = make_transaction(response_body=b"content")
    artifact = make_artifact(transaction)
    event = ArtifactRecord(transaction=transaction, url_of=lambda digest: f"https://s3/{digest}")
    stored = json.loads(artifact.content)

    assert event.event_type == "artifact_record"
    record = event.record()
    assert record == {
        **META,
        "timestamp": START,
        "type": "http_transaction",
        "digest": artifact.digest,
        "url": f"https://s3/{artifact.digest}",
        "summary": {
            "process_exe": "/usr/local/sbin/haproxy",
            "container_name": "haproxy-demo",
            "container_image": "haproxy:2.9-alpine",
            "request_id": META["requestId"],
            "connection_id": META["connectionId"],
            "request_method": "GET",
            "request_scheme": "http",
            "request_host": "localhost:8085",
            "request_protocol": "HTTP/1.1",
            "response_status": 200,
            "response_content_type": "application/json",
            "duration_ms": 6,
            "direction": "ingress",
        },
    }
    for key, name in (("requestId", "request_id"), ("connectionId", "connection_id")):
        assert record[key] == stored["metadata"][name]


def test_artifact_record_without_an_address(make_transaction) -> None:
    """Standard output has none."""
    assert "url" not in ArtifactRecord(transaction=make_transaction()).record()


@pytest.mark.parametrize("direction", [Direction.INGRESS, Direction.EGRESS_INTERNAL])
def test_requests_objects_and_artifact_records_agree(direction, make_transaction) -> None:
    """On everything that two of them say."""
    transaction = make_transaction(direction=direction, request_body=b"12345")
    stored = json_record(transaction)["metadata"]
    request = RequestEvent(transaction=transaction).record()
    artifact = ArtifactRecord(transaction=transaction).record()

    for name, key in (("endpoint_id", "endpointId"), ("bytes_sent", "bytesSent"),
                      ("bytes_received", "bytesReceived")):  # fmt: skip
        assert stored[name] == request[key]
    assert {key: request[key] for key in META} == {key: artifact[key] for key in META}
