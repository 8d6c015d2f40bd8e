"""
Cut an expression into tokens, the longest one that fits at each place.

Words are looked at last: what is an address (``10.0.0.0/8``, ``fd00::1``), a number or
octets (``47:45:54``) is no name. Every mistake is a ``RuleError`` at its column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from otel_qtap.rules.errors import RuleError
from otel_qtap.rules.regex import Regex, RegexError
from otel_qtap.rules.values import HexString, Value, cast_text, parse_address, parse_network

__all__ = ["WORDS", "Kind", "Token", "tokens"]

MAX_TEXT_LENGTH = 64 * 1024


class Kind(Enum):
    """What a token is; the value is how messages call it."""

    END = "the end"
    OPEN = "'('"
    CLOSE = "')'"
    OPEN_ARRAY = "'['"
    CLOSE_ARRAY = "']'"
    COMMA = "','"
    NOT = "'!'"
    AND = "'&&'"
    OR = "'||'"
    COMPARISON = "an operator"
    NAME = "a field"
    CALL = "a function"
    VALUE = "a value"
    REGEX = "a regular expression"


class Token(NamedTuple):
    """A piece of an expression."""

    kind: Kind
    text: str
    """As written; of a call the name alone, of a comparison its symbol in lower case."""
    column: int
    """Counted from 1."""
    value: Value | None = None
    """Of a value or a regular expression."""
    end: int = 0
    """Offset of the first character behind it."""


_SKIPPED = re.compile(r"[ \t\r\n]+|--[^\n]*|/\*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_CALL = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\(")
_NUMBER = re.compile(r"[+-]?(?:[0-9]*\.[0-9]+|[0-9]+)")
_OCTETS = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2})*")
_ADDRESS = re.compile(r"[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]*(?:/[0-9]{1,3})?")
_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){2,}")
_OCTAL_DIGITS = re.compile(r"0[0-7]*")
_WORD_END = re.compile(r"[A-Za-z0-9_]+")
_FLAGS = re.compile(r"[A-Za-z]+")
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|)"
)
_SIMPLE_ESCAPES = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))

_PUNCTUATION = {
    "(": Kind.OPEN,
    ")": Kind.CLOSE,
    "[": Kind.OPEN_ARRAY,
    "]": Kind.CLOSE_ARRAY,
    ",": Kind.COMMA,
    "!": Kind.NOT,
    "&&": Kind.AND,
    "||": Kind.OR,
}
_SYMBOLS = re.compile(r"&&|\|\||==|!=|=~|>=|<=|[()\[\],!<>]")
_WORDS = {
    "and": (Kind.AND, "&&"),
    "or": (Kind.OR, "||"),
    "not": (Kind.NOT, "!"),
    "eq": (Kind.COMPARISON, "=="),
    "ne": (Kind.COMPARISON, "!="),
    "gt": (Kind.COMPARISON, ">"),
    "ge": (Kind.COMPARISON, ">="),
    "lt": (Kind.COMPARISON, "<"),
    "le": (Kind.COMPARISON, "<="),
    "contains": (Kind.COMPARISON, "contains"),
    "matches": (Kind.COMPARISON, "matches"),
    "in": (Kind.COMPARISON, "in"),
}
WORDS = frozenset({*_WORDS, "true", "false"})
"""Words of the language, in lower case; in any case they are no names."""

_WAYS_OUT = {  # what other languages have and this one does not
    "=": "'=' is no operator; write '=='",
    "&": "'&' is no operator; write '&&'",
    "|": "this '|' begins a regular expression that does not end; 'or' is written '||'",
    "~": "'~' is no operator; write 'matches'",
    "!~": "'!~' is no operator; write '!(x matches /…/)'",
    "~=": "'~=' is no operator; write 'matches'",
    "{": "'{' has no meaning here; a list is written [a, b]",
    "-": "'-' has no meaning here; there is no arithmetic",
    "+": "'+' has no meaning here; there is no arithmetic",
    "*": "'*' has no meaning here; there is no arithmetic",
    "?": "'?' has no meaning here; combine conditions with '&&' and '||'",
}


def tokens(text: str, *, qtap_compat: bool) -> Iterator[Token]:
    """
    Yield the tokens of an expression, ``Kind.END`` last.

    With ``qtap_compat`` a name of two hex digits is an octet, as in Qtap, and a block
    comment ends at the last ``*/`` of the text. Raises ``RuleError``.
    """
    if len(text) > MAX_TEXT_LENGTH:
        message = f"the expression is longer than {MAX_TEXT_LENGTH} characters"
        raise RuleError(message, text, MAX_TEXT_LENGTH + 1)
    position = _skip(text, 0, is_greedy=qtap_compat)
    while position < len(text):
        token = _token(text, position, qtap_compat=qtap_compat)
        yield token
        position = _skip(text, token.end, is_greedy=qtap_compat)
    yield Token(Kind.END, "", len(text) + 1, None, len(text))


def _skip(text: str, position: int, *, is_greedy: bool) -> int:
    while found := _SKIPPED.match(text, position):
        position = found.end()
        if found[0] == "/*":
            end = text.rfind("*/", position) if is_greedy else text.find("*/", position)
            if end < 0:
                raise RuleError("this comment does not end; write '*/'", text, found.start() + 1)
            position = end + 2
    return position


def _token(text: str, start: int, *, qtap_compat: bool) -> Token:
    character = text[start]
    if character in "\"'":
        return _quoted(text, start)
    if character == "/" or (character == "|" and text[start + 1 : start + 2] != "|"):
        return _regex(text, start)
    if text[start : start + 2] in ("!~", "~="):
        raise RuleError(_WAYS_OUT[text[start : start + 2]], text, start + 1)
    if symbol := _SYMBOLS.match(text, start):
        kind = _PUNCTUATION.get(symbol[0], Kind.COMPARISON)
        spelled = "matches" if symbol[0] == "=~" else symbol[0]
        return Token(kind, spelled, start + 1, None, symbol.end())
    return _word(text, start, qtap_compat=qtap_compat)


def _word(text: str, start: int, *, qtap_compat: bool) -> Token:
    """Return the name, number, address or octets at ``start``: whichever is longest."""
    name, number = _NAME.match(text, start), _NUMBER.match(text, start)
    ends = {
        "octets": _end(_OCTETS.match(text, start)),
        "address": _address_end(text, start),
        "number": _end(number),
        "name": _end(name),
    }
    longest = max(ends.values())
    if longest <= start:
        character = text[start]
        shown = character if character.isprintable() else f"U+{ord(character):04X}"
        message = _WAYS_OUT.get(character, f"'{shown}' has no meaning here")
        raise RuleError(message, text, start + 1)
    word = text[start:longest]
    dotted = _DOTTED.match(text, start)
    if dotted and dotted.end() > longest:
        raise RuleError(f"{dotted[0]} is no address", text, start + 1)
    order = ("address", "number", "octets", "name")
    if not qtap_compat and name:
        order = ("address", "number", "name", "octets")
    chosen = next(kind for kind in order if ends[kind] == longest)
    if chosen == "name":
        return _name(text, start, word)
    value: Value | None
    if chosen == "address":
        value = parse_network(word) if "/" in word else parse_address(word)
    elif chosen == "number":
        value = _number(text, start, word)
    else:
        value = HexString(word)
    return Token(Kind.VALUE, word, start + 1, value, longest)


def _end(found: re.Match[str] | None) -> int:
    return found.end() if found else 0


def _address_end(text: str, start: int) -> int:
    """Return where the address or network at ``start`` ends; 0 where there is none."""
    found = _ADDRESS.match(text, start)
    if found is None:
        return 0
    host, slash, prefix = found[0].partition("/")
    if parse_address(host) is None:
        return 0
    if slash and parse_network(found[0]) is None:
        raise RuleError(f"/{prefix} is no prefix of {host}", text, start + len(host) + 1)
    return found.end()


def _name(text: str, start: int, word: str) -> Token:
    end = start + len(word)
    lower = word.lower()
    if lower in _WORDS:
        kind, symbol = _WORDS[lower]
        return Token(kind, symbol, start + 1, None, end)
    if lower in ("true", "false"):
        return Token(Kind.VALUE, word, start + 1, lower == "true", end)
    call = _CALL.match(text, start)
    if call and call[1] == word:
        return Token(Kind.CALL, word, start + 1, None, call.end())
    return Token(Kind.NAME, word, start + 1, None, end)


def _number(text: str, start: int, word: str) -> int | float:
    digits = word.lstrip("+-")
    if "." in digits:
        number = float(word)
        if number in (float("inf"), float("-inf")):
            raise RuleError("this number is too large", text, start + 1)
        return number
    rest = _WORD_END.match(text, start + len(word))
    if rest and digits == "0" and rest[0][0] in "xXbBoO":
        message = f"'{word}{rest[0]}' is no number; numbers are written with decimal digits"
        raise RuleError(message, text, start + 1)
    if digits.startswith("0") and not _OCTAL_DIGITS.fullmatch(digits):
        message = f"'{word}' begins with 0, which means octal; write it without the 0"
        raise RuleError(message, text, start + 1)
    is_octal = len(digits) > 1 and digits.startswith("0")
    number = int(digits, 8 if is_octal else 10) * (-1 if word.startswith("-") else 1)
    if not -(2**63) <= number < 2**64:
        raise RuleError("this number does not fit 64 bits", text, start + 1)
    return number


# Text between delimiters ---------------------------------------------------------------


def _closing(text: str, start: int) -> int:
    """Return the offset of the delimiter that ends what begins at ``start``; -1 for none."""
    position = start + 1
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == text[start]:
            return position
        position += 1
    return -1


def _quoted(text: str, start: int) -> Token:
    end = _closing(text, start)
    if end < 0:
        raise RuleError("this quote is not closed", text, start + 1)
    value = cast_text(_unescaped(text, start + 1, end))
    return Token(Kind.VALUE, text[start : end + 1], start + 1, value, end + 1)


def _unescaped(text: str, start: int, end: int) -> str:
    if "\\" not in text[start:end]:
        return text[start:end]

    def replaced(found: re.Match[str]) -> str:
        simple, *codes = found.groups()
        if simple:
            return _SIMPLE_ESCAPES[simple]
        code = next((int(code, 16) for code in codes[:3] if code), None)
        if codes[3]:
            code = int(codes[3], 8)
        is_character = code is not None and code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF
        if not is_character or (code is not None and code > 0x7F and (codes[0] or codes[3])):
            message = "this escape is not known; write '\\\\' for a backslash"
            raise RuleError(message, text, start + found.start() + 1)
        return chr(code or 0)

    return _ESCAPE.sub(replaced, text[start:end])


def _regex(text: str, start: int) -> Token:
    end = _closing(text, start)
    if end < 0:
        message = _WAYS_OUT["|"] if text[start] == "|" else "this regular expression is not closed"
        raise RuleError(message, text, start + 1)
    pattern = text[start + 1 : end]
    flags = _FLAGS.match(text, end + 1)
    if flags and flags[0].lower() not in _WORDS:
        raise RuleError(
            f"nothing may follow a regular expression; write flags into it: /(?{flags[0]})…/",
            text,
            end + 2,
        )
    try:
        regex = Regex(pattern)
    except RegexError as error:
        raise RuleError(f"not a regular expression: {error}", text, start + 1) from None
    return Token(Kind.REGEX, text[start : end + 1], start + 1, regex, end + 1)
