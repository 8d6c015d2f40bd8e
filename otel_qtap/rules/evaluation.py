"""
Evaluate an expression by walking its tree, and tell how.

Slow and plain: ``explain`` shows every part with its value, and the tests hold the
compiled code equal to it. A condition holds, does not, or is missing a field; what is
missing stays missing under ``!``, and matters to ``&&`` and ``||`` only where the other
sides do not decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from otel_qtap.rules.comparison import compare
from otel_qtap.rules.facts import Facts
from otel_qtap.rules.fields import FieldType
from otel_qtap.rules.functions import FUNCTIONS
from otel_qtap.rules.scope import Scope
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
from otel_qtap.rules.values import Value, is_nonzero, parse_address

__all__ = ["Evaluator", "Explanation", "Outcome"]


class Outcome(Enum):
    """What becomes of a condition."""

    HOLDS = "true"
    FAILS = "false"
    MISSING = "missing"
    """A field that it needs has no value."""

    @property
    def opposite(self) -> Outcome:
        """What the negation comes to."""
        return _OPPOSITES[self]


_OPPOSITES = {
    Outcome.HOLDS: Outcome.FAILS,
    Outcome.FAILS: Outcome.HOLDS,
    Outcome.MISSING: Outcome.MISSING,
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A part of an expression, what came of it, and the parts that this is made of."""

    text: str
    outcome: Outcome
    fields: tuple[tuple[str, str], ...] = ()
    """(name as written, canonical name) of the fields that a comparison reads."""
    parts: tuple[Explanation, ...] = ()


class Evaluator:
    """Evaluates expressions whose names a scope has checked."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def outcome(self, expression: Expression, facts: Facts) -> Outcome:  # noqa: PLR0911
        """Return what becomes of a condition."""
        match expression:
            case Compare(left, operator, right):
                values = self.value(left, facts), self.value(right, facts)
                if values[0] is None or values[1] is None:
                    return Outcome.MISSING
                return _outcome(compare(values[0], operator, values[1]))
            case Not(condition):
                outcome = self.outcome(condition, facts)
                return outcome if self._scope.qtap_compat else outcome.opposite
            case And(conditions):
                return _combined(
                    [self.outcome(condition, facts) for condition in conditions], Outcome.FAILS
                )
            case Or(conditions):
                return _combined(
                    [self.outcome(condition, facts) for condition in conditions], Outcome.HOLDS
                )
        if isinstance(expression, Call) and (body := self._scope.macro(expression.name)):
            return self.outcome(body, facts)
        value = self.value(expression, facts)
        return Outcome.MISSING if value is None else _outcome(is_nonzero(value))

    def value(self, operand: Expression, facts: Facts) -> Value | None:
        """Return what an operand comes to; ``None`` when something in it is missing."""
        match operand:
            case Literal(value):
                return value
            case Field(name):
                return self.field(name, facts)
            case Array(items):
                values = self._values(items, facts)
                return None if values is None else values
            case Call(name, arguments):
                if body := self._scope.macro(name):
                    return self.value(body, facts)
                values = self._values(arguments, facts)
                return None if values is None else FUNCTIONS[name].call(*values)
        outcome = self.outcome(operand, facts)
        return None if outcome is Outcome.MISSING else outcome is Outcome.HOLDS

    def field(self, name: str, facts: Facts) -> Value | None:
        """Return the value of a field, ``None`` when it is missing."""
        found = self._scope.field(name)
        if found.fact is None:
            return None
        value = getattr(facts, found.fact.attribute)
        if found.key is not None:
            value = value(found.key)
        if found.fact.type is FieldType.ADDRESS and value is not None:
            return parse_address(value)
        known: Value | None = value
        return known

    def explain(self, expression: Expression, facts: Facts) -> Explanation:
        """Return what becomes of a condition and of each of its parts."""
        outcome = self.outcome(expression, facts)
        parts: tuple[Expression, ...] = ()
        match expression:
            case And(conditions) | Or(conditions):
                parts = conditions
            case Not(condition):
                parts = (condition,)
            case Call(name) if body := self._scope.macro(name):
                parts = (body,)
        fields = () if parts else tuple(self._fields_read(expression))
        return Explanation(
            str(expression), outcome, fields, tuple(self.explain(part, facts) for part in parts)
        )

    def _values(self, operands: tuple[Expression, ...], facts: Facts) -> list[Value] | None:
        values = [self.value(operand, facts) for operand in operands]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else None

    def _fields_read(self, expression: Expression) -> dict[tuple[str, str], None]:
        """Return the fields of a comparison, those of macros among its operands too."""
        found: dict[tuple[str, str], None] = {}
        for part in walk(expression):
            if isinstance(part, Field):
                found[part.name, self._scope.field(part.name).name] = None
            elif isinstance(part, Call) and (body := self._scope.macro(part.name)):
                found |= self._fields_read(body)
        return found


def _outcome(holds: bool) -> Outcome:
    return Outcome.HOLDS if holds else Outcome.FAILS


def _combined(outcomes: list[Outcome], deciding: Outcome) -> Outcome:
    """Return the outcome that decides if there is one, else missing if there is one."""
    if deciding in outcomes:
        return deciding
    return Outcome.MISSING if Outcome.MISSING in outcomes else deciding.opposite
