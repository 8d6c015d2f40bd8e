"""
What every section of the Qtap file is made of: its base class and the kinds of value.

Scalars arrive as the text that stands in the file (``document.py`` keeps it), so each
field decides how to read its own: ``0123`` in a secret stays ``0123``. A key without a
value counts as not written, as in Qtap. Keys that Qtap knows and this version does not
act on are fields all the same, marked with ``Inactive``, so that they can be warned
about by name while a misspelt key is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.units import parse_duration, parse_rate, parse_size

__all__ = [
    "NOT_ACTIVE",
    "NOT_PROVIDED",
    "VARIABLE_NAME",
    "Duration",
    "HeaderValue",
    "Inactive",
    "Level",
    "SampleRate",
    "Section",
    "Size",
    "ValueSource",
]

NOT_ACTIVE = "not active in this version"
NOT_PROVIDED = "not provided by otel_qtap"

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
"""What the name of an environment variable looks like."""


@dataclass(frozen=True, slots=True)
class Inactive:
    """Marks a field that is read and then has no effect; ``why`` completes the warning."""

    why: str = NOT_ACTIVE


class Section(BaseModel):
    """A mapping of the file: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, coerce_numbers_to_str=True
    )

    inactive: ClassVar[str] = ""
    """Why writing this section has no effect; empty where it has."""

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Return the keys that may stand in the file, each with the name of its field."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _skip_empty(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        known = cls.keys()
        return {key: value for key, value in data.items() if value is not None or key not in known}


# Values ------------------------------------------------------------------------------


def _headers_for_details(value: object) -> object:
    return CaptureLevel.HEADERS if value == "details" else value  # Qtap's guides use both words


Level: TypeAlias = Annotated[
    CaptureLevel,
    BeforeValidator(_headers_for_details),
    WithJsonSchema({"enum": [*(level.value for level in CaptureLevel), "details"]}),
]
"""``details`` is read as ``headers`` wherever a level may stand."""

SampleRate: TypeAlias = Annotated[
    float,
    BeforeValidator(parse_rate),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]
"""The share of transactions to keep, from 0 to 1."""

Size: TypeAlias = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["64mb"]}),
]
"""Bytes, written as ``64mb`` or as a bare number."""

Duration: TypeAlias = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "examples": ["500ms", "1.5s", "2m"]}),
]
"""A span of time as Go writes it: ``500ms``, ``1.5s``, ``1m30s``."""


class ValueSource(Section):
    """A value that need not stand in the file: ``{type: env, value: NAME}``."""

    type: Literal["env", "text"]
    """``env`` for the name of an environment variable, ``text`` for the value itself."""
    value: str = Field(repr=False)
    """The name of the variable, or the value."""

    def resolve(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Return the value, or ``None`` when it names an environment variable that is not set."""
        return self.value if self.type == "text" else environ.get(self.value)


def _text_source(value: object) -> object:
    return {"type": "text", "value": value} if isinstance(value, str) else value


HeaderValue: TypeAlias = Annotated[
    ValueSource, BeforeValidator(_text_source, json_schema_input_type=str | ValueSource)
]
"""Newer Qtap files write a value source, older ones the plain text."""
