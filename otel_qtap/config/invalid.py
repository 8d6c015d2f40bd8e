"""From pydantic's validation errors to places in the file and sentences about them."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from otel_qtap.config.messages import KeyPath, did_you_mean, shown
from otel_qtap.config.section import Section, ValueSource

__all__ = ["describe"]

_SURELY = 0.8  # as near as one wrong letter in five
_QUOTED = re.compile(r"'([^']*)'")
_SHAPES = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list (items that start with '-')",
    "string_type": "text",
}


def describe(error: ErrorDetails, root: type[Section]) -> tuple[KeyPath, str]:
    """Return the place in the file of a validation error of ``root``, and its text."""
    path, owner = _place(error["loc"], root)
    if error["type"] == "union_tag_invalid":
        tag = error["input"]["type"]
        return (*path, "type"), _wrong_choice(tag, error["ctx"]["expected_tags"], None)
    if error["type"] == "union_tag_not_found":
        return _without_type(path, error["input"])
    return path, _text(error, path, owner, root)


def _text(
    error: ErrorDetails, path: KeyPath, owner: type[Section] | None, root: type[Section]
) -> str:
    context: Mapping[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            text = _unknown_key(str(path[-1]), owner, root)
        case "missing":
            text = "is missing"
        case "string_too_short":
            text = "must not be empty"
        case "enum" | "literal_error":
            text = _wrong_choice(error["input"], context["expected"], owner)
        case "bool_parsing" | "bool_type":
            text = _wrong_choice(error["input"], "'true', 'false'", owner)
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            text = "must be a whole number"
        case "greater_than_equal":
            text = f"must be at least {context['ge']}"
        case "value_error":
            text = str(context["error"])
        case _:
            text = _wrong_shape(error, path, owner)
    return text


def _unknown_key(key: str, owner: type[Section] | None, root: type[Section]) -> str:
    known = list(owner.keys()) if owner else []
    hint = (
        did_you_mean(key, known, _SURELY)
        or _belongs(key, owner, root)  # it is right elsewhere, as in a part of a guide's file
        or did_you_mean(key, known)
    )
    if not hint:
        hint = f"; known here: {', '.join(known)}" if known else "; there is nothing to configure"
    return "unknown key" + hint


def _belongs(key: str, owner: type[Section] | None, root: type[Section]) -> str:
    """Return where ``key`` would be right: below this place, or at the one other place."""
    below = [path for path in _homes(owner) if path[-1] == key] if owner else []
    if below:
        places: list[str] = []
        for path in sorted(below, key=len):
            place = _pattern(path[:-1])
            if not any(place.startswith(f"{nearer}.") for nearer in places):
                places.append(place)
        return f"; it belongs under {' or '.join(places)}"
    anywhere = [path for path in _homes(root) if path[-1] == key]
    return f"; it belongs under {_pattern(anywhere[0][:-1])}" if len(anywhere) == 1 else ""


def _pattern(path: tuple[str, ...]) -> str:
    return ".".join(path) or "the top of the file"


@lru_cache(maxsize=64)
def _homes(model: type[Section]) -> tuple[tuple[str, ...], ...]:
    """Return the paths of all keys that may stand below ``model``, ``*`` for names and indices."""
    return tuple(dict.fromkeys(_walk(model)))


def _walk(annotation: object) -> Iterator[tuple[str, ...]]:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, Section):
            for key, name in member.keys().items():
                yield (key,)
                yield from ((key, *rest) for rest in _walk(member.model_fields[name].annotation))
        elif get_origin(member) in (tuple, dict):
            arguments = get_args(member)
            inner = arguments[0] if get_origin(member) is tuple else arguments[1]
            yield from (("*", *rest) for rest in _walk(inner))


def _wrong_choice(value: object, expected: str, owner: type[Section] | None) -> str:
    choices = _QUOTED.findall(expected)  # pydantic's words: "'env' or 'text'"
    listed = ", ".join(choices)
    if value is None:
        return f"is empty; must be one of {listed}"
    if not isinstance(value, str):
        return f"must be one of {listed}, is {_shape(value)}"
    hint = did_you_mean(value, choices)
    if owner is ValueSource and not hint:
        return f"is not one of {listed}"  # the secret may have slipped into the wrong key
    return f"{shown(value)!r} is not one of {listed}{hint}"


def _without_type(path: KeyPath, item: Mapping[str, object]) -> tuple[KeyPath, str]:
    if list(item) == ["id"]:
        return path, (
            "has an id and no type: the '-' in front of 'type' begins a second item; "
            "write id and type as one item, with one '-'"
        )
    is_later = bool(path) and isinstance(path[-1], int) and path[-1] > 0
    hint = "; if this belongs to the item above, take away its '-'" if is_later else ""
    return (*path, "type"), "is missing" + hint


def _wrong_shape(error: ErrorDetails, path: KeyPath, owner: type[Section] | None) -> str:
    wanted = _SHAPES.get(error["type"])
    if wanted is None:
        return error["msg"][:1].lower() + error["msg"][1:]
    text = f"must be {wanted}, is {_shape(error['input'])}"
    if wanted == "a mapping" and owner is not None and path:
        name = owner.keys().get(str(path[-1]))
        if name and ValueSource in _members(owner.model_fields[name].annotation):
            text += "; write {type: env, value: NAME} or {type: text, value: ...}"
    return text


def _shape(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else "text"


# Places ------------------------------------------------------------------------------


def _place(
    location: tuple[int | str, ...], root: type[Section]
) -> tuple[KeyPath, type[Section] | None]:
    """
    Return the path in the file, and the model that the last key of it belongs to.

    A location of pydantic also names the member of a union that was chosen by its
    ``type``; those names are no keys of the file.
    """
    path: list[str | int] = []
    annotation: object = root
    owner: type[Section] | None = None
    for part in location:
        members = _members(annotation)
        tagged = [member for member in members if part in _tags(member)]
        if len(members) > 1 and tagged:
            annotation = tagged[0]
            continue
        path.append(part)
        owner, annotation = _step(members, part)
    return tuple(path), owner


def _step(members: list[Any], part: str | int) -> tuple[type[Section] | None, object]:
    """Return the model that ``part`` is a key of, if any, and the type of its value."""
    for member in members:
        if isinstance(member, type) and issubclass(member, Section):
            name = member.keys().get(str(part))
            return member, member.model_fields[name].annotation if name else None
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
    if not (isinstance(member, type) and issubclass(member, Section)):
        return ()
    field = member.model_fields.get("type")
    annotation = field.annotation if field else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()
