"""
Regular expressions that cannot take longer than the text they search is long.

A rule is written by a person and applied to what strangers send, so a pattern must not
be able to hang the agent. RE2 gives that guarantee for every pattern it accepts, and its
syntax is the one Qtap's rules are written in. A pattern that is no more than plain text
or a choice of texts (``^/(api|admin)/``), perhaps tied to the start or the end, needs no
engine at all: it becomes an operation on strings, a tenth of the cost.
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

MAX_TEXTS = 16
"""Texts that are looked for one by one: with more of them the engine is quicker."""

_MAX_MEMORY_BYTES = 8 * 1024 * 1024
_TEXT = r"(?:[^\\.+*?()|\[\]{}^$]|\\[^0-9A-Za-z])*"  # no special character but escaped ones
_TERM = re.compile(rf"(\^?)({_TEXT})(\$?)\|")  # "^a$|" of "^a$|^b$|"
_TERMS = re.compile(rf"(?:{_TERM.pattern})+")
_GROUP = re.compile(rf"(\^?)({_TEXT})\((?:\?:)?((?:{_TEXT}\|)*{_TEXT})\)({_TEXT})(\$?)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class RegexError(ValueError):
    """A pattern that RE2 refuses; the text says why and quotes only the pattern."""


class Tie(Enum):
    """Where in the text the plain text of a pattern has to stand."""

    ANYWHERE = "anywhere"
    START = "start"
    END = "end"
    WHOLE = "whole"


_TIES = {  # by whether a pattern begins with "^" and ends with "$"
    (False, False): Tie.ANYWHERE,
    (True, False): Tie.START,
    (False, True): Tie.END,
    (True, True): Tie.WHOLE,
}


@dataclass(frozen=True, slots=True)
class Plain:
    """What a pattern of plain texts asks for: that one of them is there."""

    texts: tuple[str, ...]
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
    if match := _GROUP.fullmatch(pattern):
        start, before, choice, after, end = match.groups()
        texts = [text for _, text, _ in _TERM.findall(f"{choice}|")]
        terms = [(start, before + text + after, end) for text in texts]
    elif _TERMS.fullmatch(f"{pattern}|"):
        terms = _TERM.findall(f"{pattern}|")
    else:
        return None
    ties = {(bool(start), bool(end)) for start, _, end in terms}
    if len(ties) > 1 or len(terms) > MAX_TEXTS:
        return None
    return Plain(tuple(_ESCAPE.sub(r"\1", text) for _, text, _ in terms), _TIES[ties.pop()])


def _searcher(pattern: str, plain: Plain | None, options: Any) -> Callable[[str], bool]:
    if plain is not None:
        texts = plain.texts
        match plain.tie:
            case Tie.ANYWHERE:
                return lambda subject: any(text in subject for text in texts)
            case Tie.START:
                return lambda subject: subject.startswith(texts)
            case Tie.END:
                return lambda subject: subject.endswith(texts)
            case Tie.WHOLE:
                return lambda subject: subject in texts
    # A set of one pattern answers yes or no; ``search`` also says where, which triples
    # its cost. Its automaton fits the memory because of MAX_PROGRAM_SIZE.
    patterns = _engine().Set.SearchSet(options)
    patterns.Add(pattern)
    patterns.Compile()
    match_any = patterns.Match
    return lambda subject: match_any(subject.encode("utf-8", "replace")) is not None
