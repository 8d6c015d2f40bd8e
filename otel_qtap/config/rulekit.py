"""``rulekit``: what the rules of all plugins have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from otel_qtap.config.section import Section

__all__ = ["MacroConfig", "RulekitConfig"]


class MacroConfig(Section):
    """A named expression: ``name()`` in a rule stands for ``expr``."""

    name: str = Field(min_length=1)
    """Letters, digits and ``_``."""
    expr: str = Field(min_length=1)
    """A rulekit expression."""


class RulekitConfig(Section):
    """What the rules of all plugins have in common."""

    macros: tuple[MacroConfig, ...] = ()
    """Named expressions."""
    compat: Literal["none", "qtap"] = "none"
    """An extension: ``qtap`` for Qtap's own reading of ``!`` and of ``&&`` beside ``||``."""

    @field_validator("macros")
    @classmethod
    def _refuse_equal_names(cls, macros: tuple[MacroConfig, ...]) -> tuple[MacroConfig, ...]:
        names: set[str] = set()
        for macro in macros:
            if macro.name in names:
                raise ValueError(f"two macros have the name {macro.name!r}")
            names.add(macro.name)
        return macros
