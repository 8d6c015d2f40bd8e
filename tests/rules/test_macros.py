"""Macros: named expressions, checked before any rule is compiled."""

from __future__ import annotations

import time

import pytest
from rules.corpus import VOCABULARY, make_facts

from otel_qtap.rules import RuleCompiler, RuleError, Stage

MACROS = {
    "is_error": "http.res.status >= 400",
    "is_api": r"http.req.path matches /^\/api\//",
    "is_api_error": "is_api() && is_error()",
    "path": "http.req.path",
    "first_part": "starts_with(path(), '/api')",
}


def compile_rule(text, macros=MACROS, **options):
    return RuleCompiler(macros, vocabulary=VOCABULARY, **options).compile(text)


CASES = [
    pytest.param("is_error()", True, id="alone"),
    pytest.param("!is_error()", False, id="negated"),
    pytest.param("is_api_error()", True, id="macro-of-macros"),
    pytest.param("!is_api_error() || n == 5", False, id="negated-macro-of-macros"),
    pytest.param("is_error() == true", True, id="compared"),
    pytest.param("is_error() in [false, 5]", False, id="in-a-list"),
    pytest.param("[is_error(), 5] contains true", True, id="inside-a-list"),
    pytest.param("path() == '/api/x'", True, id="value"),
    pytest.param("path() contains 'nothing'", False, id="value-compared"),
    pytest.param("first_part()", True, id="value-as-argument"),
    pytest.param("is_error", False, id="without-parentheses-a-field"),
]


@pytest.mark.parametrize(("text", "matches"), CASES)
def test_macros_stand_for_their_expression(text, matches) -> None:
    """As a condition and as a value; missing fields inside stay missing."""
    rule = compile_rule(text)
    assert rule.matches(make_facts()) is matches
    assert rule.matches(make_facts(status=None, path=None, n=None)) is False


def test_what_macros_read_counts_as_read() -> None:
    """Fields and the moment they are known come through macros."""
    rule = compile_rule("t && is_api_error()")
    assert rule.fields == {"t", "http.req.path", "http.res.status"}
    assert rule.needs is Stage.RESPONSE_HEAD


BAD = [
    pytest.param({"a": "n = 1"}, "a", 3, "macro a: '='", id="bad-expression"),
    pytest.param({"a": "b()"}, "a", 1, "no function or macro b", id="undefined"),
    pytest.param({"a": "n && is_eror()", "is_error": "n"}, "a", 6, "is_error?", id="near"),
    pytest.param({"a": "a()"}, "a", 1, "circle: a -> a", id="own-circle"),
    pytest.param(
        {"a": "b()", "b": "n || c()", "c": "a()"}, "c", 1, "a -> b -> c -> a", id="circle"
    ),
    pytest.param({"a": "n", "b": "a(n)"}, "b", 1, "takes no arguments", id="argument"),
    pytest.param({"b": "starts_with(n)"}, "b", 1, "starts_with(value, prefix)", id="arity"),
    pytest.param({"zone": "n"}, "zone", 1, "function of the language", id="name-of-a-function"),
    pytest.param({"Or": "n"}, "Or", 1, "word of the language", id="word"),
    pytest.param({"is-slow": "n"}, "is-slow", 1, "letters, digits", id="hyphen"),
    pytest.param({"1st": "n"}, "1st", 1, "begin with no digit", id="digit"),
    pytest.param({"a": "n && t || f"}, "a", 8, "mixed", id="mixed"),
]


@pytest.mark.parametrize(("macros", "name", "column", "words"), BAD)
def test_bad_macros_are_found_before_any_rule(macros, name, column, words) -> None:
    """Also those that no rule uses; the error holds the body and names the macro."""
    with pytest.raises(RuleError) as caught:
        RuleCompiler(macros, vocabulary=VOCABULARY)
    error = caught.value
    assert (error.macro, error.text, error.column) == (name, macros[name], column)
    assert words in error.message
    assert error.message.startswith(f"macro {name}: ")


def test_macros_that_double_are_refused() -> None:
    """Twenty small macros could make a million comparisons out of one rule."""
    macros = {"m0": "n == 1 || n == 2"}
    macros |= {f"m{level}": f"m{level - 1}() || m{level - 1}()" for level in range(1, 20)}
    start = time.perf_counter()
    with pytest.raises(RuleError, match="more than 2000 parts"):
        RuleCompiler(macros, vocabulary=VOCABULARY)
    assert time.perf_counter() - start < 1


def test_chains_of_values_are_as_quick_as_they_are_long() -> None:
    """A macro that compares the value of another one asks it once."""
    macros = {"m0": "n == 1"}
    macros |= {f"m{level}": f"m{level - 1}() == true" for level in range(1, 25)}
    rule = compile_rule("m24() == true", macros)
    start = time.perf_counter()
    assert rule.matches(make_facts(n=1)) is True
    assert rule.matches(make_facts(n=2)) is False
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize("order", [1, -1], ids=["inner-first", "outer-first"])
def test_deep_chains_are_refused(order) -> None:
    """What would exhaust the stack is an error of the rule, however the macros are listed."""
    chain = [("m0", "n == 1")] + [(f"m{level}", f"!m{level - 1}()") for level in range(1, 2000)]
    with pytest.raises(RuleError, match=r"60 (levels|deep)"):
        RuleCompiler(dict(chain[::order]), vocabulary=VOCABULARY)


def test_odd_macros_bring_warnings() -> None:
    """As rules do, and they name the macro."""
    compiler = RuleCompiler({"old": "exe == 'x'"})
    (warning,) = compiler.warnings
    assert (warning.macro, warning.column) == ("old", 1)
    assert "src.process.path" in warning.message
