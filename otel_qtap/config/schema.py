"""
The JSON Schema of the Qtap file, for editors that complete and check while one types.

It is made from the models, so it cannot say anything else than they do, and is shipped
as ``qtap.schema.json`` beside this module. After a change of the models:

    python -m otel_qtap.config.schema
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from otel_qtap.config.model import Config, Inactive, Section

__all__ = ["SCHEMA_PATH", "schema_text"]

SCHEMA_PATH = Path(__file__).with_name("qtap.schema.json")

_SCALAR = ["string", "number", "boolean"]


class _FileSchema(GenerateJsonSchema):
    """Schemas of what may stand in the file, which is less strict than what models hold."""

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        """Allow every scalar: ``version: 2`` is text to us, and a number to an editor."""
        return super().str_schema(schema) | {"type": _SCALAR}

    def encode_default(self, dft: Any) -> Any:
        """Write spans of time as the file has them."""
        if isinstance(dft, timedelta):
            return f"{dft.total_seconds():g}s"
        return super().encode_default(dft)


def schema_text() -> str:
    """Return the schema as it is shipped."""
    schema = Config.model_json_schema(by_alias=True, schema_generator=_FileSchema)
    sections = {section.__name__: section for section in _sections(Section)}
    for name, definition in [("Config", schema), *schema["$defs"].items()]:
        definition["description"] = definition["description"].replace("``", "")
        if name in sections:
            _describe(definition, sections[name])
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Qtap configuration, version 2, as otel_qtap reads it",
        **_plain(schema),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _sections(base: type[Section]) -> list[type[Section]]:
    return [item for part in base.__subclasses__() for item in (part, *_sections(part))]


def _describe(definition: dict[str, Any], section: type[Section]) -> None:
    """Give each key of a section its docstring, and say so where it has no effect."""
    texts = {key: text for base in reversed(section.mro()) for key, text in _texts(base).items()}
    for key, name in section.keys().items():
        text = texts.get(name, "")
        marks = [m for m in section.model_fields[name].metadata if isinstance(m, Inactive)]
        if marks:
            text = f"{text} (Without effect: {marks[0].why}.)".strip()
        if text:
            definition["properties"][key]["description"] = text
    if section.inactive:
        definition["description"] = f"{definition['description']} (Without effect.)"


def _texts(section: type) -> dict[str, str]:
    """Return the docstrings under the fields of a class, which Python itself throws away."""
    if not issubclass(section, Section) or section is Section:
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    texts = {}
    for field, below in pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.replace("``", "").split())
    return texts  # of this class alone, not of its bases


def _plain(schema: Any) -> Any:
    """Leave out what is no use to editors: titles, OpenAPI's words, ``null`` as a value."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: value for key, value in schema.items() if not _is_noise(key, value)}
    choices = schema.get("anyOf", ())
    if {"type": "null"} in choices:
        rest = [choice for choice in choices if choice != {"type": "null"}]
        del schema["anyOf"]
        schema = {**schema, **rest[0]} if len(rest) == 1 else {**schema, "anyOf": rest}
    return {
        key: {name: _plain(item) for name, item in value.items()}
        if key in ("properties", "$defs")
        else value
        if key in ("default", "enum", "examples")
        else _plain(value)
        for key, value in schema.items()
    }


def _is_noise(key: str, value: object) -> bool:
    if key in ("title", "discriminator"):
        return True
    return key == "default" and (value is None or value == "" or isinstance(value, list | dict))


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
