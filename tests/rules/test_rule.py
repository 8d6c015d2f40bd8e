"""Rules: what they say of themselves, of a transaction, and of one that is not over."""

from __future__ import annotations

import pytest
from rules.corpus import MACROS, VOCABULARY, make_facts

from otel_qtap.rules import Outcome, RuleCompiler, Stage


def compile_rule(text, macros=MACROS, **options):
    return RuleCompiler(macros, vocabulary=VOCABULARY, **options).compile(text)


def test_a_rule_shows_itself() -> None:
    """As written, and in the one spelling."""
    rule = compile_rule("n EQ 1  -- one")
    assert (rule.text, str(rule), repr(rule)) == (
        "n EQ 1  -- one",
        "n == 1",
        "Rule('n EQ 1  -- one')",
    )


def test_matches_is_true_or_false() -> None:
    """Never a value that only counts as one of them."""
    for text in ("s", "n", "ss", "e", "missing", "s && n", "e || z", "!s"):
        assert compile_rule(text).matches(make_facts()) in (True, False)


def test_no_text_of_a_rule_is_run() -> None:
    """What looks like Python stays text."""
    text = """s == "'); raise SystemExit #" || s contains "{n}" || s == '\\\\' """
    assert compile_rule(text).matches(make_facts()) is False
    assert compile_rule(text).matches(make_facts(s="'); raise SystemExit #")) is True


REQUEST = {"status": None}
"""A transaction of which only the request is known."""

MAY_MATCH = [
    pytest.param("http.res.status >= 500", True, id="not-known-yet"),
    pytest.param("!(http.res.status >= 500)", True, id="not-known-yet-negated"),
    pytest.param("http.req.path == '/other' && http.res.status >= 500", False, id="decided"),
    pytest.param("http.req.path == '/other' || http.res.status >= 500", True, id="one-open"),
    pytest.param("!(http.req.path == '/api/x') && http.res.status >= 500", False, id="negated"),
    pytest.param("!(http.req.path == '/other' && http.res.status >= 500)", True, id="opposite"),
    pytest.param("http.req.path == '/api/x'", True, id="holds"),
    pytest.param("http.req.path == '/other'", False, id="fails"),
    pytest.param("http.req.headers.absent == 'x' && http.res.status == 200", False, id="missing"),
    pytest.param("is_error() && http.req.path == '/other'", False, id="macro"),
    pytest.param("is_error() == true", True, id="open-value"),
    pytest.param("starts_with(http.res.status, 5)", True, id="open-argument"),
]


@pytest.mark.parametrize(("text", "may_match"), MAY_MATCH)
def test_what_a_request_leaves_open(text, may_match) -> None:
    """False only where no response could change it."""
    rule = compile_rule(text, {"is_error": "http.res.status >= 400"})
    facts = make_facts(**REQUEST)
    assert rule.may_match(facts, Stage.REQUEST_HEAD) is may_match
    assert rule.may_match(facts, Stage.REQUEST_HEAD) is may_match  # the second time, too


def test_nothing_is_open_in_the_end() -> None:
    """From the moment that a rule needs, it may match where it matches."""
    rule = compile_rule("http.res.status >= 500")
    for status, matches in ((503, True), (200, False), (None, False)):
        facts = make_facts(status=status)
        assert rule.matches(facts) is matches
        assert rule.may_match(facts, Stage.RESPONSE_HEAD) is matches
        assert rule.may_match(facts, Stage.END) is matches


def test_before_the_request_everything_of_it_is_open() -> None:
    """A connection alone decides only what it says itself."""
    facts = make_facts(status=None, path=None, header={}.get)
    assert compile_rule("http.req.path == '/x'").may_match(facts, Stage.CONNECTION)
    assert not compile_rule("f && http.req.path == '/x'").may_match(facts, Stage.CONNECTION)


def test_an_explanation_has_every_part() -> None:
    """With its outcome, and the fields that it read."""
    rule = compile_rule(
        "is_error() && !(s == 'x') || (missing == 1 && n in [1, z])".replace(
            "is_error() && !(s == 'x')", "(is_error() && !(s == 'x'))"
        ),
        {"is_error": "http.res.status >= 400"},
    )
    explanation = rule.explain(make_facts())

    def flat(part, depth=0):
        yield depth, part.text, part.outcome.value, [name for name, _ in part.fields]
        for inner in part.parts:
            yield from flat(inner, depth + 1)

    assert list(flat(explanation)) == [
        (
            0,
            '(is_error() && !(s == "x")) || (missing == 1 && n in [1, z])',
            "true",
            [],
        ),
        (1, 'is_error() && !(s == "x")', "true", []),
        (2, "is_error()", "true", []),
        (3, "http.res.status >= 400", "true", ["http.res.status"]),
        (2, '!(s == "x")', "true", []),
        (3, 's == "x"', "false", ["s"]),
        (1, "missing == 1 && n in [1, z]", "false", []),
        (2, "missing == 1", "missing", ["missing"]),
        (2, "n in [1, z]", "false", ["n", "z"]),
    ]


def test_an_explanation_names_the_fields_behind_macros_and_old_names() -> None:
    """So that their values can be shown."""
    rule = RuleCompiler({"program": "exe"}).compile("program() == 'x'")
    (explained,) = [rule.explain(make_facts(src_process_path="x"))]
    assert explained.outcome is Outcome.HOLDS
    assert explained.fields == (("exe", "src.process.path"),)


def test_compat_mode_explains_itself() -> None:
    """There a negation has the outcome of what it should negate."""
    explanation = compile_rule("!t", qtap_compat=True).explain(make_facts())
    assert explanation.outcome is Outcome.HOLDS
    assert explanation.parts[0].outcome is Outcome.HOLDS
