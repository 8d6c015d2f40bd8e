"""Messages have one shape, and say no more of a file than they must."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from otel_qtap.config.messages import (
    ConfigError,
    Problem,
    Severity,
    describe,
    did_you_mean,
    dotted,
)
from otel_qtap.config.model import Config

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
        [Problem("q", 1, "a", "is wrong"), Problem("q", 2, "b", "is idle", Severity.WARNING)]
    )

    assert str(error) == "q:1: a: is wrong\nq:2: b: is idle (warning)"


def test_near_matches_ignore_case_and_keep_the_right_spelling() -> None:
    """``headers`` is near to ``Header``, nothing is near to ``xyz``."""
    assert did_you_mean("Header", ["none", "headers"]) == "; did you mean 'headers'?"
    assert did_you_mean("webfront", ["WebFront"]) == "; did you mean 'WebFront'?"
    assert did_you_mean("xyz", ["none", "headers"]) == ""


def test_keys_cannot_break_the_line_or_the_terminal() -> None:
    """A key with control characters is shown escaped, a long one is cut."""
    assert dotted(("tap", "a\n\x1b[31m", 0)) == "tap.a\\n\\x1b[31m.0"
    assert len(dotted(("x" * 500,))) == 60


def _paths(data: object, root: type[BaseModel] = Config) -> list[str]:
    try:
        root.model_validate(data)
    except ValidationError as error:
        return [dotted(describe(details, root)[0]) for details in error.errors()]
    return []


def test_a_path_names_keys_of_the_file_only() -> None:
    """The member of a union that pydantic chose by ``type`` is no key, even if one is called so."""
    assert _paths(
        {"services": {"event_stores": [{"type": "otel", "otel": "x", "tls": {"enabled": "q"}}]}}
    ) == ["services.event_stores.0.tls.enabled", "services.event_stores.0.otel"]
    assert _paths(
        {"stacks": {"http_capture": {"plugins": [{"type": "http_capture", "x": 1}]}}}
    ) == ["stacks.http_capture.plugins.0.x"]
