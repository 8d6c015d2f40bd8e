"""What ``otel-qtap rule`` prints about a rule and the transactions it is tried on."""

from __future__ import annotations

import json

import pytest

from otel_qtap.plugins.redaction import Redactor
from otel_qtap.plugins.rule_check import (
    SubjectError,
    check_rule,
    describe_error,
    describe_rule,
    json_subjects,
    transaction_subjects,
)
from otel_qtap.rules import RuleCompiler, RuleError
from otel_qtap.stores.json_record import render_json
from otel_qtap.transaction.model import Direction

MACROS = {"is_error": "http.res.status >= 400"}


def compile_rule(text):
    return RuleCompiler(MACROS).compile(text)


def checked(text, *transactions, **options) -> list[str]:
    """The lines about a rule that is tried on transactions."""
    subjects = transaction_subjects(transactions, Redactor())
    return list(check_rule(compile_rule(text), subjects, **options))


def test_a_match_is_explained(make_transaction) -> None:
    """Every part with its outcome, every field with its value."""
    lines = checked(
        r"http.req.path matches /^\/api\// && is_error()",
        make_transaction(direction=Direction.EGRESS_INTERNAL, status=503),
    )
    assert lines == [
        "match     egress-internal GET http://backend-api-1:8001/api/users 503",
        r"  true       http.req.path matches /^\/api\// && is_error()",
        r'  true         http.req.path matches /^\/api\//    http.req.path = "/api/users"',
        "  true         is_error()",
        "  true           http.res.status >= 400    http.res.status = 503",
        "",
        "1 of 1 transactions match",
    ]


def test_what_is_missing_is_said_to_be_missing(make_transaction) -> None:
    """So that nobody looks for a wrong value."""
    lines = checked(
        "is_error() && http.req.headers.retry-after != ''", make_transaction(status=None)
    )
    assert lines[:-1] == [
        "no match  ingress GET http://localhost:8085/api/users no response",
        '  missing    is_error() && http.req.headers.retry-after != ""',
        "  missing      is_error()",
        "  missing        http.res.status >= 400    http.res.status = missing",
        (
            '  missing      http.req.headers.retry-after != ""    '
            "http.req.headers.retry-after = missing"
        ),
        "",
    ]


def test_only_matches_when_asked(make_transaction) -> None:
    """One line each, and the count."""
    lines = checked("is_error()", make_transaction(status=503), make_transaction(), quiet=True)
    assert lines == [
        "match     ingress GET http://localhost:8085/api/users 503",
        "1 of 2 transactions match",
    ]


def test_secrets_decide_and_are_not_shown(make_transaction) -> None:
    """A rule sees them; what is printed is redacted, the title too."""
    lines = checked(
        "http.req.headers.authorization contains 'Basic' && http.req.url contains 'token='",
        make_transaction(
            target="/?token=s3cret", request_headers=(("authorization", "Basic s3cret"),)
        ),
    )
    text = "\n".join(lines)
    assert lines[0].startswith("match ")
    assert 'http.req.headers.authorization = "REDACTED"' in text
    assert "s3cret" not in text


def test_nothing_drives_the_terminal(make_transaction) -> None:
    """Control characters of the traffic come out as escapes, long values are cut."""
    (_, _, field, *_) = lines = checked(
        "http.req.path != '' && http.req.headers.long != ''",
        make_transaction(target="/\x1b[31m\u202e", request_headers=(("long", "x" * 500 + "end"),)),
    )
    assert "\x1b" not in "".join(lines)
    assert "\u202e" not in "".join(lines)
    assert field.startswith("  true         http.req.path")
    assert "end" not in "".join(lines)


def test_a_rule_is_described() -> None:
    """What it reads, when it is decided, what is odd about it."""
    assert list(describe_rule(compile_rule("is_error() AND exe == 'x'"))) == [
        'rule     is_error() && exe == "x"',
        "reads    http.res.status, src.process.path",
        "decided  once the head of the response is there",
        "warning  column 16: exe is an old name of src.process.path",
    ]
    assert list(describe_rule(compile_rule("true")))[1] == "reads    nothing"


def test_an_error_is_shown_in_its_place() -> None:
    """The message, the expression, the caret."""
    with pytest.raises(RuleError) as caught:
        compile_rule("http.res.status = 500")
    assert list(describe_error(caught.value)) == [
        "column 17: '=' is no operator; write '=='",
        "    http.res.status = 500",
        "                    ^",
    ]


# JSON -------------------------------------------------------------------------------------


def json_outcomes(text, *records) -> list[bool]:
    """Which records a rule matches."""
    rule = compile_rule(text)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    return [rule.matches(subject.facts) for subject in json_subjects(lines)]


STORED = [
    pytest.param("http.req.method == 'GET' && http.req.path == '/api/users'", id="request"),
    pytest.param("http.req.host == 'localhost:8085' && http.req.scheme == 'http'", id="host"),
    pytest.param("http.req.url == 'http://backend-api-1:8001/api/users'", id="url"),
    pytest.param("http.req.headers.host == 'localhost:8085'", id="request-header"),
    pytest.param("http.res.headers.content-type contains 'json'", id="response-header"),
    pytest.param("http.res.status == 503 && http.res.duration_ms == 6", id="response"),
    pytest.param("direction == 'egress-internal'", id="direction"),
    pytest.param("src.process.pid == 987 && src.process.binary == 'haproxy'", id="process"),
    pytest.param("src.container.name == 'haproxy-demo'", id="container"),
]


@pytest.mark.parametrize("text", STORED)
def test_stored_transactions(text, make_transaction) -> None:
    """A rule sees in a line of ``format: json`` what it saw in the transaction."""
    line = render_json(make_transaction(direction=Direction.EGRESS_INTERNAL, status=503))
    assert json_outcomes(text, line) == [True]
    assert json_outcomes(f"!({text})", line) == [False]


def test_a_status_that_was_made_up_is_missing(make_transaction) -> None:
    """Qtap's 499 stands for no response at all; a real 499 is one."""
    unanswered, answered = make_transaction(status=None), make_transaction(status=499)
    lines = [render_json(unanswered), render_json(answered)]
    assert json_outcomes("is_error()", *lines) == [False, True]
    assert json_outcomes("http.res.duration_ms >= 0", *lines) == [False, True]


FIELDS = [
    pytest.param({"http.res.status": 503}, id="dotted"),
    pytest.param({"http": {"res": {"status": 503}}}, id="nested"),
    pytest.param({"response.status": 503}, id="old-name"),
    pytest.param({"http.res.status": 503, "something": {"else": [1, {}]}}, id="unknown-names"),
]


@pytest.mark.parametrize("record", FIELDS)
def test_fields_by_name(record) -> None:
    """To try a rule without any traffic."""
    assert json_outcomes("is_error()", record, {}) == [True, False]


def test_all_kinds_of_fields_by_name() -> None:
    """Text, numbers, truth values, addresses, lists, headers."""
    record = {
        "src.ip": "10.1.2.3",
        "tags": ["a:b"],
        "tls": {"enabled": True, "version": 1.3},
        "http.req.headers.x-y": "z",
        "dst.domain": None,
    }
    text = "src.ip in 10.0.0.0/8 && tags == 'a:b' && tls.enabled && tls.version > 1.2"
    assert json_outcomes(f"{text} && http.req.headers.x-y == 'z'", record) == [True]
    assert json_outcomes("dst.domain || !dst.domain", record) == [False]


BAD = [
    pytest.param("{", "line 2: not JSON", id="no-json"),
    pytest.param("[1]", "line 2: not an object", id="no-object"),
    pytest.param('{"http.res.status": "503"}', "http.res.status must be a number", id="text"),
    pytest.param('{"http.res.status": true}', "must be a number", id="truth-value"),
    pytest.param('{"http.req.path": 5}', "http.req.path must be text", id="number"),
    pytest.param('{"tls.enabled": 1}', "tls.enabled must be true or false", id="one"),
    pytest.param('{"tags": "a"}', "tags must be a list of text", id="no-list"),
    pytest.param('{"tags": [1]}', "tags must be a list of text", id="list-of-numbers"),
    pytest.param('{"http.req.headers.a": ["b"]}', "must be text", id="header-as-list"),
    pytest.param('{"a":' * 5000 + "1" + "}" * 5000, "too deep", id="deep"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_what_cannot_be_read_is_told_with_its_line(line, words) -> None:
    """Lines before it have been printed by then; empty lines count."""
    subjects = json_subjects(["", line])
    with pytest.raises(SubjectError, match=words):
        list(check_rule(compile_rule("true"), subjects))
