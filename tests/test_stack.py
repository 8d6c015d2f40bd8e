"""From the plugins of a file to what each of them does with a transaction."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from configs import config_of, stack_config

from otel_qtap.config import Config
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst
from otel_qtap.destinations import Destinations
from otel_qtap.plugins import HttpMetrics
from otel_qtap.stack import PluginContext, Stacks
from otel_qtap.stores import StdoutWriter
from otel_qtap.transaction.model import Direction, Transaction


class Run:
    """The stacks of a configuration, with stdout in memory."""

    def __init__(self, config: Config) -> None:
        self.counters = CounterSet()
        self._stdout = io.BytesIO()
        tap_first = TapFirst()
        self.writer = StdoutWriter(self._stdout, counters=self.counters, tap_first=tap_first)
        metrics = HttpMetrics(counters=self.counters)
        self.destinations = Destinations(
            config, writer=self.writer, counters=self.counters, tap_first=tap_first,
            span_key=b"key",
        )  # fmt: skip
        self.stacks = Stacks(
            config,
            self.destinations,
            PluginContext(
                counters=self.counters, writer=self.writer, tap_first=tap_first,
                hostname="edge-1", http_metrics=lambda: metrics,
            ),
        )  # fmt: skip

    def take(self, *transactions: Transaction) -> Run:
        for transaction in transactions:
            self.stacks.consume(transaction)
        return self

    def lines(self) -> list[str]:
        """Return what was printed since the last call."""
        assert self.writer.flush(5)
        text = self._stdout.getvalue().decode()
        self._stdout.seek(0)
        self._stdout.truncate()
        return text.splitlines()

    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.lines()]

    def close(self) -> None:
        assert self.stacks.close(5)
        assert self.destinations.close(5)
        assert self.writer.close(5)


@pytest.fixture
def start() -> Iterator[Callable[[Config], Run]]:
    runs: list[Run] = []

    def start(config: Config) -> Run:
        runs.append(Run(config))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


CAPTURE_BY_RULES = """\
- type: http_capture
  config:
    level: none
    format: json
    rules:
      - {name: errors, expr: is_bad(), level: full}
      - {name: text, expr: http.req.path == "/text", level: summary, format: text}
      - {name: api, expr: http.req.path =~ /^\\/api/, level: headers}
      - {name: nobody, expr: http.req.path == "/sampled", level: full, sample_rate: 0}
"""
BAD = "rulekit: {macros: [{name: is_bad, expr: http.res.status >= 500}]}"

LEVELS = [
    pytest.param("/api/users", 200, (True, False), id="headers"),
    pytest.param("/other", 503, (True, True), id="full"),
    pytest.param("/api/users", 503, (True, True), id="first-match-wins"),
    pytest.param("/other", 200, None, id="no-match"),
    pytest.param("/sampled", 200, None, id="sampled-out"),
]


@pytest.mark.parametrize(("path", "status", "kept"), LEVELS)
def test_the_first_rule_that_matches_decides_the_level(
    start, make_transaction, path, status, kept
) -> None:
    """Macros included; without a match the plugin's level holds."""
    run = start(stack_config(CAPTURE_BY_RULES, more=BAD))
    run.take(make_transaction(target=path, status=status, response_body=b"hello"))

    records = run.records()
    has = [("headers" in r["response"], "body" in r["response"]) for r in records]
    assert has == ([] if kept is None else [kept])


def test_a_rule_can_have_a_format_of_its_own(start, make_transaction) -> None:
    """Text among JSON."""
    run = start(stack_config(CAPTURE_BY_RULES, more=BAD))

    lines = run.take(make_transaction(target="/text")).lines()

    assert lines[0] == "=== HTTP Transaction ==="


@pytest.mark.parametrize(("compat", "amount"), [("none", 0), ("qtap", 1)])
def test_rules_are_read_as_the_file_says(start, make_transaction, compat, amount) -> None:
    """``rulekit.compat: qtap`` does not negate, as Qtap does not."""
    plugin = """\
    - type: http_capture
      config:
        level: none
        rules: [{expr: '!(http.req.method == "GET")', level: full}]
    """
    run = start(stack_config(plugin, more=f"rulekit: {{compat: {compat}}}"))

    assert len(run.take(make_transaction()).lines()) == amount


BODIES = [
    # plugins, wanted with the head of the request, with that of an answer 200, with a 503
    ("- {type: http_capture, config: {level: full}}", (True, True, True)),
    ("- {type: http_capture, config: {level: headers}}", (False, False, False)),
    ("- {type: access_logs, config: {mode: full}}", (True, True, True)),
    ("- type: report_usage\n- type: http_metrics\n- type: logger", (False, False, False)),
    (CAPTURE_BY_RULES, (True, False, True)),
    (CAPTURE_BY_RULES.replace("is_bad()", "http.req.path == '/other'"), (False, False, False)),
    (CAPTURE_BY_RULES.replace("is_bad()", "http.res.duration_ms > 9"), (True, True, True)),
    ("- {type: detect_errors, config: {rules: [{triggerContains: x}]}}", (True, True, True)),
    (
        "- {type: detect_errors, config: {rules: [{triggerStatusCodes: [5xx]}]}}",
        (False, False, False),
    ),
    ("- {type: llm}", (False, False, False)),
]


@pytest.mark.parametrize(("plugins", "wanted"), BODIES)
def test_bodies_that_nobody_can_want_are_known_before_the_end(
    start, make_transaction, plugins, wanted
) -> None:
    """So that they need not be held; a rule that may still match counts, one that cannot not."""
    stacks = start(stack_config(plugins, more=BAD)).stacks

    answers = (None, 200, 503)
    found = tuple(stacks.may_want_bodies(make_transaction(status=status)) for status in answers)
    assert found == wanted


def test_access_logs_have_rules_too(start, make_transaction) -> None:
    """A rule without a mode prints what the plugin prints."""
    plugin = """\
    - type: access_logs
      config:
        mode: summary
        rules:
          - {expr: http.req.path == "/health", mode: none}
          - {expr: http.res.status >= 500, mode: full}
          - {expr: http.req.path == "/plain"}
    """
    run = start(stack_config(plugin))

    assert run.take(make_transaction(target="/health")).lines() == []
    assert len(run.take(make_transaction(target="/plain")).lines()) == 1
    assert "REQUEST BODY" in "\n".join(run.take(make_transaction(status=500)).lines())


def test_every_plugin_is_reached(start, make_transaction, caplog) -> None:
    """Each by what only it does; one that is not provided is passed over."""
    run = start(
        stack_config("""\
        - type: llm
        - type: report_usage
        - type: http_metrics
        - type: logger
        - type: access_logs
          config: {format: json}
        - type: detect_errors
          config:
            rules:
              - {name: oops, triggerStatusCodes: [5xx], recordResBody: true}
        - type: http_capture
          config: {level: summary, format: json}
        """)
    )
    caplog.set_level(logging.DEBUG, "otel_qtap")
    run.take(make_transaction(status=503, response_body=b"sorry"))
    assert run.stacks.flush(5)

    records = run.records()
    events = {record["event.type"]: record["event"] for record in records if "event" in record}
    assert events["request"]["status"] == 503
    assert events["issue"]["error"] == "oops"
    assert events["issue"]["tags"][1] == "host:edge-1"
    (access,) = [record for record in records if record.get("msg") == "HTTP transaction"]
    assert access["status"] == 503
    stored = [record["response"] for record in records if "metadata" in record]
    assert sorted("body" in response for response in stored) == [False, True]
    assert run.counters.value(
        "qtap.http.requests", method="GET", host="localhost:8085", status_code="503",
        protocol="http1",
    ) == 1  # fmt: skip
    assert any(
        record.getMessage().startswith("HTTP transaction: haproxy ingress GET")
        for record in caplog.records
    )


RULES = [
    ("{triggerStatusCodes: ['404', 500-599]}", {"status": 404}, True),
    ("{triggerStatusCodes: ['404', 500-599]}", {"status": 403}, False),
    ("{triggerDuration: 10ms}", {"duration_ns": 12_000_000}, True),
    ("{triggerDuration: 1.5s}", {"duration_ns": 12_000_000}, False),
    ("{triggerEmptyBody: true}", {}, True),
    ("{triggerContains: panic}", {"response_body": b"kernel panic"}, True),
    ("{triggerStatusCodes: [2xx], onlyCategories: [app]}", {}, True),
    ("{triggerStatusCodes: [2xx], onlyCategories: [css]}", {}, False),
    ("{triggerStatusCodes: [2xx], onlyUrls: [/api/*]}", {}, True),
    ("{triggerStatusCodes: [2xx], excludeUrls: [/api/*]}", {}, False),
    ("{triggerStatusCodes: [2xx], withTags: ['host:edge-1']}", {}, True),
    ("{triggerStatusCodes: [2xx], withTags: ['host:edge-2']}", {}, False),
    ("{triggerStatusCodes: [2xx], reportAsIssue: false}", {}, False),
]


@pytest.mark.parametrize(("rule", "changes", "reports"), RULES)
def test_every_key_of_an_error_rule_has_its_effect(
    start, make_transaction, rule, changes, reports
) -> None:
    """What the file says in camel case arrives."""
    run = start(stack_config(f"- {{type: detect_errors, config: {{rules: [{rule}]}}}}"))

    records = run.take(make_transaction(**changes)).records()

    assert [record["event.type"] for record in records] == ["issue"] * reports


def test_error_rules_record_what_they_name_and_go_on_if_told(start, make_transaction) -> None:
    """Two rules are met, because the first one continues; both name what is kept."""
    run = start(
        stack_config("""\
        - type: detect_errors
          config:
            rules:
              - {name: one, triggerStatusCodes: [5xx], recordReqHeaders: true, continue: true}
              - {name: two, triggerStatusCodes: [5xx], recordResHeaders: true}
              - {name: three, triggerStatusCodes: [5xx], recordReqBody: true}
        """)
    )
    records = run.take(
        make_transaction(
            status=500, request_body=b"asked", response_body=b"answered",
            request_headers=(("host", "h"), ("x-one", "1")),
            response_headers=(("x-two", "2"),),
        )
    ).records()  # fmt: skip

    issues = [record["event"]["error"] for record in records if "event" in record]
    (stored,) = [record for record in records if "metadata" in record]
    assert issues == ["one", "two"]
    assert stored["request"]["headers"]["x-one"] == "1"
    assert stored["response"]["headers"]["x-two"] == "2"
    assert "body" not in stored["request"]
    assert "body" not in stored["response"]


def test_a_plugin_that_fails_does_not_hinder_the_others(
    start, make_transaction, caplog, monkeypatch
) -> None:
    """It is told once, without the data, and counted each time."""

    def fail(_self: object, _transaction: Transaction) -> None:
        raise RuntimeError("secret of the transaction")

    monkeypatch.setattr("otel_qtap.plugins.access_logs.AccessLogs.consume", fail)
    run = start(
        stack_config("""\
        - type: access_logs
        - {type: http_capture, config: {level: summary, format: json}}
        """)
    )
    run.take(make_transaction(), make_transaction())

    assert len(run.records()) == 2
    assert run.counters.value("otel_qtap.plugin.failed", plugin="access_logs") == 2
    assert run.counters.value("otel_qtap.plugin.failed", plugin="http_capture") == 0
    (told,) = caplog.records
    assert "access_logs failed on a transaction (RuntimeError at test_stack.py:" in told.message
    assert "secret" not in caplog.text


ENDPOINTS = """\
version: 2
services:
  object_stores: [{type: stdout}]
stacks:
  usual: {plugins: [{type: http_capture, config: {level: headers}}]}
  closer: {plugins: [{type: http_capture, config: {level: full}}]}
tap:
  http: {stack: usual}
  endpoints:
    - {domain: API.example.com, http: {stack: closer}}
    - {domain: backend-api-1, http: {stack: closer}}
    - {domain: quiet.example.com, http: {stack: none}}
"""
INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS_INTERNAL
DOMAINS = [
    pytest.param(INGRESS, "api.example.com", ["full"], id="by-host"),
    pytest.param(INGRESS, "api.example.com.:8443", ["full"], id="port-and-dot"),
    pytest.param(INGRESS, "quiet.example.com", [], id="none"),
    pytest.param(INGRESS, "other.example.com", ["headers"], id="the-usual-one"),
    pytest.param(EGRESS, "other.example.com", ["full"], id="name-of-the-server"),
]


@pytest.mark.parametrize(("direction", "host", "levels"), DOMAINS)
def test_a_domain_can_have_a_stack_of_its_own(
    start, make_transaction, direction, host, levels
) -> None:
    """By the name of the server as the process knows it, else by what was asked for."""
    run = start(config_of(ENDPOINTS))
    headers = (("host", host),)
    run.take(make_transaction(direction=direction, request_headers=headers, response_body=b"hello"))

    found = ["full" if "body" in record["response"] else "headers" for record in run.records()]
    assert found == levels


def test_a_file_without_a_stack_captures_nothing(start, make_transaction) -> None:
    """It may still be counted."""
    config = config_of("version: 2\nservices: {object_stores: [{type: stdout}]}\ntap: {}\n")

    assert start(config).take(make_transaction()).lines() == []


def test_redact_of_the_file_holds_in_every_plugin(start, make_transaction) -> None:
    """What it names is a secret to all that keeps or prints transactions."""
    plugins = """\
- {type: http_capture, config: {level: headers, format: json}}
- {type: access_logs, config: {mode: details, format: json}}
- {type: report_usage}
"""
    run = start(stack_config(plugins, more="redact: {headers: [x-tenant], query: [voucher]}"))
    run.take(
        make_transaction(target="/a?voucher=s3cret", request_headers=(("X-Tenant", "s3cret"),))
    )

    lines = run.lines()
    assert len(lines) >= 3
    assert all("REDACTED" in line and "s3cret" not in line for line in lines)
