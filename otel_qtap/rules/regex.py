"""
Regular expressions that cannot take longer than the text they search is long.

A rule is written by a person and applied to what strangers send, so a pattern must not
be able to hang the agent. RE2 gives that guarantee for every pattern it accepts, and its
syntax is the one Qtap's rules are written in. A pattern that is no more than plain text,
perhaps tied to the start or the end, needs no engine at all: it becomes an operation
on strings, a tenth of the cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

__all__ = ["Regex", "RegexError"]

MAX_PROGRAM_SIZE = 2_000
"""Instructions of RE2: the worst text for the worst pattern costs 5 microseconds a character."""

_MAX_MEMORY_BYTES = 8 * 1024 * 1024
_PLAIN = re.compile(r"(?:[^\\.+*?()|\[\]{}^$]|\\[^0-9A-Za-z])*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class RegexError(ValueError):
    """A pattern that RE2 refuses; the text says why and quotes only the pattern."""


class Tie(Enum):
    """Where in the text the plain text of a pattern has to stand."""

    ANYWHERE = "anywhere"
    START = "start"
    END = "end"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Plain:
    """What a pattern without any special character asks for."""

    text: str
    tie: Tie


class Regex:
    """A compiled pattern; equal to another one with the same pattern."""

    __slots__ = ("pattern", "plain", "search")

    def __init__(self, pattern: str) -> None:
        """Raises ``RegexError``."""
        re2 = _engine()
        options = re2.Options()
        options.max_mem = _MAX_MEMORY_BYTES
        options.never_capture = True
        options.log_errors = False
        try:
            compiled = re2.compile(pattern, options)
        except (re2.error, UnicodeError) as error:
            raise RegexError(_reason(error)) from None
        if max(compiled.programsize, compiled.reverseprogramsize) > MAX_PROGRAM_SIZE:
            raise RegexError("it is too large; shorten its repetitions")
        self.pattern = pattern
        self.plain = _plain(pattern)
        """Set where no engine is needed."""
        self.search: Callable[[str], bool] = _searcher(pattern, self.plain, options)
        """Whether the pattern is found anywhere in a text; never raises."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regex) and self.pattern == other.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    def __repr__(self) -> str:
        return f"Regex({self.pattern!r})"


@cache
def _engine() -> Any:
    import re2  # type: ignore[import-untyped]  # noqa: PLC0415 - 3 MB for who has no pattern

    return re2


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "it holds what is no character"
    reason = error.args[0]
    if isinstance(reason, bytes):
        reason = reason.decode("utf-8", "replace")
    return str(reason)


def _plain(pattern: str) -> Plain | None:
    at_start, at_end = pattern.startswith("^"), pattern.endswith("$")
    body = pattern[at_start : len(pattern) - at_end]
    if not _PLAIN.fullmatch(body):  # also where the last "$" is escaped: its "\" is left alone
        return None
    tie = {
        (False, False): Tie.ANYWHERE,
        (True, False): Tie.START,
        (False, True): Tie.END,
        (True, True): Tie.WHOLE,
    }[at_start, at_end]
    return Plain(_ESCAPE.sub(r"\1", body), tie)


def _searcher(pattern: str, plain: Plain | None, options: Any) -> Callable[[str], bool]:
    if plain is not None:
        text = plain.text
        match plain.tie:
            case Tie.ANYWHERE:
                return lambda subject: text in subject
            case Tie.START:
                return lambda subject: subject.startswith(text)
            case Tie.END:
                return lambda subject: subject.endswith(text)
            case Tie.WHOLE:
                return lambda subject: subject == text
    # A set of one pattern answers yes or no; ``search`` also says where, which triples
    # its cost. Its automaton fits the memory because of MAX_PROGRAM_SIZE.
    patterns = _engine().Set.SearchSet(options)
    patterns.Add(pattern)
    patterns.Compile()
    match_any = patterns.Match
    return lambda subject: match_any(subject.encode("utf-8", "replace")) is not None
