"""What the names in an expression mean: fields, functions and macros, all checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from otel_qtap.rules.errors import RuleError
from otel_qtap.rules.fields import Resolved, Stage, Vocabulary
from otel_qtap.rules.functions import FUNCTIONS
from otel_qtap.rules.lexer import WORDS, tokens
from otel_qtap.rules.parser import parse
from otel_qtap.rules.tree import (
    And,
    Array,
    Call,
    Compare,
    Expression,
    Field,
    Literal,
    Not,
    Or,
    walk,
)

__all__ = ["Extent", "RuleWarning", "Scope"]

MAX_PARTS = 2_000
"""Of an expression with its macros put in: what one evaluation can cost at most."""

MAX_DEPTH = 60
"""Of conditions within each other, macros put in."""

_MACRO_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OCTAL = re.compile(r"[+-]?0[0-7]+")


@dataclass(frozen=True, slots=True)
class RuleWarning:
    """Something that is no mistake and hardly what was meant."""

    message: str
    """One sentence."""
    text: str
    """The expression, or the body of ``macro``."""
    column: int
    macro: str = ""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much an expression is, and asks for, with its macros put in."""

    parts: int = 1
    depth: int = 1
    fields: frozenset[str] = frozenset()
    needs: Stage = Stage.CONNECTION

    @classmethod
    def around(cls, inner: Sequence[Extent]) -> Extent:
        """Return the extent of what holds these parts."""
        return cls(
            1 + sum(part.parts for part in inner),
            1 + max((part.depth for part in inner), default=0),
            frozenset().union(*(part.fields for part in inner)),
            max((part.needs for part in inner), default=Stage.CONNECTION),
        )


class Scope:
    """The vocabulary and the macros that expressions are compiled with."""

    def __init__(
        self, macros: Mapping[str, str], vocabulary: Vocabulary, *, qtap_compat: bool
    ) -> None:
        """Raises ``RuleError`` for the first macro that cannot be used."""
        self.vocabulary = vocabulary
        self.qtap_compat = qtap_compat
        self._texts = dict(macros)
        self._extents: dict[str, Extent] = {}
        self._macros: dict[str, Expression] = {}
        for name, text in macros.items():
            _check_name(name, text)
            try:
                self._macros[name] = parse(text, qtap_compat=qtap_compat)
            except RuleError as error:
                raise _in_macro(error, name) from None
        for name in macros:
            self._measure_macro(name, ())
        self.macro_warnings = tuple(
            replace(warning, macro=name)
            for name, body in self._macros.items()
            for warning in self.warnings(body, macros[name])
        )

    def field(self, name: str) -> Resolved:
        """Return what a field stands for."""
        return self.vocabulary.resolve(name)

    def macro(self, name: str) -> Expression | None:
        """Return what a call of ``name`` stands for; ``None`` where it is a function."""
        return None if name in FUNCTIONS else self._macros[name]

    def measure(self, expression: Expression, text: str) -> Extent:
        """Check the names of an expression and return its extent. Raises ``RuleError``."""
        return self._measure(expression, text, ())

    def needs(self, expression: Expression) -> Stage:
        """Return from when on all fields of an expression, already checked, are known."""
        return self._measure(expression, "", ()).needs

    def warnings(self, expression: Expression, text: str) -> tuple[RuleWarning, ...]:
        """Return what is odd about what an expression itself names."""
        found: dict[RuleWarning, None] = {}
        for field in walk(expression):
            if not isinstance(field, Field):
                continue
            if field.name in self._texts:
                message = f"{field.name} without () is a field, not the macro"
            else:
                message = self.field(field.name).warning
            if message:
                found[RuleWarning(message, text, field.column)] = None
        for token in tokens(text, qtap_compat=self.qtap_compat):
            if _OCTAL.fullmatch(token.text):
                message = f"{token.text} begins with 0 and so is octal: {token.value}"
                found[RuleWarning(message, text, token.column)] = None
        return tuple(found)

    def _measure_macro(self, name: str, path: tuple[str, ...]) -> Extent:
        """Return the extent of a macro; ``path`` names the macros that it is used by."""
        if name not in self._extents:
            try:
                self._extents[name] = self._measure(
                    self._macros[name], self._texts[name], (*path, name)
                )
            except RuleError as error:
                raise _in_macro(error, name) from None
        return self._extents[name]

    def _measure(self, expression: Expression, text: str, path: tuple[str, ...]) -> Extent:
        match expression:
            case Literal():
                return Extent()
            case Field(name):
                found = self.field(name)
                stage = found.fact.stage if found.fact else Stage.CONNECTION
                return Extent(fields=frozenset({found.name}), needs=stage)
            case Call(name, arguments):
                if name in self._texts:
                    inner = [self._macro_extent(expression, text, path)]
                else:
                    _check_call(expression, text, self._texts)
                    inner = [self._measure(argument, text, path) for argument in arguments]
            case Array(items):
                inner = [self._measure(item, text, path) for item in items]
            case Compare(left, _, right):
                inner = [self._measure(side, text, path) for side in (left, right)]
            case Not(condition):
                inner = [self._measure(condition, text, path)]
            case And(conditions) | Or(conditions):
                inner = [self._measure(condition, text, path) for condition in conditions]
        extent = Extent.around(inner)
        if extent.parts > MAX_PARTS or extent.depth > MAX_DEPTH:
            message = (
                f"the expression has more than {MAX_PARTS} parts or {MAX_DEPTH} levels, "
                "its macros put in"
            )
            raise RuleError(message, text, 1)
        return extent

    def _macro_extent(self, call: Call, text: str, path: tuple[str, ...]) -> Extent:
        if call.arguments:
            message = f"{call.name} is a macro and takes no arguments: write {call.name}()"
            raise RuleError(message, text, call.column)
        if call.name in path:
            circle = " -> ".join((*path[path.index(call.name) :], call.name))
            raise RuleError(f"macros use each other in a circle: {circle}", text, call.column)
        if len(path) > MAX_DEPTH:
            raise RuleError(f"macros use each other more than {MAX_DEPTH} deep", text, call.column)
        return self._measure_macro(call.name, path)


def _check_name(name: str, text: str) -> None:
    if not _MACRO_NAME.fullmatch(name):
        reason = "names hold letters, digits and '_' and begin with no digit"
    elif name.lower() in WORDS:
        reason = "this is a word of the language"
    elif name in FUNCTIONS:
        reason = "this is a function of the language"
    else:
        return
    message = f"macro {name}: {reason}; choose another name"
    raise RuleError(message, text, 1, macro=name)


def _check_call(call: Call, text: str, macros: Mapping[str, str]) -> None:
    function = FUNCTIONS.get(call.name)
    if function is None:
        near = difflib.get_close_matches(call.name, [*FUNCTIONS, *macros], n=1)
        hint = f"did you mean {near[0]}?" if near else f"functions are {', '.join(FUNCTIONS)}"
        message = f"there is no function or macro {call.name}; {hint}"
        raise RuleError(message, text, call.column)
    if len(call.arguments) != len(function.parameters):
        wanted = f"{call.name}({', '.join(function.parameters)})"
        count = len(call.arguments)
        raise RuleError(f"write {wanted}: {count} is the wrong number", text, call.column)


def _in_macro(error: RuleError, name: str) -> RuleError:
    """Return an error of a macro's body as one that names the macro, unless it does."""
    if error.macro:
        return error
    message = f"macro {name}: {error.message}"
    return RuleError(message, error.text, error.column, macro=name)
