"""
Header and trailer sections of HTTP/1.x: field lines, and what they say of the framing.

Most lines of most heads came before, so two memos, both bounded, save looking at them
again: names that were checked, and whole lines. Neither changes a result.
"""

from __future__ import annotations

import re

from otel_qtap.protocol.events import Headers, ParseError

__all__ = ["content_length", "is_chunked", "read_fields", "split_lines"]

_FIELD_NAME = re.compile(r"[!-9;-~\x80-\xff]+")  # wider than a token: proxies can let it pass
_AROUND_VALUE = " \t\r"  # not what str.strip takes: ISO-8859-1 has more white space, UTF-8 uses it

_FRAMING_FIELDS = {
    spelling: name
    for name in ("content-length", "transfer-encoding", "upgrade")
    for spelling in (name, name.title())
}

# Names that need no second look: neither malformed nor one of the above. Learned as they
# come, up to a bound; a memo, so what is in it changes no result.
_ORDINARY_NAMES: set[str] = set()
_MAX_ORDINARY_NAMES = 4096
_MAX_ORDINARY_NAME_SIZE = 64

# Header lines that came before, with what they say: most lines of most heads. Only names
# whose values are few and no secret, so that the memo stays small and holds nothing that
# has to be redacted. A memo, so what is in it changes no result.
_KNOWN_LINES: dict[str, tuple[str, str]] = {}
_MAX_KNOWN_LINES = 4096
_MAX_KNOWN_LINE_SIZE = 256
_REPEATED_NAMES = frozenset(
    name
    for spelling in (str.lower, str.title)
    for name in map(
        spelling,
        (
            "accept", "accept-charset", "accept-encoding", "accept-language", "accept-ranges",
            "access-control-allow-origin", "age", "alt-svc", "cache-control", "connection",
            "content-encoding", "content-language", "content-type", "date", "expect", "expires",
            "host", "keep-alive", "origin", "pragma", "server", "te", "trailer",
            "upgrade-insecure-requests", "user-agent", "vary", "via", "x-content-type-options",
            "x-frame-options", "x-forwarded-host", "x-forwarded-port",
            "x-forwarded-proto", "x-powered-by",
        ),
    )
)  # fmt: skip


def split_lines(block: bytes) -> list[str]:
    """Return the lines of a head or trailer section, a CR at the end of each left on."""
    text = block.decode("latin-1")
    if "\0" in text:
        raise ParseError("message head contains NUL")
    return text.split("\n")


def read_fields(lines: list[str]) -> tuple[Headers, dict[str, str] | None]:
    """
    Return the header fields, and those among them that frame messages, if there are any.

    Of the latter the name is in lower case, and the values of one name are joined by
    commas, which for each of them means the same (RFC 9110, section 5.3).
    """
    fields: list[tuple[str, str]] = []
    values: dict[str, str] | None = None
    is_folded = False
    known_lines, ordinary, around = _KNOWN_LINES, _ORDINARY_NAMES, _AROUND_VALUE
    for line in lines:
        field = known_lines.get(line)
        if field is None:
            name, colon, value = line.partition(":")
            if name in ordinary and colon:
                field = (name, value.strip(around))
                if name in _REPEATED_NAMES:
                    _remember_line(line, field)
            elif name in _FRAMING_FIELDS and colon:
                field = (name, value.strip(around))
                values = _add_value(values, _FRAMING_FIELDS[name], field[1])
            elif line[0] in " \t":  # obs-fold: RFC 9112, section 5.2
                _unfold(fields, line)
                is_folded = True
                continue
            else:
                field = (_checked_name(name, colon), value.strip(around))
                if field[0].lower() in _FRAMING_FIELDS:
                    values = _add_value(values, field[0].lower(), field[1])
        fields.append(field)
    if values is not None and is_folded:  # one of them may be longer than it was
        values = _framing_of(fields)
    return tuple(fields), values


def _remember_line(line: str, field: tuple[str, str]) -> None:
    if len(line) <= _MAX_KNOWN_LINE_SIZE:
        if len(_KNOWN_LINES) >= _MAX_KNOWN_LINES:
            _KNOWN_LINES.clear()
        _KNOWN_LINES[line] = field


def _unfold(fields: list[tuple[str, str]], line: str) -> None:
    """Add a continuation line to the last of ``fields``."""
    if not fields:
        raise ParseError("first header line is folded")
    name, value = fields[-1]
    fields[-1] = (name, f"{value} {line.strip(_AROUND_VALUE)}".strip(" "))


def _framing_of(fields: list[tuple[str, str]]) -> dict[str, str] | None:
    """Return the values of those fields that frame messages, by name in lower case."""
    values: dict[str, str] | None = None
    for name, value in fields:
        if name.lower() in _FRAMING_FIELDS:
            values = _add_value(values, name.lower(), value)
    return values


def _add_value(values: dict[str, str] | None, name: str, value: str) -> dict[str, str]:
    if values is None:
        return {name: value}
    values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _checked_name(name: str, colon: str) -> str:
    """Return the name of a field without the white space some leave before the colon."""
    name = name.rstrip(" \t")
    if not colon or not _FIELD_NAME.fullmatch(name):
        raise ParseError("malformed header line")
    if (
        len(_ORDINARY_NAMES) < _MAX_ORDINARY_NAMES
        and len(name) <= _MAX_ORDINARY_NAME_SIZE
        and name.lower() not in _FRAMING_FIELDS
    ):
        _ORDINARY_NAMES.add(name)
    return name


def content_length(framing: dict[str, str]) -> int | None:
    """Return the length that ``framing`` gives, ``None`` if none; raises ``ParseError``."""
    value = framing.get("content-length")
    if value is None:
        return None
    if "," in value:
        value, *others = {part.strip(" \t") for part in value.split(",")}
        if others:
            raise ParseError("content lengths contradict each other")
    if not value.isdecimal() or len(value) > 18:
        raise ParseError("malformed content length")
    return int(value)


def is_chunked(framing: dict[str, str]) -> bool:
    """Return whether the last transfer coding is ``chunked`` (RFC 9112, section 6.3)."""
    return framing["transfer-encoding"].lower().rpartition(",")[2].strip(" \t") == "chunked"
