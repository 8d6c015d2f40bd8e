"""What probes and Prometheus are answered."""

from __future__ import annotations

import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from otel_qtap.counters import CounterSet
from otel_qtap.status import StatusServer, render_metrics


class Server:
    """A status server on a free port, and the agent's readiness to play with."""

    def __init__(self, counters: CounterSet) -> None:
        self.is_ready = False
        pages = {"/report.json": lambda: '{"rows": []}'}
        self._server = StatusServer("127.0.0.1", 0, counters, lambda: self.is_ready, pages)
        self.port = self._server.port

    def get(self, path: str) -> tuple[int, str, str]:
        """Return status, content type and body."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def server(counters) -> Iterator[Server]:
    server = Server(counters)
    yield server
    server.close()


def test_ready_means_that_traffic_is_seen(server) -> None:
    """Alive is another thing: it holds from the start."""
    assert server.get("/healthz") == (200, "text/plain; charset=utf-8", "healthy\n")
    assert server.get("/readyz")[::2] == (503, "not ready\n")
    server.is_ready = True
    assert server.get("/readyz?verbose=1")[::2] == (200, "ready\n")


def test_the_process_says_its_id(server) -> None:
    """For whoever wants to send it a signal."""
    assert server.get("/pid")[::2] == (200, f"{os.getpid()}\n")


def test_further_pages_are_json(server) -> None:
    """Made when they are asked for, and named where somebody is lost."""
    assert server.get("/report.json") == (
        200, "application/json; charset=utf-8", '{"rows": []}',
    )  # fmt: skip
    status, _, text = server.get("/nowhere")
    assert status == 404
    assert text == "try one of /readyz /healthz /pid /metrics /system/metrics /report.json\n"


def test_metrics_are_the_counters_of_this_moment(server, counters) -> None:
    """In the text format of Prometheus, with its content type."""
    counter = counters.counter("otel_qtap.seen", "{event}", "Seen")
    counter.add(3)
    status, content_type, text = server.get("/metrics")
    counter.add(4)

    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "otel_qtap_seen_total 3\n" in text
    assert "otel_qtap_seen_total 7\n" in server.get("/metrics")[2]


def test_another_path_is_told_the_right_ones(server) -> None:
    """A person may look."""
    status, _, text = server.get("/")

    assert status == 404
    assert all(path in text for path in ("/readyz", "/healthz", "/metrics", "/system/metrics"))


def test_what_the_agent_counts_about_itself_has_a_page_of_its_own(server, counters) -> None:
    """Without the metrics of traffic, which may be many."""
    counters.counter("otel_qtap.seen", "{event}", "Seen").add(3)
    counters.counter("qtap.http.requests", "1", "Requests").add(5)
    counters.histogram("qtap.http.duration_ms", "ms", "Duration", (1,)).record(2)
    status, content_type, text = server.get("/system/metrics")

    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "otel_qtap_seen_total 3\n" in text
    assert "qtap_http" not in text
    everything = server.get("/metrics")[2]
    assert "qtap_http_requests_total 5\n" in everything
    assert "qtap_http_duration_ms_count 1\n" in everything
    assert "otel_qtap_seen_total 3\n" in everything


def test_a_silent_client_holds_up_nobody(server) -> None:
    """Each has a thread of its own."""
    with socket.create_connection(("127.0.0.1", server.port)):
        assert server.get("/healthz")[0] == 200


def test_nothing_is_said_about_requests(server, capfd) -> None:
    """Probes come every few seconds."""
    server.get("/healthz")
    server.get("/nowhere")

    assert capfd.readouterr().err == ""


def test_a_closed_server_frees_its_port(counters) -> None:
    """And one that is taken is an error for the caller to explain."""
    first = StatusServer("127.0.0.1", 0, counters, lambda: True)
    with pytest.raises(OSError, match="Address already in use"):
        StatusServer("127.0.0.1", first.port, counters, lambda: True)
    first.close()

    again = StatusServer("127.0.0.1", first.port, counters, lambda: True)
    again.close()
    assert again.port == first.port


def test_it_can_listen_on_ipv6(counters) -> None:
    """An address with colons is one."""
    try:
        server = StatusServer("::1", 0, counters, lambda: True)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.port}/readyz", timeout=5) as answer:
            assert answer.status == 200
    finally:
        server.close()


def test_the_text_of_metrics(counters) -> None:
    """Names, units, kinds, labels and escapes, spelled out."""
    counters.counter("otel_qtap.receiver.lost", "{event}", "Lost", reason="ring_full").add(2)
    counters.counter("otel_qtap.receiver.lost", "{event}", "Lost", reason="unreadable")
    counters.counter("otel_qtap.body_bytes", "By", "Bytes").add(9)
    counters.counter("otel_qtap.wire", "By", "Wire").add(8)
    counters.gauge("otel_qtap.ring.pending", "By", "Pending", lambda: 1.5)
    counters.gauge("otel_qtap.open", "{c}", "Open", lambda: 4, path='a"b\\c\nd')

    assert render_metrics(counters) == (
        "# HELP otel_qtap_body_bytes_total Bytes\n"
        "# TYPE otel_qtap_body_bytes_total counter\n"
        "otel_qtap_body_bytes_total 9\n"
        "# HELP otel_qtap_receiver_lost_total Lost\n"
        "# TYPE otel_qtap_receiver_lost_total counter\n"
        'otel_qtap_receiver_lost_total{reason="ring_full"} 2\n'
        'otel_qtap_receiver_lost_total{reason="unreadable"} 0\n'
        "# HELP otel_qtap_wire_bytes_total Wire\n"
        "# TYPE otel_qtap_wire_bytes_total counter\n"
        "otel_qtap_wire_bytes_total 8\n"
        "# HELP otel_qtap_open Open\n"
        "# TYPE otel_qtap_open gauge\n"
        'otel_qtap_open{path="a\\"b\\\\c\\nd"} 4\n'
        "# HELP otel_qtap_ring_pending_bytes Pending\n"
        "# TYPE otel_qtap_ring_pending_bytes gauge\n"
        "otel_qtap_ring_pending_bytes 1.5\n"
    )


def test_the_text_of_a_histogram(counters) -> None:
    """Buckets add up, the last of them is the count; one header for all labels."""
    for host, values in (("a", (0.5, 1, 7)), ("b", ())):
        histogram = counters.histogram("qtap.size_bytes", "By", "Sizes", (1, 2.5), host=host)
        for value in values:
            histogram.record(value)

    assert render_metrics(counters) == (
        "# HELP qtap_size_bytes Sizes\n"
        "# TYPE qtap_size_bytes histogram\n"
        'qtap_size_bytes_bucket{host="a",le="1"} 2\n'
        'qtap_size_bytes_bucket{host="a",le="2.5"} 2\n'
        'qtap_size_bytes_bucket{host="a",le="+Inf"} 3\n'
        'qtap_size_bytes_sum{host="a"} 8.5\n'
        'qtap_size_bytes_count{host="a"} 3\n'
        'qtap_size_bytes_bucket{host="b",le="1"} 0\n'
        'qtap_size_bytes_bucket{host="b",le="2.5"} 0\n'
        'qtap_size_bytes_bucket{host="b",le="+Inf"} 0\n'
        'qtap_size_bytes_sum{host="b"} 0.0\n'
        'qtap_size_bytes_count{host="b"} 0\n'
    )


def test_every_line_of_metrics_is_one_that_prometheus_takes(counters) -> None:
    """Whatever names, labels and values there are."""
    counters.counter("a.b.c_d", "{x}", "Text", key="v").add(1)
    counters.gauge("d", "s", "Text", lambda: 1e-9)
    counters.histogram("e.f", "ms", "Two\nlines \\ more", (0.1, 1), key="v").record(3)
    line = re.compile(
        r"# (HELP|TYPE) [a-zA-Z_:][\w:]* .+|"
        r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-z_]\w*="[^"]*"(,[a-z_]\w*="[^"]*")*\})? [0-9.e+-]+'
    )
    for text in render_metrics(counters).splitlines():
        assert line.fullmatch(text), text
