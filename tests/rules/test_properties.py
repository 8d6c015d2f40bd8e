"""What holds for every expression, every transaction and every text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules.corpus import VOCABULARY, make_facts

from otel_qtap.rules import Outcome, RuleCompiler, RuleError, Stage
from otel_qtap.rules.parser import parse
from otel_qtap.rules.regex import Regex
from otel_qtap.rules.tree import (
    And,
    Array,
    Call,
    Compare,
    Field,
    Literal,
    Not,
    Operator,
    Or,
)
from otel_qtap.rules.values import HexString, Mac, cast_text, parse_address, parse_network

MACROS = {"mt": "true", "mf": "z", "ms": "s", "mn": "n >= 404", "mm": "x == 'a' || http.res.status"}

# Trees ------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(["", "a", "hello", "/api/x", "10.", "é", '"', "'", "\\", "\n", "120"]),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=6),
).filter(lambda text: isinstance(cast_text(text), str))
numbers = st.one_of(
    st.sampled_from([0, 1, 404, 403.5, -1, 404.0, 503]),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
addresses = st.sampled_from(["10.1.2.3", "10.1.2.4", "::1", "2001:db8::7"]).map(parse_address)
networks = st.sampled_from(["10.0.0.0/8", "10.1.2.3/32", "2001:db8::/32", "0.0.0.0/0"]).map(
    parse_network
)
patterns = st.sampled_from(
    ["ell", "^hel", "lo$", "^hello$", r"^\/api\/", "a|b", "|", "/", "(?i)HEL", "[0-9]+", ""]
).map(Regex)
others = st.one_of(
    st.booleans(),
    addresses,
    networks,
    st.sampled_from(["47:45:54", "68:65:6c", "0a"]).map(HexString),
    st.just(Mac("01:23:45:67:89:ab")),
)
literals = st.one_of(texts, numbers, others, patterns).map(Literal)
fields = st.sampled_from(
    [
        "t",
        "f",
        "s",
        "e",
        "n",
        "z",
        "ip",
        "ss",
        "x",
        "y",
        "missing",
        "http.req.path",
        "http.res.status",
        "http.req.headers.retry-after",
        "http.req.headers.absent",
    ]
).map(Field)
macros = st.sampled_from([*MACROS]).map(Call)


EQUALITY = [Operator.EQUAL, Operator.NOT_EQUAL, Operator.CONTAINS]
ORDER = [operator for operator in Operator if operator.is_order]


# Composites, because the description of one strategy inside another grows too large.


@st.composite
def calls(draw):
    """A macro, or a function with fields and values."""
    name = draw(st.sampled_from([*MACROS, "starts_with", "in_zone", "zone"]))
    count = {"starts_with": 2, "in_zone": 2, "zone": 1}.get(name, 0)
    return Call(name, tuple(draw(st.one_of(fields, literals)) for _ in range(count)))


@st.composite
def operands(draw):
    """A field more often than anything else."""
    kind = draw(st.integers(0, 5))
    if kind == 5:
        return Array(tuple(draw(st.lists(st.one_of(fields, literals, calls()), min_size=1))))
    return draw((fields, fields, literals, literals, calls())[kind])


@st.composite
def comparisons(draw):
    """Two operands that the grammar lets stand on both sides of an operator."""
    operator = draw(st.sampled_from([*EQUALITY, *EQUALITY, *Operator]))
    if operator.is_order:
        sides = st.one_of(fields, numbers.map(Literal))
        return Compare(draw(sides), operator, draw(sides))
    left, right = draw(operands()), draw(operands())
    if operator is Operator.MATCHES:
        right = Literal(draw(patterns))
    if operator is Operator.IN:
        is_network = draw(st.booleans())
        items = st.lists(st.one_of(fields, literals, calls()), min_size=1, max_size=3)
        right = Literal(draw(networks)) if is_network else Array(tuple(draw(items)))
    return Compare(left, operator, right)


expressions = st.recursive(
    st.one_of(comparisons(), comparisons(), operands()),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.lists(inner, min_size=2, max_size=3).map(lambda found: And(tuple(found))),
        st.lists(inner, min_size=2, max_size=3).map(lambda found: Or(tuple(found))),
    ),
    max_leaves=8,
)

# Facts ------------------------------------------------------------------------------------


any_value = st.one_of(
    st.booleans(), numbers, texts, st.lists(texts, max_size=2).map(tuple), st.just((1, 404, "a"))
)


@st.composite
def facts(draw):
    """Facts of which any may be missing."""
    possible = {
        "t": st.booleans(),
        "s": texts,
        "e": st.just(""),
        "n": numbers,
        "z": st.just(0),
        "ip": st.sampled_from(["10.1.2.3", "::ffff:10.1.2.4", "::1", "no address"]),
        "ss": st.lists(texts, max_size=3).map(tuple),
        "x": any_value,
        "y": any_value,
        "path": st.sampled_from(["/api/x", "/", "hello"]),
        "status": st.sampled_from([200, 404, 503]),
    }
    return make_facts(**{name: draw(st.one_of(st.none(), of)) for name, of in possible.items()})


@pytest.fixture(scope="module", params=[False, True], ids=["conventional", "compat"])
def compiler(request):
    """A compiler of each mode."""
    return RuleCompiler(MACROS, vocabulary=VOCABULARY, qtap_compat=request.param)


@settings(max_examples=150, deadline=None)
@given(tree=expressions)
def test_printing_and_reading_is_the_identity(tree) -> None:
    """In both modes: what is printed never mixes ``&&`` and ``||`` without parentheses."""
    assert parse(str(tree)) == tree
    assert parse(str(tree), qtap_compat=True) == tree


@settings(max_examples=200, deadline=None)
@given(tree=expressions, known=facts())
def test_compiled_code_equals_the_walk_over_the_tree(compiler, tree, known) -> None:
    """For the expression and for its negation, whatever is missing."""
    for text in (str(tree), f"!({tree})"):
        rule = compiler.compile(text)
        holds = rule.explain(known).outcome is Outcome.HOLDS
        assert rule.matches(known) is holds, text
        assert rule.about(known, "subject")("anything") is holds, text
        assert vars(known).pop("subject") == "anything"


@settings(max_examples=150, deadline=None)
@given(tree=expressions, known=facts(), stage=st.sampled_from(Stage))
def test_what_is_ruled_out_early_never_matches(compiler, tree, known, stage) -> None:
    """``may_match`` says no only where the whole transaction does not match either."""
    rule = compiler.compile(str(tree))
    so_far = make_facts(**vars(known))
    if stage < Stage.RESPONSE_HEAD:
        so_far.status = None
    if stage < Stage.REQUEST_HEAD:
        so_far.path, so_far.header = None, {}.get
    if rule.matches(known):
        assert rule.may_match(so_far, stage)
    if rule.needs <= stage:
        assert rule.may_match(so_far, stage) is rule.matches(known)


@settings(max_examples=150, deadline=None)
@given(known=facts(), tree=expressions)
def test_negation_is_exact(known, tree) -> None:
    """Of an expression and its negation one holds, or both are missing something."""
    compiler = RuleCompiler(MACROS, vocabulary=VOCABULARY)
    outcome = compiler.compile(str(tree)).explain(known).outcome
    negated = compiler.compile(f"!({tree})").explain(known).outcome
    assert negated is outcome.opposite


PIECES = st.sampled_from(
    [
        *("a", "b.c", "http.res.status", "404", "-1", ".5", "5.", "010", "0x1", "'x'", '"y"'),
        *("10.0.0.1", "10.0.0.0/8", "10.0.0.0/99", "::1", "ab", "47:45", "'z", '"', "\\", "/x/"),
        *("|y|", "/", "|", "&&", "||", "!", "and", "OR", "not", "==", "!=", "=", "<", ">=", "\n"),
        *("contains", "in", "matches", "=~", "(", ")", "[", "]", ",", "zone(", "mt()", "--"),
        *("/*", "*/", "é", "~", "true", "&", "{", "starts_with(a,b)", "/(/", "/a/i"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.lists(PIECES, max_size=8).map(" ".join), st.text(max_size=20)))
def test_no_text_crashes_the_compiler(compiler, text) -> None:
    """It is a rule that prints as itself, or an error with a place inside the text."""
    error = None
    try:
        rule = compiler.compile(text)
    except RuleError as caught:
        error = caught
    if error is None:
        assert rule.matches(make_facts()) in (True, False)
        assert str(compiler.compile(str(rule))) == str(rule)
    else:
        line, mark = error.caret().split("\n")
        assert 1 <= error.column <= len(text) + 1
        assert len(mark) <= len(line) + 1
        assert error.message
