"""
What is wrong with a Qtap file, as sentences for the person who wrote it.

One line each: file, line, place, value, and the way out; under a rule that cannot be
compiled also the rule, with a mark at the place. A value is shown only where the file
offers a choice of words, never where a secret could stand.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from yaml import MarkedYAMLError

__all__ = [
    "QUOTE_HINT",
    "ConfigError",
    "Finding",
    "KeyPath",
    "Problem",
    "Severity",
    "did_you_mean",
    "dotted",
    "shown",
    "syntax_text",
    "unquoted_not",
]

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the root of the file to a value."""

MAX_SHOWN = 60  # of a value or key; a line that wraps is a line that is not read
MAX_EXPRESSION = 200  # of an expression that is shown to be copied
QUOTE_HINT = "text that starts with '!' must be quoted, as in expr: '!is_internal()'"

_QUOTED = re.compile(r"'([^']*)'")
_UNQUOTED_NOT = re.compile(r"(?:^\s*(?:- +)*(?:[^\s'\"#]+: +)?|[{,]\s*expr: +)!")
_QUOTED_START = re.compile(r"^\s*(?:- +)*[^\s'\"#]+: +(\"[^\"]*\"|'[^']*')\s+\S")


class Severity(Enum):
    """Whether the file can be used in spite of a problem."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem before it is given its file and line."""

    path: KeyPath
    text: str
    severity: Severity = Severity.ERROR
    line: int = 0
    """0: the line of the key at ``path``."""
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to tell about a file."""

    file: str
    line: int
    """Counted from 1; 0 when the problem is not in any line."""
    path: str
    """Keys joined by dots; empty for the file as a whole."""
    text: str
    severity: Severity = Severity.ERROR
    excerpt: str = ""
    """Lines of the file with a mark at the place, where a column says more than a line."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.text}" if self.path else f"{place}: {self.text}"

    def render(self) -> str:
        """Return all there is to tell: the line, marked if it is a warning, and the excerpt."""
        mark = " (warning)" if self.severity is Severity.WARNING else ""
        excerpt = "".join(f"\n    {line}" for line in self.excerpt.splitlines())
        return f"{self}{mark}{excerpt}"


class ConfigError(Exception):
    """A file that cannot be used; ``problems`` is everything found in it, warnings too."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(problem.render() for problem in self.problems)


def dotted(path: KeyPath) -> str:
    """Return the path as messages show it: ``stacks.web.plugins.0.config.level``."""
    return ".".join(shown(str(key)) for key in path)


def shown(text: str) -> str:
    """Return ``text`` so that it cannot break the line or the terminal: escaped, and cut."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``; did you mean 'x'?`` when one of the choices is near, else nothing."""
    spelled = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower()[:MAX_SHOWN], list(spelled), 1, cutoff)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def unquoted_not(quoted: str) -> str:
    """Return what to tell about an expression that should have been written as ``quoted``."""
    text = "YAML takes a bare '!' for one of its tags"
    if quoted.isprintable() and len(quoted) <= MAX_EXPRESSION:
        return f"{text}; write expr: {quoted}"
    return f"{text}; {QUOTE_HINT}"


def syntax_text(error: MarkedYAMLError, source: str) -> tuple[int, str]:
    """
    Return line and text for a file that is not YAML.

    The parser's own words stay, except what it quotes from the file.
    """
    problem = error.problem or "cannot be parsed"
    if problem.startswith("but "):
        problem = f"{error.context} {problem}"
    problem = _QUOTED.sub(lambda m: m[0] if len(m[1]) == 1 or m[1].startswith("<") else "", problem)
    problem = " ".join(problem.split())
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 0, f"not valid YAML: {problem}"
    lines = source.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = _syntax_hint(problem, line, mark.column)
    return mark.line + 1, f"not valid YAML at column {mark.column + 1}: {problem}{hint}"


def _syntax_hint(problem: str, line: str, column: int) -> str:
    """Return the way out of the mistakes that are often made, with its ``;``, or nothing."""
    hint = ""
    if _UNQUOTED_NOT.search(line):
        hint = QUOTE_HINT
    elif problem.startswith("mapping values are not allowed"):
        hint = "a value that contains ': ' must be quoted"
    elif line[column : column + 1] == "\t":
        hint = "indent with spaces, not with tabs"
    elif problem.startswith("found unknown escape character"):
        hint = "backslashes need single quotes, as in expr: 'http.req.path =~ /a\\.b/'"
    elif _QUOTED_START.match(line):
        hint = "what begins with a quote must be quoted as a whole, as in expr: '\"a\" == b'"
    return f"; {hint}" if hint else ""
