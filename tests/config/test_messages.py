"""Messages have one shape, and say no more of a file than they must."""

from __future__ import annotations

import pytest
from yaml import MarkedYAMLError

from otel_qtap.config.messages import (
    ConfigError,
    Problem,
    Severity,
    did_you_mean,
    dotted,
    syntax_text,
)

SHAPES = [
    pytest.param(Problem("q.yaml", 3, "tap.http", "is odd"), "q.yaml:3: tap.http: is odd"),
    pytest.param(Problem("q.yaml", 0, "tap", "is missing"), "q.yaml: tap: is missing"),
    pytest.param(Problem("q.yaml", 0, "", "no such file"), "q.yaml: no such file"),
]


@pytest.mark.parametrize(("problem", "line"), SHAPES)
def test_a_problem_is_one_line(problem, line) -> None:
    """File and line in front, where editors and terminals find them."""
    assert str(problem) == line


def test_the_text_of_an_error_is_all_its_problems() -> None:
    """Warnings among them are marked: they alone would not stop the start."""
    error = ConfigError(
        [
            Problem("q", 1, "a", "is wrong", excerpt="rule\n  ^"),
            Problem("q", 2, "b", "is idle", Severity.WARNING),
        ]
    )

    assert str(error) == "q:1: a: is wrong\n    rule\n      ^\nq:2: b: is idle (warning)"


def test_near_matches_ignore_case_and_keep_the_right_spelling() -> None:
    """``headers`` is near to ``Header``, nothing is near to ``xyz``."""
    assert did_you_mean("Header", ["none", "headers"]) == "; did you mean 'headers'?"
    assert did_you_mean("webfront", ["WebFront"]) == "; did you mean 'WebFront'?"
    assert did_you_mean("xyz", ["none", "headers"]) == ""


def test_keys_cannot_break_the_line_or_the_terminal() -> None:
    """A key with control characters is shown escaped, a long one is cut."""
    assert dotted(("tap", "a\n\x1b[31m", 0)) == "tap.a\\n\\x1b[31m.0"
    assert len(dotted(("x" * 500,))) == 60


def test_a_syntax_error_without_a_place_is_told_all_the_same() -> None:
    """The parser always has one so far; it need not."""
    assert syntax_text(MarkedYAMLError(problem="is odd"), "a: b") == (0, "not valid YAML: is odd")
