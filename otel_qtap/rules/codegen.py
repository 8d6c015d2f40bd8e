"""
From a tree to Python source: one expression that reads facts and says yes or no.

A condition can hold, fail or be missing a field, and source for three outcomes would be
slow. So there are two pieces of source for each condition, one true exactly where it
holds and one true exactly where it fails; negation swaps them, and where a field is
missing both are false. No text of the rule gets into the source: values are constants
bound to names that this module chooses.

No condition has an effect or raises, so of several the cheap ones are asked first: most
transactions are decided by their status, and no pattern is searched for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from otel_qtap.rules.comparison import compare
from otel_qtap.rules.evaluation import Evaluator
from otel_qtap.rules.facts import Facts
from otel_qtap.rules.fields import FieldType, Stage
from otel_qtap.rules.functions import FUNCTIONS
from otel_qtap.rules.regex import Regex, Tie
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
    Operand,
    Operator,
    Or,
    walk,
)
from otel_qtap.rules.values import Address, Value, is_nonzero, parse_address, text_of

__all__ = ["compile_about", "compile_condition"]

SEARCH_COST = 10
CALL_COST = 8
"""What a search and a call of a function cost, as ``FieldFact.cost`` has it."""

MAX_KEPT_COST = 3
"""Fields up to this are read at once when they are named repeatedly, needed or not."""

MAX_CACHED = 1024
"""Answers kept for each question about addresses; the addresses of peers repeat."""


def compile_condition(
    expression: Expression, scope: Scope, *, known: Stage | None = None
) -> Callable[[Facts], bool]:
    """
    Return a function that says whether a condition holds.

    With ``known``, whether it holds or may still do so when what becomes known later
    than that stage is open.
    """
    holds: Callable[[Facts], bool] = _function("f", expression, _Writer(scope, known))
    return holds


def compile_about(
    expression: Expression, scope: Scope, facts: Facts, subject: str
) -> Callable[[Any], bool]:
    """
    Return a function of what ``facts`` are about, their attribute ``subject``.

    The same as setting the attribute and asking the function of ``compile_condition``,
    less the cost of one call.
    """
    writer = _Writer(scope, None)
    writer.names["f"] = facts
    return _function("subject", expression, writer, f"f.{subject} = subject")


def _function(
    parameter: str, expression: Expression, writer: _Writer, *preparation: str
) -> Callable[[Any], bool]:
    reads = writer.repeated_reads(expression)
    answer = f"return True if {writer.condition(expression, True)} else False"
    lines = "".join(f"    {line}\n" for line in (*preparation, *reads, answer))
    names = writer.names
    exec(f"def holds({parameter}):\n{lines}", names)  # noqa: S102 - made here, and nothing in it comes from the rule's text
    holds: Callable[[Any], bool] = names["holds"]
    return holds


class _Source(NamedTuple):
    """Source of a value: what has to be true for it to be there, and the value itself."""

    guards: tuple[str, ...]
    value: str


class _Writer:
    """Writes the source of one function and collects the constants that it needs."""

    def __init__(self, scope: Scope, known: Stage | None) -> None:
        self.names: dict[str, Any] = {"__builtins__": {}, "compare": compare, "nonzero": is_nonzero}
        self._scope = scope
        self._known = known
        self._evaluator = Evaluator(scope)
        self._count = 0
        self._kept: dict[str, str] = {}  # fields that are read once, and the names they have then

    def repeated_reads(self, expression: Expression) -> list[str]:
        """Return source that reads the cheap fields which the expression names repeatedly."""
        counts = Counter(self._cheap_fields(expression))
        self._kept = {name: self._name("v") for name, count in counts.items() if count > 1}
        return [f"{kept} = {self._read(Field(name))}" for name, kept in self._kept.items()]

    def _cheap_fields(self, expression: Expression) -> Iterator[str]:
        for part in walk(expression):
            if isinstance(part, Call) and (body := self._scope.macro(part.name)):
                yield from self._cheap_fields(body)
            elif isinstance(part, Field) and self._cost(part) <= MAX_KEPT_COST:
                found = self._scope.field(part.name)
                if found.fact and found.fact.type is not FieldType.ADDRESS:
                    yield found.name

    # Conditions --------------------------------------------------------------------------

    def condition(self, expression: Expression, wanted: bool) -> str:
        """Return source that is true where the condition holds, or where it fails."""
        match expression:
            case And(conditions) | Or(conditions):
                joint = " and " if isinstance(expression, And) is wanted else " or "
                in_order = sorted(conditions, key=self._cost)
                return f"({joint.join(self.condition(part, wanted) for part in in_order)})"
            case Not(inner):
                return self.condition(inner, wanted is self._scope.qtap_compat)
            case Call(name) if body := self._scope.macro(name):
                return self.condition(body, wanted)
        if self._is_open(expression):
            return "True"
        if isinstance(expression, Compare):
            guards, test = self._comparison(expression)
        else:
            guards, test = self._alone(expression)
        return f"({' and '.join((*guards, test if wanted else f'not {test}'))})"

    def _cost(self, expression: Expression) -> int:  # noqa: PLR0911 - one for each kind
        """Return about how many times as long as a number's an answer takes."""
        match expression:
            case Field(name):
                fact = self._scope.field(name).fact
                return fact.cost if fact else 0
            case Literal(Regex(plain=None)):
                return SEARCH_COST
            case Call(name) if body := self._scope.macro(name):
                return self._cost(body)
            case Call(_, parts) | Array(parts):
                own = CALL_COST if isinstance(expression, Call) else 0
                return own + sum(map(self._cost, parts))
            case Compare(left, _, right):
                return self._cost(left) + self._cost(right)
            case Not(condition):
                return self._cost(condition)
            case And(conditions) | Or(conditions):
                return sum(map(self._cost, conditions))
        return 0

    def _is_open(self, expression: Expression) -> bool:
        return self._known is not None and self._scope.needs(expression) > self._known

    def _alone(self, operand: Operand) -> _Source:
        """Return source for a value that stands alone as a condition."""
        if isinstance(operand, Call) and (source := self._prefix_test(operand)):
            return source
        guards, value = self._operand(operand)
        is_plain = isinstance(operand, Field) and self._type(operand) in _PLAIN_TYPES
        return _Source(guards, value if is_plain else f"nonzero({value})")

    def _prefix_test(self, call: Call) -> _Source | None:
        """Return source for ``starts_with`` of a field of text and a value."""
        match call:
            case Call("starts_with", (Field() as field, Literal(prefix))) if (
                self._type(field) is FieldType.TEXT
            ):
                guards, text = self._operand(field)
                return _Source(guards, f"{text}.startswith({self._constant(text_of(prefix))})")
        return None

    def _comparison(self, comparison: Compare) -> _Source:
        left, operator, right = comparison.left, comparison.operator, comparison.right
        if isinstance(left, Literal) and isinstance(right, Field) and operator in _MIRRORED:
            left, operator, right = right, _MIRRORED[operator], left
        if isinstance(left, Field):
            value = self._constant_value(right)
            if value is not None and (source := self._field_test(left, operator, value)):
                return source
        return self._general(comparison)

    def _general(self, comparison: Compare) -> _Source:
        left, right = self._operand(comparison.left), self._operand(comparison.right)
        operator = self._constant(comparison.operator)
        test = f"compare({left.value}, {operator}, {right.value})"
        return _Source((*left.guards, *right.guards), test)

    # Fields against values ---------------------------------------------------------------

    def _field_test(self, field: Field, operator: Operator, value: Value) -> _Source | None:
        """Return short source for the pairs that rules are made of, else ``None``."""
        match self._type(field):
            case FieldType.TEXT:
                make = self._text_test
            case FieldType.NUMBER:
                make = self._number_test
            case FieldType.LIST:
                make = self._list_test
            case FieldType.ADDRESS:
                return self._address_test(field, operator, value)
            case _:
                return None
        guards, subject = self._operand(field)
        test = make(subject, operator, value)
        return None if test is None else _Source(guards, f"({test})")

    def _text_test(self, subject: str, operator: Operator, value: Value) -> str | None:
        if isinstance(value, Regex):
            found = self._search(subject, value)
            return f"not {found}" if operator is Operator.NOT_EQUAL else found
        if isinstance(value, str):
            if operator is Operator.CONTAINS:
                return f"{self._constant(value)} in {subject}"
            return f"{subject} {operator.value} {self._constant(value)}"
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return self._membership(subject, operator, value)
        return None

    def _number_test(self, subject: str, operator: Operator, value: Value) -> str | None:
        if _is_number(value) and operator is not Operator.CONTAINS:
            return f"{subject} {operator.value} {self._constant(value)}"
        if isinstance(value, list) and all(_is_number(item) for item in value):
            return self._membership(subject, operator, value)
        return None

    def _list_test(self, subject: str, operator: Operator, value: Value) -> str | None:
        if isinstance(value, str) and operator in (Operator.EQUAL, Operator.CONTAINS):
            return f"{self._constant(value)} in {subject}"
        return None

    def _membership(self, subject: str, operator: Operator, values: list[Value]) -> str | None:
        word = {Operator.IN: "in", Operator.EQUAL: "in", Operator.NOT_EQUAL: "not in"}.get(operator)
        return word and f"{subject} {word} {self._constant(frozenset(values))}"

    def _address_test(self, field: Field, operator: Operator, value: Value) -> _Source:
        @lru_cache(maxsize=MAX_CACHED)
        def answer(text: str) -> bool | None:
            address = parse_address(text)
            return None if address is None else compare(address, operator, value)

        text, result = self._name("v"), self._name("v")
        known = f"({text} := {self._read(field)}) is not None"
        answered = f"({result} := {self._constant(answer)}({text})) is not None"
        return _Source((known, answered), result)

    def _search(self, subject: str, regex: Regex) -> str:
        plain = regex.plain
        if plain is None:
            return f"{self._constant(regex.search)}({subject})"
        texts = plain.texts
        match plain.tie:
            case Tie.ANYWHERE:
                found = " or ".join(f"{self._constant(text)} in {subject}" for text in texts)
                return f"({found})"
            case Tie.START:
                return f"{subject}.startswith({self._constant(texts)})"
            case Tie.END:
                return f"{subject}.endswith({self._constant(texts)})"
            case Tie.WHOLE:
                return f"({subject} in {self._constant(frozenset(texts))})"

    # Operands ----------------------------------------------------------------------------

    def _operand(self, operand: Operand) -> _Source:  # noqa: PLR0911 - one for each kind
        match operand:
            case Literal(value):
                return _Source((), self._constant(value))
            case Field():
                if self._type(operand) is None:
                    return _Source(("False",), "None")
                if kept := self._kept.get(self._scope.field(operand.name).name):
                    return _Source((f"{kept} is not None",), kept)
                source = self._read(operand)
                if self._type(operand) is FieldType.ADDRESS:
                    source = f"{self._constant(_address_of)}({source})"
                return self._unless_missing(source)
            case Array(items):
                values = self._constant_value(operand)
                if values is not None:
                    return _Source((), self._constant(values))
                sources = [self._operand(item) for item in items]
                guards = tuple(guard for source in sources for guard in source.guards)
                return _Source(guards, f"[{', '.join(source.value for source in sources)}]")
            case Call():
                return self._call(operand)

    def _call(self, call: Call) -> _Source:
        body = self._scope.macro(call.name)
        if body is not None:
            if isinstance(body, Literal | Field | Array | Call):
                return self._operand(body)
            evaluator, condition = self._evaluator, body
            value = self._constant(lambda facts: evaluator.value(condition, facts))
            return self._unless_missing(f"{value}(f)")
        sources = [self._operand(argument) for argument in call.arguments]
        function = self._constant(FUNCTIONS[call.name].call)
        arguments = ", ".join(source.value for source in sources)
        guards, value = self._unless_missing(f"{function}({arguments})")
        return _Source((*(guard for source in sources for guard in source.guards), *guards), value)

    def _unless_missing(self, source: str) -> _Source:
        name = self._name("v")
        return _Source((f"({name} := {source}) is not None",), name)

    def _read(self, field: Field) -> str:
        found = self._scope.field(field.name)
        assert found.fact is not None  # noqa: S101 - for the type checker
        source = f"f.{found.fact.attribute}"
        return source if found.key is None else f"{source}({self._constant(found.key)})"

    def _type(self, field: Field) -> FieldType | None:
        fact = self._scope.field(field.name).fact
        return fact.type if fact else None

    def _constant_value(self, operand: Operand) -> Value | None:
        """Return the value of an operand that holds no field and no call."""
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Array):
            values = [item.value for item in operand.items if isinstance(item, Literal)]
            return values if len(values) == len(operand.items) else None
        return None

    def _constant(self, value: object) -> str:
        name = self._name("k")
        self.names[name] = value
        return name

    def _name(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"


_PLAIN_TYPES = (FieldType.TEXT, FieldType.NUMBER, FieldType.BOOLEAN, FieldType.LIST)

_MIRRORED = {  # what the operator becomes when its sides change places
    Operator.EQUAL: Operator.EQUAL,
    Operator.NOT_EQUAL: Operator.NOT_EQUAL,
    Operator.GREATER: Operator.LESS,
    Operator.GREATER_EQUAL: Operator.LESS_EQUAL,
    Operator.LESS: Operator.GREATER,
    Operator.LESS_EQUAL: Operator.GREATER_EQUAL,
}


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _address_of(text: str | None) -> Address | None:
    return None if text is None else parse_address(text)
