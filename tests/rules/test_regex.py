"""Patterns: what RE2 says, in time that grows with the text and no faster."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import re2
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from otel_qtap.rules import RuleCompiler
from otel_qtap.rules.regex import Regex, RegexError
from otel_qtap.rules.tree import Compare, Field, Literal, Operator

PATH = Field("http.req.path")

PLAIN = [
    pytest.param("dc2-", ("dc2-",), id="anywhere"),
    pytest.param(r"^\/api\/", ("/api/",), id="start"),
    pytest.param(r"\.php$", (".php",), id="end"),
    pytest.param(r"^\/health$", ("/health",), id="whole"),
    pytest.param("sshd$", ("sshd",), id="program"),
    pytest.param(r"a\$", ("a$",), id="escaped-dollar"),
    pytest.param(r"a\|b", ("a|b",), id="escaped-bar"),
    pytest.param("", ("",), id="empty"),
    pytest.param("curl|wget", ("curl", "wget"), id="choice"),
    pytest.param("^/a|^/b", ("/a", "/b"), id="choice-of-starts"),
    pytest.param(r"^\/(api|admin)\/", ("/api/", "/admin/"), id="choice-in-a-path"),
    pytest.param(r"\.(?:png|jpg)$", (".png", ".jpg"), id="choice-of-ends"),
    pytest.param("^(/health|/ready)$", ("/health", "/ready"), id="choice-of-wholes"),
    pytest.param("a(|b)", ("a", "ab"), id="choice-with-nothing"),
]


@pytest.mark.parametrize(("pattern", "texts"), PLAIN)
def test_plain_patterns_need_no_engine(pattern, texts) -> None:
    """What holds no special character but its ties, or a choice of such, is looked for as text."""
    plain = Regex(pattern).plain
    assert plain is not None
    assert plain.texts == texts


ENGINE = [
    *("a.c", "(?i)api", "[ab]", r"\d", "a{2}", "a^b", "^a|b", "a|b$", "(a|b)+", "(a|(b))", "(^a)"),
    *("(a|b)(c|d)", "|".join(map(str, range(17)))),
]


@pytest.mark.parametrize("pattern", ENGINE)
def test_other_patterns_need_the_engine(pattern) -> None:
    """In doubt the engine decides."""
    assert Regex(pattern).plain is None


MATCHES = [
    pytest.param("^a$", "a\n", False, id="end-is-the-end-of-the-text"),
    pytest.param("(?i)API", "/api/x", True, id="flag"),
    pytest.param("a.c", "a\nc", False, id="dot-stops-at-the-line"),
    pytest.param("(?s)a.c", "a\nc", True, id="dot-all"),
    pytest.param("(?m)^b$", "a\nb", True, id="lines"),
    pytest.param(r"\d+", "٣", False, id="digits-are-ascii"),
    pytest.param(r"^\pL+$", "größe", True, id="letters-of-any-script"),
    pytest.param("^[^/]+$", "a/b", False, id="class"),
    pytest.param(r"\bx\b", "a x b", True, id="word"),
]


@pytest.mark.parametrize(("pattern", "text", "is_found"), MATCHES)
def test_patterns_mean_what_re2_means(pattern, text, is_found) -> None:
    """The syntax is that of Qtap's rules, not Python's."""
    assert Regex(pattern).search(text) is is_found


PIECES = ["a", "b", "ab", r"\/", r"\.", ".", r"\$", r"\\", r"\|", "é", "-"]
plain_texts = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)
choices = st.lists(plain_texts, min_size=1, max_size=3).map("|".join)
grouped = st.tuples(
    *(st.sampled_from(["", "^"]), plain_texts, st.sampled_from(["(", "(?:"])),
    *(choices, st.just(")"), plain_texts, st.sampled_from(["", "$"])),
).map("".join)
tied = st.tuples(st.sampled_from(["", "^"]), plain_texts, st.sampled_from(["", "$"])).map("".join)
anything = st.lists(st.sampled_from([*PIECES, "^", "$", "|", "(a|b)", "(", ")"]), max_size=6).map(
    "".join
)


@settings(max_examples=600, deadline=None)
@given(
    pattern=st.one_of(anything, grouped, st.lists(tied, min_size=1, max_size=3).map("|".join)),
    text=st.text(alphabet="ab/.^$\\é-\n|", max_size=12),
)
def test_short_cuts_agree_with_re2(pattern, text) -> None:
    """With or without the engine, alone or in a rule, the answer is RE2's."""
    options = re2.Options()
    options.log_errors = False
    try:
        expected = re2.search(pattern, text, options) is not None
    except re2.error:
        reject()
    assert Regex(pattern).search(text) is expected
    rule = RuleCompiler().compile(str(Compare(PATH, Operator.MATCHES, Literal(Regex(pattern)))))
    assert rule.matches(SimpleNamespace(http_req_path=text)) is expected


SLOW_ELSEWHERE = [  # exponential or cubic in engines that go back and try again
    pytest.param("(x+x+)+y", id="nested"),
    pytest.param("(x|x)*y", id="alternatives"),
    pytest.param("(x*)*y", id="star-of-star"),
    pytest.param("(.*x){12}y", id="many-stars"),
    pytest.param("x*x*x*x*y", id="stars-in-a-row"),
    pytest.param("^(([a-z])+.)+[A-Z]([a-z])+$", id="names"),
]


@pytest.mark.parametrize("pattern", SLOW_ELSEWHERE)
def test_no_pattern_can_hang_the_agent(pattern) -> None:
    """A text of a megabyte, made to be slow, is searched in well under a second."""
    regex = Regex(pattern)
    text = "x" * 1_000_000
    start = time.perf_counter()
    assert regex.search(text) is False
    assert time.perf_counter() - start < 1


def test_the_largest_patterns_stay_linear() -> None:
    """Where RE2 must keep many states, its cost per character still has a bound."""
    regex = Regex("(a|b)*a(a|b){300}c")
    text = "ab" * 2000 + "aabbab" * 1000
    start = time.perf_counter()
    assert regex.search(text) is False
    assert time.perf_counter() - start < 1


BAD = [
    pytest.param("(", "missing )", id="parenthesis"),
    pytest.param("a**", "bad repetition", id="star-star"),
    pytest.param("(?=a)", "invalid perl operator", id="look-ahead"),
    pytest.param(r"(a)\1", "invalid escape", id="back-reference"),
    pytest.param("a{1001}", "repetition size", id="repetition"),
    pytest.param("x{900}y{900}z{900}", "too large", id="too-large"),
    pytest.param("a\ud800", "no character", id="no-text"),
]


@pytest.mark.parametrize(("pattern", "words"), BAD)
def test_bad_patterns(pattern, words, capfd) -> None:
    """What cannot be matched in linear time is refused, and nothing is printed about it."""
    with pytest.raises(RegexError, match=words.replace(")", r"\)")):
        Regex(pattern)
    assert capfd.readouterr() == ("", "")


def test_equality_is_that_of_the_pattern() -> None:
    """So that trees can be compared."""
    assert Regex("a") == Regex("a")
    assert hash(Regex("a")) == hash(Regex("a"))
    assert Regex("a") != Regex("b")
    assert repr(Regex("a")) == "Regex('a')"
