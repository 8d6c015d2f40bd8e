"""
What is wrong with a Qtap file, as sentences for the person who wrote it.

One line each: file, line, place, value, and the way out. A value is shown only where
the file offers a choice of words, never where a secret could stand.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails
from yaml import MarkedYAMLError

from otel_qtap.config.model import ValueSource

__all__ = [
    "ConfigError",
    "KeyPath",
    "Problem",
    "Severity",
    "describe",
    "did_you_mean",
    "dotted",
    "syntax_text",
]

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the root of the file to a value."""

MAX_SHOWN = 60  # of a value or key; a line that wraps is a line that is not read
QUOTE_HINT = "text that starts with '!' must be quoted, as in expr: '!is_internal()'"

_QUOTED = re.compile(r"'([^']*)'")
_SHAPES = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list (items that start with '-')",
    "string_type": "text",
}
_UNQUOTED_NOT = re.compile(r"^\s*(?:- +)*(?:[^\s'\"#]+: +)?!")


class Severity(Enum):
    """Whether the file can be used in spite of a problem."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to tell about a file."""

    file: str
    line: int
    """Counted from 1; 0 when the problem is not in any line."""
    path: str
    """Keys joined by dots; empty for the file as a whole."""
    text: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.text}" if self.path else f"{place}: {self.text}"


class ConfigError(Exception):
    """A file that cannot be used; ``problems`` is everything found in it, warnings too."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(
            f"{problem} (warning)" if problem.severity is Severity.WARNING else str(problem)
            for problem in self.problems
        )


def dotted(path: KeyPath) -> str:
    """Return the path as messages show it: ``stacks.web.plugins.0.config.level``."""
    return ".".join(_shown(str(key)) for key in path)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` when one of the choices is near, else nothing."""
    spelled = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), list(spelled), n=1)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def syntax_text(error: MarkedYAMLError, source: str) -> tuple[int, str]:
    """
    Return line and text for a file that is not YAML.

    The parser's own words stay, except what it quotes from the file.
    """
    problem = error.problem or "cannot be parsed"
    if problem.startswith("but "):
        problem = f"{error.context} {problem}"
    problem = _QUOTED.sub(lambda m: m[0] if len(m[1]) == 1 or m[1].startswith("<") else "", problem)
    problem = " ".join(problem.split())
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 0, f"not valid YAML: {problem}"
    lines = source.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = ""
    if _UNQUOTED_NOT.match(line):
        hint = f"; {QUOTE_HINT}"
    elif problem.startswith("mapping values are not allowed"):
        hint = "; a value that contains ': ' must be quoted"
    elif line[mark.column : mark.column + 1] == "\t":
        hint = "; indent with spaces, not with tabs"
    return mark.line + 1, f"not valid YAML at column {mark.column + 1}: {problem}{hint}"


# Validation errors -------------------------------------------------------------------


def describe(error: ErrorDetails, root: type[BaseModel]) -> tuple[KeyPath, str]:
    """Return the place in the file of a validation error of ``root``, and its text."""
    path, owner = _place(error["loc"], root)
    if error["type"] == "union_tag_invalid":
        tag = error["input"]["type"]
        return (*path, "type"), _wrong_choice(tag, error["ctx"]["expected_tags"], None)
    if error["type"] == "union_tag_not_found":
        return _without_type(path, error["input"])
    return path, _text(error, path, owner)


def _text(error: ErrorDetails, path: KeyPath, owner: type[BaseModel] | None) -> str:
    context: Mapping[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            text = _unknown_key(str(path[-1]), owner)
        case "missing":
            text = "is missing"
        case "string_too_short":
            text = "must not be empty"
        case "enum" | "literal_error":
            text = _wrong_choice(error["input"], context["expected"], owner)
        case "bool_parsing" | "bool_type":
            text = _wrong_choice(error["input"], "'true', 'false'", owner)
        case "value_error":
            text = str(context["error"])
        case _:
            text = _wrong_shape(error, path, owner)
    return text


def _unknown_key(key: str, owner: type[BaseModel] | None) -> str:
    known = list(owner.model_fields) if owner else []
    return "unknown key" + (did_you_mean(key, known) or f"; known here: {', '.join(known)}")


def _wrong_choice(value: object, expected: str, owner: type[BaseModel] | None) -> str:
    choices = _QUOTED.findall(expected)  # pydantic's words: "'env' or 'text'"
    listed = ", ".join(choices)
    if value is None:
        return f"is empty; must be one of {listed}"
    if not isinstance(value, str):
        return f"must be one of {listed}, is {_shape(value)}"
    hint = did_you_mean(value, choices)
    if owner is ValueSource and not hint:
        return f"is not one of {listed}"  # the secret may have slipped into the wrong key
    return f"{_shown(value)!r} is not one of {listed}{hint}"


def _without_type(path: KeyPath, value: object) -> tuple[KeyPath, str]:
    if isinstance(value, Mapping) and list(value) == ["id"]:
        return path, (
            "has an id and no type: the '-' in front of 'type' begins a second item; "
            "write id and type as one item, with one '-'"
        )
    if isinstance(value, Mapping):
        return (*path, "type"), "is missing"
    return path, f"must be a mapping with a type, is {_shape(value)}"


def _wrong_shape(error: ErrorDetails, path: KeyPath, owner: type[BaseModel] | None) -> str:
    wanted = _SHAPES.get(error["type"])
    if wanted is None:
        return error["msg"][:1].lower() + error["msg"][1:]
    text = f"must be {wanted}, is {_shape(error['input'])}"
    if wanted == "a mapping" and owner is not None and path:
        field = owner.model_fields.get(str(path[-1]))
        if field is not None and ValueSource in _members(field.annotation):
            text += "; write {type: env, value: NAME} or {type: text, value: ...}"
    return text


def _shape(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else "text"


def _shown(text: str) -> str:
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


# Places ------------------------------------------------------------------------------


def _place(
    location: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[KeyPath, type[BaseModel] | None]:
    """
    Return the path in the file, and the model that the last key of it belongs to.

    A location of pydantic also names the member of a union that was chosen by its
    ``type``; those names are no keys of the file.
    """
    path: list[str | int] = []
    annotation: object = root
    owner: type[BaseModel] | None = None
    for part in location:
        members = _members(annotation)
        tagged = [member for member in members if part in _tags(member)]
        if len(members) > 1 and tagged:
            annotation = tagged[0]
            continue
        path.append(part)
        owner, annotation = _step(members, part)
    return tuple(path), owner


def _step(members: list[Any], part: str | int) -> tuple[type[BaseModel] | None, object]:
    """Return the model that ``part`` is a key of, if any, and the type of its value."""
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            field = member.model_fields.get(str(part))
            return member, field.annotation if field else None
        if get_origin(member) in (tuple, dict):
            arguments = get_args(member)
            return None, arguments[0] if get_origin(member) is tuple else arguments[1]
    return None, None


def _members(annotation: object) -> list[Any]:
    """Return the types an annotation allows, without ``Annotated`` and ``None``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [] if annotation in (None, type(None)) else [annotation]


def _tags(member: Any) -> tuple[object, ...]:
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return ()
    field = member.model_fields.get("type")
    annotation = field.annotation if field else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()
