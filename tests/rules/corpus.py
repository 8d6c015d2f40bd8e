"""
A vocabulary for tests, and what became of expressions in Qtap's own rule engine.

``CORPUS`` was made by evaluating each expression with rulekit at 4008a61, of March
2026: the context below, macros ``mt`` (true) and ``mf`` (false). Where conventional
logic and Qtap differ, both outcomes are given.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

from otel_qtap.rules import (
    FieldFact,
    FieldType,
    Outcome,
    RuleCompiler,
    RuleError,
    Stage,
    Vocabulary,
)

PASS, FAIL, MISSING, ERROR = "pass", "fail", "missing", "error"

MACROS = {"mt": "true", "mf": "false"}

VOCABULARY = Vocabulary(
    fields={
        "t": FieldFact("t", FieldType.BOOLEAN),
        "f": FieldFact("f", FieldType.BOOLEAN),
        "s": FieldFact("s", FieldType.TEXT),
        "e": FieldFact("e", FieldType.TEXT),
        "n": FieldFact("n", FieldType.NUMBER),
        "z": FieldFact("z", FieldType.NUMBER),
        "ip": FieldFact("ip", FieldType.ADDRESS),
        "ss": FieldFact("ss", FieldType.LIST),
        "x": FieldFact("x", FieldType.ANY),
        "y": FieldFact("y", FieldType.ANY),
        "http.req.path": FieldFact("path", FieldType.TEXT, Stage.REQUEST_HEAD),
        "http.res.status": FieldFact("status", FieldType.NUMBER, Stage.RESPONSE_HEAD),
    },
    maps={
        "http.req.headers.": FieldFact("header", FieldType.TEXT, Stage.REQUEST_HEAD, is_lower=True)
    },
)


def make_facts(**changes: Any) -> SimpleNamespace:
    """The context of the corpus; what is set to ``None`` is missing."""
    known: dict[str, Any] = {
        "t": True,
        "f": False,
        "s": "hello",
        "e": "",
        "n": 404,
        "z": 0,
        "ip": "10.1.2.3",
        "ss": ("a", "b"),
        "x": None,
        "y": None,
        "path": "/api/x",
        "status": 503,
        "header": {"retry-after": "120"}.get,
    }
    return SimpleNamespace(**(known | changes))


_WORDS = {Outcome.HOLDS: PASS, Outcome.FAILS: FAIL, Outcome.MISSING: MISSING}


def outcome_of(text, facts=None, **options) -> str:
    """What becomes of an expression; the compiled code and the explanation must agree."""
    facts = facts or make_facts()
    try:
        rule = RuleCompiler(MACROS, vocabulary=VOCABULARY, **options).compile(text)
    except RuleError:
        return ERROR
    outcome = rule.explain(facts).outcome
    assert rule.matches(facts) is (outcome is Outcome.HOLDS)
    return _WORDS[outcome]


class Case(NamedTuple):
    """An expression and what becomes of it."""

    text: str
    outcome: str
    """By conventional logic, which holds unless ``rulekit.compat`` says otherwise."""
    qtap: str = ""
    """In Qtap, where it differs."""


CORPUS = [
    Case("!t", FAIL, PASS),
    Case("!f", PASS, FAIL),
    Case("not f", PASS, FAIL),
    Case("t && !mf()", PASS, FAIL),
    Case("!(n >= 400)", FAIL, PASS),
    Case("http.res.status >= 400 && !mt()", FAIL, PASS),
    Case("!missing", MISSING),
    Case("f && t || t", ERROR, FAIL),  # conventional logic says pass: neither is guessed
    Case("t || t && f", ERROR, FAIL),
    Case("(f && t) || t", PASS),
    Case("f && (t || t)", FAIL),
    Case("(t || t) && f", FAIL),
    Case('s == "hello"', PASS),
    Case("s == 'hello'", PASS),
    Case('s CONTAINS "ell"', PASS),
    Case('s == "HELLO"', FAIL),
    Case('n == "404"', FAIL),
    Case('n != "404"', FAIL),
    Case("n == 404.0", PASS),
    Case("1 == 1.0", PASS),
    Case("n == +404", PASS),
    Case("n in [404, 503]", PASS),
    Case("n == [404,503]", PASS),
    Case("n in [n, 1]", PASS),
    Case("n in []", ERROR),
    Case("n in [1,]", ERROR),
    Case("n not in [404]", ERROR),
    Case("n = 404", ERROR),
    Case("-n", ERROR),
    Case('"a" > "b"', ERROR),
    Case('n > "5"', ERROR),
    Case("n >= 400 <= 500", ERROR),
    Case('http.req.headers["x"] == "1"', ERROR),
    Case("s !~ /x/", ERROR),
    Case(r"http.req.path matches /^\/api\//", PASS),
    Case("s Matches |^hel|", PASS),
    Case(r"http.req.path =~ /^\/API\//i", ERROR),
    Case('http.req.path matches "^/api"', ERROR),
    Case("/ell/ matches s", ERROR),
    Case('missing != ""', MISSING),
    Case("missing || f", MISSING),
    Case("s == nil", MISSING),
    Case("mt", MISSING),
    Case('http.req.headers.Retry-After != ""', MISSING),
    Case("f && missing", FAIL),
    Case("missing && f", FAIL),
    Case("t || missing", PASS),
    Case("missing || t", PASS),
    Case('http.req.headers.retry-after != ""', PASS),
    Case('starts_with(http.req.path, "/api")', PASS),
    Case("starts_with(s)", ERROR),
    Case("nosuch(s)", ERROR),  # an error of evaluation in Qtap; here the start stops
    Case("mt(1)", ERROR),
    Case('ss != "a"', PASS),
    Case("ip in 10.0.0.0/8", PASS),
    Case("ip == 10.0.0.0/8", PASS),
    Case("ip in [10.0.0.0/8]", PASS),
    Case('ip == "10.1.2.3"', PASS),
    Case('ab == "x"', MISSING, FAIL),
    Case("010 == 8", PASS),
    Case('s == "hel" -- note', FAIL),
]
