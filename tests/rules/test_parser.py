"""Expressions are read as the grammar says, and mistakes are told with the way out."""

from __future__ import annotations

import pytest

from otel_qtap.rules import RuleCompiler, RuleError
from otel_qtap.rules.parser import MAX_DEPTH, parse

SPELLINGS = [
    pytest.param("a eq 1", "a == 1", id="eq"),
    pytest.param("a NE 1", "a != 1", id="ne"),
    pytest.param("a gt 1 AND a lt 5", "a > 1 && a < 5", id="gt-lt"),
    pytest.param("a ge 1 Or a LE 5", "a >= 1 || a <= 5", id="ge-le"),
    pytest.param("NOT a", "!a", id="not"),
    pytest.param("a =~ /x/", "a matches /x/", id="matches"),
    pytest.param("!a == 1", "!(a == 1)", id="not-takes-the-comparison"),
    pytest.param("not not a", "!!a", id="not-not"),
    pytest.param("a&&b&&(c||d)", "a && b && (c || d)", id="no-blanks"),
    pytest.param("((a))", "a", id="needless-parentheses"),
    pytest.param(r"a == 'it\'s'", '''a == "it's"''', id="escaped-quote"),
    pytest.param(r'a == "tab\there \u00e9 \101"', r'a == "tab\there é A"', id="escapes"),
    pytest.param("a in [1,'x',b, zone(c)]", 'a in [1, "x", b, zone(c)]', id="array"),
    pytest.param("a matches |^/usr/bin/|", "a matches |^/usr/bin/|", id="pipes"),
    pytest.param(r"a matches /^\/api\//", r"a matches /^\/api\//", id="slashes"),
    pytest.param("a matches /x||y/ || b", "a matches /x||y/ || b", id="pipes-in-slashes"),
    pytest.param("ip in 10.1.2.3/8", "ip in 10.0.0.0/8", id="host-bits-go"),
    pytest.param("ip == ::ffff:10.1.2.3", "ip == 10.1.2.3", id="mapped-address"),
    pytest.param("ip == '2001:DB8::1'", "ip == 2001:db8::1", id="quoted-address"),
    pytest.param("a == '10.0.0.0/8'", "a == 10.0.0.0/8", id="quoted-network"),
    pytest.param("a == 47:45:54", "a == 47:45:54", id="octets"),
    pytest.param("a == 01:23:45:67:89:AB", "a == 01:23:45:67:89:AB", id="six-octets"),
    pytest.param("a == '01:23:45:67:89:AB'", 'a == "01:23:45:67:89:AB"', id="quoted-mac"),
    pytest.param("a == .5 && b == -0.25", "a == 0.5 && b == -0.25", id="floats"),
    pytest.param("a == 017", "a == 15", id="octal"),
    pytest.param("n-5", "n-5", id="hyphen-in-a-name"),
    pytest.param("order && android && inner", "order && android && inner", id="words-in-names"),
    pytest.param("a == 1 -- b\n&& c", "a == 1 && c", id="line-comment"),
    pytest.param("a /* x */ && /* y */ b", "a && b", id="block-comments"),
    pytest.param("TRUE && False", "true && false", id="truth-values"),
    pytest.param("a == 18446744073709551615", "a == 18446744073709551615", id="uint64"),
    pytest.param("[1, 2] contains n", "[1, 2] contains n", id="array-on-the-left"),
    pytest.param("/x/ == s", "/x/ == s", id="pattern-on-the-left"),
]


@pytest.mark.parametrize(("text", "printed"), SPELLINGS)
def test_spellings(text, printed) -> None:
    """One spelling is printed for each meaning, and reading it again changes nothing."""
    tree = parse(text)
    assert str(tree) == printed
    assert parse(printed) == tree


MISTAKES = [
    pytest.param("", 1, "empty", id="empty"),
    pytest.param(" -- only a comment", 19, "empty", id="only-a-comment"),
    pytest.param("a = 1", 3, "write '=='", id="assignment"),
    pytest.param("a & b", 3, "write '&&'", id="one-ampersand"),
    pytest.param("a | b", 3, "'or' is written '||'", id="one-pipe"),
    pytest.param("a !~ /x/", 3, "!(x matches", id="not-matching"),
    pytest.param("a ~= /x/", 3, "'matches'", id="tilde"),
    pytest.param("a not in [1]", 3, "!(x in", id="infix-not-in"),
    pytest.param("a not contains 'x'", 3, "!(x contains", id="infix-not-contains"),
    pytest.param("a matches /x/i", 14, "/(?i)", id="flags"),
    pytest.param("a matches 'x'", 11, "between slashes", id="text-for-a-pattern"),
    pytest.param("/x/ matches a", 13, "between slashes", id="pattern-on-the-left"),
    pytest.param("a matches /(/", 11, "missing )", id="bad-pattern"),
    pytest.param("a matches /x(?=y)/", 11, "invalid perl operator", id="look-ahead"),
    pytest.param(r"a matches /(a)\1/", 11, "invalid escape sequence", id="back-reference"),
    pytest.param("a matches /(x{1000}){2}/", 11, "repetition", id="huge-repetition"),
    pytest.param("a matches /x{900}y{900}z{900}/", 11, "too large", id="huge-pattern"),
    pytest.param("a matches /x", 11, "not closed", id="open-pattern"),
    pytest.param("a in []", 6, "at least one", id="empty-array"),
    pytest.param("a in [1,]", 9, "comma", id="trailing-comma"),
    pytest.param("a in [1,[2]]", 9, "a list cannot hold a list", id="nested-array"),
    pytest.param("a in [1", 6, "not closed", id="open-array"),
    pytest.param("a in b", 6, "a list [a, b] or a network", id="in-a-field"),
    pytest.param("a in 10.0.0.1", 6, "a list [a, b] or a network", id="in-an-address"),
    pytest.param("a > 'b'", 5, "not text", id="text-is-no-number"),
    pytest.param("true > a", 1, "not true or false", id="truth-is-no-number"),
    pytest.param("a >= 10.0.0.1", 6, "compares numbers", id="address-is-no-number"),
    pytest.param("a < [1, 2]", 5, "not a list", id="list-is-no-number"),
    pytest.param("zone(a) > 1", 1, "the result of a call", id="call-is-no-number"),
    pytest.param("a >= 400 <= 500", 10, "chained", id="chained"),
    pytest.param("a == b == c", 8, "chained", id="chained-equal"),
    pytest.param('a["x"] == 1', 2, "with a dot", id="index"),
    pytest.param("a + 1 > 2", 3, "no arithmetic", id="plus"),
    pytest.param("-n", 1, "no arithmetic", id="minus"),
    pytest.param("(a == 1", 1, "'(' is not closed", id="open-parenthesis"),
    pytest.param("a == 1)", 7, "before this ')'", id="closed-too-often"),
    pytest.param("(a) == 1", 5, "not a condition in parentheses", id="compared-condition"),
    pytest.param("a ==", 5, "missing at the end", id="nothing-on-the-right"),
    pytest.param("a &&", 5, "missing at the end", id="nothing-after-and"),
    pytest.param("== 1", 1, "cannot stand here", id="nothing-on-the-left"),
    pytest.param("a b", 3, "an operator is missing before 'b'", id="two-fields"),
    pytest.param("mt () && a", 4, "directly behind its name", id="blank-in-a-call"),
    pytest.param("a.b(1)", 4, "directly behind its name", id="dot-in-a-call"),
    pytest.param("zone(a b)", 8, "divided by commas", id="arguments-without-comma"),
    pytest.param("zone(a", 1, "zone is not closed", id="open-call"),
    pytest.param("a == 'x", 6, "not closed", id="open-quote"),
    pytest.param(r"a == 'x\d'", 8, "escape is not known", id="bad-escape"),
    pytest.param("a /* b", 3, "comment does not end", id="open-comment"),
    pytest.param("a == 0x10", 6, "decimal digits", id="hexadecimal"),
    pytest.param("a == 089", 6, "octal", id="bad-octal"),
    pytest.param("a == 18446744073709551616", 6, "64 bits", id="too-large"),
    pytest.param("a == 5.", 7, "'.' has no meaning", id="dot-at-the-end"),
    pytest.param("ip in 10.0.0.0/33", 15, "/33 is no prefix", id="prefix-too-long"),
    pytest.param("ip == 10.0.0.256", 7, "10.0.0.256 is no address", id="no-address"),
    pytest.param("a == ä", 6, "'ä' has no meaning", id="not-ascii"),
    pytest.param("a ? b : c", 3, "combine conditions", id="ternary"),
]


@pytest.mark.parametrize(("text", "column", "words"), MISTAKES)
def test_mistakes(text, column, words) -> None:
    """The message says what is wrong, the column where, and the caret stands under it."""
    with pytest.raises(RuleError) as caught:
        parse(text)
    error = caught.value
    assert words in error.message
    assert (error.text, error.column, error.macro) == (text, column, "")
    line, mark = error.caret().split("\n")
    assert (line, mark) == (text, " " * (column - 1) + "^")


MIXED = [
    pytest.param("a && b || c", 8, "(a && b) || c", "a && (b || c)", id="and-or"),
    pytest.param("a || b && c", 8, "a || (b && c)", "(a || b) && c", id="or-and"),
    pytest.param(
        "a and b and c or !d",
        15,
        "(a && b && c) || !d",
        "a && b && (c || !d)",
        id="and-and-or",
    ),
    pytest.param("(x) || (a && b || c)", 16, "(a && b) || c", "a && (b || c)", id="inside"),
]


@pytest.mark.parametrize(("text", "column", "common", "qtap"), MIXED)
def test_mixed_conditions_are_not_guessed_at(text, column, common, qtap) -> None:
    """Both readings are shown, and each is accepted when written with its parentheses."""
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert caught.value.column == column
    assert f"write {common} or, as Qtap reads it, {qtap}" in caught.value.message
    assert str(parse(common)) == common
    assert str(parse(qtap)) == qtap


def test_compat_reads_mixed_conditions_as_qtap_does() -> None:
    """There ``||`` binds tighter than ``&&``."""
    assert str(parse("a && b || c && d", qtap_compat=True)) == "a && (b || c) && d"


def test_compat_ends_comments_as_qtap_does() -> None:
    """There a block comment takes everything to the last ``*/``."""
    text = "a /* 1 */ && b /* 2 */"
    assert str(parse(text)) == "a && b"
    assert str(parse(text, qtap_compat=True)) == "a"


def test_octets_of_one_pair_are_names_unless_qtap_is_asked_for() -> None:
    """``fd`` and ``a1`` are fields; with a digit in front there is nothing else to be."""
    assert str(parse("ab == 1")) == str(parse("ab == 1", qtap_compat=True))
    assert parse("ab == 1") != parse("ab == 1", qtap_compat=True)
    assert parse("0a == 1") == parse("0a == 1", qtap_compat=True)


DEEP = [
    pytest.param("(" * 5000 + "a" + ")" * 5000, id="parentheses"),
    pytest.param("!" * 5000 + "a", id="negations"),
    pytest.param("zone(" * 5000 + "a" + ")" * 5000, id="calls"),
    pytest.param("(" * 5000, id="open"),
]


@pytest.mark.parametrize("text", DEEP)
def test_nesting_is_bounded(text) -> None:
    """No expression can exhaust the stack."""
    with pytest.raises(RuleError, match="nested more than 40 deep"):
        parse(text)


def test_nesting_within_the_bound_works_as_a_whole() -> None:
    """What the parser accepts, Python's compiler accepts too."""
    text = "(" * MAX_DEPTH + "http.res.status == 1" + " || exe)" * MAX_DEPTH
    assert RuleCompiler().compile(text).text == text


def test_long_expressions_are_fine_up_to_a_bound() -> None:
    """A list of a thousand conditions is no problem, a megabyte of text is refused."""
    conditions = " || ".join(f"http.res.status == {status}" for status in range(500))
    assert str(parse(conditions)) == conditions
    with pytest.raises(RuleError, match="longer than 65536 characters"):
        parse("a || " * 100_000)


def test_caret_of_one_line_among_several() -> None:
    """Only the line with the mistake is shown."""
    with pytest.raises(RuleError) as caught:
        parse("a == 1\n  && b = 2\n  && c")
    assert caught.value.caret() == "  && b = 2\n       ^"


def test_caret_of_a_long_line() -> None:
    """The part around the mistake is shown, the caret still under it."""
    text = " && ".join(["http.res.status >= 400"] * 20) + " && x = 1" + " && y" * 50
    with pytest.raises(RuleError) as caught:
        parse(text)
    line, mark = caught.value.caret().split("\n")
    assert len(line) < 110
    assert line[len(mark) - 1] == "="
