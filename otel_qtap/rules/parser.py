"""
Read an expression into a tree.

A parser of our own, by recursive descent: the grammar has eight rules, the messages
name the way out for what people bring along from other languages, and two readings of
mixed ``&&`` and ``||`` come from one place. A parser generator would give the tree and
leave the messages to us.

    expression = unary { "&&" unary } | unary { "||" unary }
    unary      = "!" unary | "(" expression ")" | predicate
    predicate  = operand [ comparison operand ]
    operand    = item | "[" item { "," item } "]"
    item       = value | regex | field | name "(" [ operand { "," operand } ] ")"

"!" takes the whole predicate behind it: ``!a == b`` is ``!(a == b)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

from otel_qtap.rules.errors import RuleError
from otel_qtap.rules.lexer import Kind, Token, tokens
from otel_qtap.rules.regex import Regex
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
)

__all__ = ["parse"]

MAX_DEPTH = 40
"""Of parentheses, negations and calls within each other."""

_MAX_READING = 120  # characters of a reading that an error shows


def parse(text: str, *, qtap_compat: bool = False) -> Expression:
    """
    Return the tree of an expression.

    ``&&`` and ``||`` next to each other without parentheses are refused, because Qtap
    lets ``||`` bind tighter and other languages the reverse; ``qtap_compat`` reads them
    as Qtap does. Raises ``RuleError``.
    """
    return _Parser(text, qtap_compat=qtap_compat).read()


class _Parser:
    """The tokens of one expression and how far they are read."""

    def __init__(self, text: str, *, qtap_compat: bool) -> None:
        self._text = text
        self._qtap_compat = qtap_compat
        self._tokens = list(tokens(text, qtap_compat=qtap_compat))
        self._position = 0
        self._depth = 0

    def read(self) -> Expression:
        if self._at(Kind.END):
            raise self._error("the expression is empty")
        expression = self._expression()
        if not self._at(Kind.END):
            raise self._unexpected()
        return expression

    # Conditions --------------------------------------------------------------------------

    def _expression(self) -> Expression:
        first = self._unary()
        conditions: list[Expression] = [first]
        joints: list[Token] = []
        while self._at(Kind.AND, Kind.OR):
            joints.append(self._take())
            conditions.append(self._unary())
        kinds = {joint.kind for joint in joints}
        if len(kinds) == 2:
            if not self._qtap_compat:
                raise self._mixed(conditions, joints)
            return _grouped(conditions, joints, Kind.OR)
        if not joints:
            return first
        return (And if Kind.AND in kinds else Or)(tuple(conditions))

    def _unary(self) -> Expression:
        token = self._next
        if token.kind is Kind.NOT:
            self._take()
            return Not(self._nested(self._unary), token.column)
        if token.kind is Kind.OPEN:
            self._take()
            condition = self._nested(self._expression)
            if not self._at(Kind.CLOSE):
                if self._at(Kind.END):
                    raise self._error("this '(' is not closed", token)
                raise self._unexpected()
            self._take()
            if self._at(Kind.COMPARISON):
                raise self._error(
                    "what is compared must be a field or a value, not a condition in parentheses"
                )
            return condition
        return self._predicate()

    def _nested(self, read: Callable[[], Expression]) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"conditions are nested more than {MAX_DEPTH} deep")
        expression = read()
        self._depth -= 1
        return expression

    def _predicate(self) -> Expression:
        left = self._operand()
        token = self._next
        if token.kind is not Kind.COMPARISON:
            return left
        self._take()
        operator = Operator(token.text)
        if operator is Operator.MATCHES and not self._at(Kind.REGEX):
            raise self._error(
                "the right side of 'matches' is a regular expression between slashes: /…/"
            )
        right = self._operand()
        self._check_sides(left, operator, right)
        if self._at(Kind.COMPARISON):
            raise self._error("comparisons cannot be chained; join two of them with '&&'")
        return Compare(left, operator, right, token.column)

    def _check_sides(self, left: Operand, operator: Operator, right: Operand) -> None:
        if operator.is_order:
            for side in (left, right):
                if not _is_number_or_field(side):
                    message = f"'{operator.value}' compares numbers and fields, not {_shape(side)}"
                    raise RuleError(message, self._text, side.column)
        is_network = isinstance(right, Literal) and isinstance(
            right.value, IPv4Network | IPv6Network
        )
        if operator is Operator.IN and not (is_network or isinstance(right, Array)):
            message = "the right side of 'in' is a list [a, b] or a network such as 10.0.0.0/8"
            raise RuleError(message, self._text, right.column)

    # Operands ----------------------------------------------------------------------------

    def _operand(self) -> Operand:
        if not self._at(Kind.OPEN_ARRAY):
            return self._item()
        opened = self._take()
        if self._at(Kind.CLOSE_ARRAY):
            raise self._error("a list needs at least one value", opened)
        items = [self._item()]
        while self._at(Kind.COMMA):
            self._take()
            if self._at(Kind.CLOSE_ARRAY):
                raise self._error("a list must not end with a comma")
            items.append(self._item())
        if not self._at(Kind.CLOSE_ARRAY):
            if self._at(Kind.END):
                raise self._error("this '[' is not closed", opened)
            raise self._unexpected()
        self._take()
        return Array(tuple(items), opened.column)

    def _item(self) -> Literal | Field | Call:
        token = self._next
        if token.kind in (Kind.VALUE, Kind.REGEX):
            self._take()
            assert token.value is not None  # noqa: S101 - for the type checker
            return Literal(token.value, token.column)
        if token.kind is Kind.NAME:
            self._take()
            return Field(token.text, token.column)
        if token.kind is Kind.CALL:
            return self._call()
        if token.kind is Kind.OPEN_ARRAY:
            raise self._error("a list cannot hold a list")
        raise self._unexpected()

    def _call(self) -> Call:
        opened = self._take()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"calls are nested more than {MAX_DEPTH} deep")
        arguments: list[Operand] = []
        if not self._at(Kind.CLOSE):
            arguments.append(self._operand())
            while self._at(Kind.COMMA):
                self._take()
                arguments.append(self._operand())
        if not self._at(Kind.CLOSE):
            if self._at(Kind.END):
                raise self._error(f"the '(' of {opened.text} is not closed", opened)
            raise self._error("arguments are fields and values, divided by commas")
        self._take()
        self._depth -= 1
        return Call(opened.text, tuple(arguments), opened.column)

    # Tokens ------------------------------------------------------------------------------

    @property
    def _next(self) -> Token:
        return self._tokens[self._position]

    def _at(self, *kinds: Kind) -> bool:
        return self._tokens[self._position].kind in kinds

    def _take(self) -> Token:
        token = self._tokens[self._position]
        self._position += 1
        return token

    # Messages ----------------------------------------------------------------------------

    def _error(self, message: str, token: Token | None = None) -> RuleError:
        return RuleError(message, self._text, (token or self._next).column)

    def _unexpected(self) -> RuleError:  # noqa: PLR0911 - one for each habit
        """Return what to say about a token that cannot stand where it does."""
        token, before = self._next, self._before
        if token.kind is Kind.END:
            return self._error(
                "something is missing at the end" if before else "the expression is empty"
            )
        if before is not None and before.kind in _OPERAND_ENDS:
            if token.kind is Kind.NOT:
                return self._error(
                    "'!' stands in front of a whole condition: write !(x in …), !(x contains …)"
                )
            if token.kind is Kind.OPEN and before.kind is Kind.NAME:
                return self._error(
                    "a call has its '(' directly behind its name, "
                    "which holds letters, digits and '_' only"
                )
            if token.kind is Kind.OPEN_ARRAY:
                return self._error("entries are written with a dot: http.req.headers.accept")
            if token.kind in _OPERAND_STARTS:
                return self._error(f"an operator is missing before {_shown(token)}")
        if token.kind is Kind.CLOSE:
            return self._error("something is missing before this ')', or its '(' is")
        return self._error(f"{_shown(token)} cannot stand here; a field or a value can")

    @property
    def _before(self) -> Token | None:
        return self._tokens[self._position - 1] if self._position else None

    def _mixed(self, conditions: Sequence[Expression], joints: Sequence[Token]) -> RuleError:
        common = str(_grouped(conditions, joints, Kind.AND))
        qtap = str(_grouped(conditions, joints, Kind.OR))
        second = next(joint for joint in joints if joint.kind is not joints[0].kind)
        if len(common) + len(qtap) <= 2 * _MAX_READING:
            way_out = f"write {common} or, as Qtap reads it, {qtap}"
        else:
            way_out = "Qtap joins what stands around '||' first, other languages around '&&'"
        return self._error(f"'&&' and '||' are mixed without parentheses: {way_out}", second)


_OPERAND_STARTS = (Kind.NAME, Kind.VALUE, Kind.REGEX, Kind.CALL, Kind.OPEN, Kind.OPEN_ARRAY)
_OPERAND_ENDS = (Kind.NAME, Kind.VALUE, Kind.REGEX, Kind.CLOSE, Kind.CLOSE_ARRAY)


def _grouped(
    conditions: Sequence[Expression], joints: Sequence[Token], tighter: Kind
) -> Expression:
    """Return the reading in which what ``tighter`` joins belongs together."""
    inner, outer = (And, Or) if tighter is Kind.AND else (Or, And)
    groups: list[list[Expression]] = [[conditions[0]]]
    for joint, condition in zip(joints, conditions[1:], strict=True):
        if joint.kind is tighter:
            groups[-1].append(condition)
        else:
            groups.append([condition])
    parts = [group[0] if len(group) == 1 else inner(tuple(group)) for group in groups]
    return parts[0] if len(parts) == 1 else outer(tuple(parts))


def _is_number_or_field(side: Operand) -> bool:
    if isinstance(side, Literal):
        return isinstance(side.value, int | float) and not isinstance(side.value, bool)
    return isinstance(side, Field)


def _shape(side: Operand) -> str:
    if isinstance(side, Array):
        return "a list"
    if isinstance(side, Call):
        return "the result of a call"
    value = side.value if isinstance(side, Literal) else None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    return "a regular expression" if isinstance(value, Regex) else f"'{side}'"


def _shown(token: Token) -> str:
    text = token.text if len(token.text) <= 40 else f"{token.text[:39]}…"
    return f"'{text}'" if "'" not in text else text
