"""
An expression as a tree, and back as text.

``str`` of a tree is an expression that parses to the same tree again: one spelling for
each operator, parentheses only where the reading needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import TypeAlias

from otel_qtap.rules.regex import Regex
from otel_qtap.rules.values import HexString, Mac, Value

__all__ = [
    "And",
    "Array",
    "Call",
    "Compare",
    "Condition",
    "Expression",
    "Field",
    "Literal",
    "Not",
    "Operand",
    "Operator",
    "Or",
    "walk",
]


class Operator(Enum):
    """What compares two operands; the value is how it is printed."""

    EQUAL = "=="
    NOT_EQUAL = "!="
    GREATER = ">"
    GREATER_EQUAL = ">="
    LESS = "<"
    LESS_EQUAL = "<="
    CONTAINS = "contains"
    MATCHES = "matches"
    IN = "in"

    @property
    def is_order(self) -> bool:
        """Whether it asks which of two numbers is larger."""
        return self in _ORDER


_ORDER = frozenset({Operator.GREATER, Operator.GREATER_EQUAL, Operator.LESS, Operator.LESS_EQUAL})


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that stands in the expression."""

    value: Value
    column: int = field(default=0, compare=False, repr=False)

    def __eq__(self, other: object) -> bool:  # 1, 1.0 and true are equal in Python
        return (
            isinstance(other, Literal)
            and type(self.value) is type(other.value)
            and self.value == other.value
        )

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __str__(self) -> str:
        return _literal_text(self.value)


@dataclass(frozen=True, slots=True)
class Field:
    """The value that a transaction has under a name."""

    name: str
    column: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments, or a macro, which has none."""

    name: str
    arguments: tuple[Operand, ...] = ()
    column: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, slots=True)
class Array:
    """A list of operands; not of arrays."""

    items: tuple[Literal | Field | Call, ...]
    column: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"


Operand: TypeAlias = Literal | Field | Call | Array


@dataclass(frozen=True, slots=True)
class Compare:
    """Two operands and what they have to do with each other."""

    left: Operand
    operator: Operator
    right: Operand
    column: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.left} {self.operator.value} {self.right}"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    condition: Expression
    column: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        if isinstance(self.condition, Compare | And | Or):
            return f"!({self.condition})"
        return f"!{self.condition}"


@dataclass(frozen=True, slots=True)
class And:
    """Two or more conditions that all have to hold."""

    conditions: tuple[Expression, ...]

    def __str__(self) -> str:
        return " && ".join(map(_in_parentheses, self.conditions))


@dataclass(frozen=True, slots=True)
class Or:
    """Two or more conditions of which one has to hold."""

    conditions: tuple[Expression, ...]

    def __str__(self) -> str:
        return " || ".join(map(_in_parentheses, self.conditions))


Condition: TypeAlias = Compare | Not | And | Or
Expression: TypeAlias = Operand | Condition


def walk(expression: Expression) -> Iterator[Expression]:
    """Yield an expression and every part of it, from left to right."""
    yield expression
    match expression:
        case Call(_, inner) | Array(inner) | And(inner) | Or(inner):
            for part in inner:
                yield from walk(part)
        case Compare(left, _, right):
            yield from walk(left)
            yield from walk(right)
        case Not(condition):
            yield from walk(condition)


def _in_parentheses(condition: Expression) -> str:
    return f"({condition})" if isinstance(condition, And | Or) else str(condition)


_ESCAPED_CHARACTER = re.compile(r"\\.", re.DOTALL)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _literal_text(value: Value) -> str:  # noqa: PLR0911 - one for each kind
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{"".join(map(_escaped, value))}"'
        case float():
            return _float_text(value)
        case Regex():
            return _regex_text(value.pattern)
        case Mac():
            return f'"{value.text}"'
        case HexString():
            return value.text
        case _:
            return str(value)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"


def _float_text(value: float) -> str:
    """Return a float as digits around a dot: the language has no exponents."""
    text = format(Decimal(repr(value)), "f")
    return text if "." in text else f"{text}.0"


def _regex_text(pattern: str) -> str:
    """Return a pattern in the delimiters that it does not hold itself."""
    unescaped = _ESCAPED_CHARACTER.sub("", pattern)
    return f"|{pattern}|" if "/" in unescaped else f"/{pattern}/"
