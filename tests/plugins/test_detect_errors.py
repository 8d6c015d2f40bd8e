"""Which transactions a rule finds faulty, and what is told and kept of them."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field

import pytest

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.plugins.detect_errors import DetectErrors, ErrorRule, parse_status_codes
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.stores.json_record import render_json
from otel_qtap.transaction.model import Ending


@dataclass
class Sink:
    """An event store and an object store that keeps what it gets."""

    events: list = field(default_factory=list)
    objects: list = field(default_factory=list)

    def consume_event(self, event) -> None:
        self.events.append(event)

    def consume(self, transaction) -> None:
        self.objects.append(transaction)


@pytest.fixture
def detect(counters):
    """``detect(transaction, rule, …) -> Sink`` with what came out."""

    def run(transaction, *rules: ErrorRule) -> Sink:
        sink = Sink()
        DetectErrors(
            rules=rules,
            redactor=Redactor(),
            consumers=[sink],
            object_stores=[sink],
            counters=counters,
            hostname="edge",
            tags=["team:proxies"],
        ).consume(transaction)
        return sink

    return run


STATUS_CODES = [
    pytest.param([404], {404}, id="number"),
    pytest.param(["404", " 500-502 "], {404, 500, 501, 502}, id="range"),
    pytest.param(["5xx"], set(range(500, 600)), id="class"),
    pytest.param(["4XX", "404"], set(range(400, 500)), id="class-in-capitals"),
    pytest.param([], set(), id="none"),
]


@pytest.mark.parametrize(("entries", "codes"), STATUS_CODES)
def test_status_codes(entries, codes) -> None:
    """A code, a range, a class."""
    assert parse_status_codes(entries) == codes


@pytest.mark.parametrize(
    "entry", ["teapot", "50x", "500-", "-500", "600", "99", "6xx", "502-500", ""]
)
def test_a_wrong_status_code_is_told(entry) -> None:
    """With what was written."""
    with pytest.raises(ValueError, match=repr(entry)):
        parse_status_codes([entry])


def rule(**changes) -> ErrorRule:
    return ErrorRule(**({"name": "Rule"} | changes))


TRIGGERS = [
    # what the rule says, the transaction, (condition, reason) or nothing
    pytest.param(
        {"trigger_status_codes": parse_status_codes(["5xx"])}, {"status": 503},
        ("status_code", "status is 503"), id="status",
    ),
    pytest.param(
        {"trigger_status_codes": parse_status_codes(["5xx"])}, {"status": 404}, None,
        id="other-status",
    ),
    pytest.param(
        {"trigger_status_codes": parse_status_codes([499])},
        {"status": None, "ending": Ending.RESET}, ("status_code", "status is 499"),
        id="status-without-response",
    ),
    pytest.param({"trigger_empty_body": True}, {}, ("empty_body", "the response has no body"),
                 id="empty"),
    pytest.param({"trigger_empty_body": True}, {"response_body": b"x"}, None, id="not-empty"),
    pytest.param({"trigger_empty_body": True}, {"method": "HEAD"}, None, id="empty-to-head"),
    pytest.param({"trigger_empty_body": True}, {"status": 204}, None, id="empty-204"),
    pytest.param({"trigger_empty_body": True}, {"status": 304}, None, id="empty-304"),
    pytest.param({"trigger_empty_body": True}, {"status": None}, None, id="empty-no-response"),
    pytest.param(
        {"trigger_duration_ms": 11.5}, {"duration_ns": 12_900_000},
        ("duration", "took 12.9 ms, more than 11.5 ms"), id="slow",
    ),
    pytest.param({"trigger_duration_ms": 12.9}, {"duration_ns": 12_900_000}, None,
                 id="fast-enough"),
    pytest.param(
        {"trigger_contains": ("nothing", "Zoë")}, {"response_body": "<Zoë>".encode()},
        ("contains", "the response body contains 'Zoë'"), id="contains",
    ),
    pytest.param({"trigger_contains": ("nothing",)}, {"response_body": b"something"}, None,
                 id="contains-not"),
    pytest.param(
        {"trigger_contains": ("fault",)},
        {
            "response_body": gzip.compress(b"a fault"),
            "response_headers": (("content-encoding", "gzip"),),
        },
        ("contains", "the response body contains 'fault'"), id="contains-compressed",
    ),
    pytest.param({}, {"status": 500}, None, id="no-trigger"),
]  # fmt: skip


@pytest.mark.parametrize(("says", "transaction", "finding"), TRIGGERS)
def test_triggers(says, transaction, finding, detect, make_transaction, counters) -> None:
    """Each by itself: met or not, named in Qtap's way, and counted."""
    events = detect(make_transaction(**transaction), rule(**says)).events
    found = [(event.conditions, event.reasons) for event in events]
    assert found == ([((f"detect_errors:{finding[0]}",), (finding[1],))] if finding else [])
    assert counters.value("otel_qtap.detect_errors.matches", rule="Rule") == len(found)


def test_one_trigger_is_enough_and_all_that_are_met_are_told(detect, make_transaction) -> None:
    """In one event."""
    (event,) = detect(
        make_transaction(status=500),
        rule(
            trigger_status_codes=frozenset({500}),
            trigger_empty_body=True,
            trigger_duration_ms=1000,
        ),
    ).events
    assert event.conditions == ("detect_errors:status_code", "detect_errors:empty_body")


FILTERS = [
    pytest.param({"only_categories": frozenset({"app"})}, True, id="category"),
    pytest.param({"only_categories": frozenset({"image", "css"})}, False, id="other-category"),
    pytest.param({"only_urls": ("/nothing", "/api/")}, True, id="url"),
    pytest.param({"only_urls": ("/nothing",)}, False, id="other-url"),
    pytest.param({"only_urls": ("localhost*users",)}, True, id="url-with-gap"),
    pytest.param({"only_urls": ("users*localhost",)}, False, id="url-in-wrong-order"),
    pytest.param({"exclude_urls": ("/api/",)}, False, id="excluded"),
    pytest.param({"exclude_urls": ("/health",)}, True, id="not-excluded"),
    pytest.param({"only_urls": ("/api/",), "exclude_urls": ("users",)}, False, id="exclusion-wins"),
    pytest.param({"with_tags": ("team:other", "Bin:HAProxy")}, True, id="tag-of-the-process"),
    pytest.param({"with_tags": ("team:proxies",)}, True, id="tag-of-the-agent"),
    pytest.param({"with_tags": ("team:other",)}, False, id="other-tag"),
    pytest.param({"with_tags": ("bin",)}, False, id="no-tag"),
]


@pytest.mark.parametrize(("says", "looks"), FILTERS)
def test_filters(says, looks, detect, make_transaction) -> None:
    """A rule looks only at what it is about."""
    sink = detect(make_transaction(status=500), rule(trigger_empty_body=True, **says))
    assert bool(sink.events) is looks


def test_the_first_rule_that_is_met_ends_the_search(detect, make_transaction) -> None:
    """Unless it says ``continue``."""
    empty, slow, failed = (
        rule(name="empty", trigger_empty_body=True),
        rule(name="slow", trigger_duration_ms=1, continues=True),
        rule(name="failed", trigger_status_codes=frozenset({500})),
    )
    transaction = make_transaction(status=500)
    never = rule(name="never", trigger_status_codes=frozenset({404}))

    assert [e.error for e in detect(transaction, never, empty, failed).events] == ["empty"]
    assert [e.error for e in detect(transaction, slow, failed, empty).events] == ["slow", "failed"]


RECORDED = [
    pytest.param({}, None, id="nothing"),
    pytest.param(
        {"record_request_headers": True}, ({"x-a"}, b"", set(), b""), id="request-headers"
    ),
    pytest.param({"record_request_body": True}, (set(), b"asked", set(), b""), id="request-body"),
    pytest.param(
        {"record_response_headers": True}, (set(), b"", {"x-b"}, b""), id="response-headers"
    ),
    pytest.param(
        {"record_response_headers": True, "record_response_body": True},
        (set(), b"", {"x-b"}, b"answered"),
        id="response",
    ),
]


@pytest.mark.parametrize(("says", "parts"), RECORDED)
def test_what_a_rule_records_is_stored_and_nothing_else(
    says, parts, detect, make_transaction
) -> None:
    """One object; headers that a summary names anyway stay, so that it can be read."""
    transaction = make_transaction(
        status=500,
        request_headers=(("host", "localhost:8085"), ("x-a", "1")),
        request_body=b"asked",
        response_headers=(("content-type", "text/plain"), ("x-b", "2")),
        response_body=b"answered",
    )
    sink = detect(transaction, rule(trigger_status_codes=frozenset({500}), **says))
    assert len(sink.objects) == (parts is not None)
    for stored in sink.objects:
        record = json.loads(render_json(stored))
        assert record["request"]["url"] == "http://localhost:8085/api/users"
        assert record["response"]["content_type"] == "text/plain"
        assert record["response"]["body_size"] == 8
        kept = (
            {"x-a"} & set(record["request"]["headers"]),
            base64.b64decode(record["request"].get("body", "")),
            {"x-b"} & set(record["response"]["headers"]),
            base64.b64decode(record["response"].get("body", "")),
        )
        assert kept == parts


def test_an_issue_is_called_by_its_rule_or_by_what_was_found(detect, make_transaction) -> None:
    """And has the tags that the Request event of the transaction has."""
    for name, error in (("Backend down", "Backend down"), ("", "status is 500")):
        (event,) = detect(
            make_transaction(status=500), rule(name=name, trigger_status_codes=frozenset({500}))
        ).events
        assert event.error == error
        assert event.tags == (
            "team:proxies",
            "bin:haproxy",
            "host:edge",
            "protocol:http1",
            "strategy:observe",
        )


@pytest.mark.parametrize("records", [True, False])
def test_trailers_are_headers(
    records, detect, make_transaction, make_request, make_response
) -> None:
    """Of both messages."""
    trailers = (("x-sum", "1"),)
    sink = detect(
        make_transaction(
            request=make_request(trailers=trailers),
            response=make_response(500, trailers=trailers),
        ),
        rule(
            trigger_status_codes=frozenset({500}),
            record_request_headers=records,
            record_response_headers=records,
            record_response_body=True,
        ),
    )
    (stored,) = sink.objects
    assert stored.request.trailers == stored.response.trailers == (trailers if records else ())


def test_rules_that_continue_record_together(detect, make_transaction) -> None:
    """One object with what both of them want; a rule may record without an issue."""
    sink = detect(
        make_transaction(status=500, request_body=b"asked", response_body=b"answered"),
        rule(
            trigger_status_codes=frozenset({500}),
            record_request_body=True,
            reports_issue=False,
            continues=True,
        ),
        rule(trigger_duration_ms=1, record_response_body=True),
    )
    (stored,) = sink.objects
    assert len(sink.events) == 1
    assert (stored.request.body.content, stored.response.body.content) == (b"asked", b"answered")
    assert stored.level is CaptureLevel.FULL


def test_secrets_are_neither_told_nor_stored(detect, make_transaction) -> None:
    """Rules see the whole transaction, stores the redacted one."""
    sink = detect(
        make_transaction(
            status=500,
            target="/?token=hunter2",
            request_headers=(("authorization", "hunter2"), ("host", "h")),
        ),
        rule(
            trigger_status_codes=frozenset({500}),
            only_urls=("token=hunter2",),
            record_request_headers=True,
        ),
    )
    (event,), (stored,) = sink.events, sink.objects
    assert "hunter2" not in json.dumps(event.record()) + repr(event) + render_json(stored)


def test_what_needs_bodies() -> None:
    """So that the configuration knows when they must be captured."""
    assert not rule(trigger_empty_body=True, record_request_headers=True).needs_bodies
    assert rule(trigger_contains=("x",)).needs_bodies
    assert rule(record_request_body=True).needs_bodies
    assert rule(record_response_body=True).needs_bodies
