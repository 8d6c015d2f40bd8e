"""Qtap's answers about a transaction."""

from __future__ import annotations

import pytest

from otel_qtap.stores.qtap_fields import (
    category_of,
    endpoint_of,
    head_duration_ms,
    process_facts,
    protocol_of,
    status_of,
    transferred,
)
from otel_qtap.transaction.model import Direction, Ending

CATEGORIES = [
    ("application/json", "app"),
    ("application/problem+json; charset=utf-8", "app"),
    ("application/soap+xml", "app"),
    ("application/grpc-web+proto", "app"),
    ("TEXT/HTML; charset=utf-8", "app"),
    ("text/plain", "app"),
    ("text/css", "css"),
    ("application/javascript", "js"),
    ("text/javascript;charset=utf-8", "js"),
    ("font/woff2", "font"),
    ("application/font-woff", "font"),
    ("application/vnd.ms-fontobject", "font"),
    ("image/svg+xml", "image"),
    ("audio/mpeg", "media"),
    ("video/mp4", "media"),
    ("application/octet-stream", "other"),
    ("application/pdf", "other"),
    ("", "other"),
    ("nonsense", "other"),
]


@pytest.mark.parametrize(("content_type", "category"), CATEGORIES)
def test_category(content_type, category) -> None:
    """Of a media type, whatever its case and parameters."""
    assert category_of(content_type) == category


ENDPOINTS = [
    pytest.param(Direction.INGRESS, {}, "localhost", id="ingress-host"),
    pytest.param(Direction.EGRESS_INTERNAL, {}, "backend-api-1", id="egress-name"),
    pytest.param(Direction.EGRESS_INTERNAL, {"remote_name": ""}, "localhost", id="egress-host"),
    pytest.param(
        Direction.EGRESS_INTERNAL, {"remote_name": "", "request_headers": ()}, "172.18.0.3",
        id="egress-address",
    ),
    pytest.param(
        Direction.INGRESS, {"request_headers": (("host", "[::1]:80"),)}, "::1", id="ipv6"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("direction", "changes", "endpoint"), ENDPOINTS)
def test_endpoint(direction, changes, endpoint, make_transaction) -> None:
    """The server side's name, else its address."""
    assert endpoint_of(make_transaction(direction=direction, **changes)) == endpoint


@pytest.mark.parametrize(
    ("status", "ending", "answer"),
    [
        (204, Ending.COMPLETE, 204),
        (200, Ending.LOST, 200),
        (None, Ending.RESET, 499),
        (None, Ending.LOST, 422),
    ],
)
def test_status(status, ending, answer, make_transaction) -> None:
    """Qtap's own where there was no response."""
    assert status_of(make_transaction(status=status, ending=ending)) == answer


PROTOCOLS = [("1.0", "", "http1"), ("1.1", "application/grpc", "http1"), ("2", "", "http2"),
             ("2", "application/grpc+proto", "grpc")]  # fmt: skip


@pytest.mark.parametrize(("version", "content_type", "protocol"), PROTOCOLS)
def test_protocol(version, content_type, protocol, make_transaction, make_request) -> None:
    """gRPC is HTTP/2 with a media type."""
    request = make_request(version=version, headers=(("content-type", content_type),))
    assert protocol_of(make_transaction(request=request)) == protocol


def test_bytes_are_those_of_the_captured_process(make_transaction) -> None:
    """What it received as a server it sends as a client."""
    bodies = {"request_body": b"12345", "response_body": b"123"}
    served = make_transaction(**bodies)
    asked = make_transaction(direction=Direction.EGRESS_EXTERNAL, **bodies)
    assert transferred(served) == (83, 105)
    assert transferred(asked) == (105, 83)
    assert transferred(make_transaction(status=None)) == (0, 100)


def test_duration_is_that_of_the_heads(make_transaction) -> None:
    """Unlike ``timings.duration_ns``; never 0."""
    assert head_duration_ms(make_transaction(duration_ns=20_000_000)) == 10
    assert head_duration_ms(make_transaction(duration_ns=1)) == 1
    assert head_duration_ms(make_transaction(status=None, duration_ns=20_000_000)) == 20


def test_process_facts_are_those_that_are_known(make_process, make_container) -> None:
    """Nothing is said of what nobody knows."""
    labels = (("io.kubernetes.pod.name", "edge-1"), ("io.kubernetes.pod.namespace", "web"))
    assert process_facts(make_process(), make_container(labels=labels)) == {
        "process_exe": "/usr/local/sbin/haproxy",
        "container_name": "haproxy-demo",
        "container_image": "haproxy:2.9-alpine",
        "pod_name": "edge-1",
        "pod_namespace": "web",
    }
    assert process_facts(make_process(executable=""), None) == {}
