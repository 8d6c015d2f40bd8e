"""The JSON of Connection events, key by key."""

from __future__ import annotations

import pytest

from otel_qtap.connection.model import Peer
from otel_qtap.stores.connection_event import ConnectionEvent, System
from otel_qtap.transaction.model import Direction

CONNECTION_ID = "d3kq1f0t8s4c73a1b2bg"
START = "2026-08-29T10:40:00.123456789Z"
END = "2026-08-29T10:40:00.135456789Z"
HERE = {
    "address": {"family": "ipv4", "ip": "172.18.0.2", "port": 80},
    "hostname": "edge",
    "exe": "/usr/local/sbin/haproxy",
    "user": "haproxy",
    "userId": 99,
    "container": {"id": "c0ffee000000", "name": "haproxy-demo", "image": "haproxy:2.9-alpine"},
}
THERE = {"address": {"family": "ipv6", "ip": "2001:db8::9", "port": 51234}}


@pytest.fixture
def make_event(make_process, make_container, factories):
    """A connection half a second old."""

    def make(**changes) -> ConnectionEvent:
        start = factories.START_NS
        values = {
            "connection_id": CONNECTION_ID,
            "endpoint_id": "localhost",
            "part": 0,
            "is_finalized": False,
            "timestamp_ns": start + 12 * factories.MS,
            "created_ns": start,
            "direction": Direction.INGRESS,
            "l7_protocol": "http1",
            "local": Peer("172.18.0.2", 80),
            "remote": Peer("2001:db8::9", 51234),
            "process": make_process(),
            "container": make_container(),
            "bytes_sent": 7,
            "bytes_received": 9,
            "system": System(hostname="edge", instance="d3kq1f0t8s4c73a1b000"),
            "tags": {"bin": ["haproxy"]},
        }
        return ConnectionEvent(**(values | changes))

    return make


def test_connection_event(make_event) -> None:
    """All keys of one that lasts, and no other."""
    assert make_event().record() == {
        "meta": {"connectionId": CONNECTION_ID, "endpointId": "localhost"},
        "tags": {"bin": ["haproxy"]},
        "finalized": False,
        "direction": "ingress",
        "socketProtocol": "tcp",
        "l7Protocol": "http1",
        "system": {"hostname": "edge", "agent": "tap", "agentInstance": "d3kq1f0t8s4c73a1b000"},
        "source": THERE,
        "destination": HERE,
        "bytesReceived": 9,
        "bytesSent": 7,
        "timestamp": END,
        "createdAt": START,
    }


def test_connection_event_that_ends(make_event, factories) -> None:
    """The closing report says when; of an egress connection the process is the source."""
    record = make_event(
        direction=Direction.EGRESS_EXTERNAL,
        part=3,
        is_finalized=True,
        closed_ns=factories.START_NS + 12 * factories.MS,
    ).record()
    assert (record["finalized"], record["part"], record["closedAt"]) == (True, 3, END)
    assert (record["source"], record["destination"]) == (HERE, THERE)


def test_a_pod_is_told_with_its_container(make_event, make_container) -> None:
    """As the labels of the container runtime name it."""
    labels = (("io.kubernetes.pod.name", "edge-1"), ("io.kubernetes.pod.namespace", "web"))
    record = make_event(container=make_container(labels=labels)).record()
    assert record["destination"]["container"]["pod"] == {"name": "edge-1", "namespace": "web"}


def test_a_process_that_nobody_knows(make_event, make_process) -> None:
    """Leaves an address and the machine's name."""
    process = make_process(executable="", user="", user_id=-1)
    record = make_event(process=process, container=None, tags={}).record()
    assert record["destination"] == {"address": HERE["address"], "hostname": "edge"}
    assert "tags" not in record
