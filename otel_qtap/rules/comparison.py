"""
What operators mean for every pair of values they can meet.

This is the whole truth about comparing, written to be read; the compiler has shorter
code for the pairs that rules are made of, and tests hold it equal to this. Values of
kinds that do not go together compare as false, with ``!=`` too. A list of the
expression and a list that a field holds behave differently, as they do in Qtap.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from otel_qtap.rules.regex import Regex
from otel_qtap.rules.tree import Operator
from otel_qtap.rules.values import Address, HexString, Mac, Network, Value

__all__ = ["compare"]

_EQUAL, _NOT_EQUAL, _CONTAINS = Operator.EQUAL, Operator.NOT_EQUAL, Operator.CONTAINS


def compare(left: Value, operator: Operator, right: Value) -> bool:  # noqa: PLR0911
    """Return whether ``left operator right`` holds; never raises."""
    if operator is Operator.MATCHES:
        return isinstance(right, Regex) and _is_found(right, left)
    if operator is Operator.IN:
        if isinstance(right, list):
            return any(compare(item, _EQUAL, left) for item in right)
        return compare(left, _EQUAL, right)
    if isinstance(right, list):
        if operator is _NOT_EQUAL:
            return not any(compare(left, _EQUAL, item) for item in right)
        return operator is not _CONTAINS and any(compare(left, operator, item) for item in right)
    if isinstance(right, tuple):
        return False
    if isinstance(left, list | tuple):
        return _compare_items(left, operator, right)
    return _compare_one(left, operator, right)


def _is_found(regex: Regex, value: Value) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_found(regex, item) for item in value)
    if isinstance(value, IPv4Address | IPv6Address):
        return regex.search(str(value))
    return isinstance(value, str) and regex.search(value)


def _compare_items(left: list[Value] | tuple[Value, ...], operator: Operator, right: Value) -> bool:
    """A list contains what one of its items equals; parts of an item do not count."""
    if operator is _NOT_EQUAL and not (
        isinstance(left, tuple) and all(isinstance(item, str) for item in left)
    ):
        return not any(compare(item, _EQUAL, right) for item in left)
    # Text lists are different from a value as soon as one item is: Qtap's reading.
    used = _EQUAL if operator is _CONTAINS else operator
    return any(compare(item, used, right) for item in left)


def _compare_one(left: Value, operator: Operator, right: Value) -> bool:  # noqa: PLR0911
    match left:
        case bool():
            return isinstance(right, bool) and _same(left == right, operator)
        case int() | float():
            return _compare_numbers(left, operator, right)
        case str():
            return _compare_text(left, operator, right)
        case IPv4Address() | IPv6Address():
            return _compare_address(left, operator, right)
        case IPv4Network() | IPv6Network():
            return isinstance(right, IPv4Address | IPv6Address) and _holds(left, operator, right)
        case Mac():
            if isinstance(right, Mac | str | HexString):
                text = right if isinstance(right, str) else right.text
                return _compare_text(left.text.lower(), operator, text.lower())
            return False
        case HexString():
            return isinstance(right, str | HexString) and _compare_octets(
                left.octets, operator, _octets(right)
            )
        case Regex():
            is_text = isinstance(right, str) and operator is not _CONTAINS
            return is_text and _compare_text(str(right), operator, left)
    return False


def _same(is_equal: bool, operator: Operator) -> bool:
    return (operator is _EQUAL and is_equal) or (operator is _NOT_EQUAL and not is_equal)


def _compare_numbers(left: float, operator: Operator, right: Value) -> bool:
    if isinstance(right, bool) or not isinstance(right, int | float):
        return False
    match operator:
        case Operator.GREATER:
            return left > right
        case Operator.GREATER_EQUAL:
            return left >= right
        case Operator.LESS:
            return left < right
        case Operator.LESS_EQUAL:
            return left <= right
    return _same(left == right, operator)


def _compare_text(left: str, operator: Operator, right: Value) -> bool:
    match right:
        case str():
            return right in left if operator is _CONTAINS else _same(left == right, operator)
        case Regex():
            is_found = right.search(left)
            return _same(is_found, _EQUAL if operator is _CONTAINS else operator)
        case IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network():
            return _compare_text(left, operator, str(right))
        case Mac():
            return _compare_text(left.lower(), operator, right.text.lower())
        case HexString():
            return _compare_octets(_octets(left), operator, right.octets)
    return False


def _compare_address(left: Address, operator: Operator, right: Value) -> bool:
    match right:
        case IPv4Address() | IPv6Address():
            return _same(left == right, operator)
        case IPv4Network() | IPv6Network():
            return _holds(right, operator, left)
        case str() | Regex():
            return _compare_text(str(left), operator, right)
    return False


def _holds(network: Network, operator: Operator, address: Address) -> bool:
    return _same(address in network, _EQUAL if operator is _CONTAINS else operator)


def _compare_octets(left: bytes, operator: Operator, right: bytes) -> bool:
    return right in left if operator is _CONTAINS else _same(left == right, operator)


def _octets(value: str | HexString) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value.octets
