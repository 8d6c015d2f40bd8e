"""Qtap's Prometheus metrics, by their full names, and their bounds."""

from __future__ import annotations

import pytest

from otel_qtap.counters import CounterSet
from otel_qtap.plugins.http_metrics import HttpMetrics
from otel_qtap.status import render_metrics
from otel_qtap.transaction.model import Ending


def lines(counters: CounterSet) -> dict[str, float]:
    """Return the value of each line of ``/metrics``."""
    text = render_metrics(counters)
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


LABELS = 'host="localhost:8085",method="POST",protocol="http1",status_code="201"'


def test_names_labels_and_values(make_transaction, make_timings, counters, factories) -> None:
    """As Qtap's dashboards ask for them."""
    start = factories.START_NS
    HttpMetrics(counters=counters).consume(
        make_transaction(
            method="POST",
            status=201,
            request_body=b"x" * 150,
            response_body=b"x" * 20,
            timings=make_timings(
                request_end_ns=start + 3_000_000,
                response_start_ns=start + 10_000_000,
                response_end_ns=start + 12_000_000,
            ),
        )
    )
    seen = lines(counters)
    assert seen[f"qtap_http_requests_total{{{LABELS}}}"] == 1
    assert seen[f"qtap_http_responses_total{{{LABELS}}}"] == 1
    for name, total, bucket, below in (
        ("qtap_http_requests_duration_ms", 3, "5", "2"),
        ("qtap_http_requests_size_bytes", 250, "250", "100"),
        ("qtap_http_responses_duration_ms", 2, "2", "1"),
        ("qtap_http_responses_size_bytes", 100, "100", "50"),
    ):
        assert seen[f"{name}_sum{{{LABELS}}}"] == total
        assert seen[f"{name}_count{{{LABELS}}}"] == 1
        assert seen[f'{name}_bucket{{{LABELS},le="{bucket}"}}'] == 1
        assert seen[f'{name}_bucket{{{LABELS},le="{below}"}}'] == 0
    assert seen["qtap_http_duration_ms_sum"] == 12
    assert seen['qtap_http_duration_ms_bucket{le="25"}'] == 1
    assert seen['qtap_http_duration_ms_bucket{le="10"}'] == 0


def test_buckets_are_those_of_qtap(make_transaction, counters) -> None:
    """All of them, spelled out."""
    HttpMetrics(counters=counters).consume(make_transaction())
    durations = [h for h in counters.histograms() if h.name.endswith("duration_ms")]
    sizes = [h for h in counters.histograms() if h.name.endswith("size_bytes")]
    assert {h.bounds for h in durations} == {
        (0.1, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000,
         120000, 300000, 600000)
    }  # fmt: skip
    assert {h.bounds for h in sizes} == {
        (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000,
         1000000, 2500000, 5000000, 10000000, 50000000)
    }  # fmt: skip


def test_without_a_response(make_transaction, counters) -> None:
    """The request counts, under the status that Qtap makes up; no response does."""
    HttpMetrics(counters=counters).consume(make_transaction(status=None, ending=Ending.RESET))
    seen = lines(counters)
    labels = 'host="localhost:8085",method="GET",protocol="http1",status_code="499"'
    assert seen[f"qtap_http_requests_total{{{labels}}}"] == 1
    assert seen[f"qtap_http_responses_total{{{labels}}}"] == 0
    assert seen[f"qtap_http_responses_duration_ms_count{{{labels}}}"] == 0
    assert seen["qtap_http_duration_ms_count"] == 1


def test_times_that_were_not_seen_are_left_out(make_transaction, make_timings, counters) -> None:
    """A request whose end is missing has a size and no duration."""
    HttpMetrics(counters=counters).consume(
        make_transaction(timings=make_timings(request_end_ns=0, response_end_ns=0))
    )
    seen = {name.partition("{")[0]: value for name, value in lines(counters).items()}
    assert seen["qtap_http_requests_duration_ms_count"] == 0
    assert seen["qtap_http_responses_duration_ms_count"] == 0
    assert seen["qtap_http_requests_size_bytes_count"] == 1


@pytest.mark.parametrize(
    ("method", "host", "labels"),
    [
        ("GET", "LocalHost:8085", ("GET", "localhost:8085")),
        ("BREW", "h", ("_other", "h")),
        ("get", "h", ("_other", "h")),
        ("GET", "user:hunter2@h", ("GET", "h")),
        ("GET", "", ("GET", "")),
        ("GET", 'a"b\\c', ("GET", 'a\\"b\\\\c')),
    ],
)
def test_what_clients_choose_is_tamed(method, host, labels, make_transaction, counters) -> None:
    """Case, made-up methods and user-info make no series of their own."""
    HttpMetrics(counters=counters).consume(
        make_transaction(method=method, request_headers=(("host", host),))
    )
    method, host = labels
    name = f'qtap_http_requests_total{{host="{host}",method="{method}",'
    assert any(line.startswith(name) for line in lines(counters))
    assert "hunter2" not in render_metrics(counters)


def test_the_number_of_series_is_bounded(make_transaction, counters) -> None:
    """What comes later shares one host; nothing is left uncounted; old ones go on."""
    metrics = HttpMetrics(counters=counters, max_label_sets=10)
    for number in [*range(1000), 0, 5]:
        metrics.consume(make_transaction(request_headers=(("host", f"h{number}"),)))
    for number in range(100):
        metrics.consume(make_transaction(method=f"M{number}", request_headers=(("host", "x"),)))

    samples = [s for s in counters.samples() if s.name == "qtap.http.requests"]
    by_host = {dict(s.labels)["host"]: s.value for s in samples if s.value}
    assert sum(s.value for s in samples) == 1102
    assert len(samples) == 12
    assert (by_host["h0"], by_host["h5"], by_host["h9"]) == (2, 2, 1)
    assert len(metrics._by_spelling) <= 40
