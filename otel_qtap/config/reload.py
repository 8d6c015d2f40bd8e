"""
A file that is read again while the agent runs.

Nothing is swapped here: the answer says what the file means now, or why it cannot be
used, and which of its parts are different. Whoever runs the pipeline acts on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from otel_qtap.config.loading import DEFAULT_SOURCE, LoadedConfig, load_config
from otel_qtap.config.messages import ConfigError, KeyPath, Problem, dotted

__all__ = ["Reload", "differences", "reload_config"]

_MISSING = object()
_MAX_TOLD = 5


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of reading a file again."""

    source: str
    loaded: LoadedConfig | None
    """The new content; ``None`` where the file cannot be used, so that the old one stays."""
    problems: tuple[Problem, ...]
    """What is wrong with the new content, warnings too."""
    changed: tuple[str, ...]
    """Places whose values are different, as in ``tap.direction``; never the values."""

    def touches(self, *sections: str) -> bool:
        """Whether anything changed at or below one of the places, such as ``tap.filters``."""
        return any(
            f"{place}.".startswith(f"{section}.") or f"{section}.".startswith(f"{place}.")
            for place in self.changed
            for section in sections
        )

    def summary(self) -> str:
        """Return one line for the log."""
        if self.loaded is None:
            return f"configuration not reloaded, the old one stays: {self.source} cannot be used"
        if not self.changed:
            return f"configuration reloaded from {self.source}: nothing is different"
        more = len(self.changed) - _MAX_TOLD
        told = ", ".join(self.changed[:_MAX_TOLD]) + (f" and {more} more" if more > 0 else "")
        return f"configuration reloaded from {self.source}: {told}"


def reload_config(current: LoadedConfig) -> Reload:
    """Read the file of ``current`` again; never raises ``ConfigError``."""
    source = current.source
    if current.path is None:
        return Reload(DEFAULT_SOURCE, current, (), ())
    try:
        loaded = load_config(current.path)
    except ConfigError as error:
        return Reload(source, None, error.problems, ())
    changed = tuple(dotted(path) for path in differences(current.config, loaded.config))
    return Reload(source, loaded, loaded.warnings, changed)


def differences(old: object, new: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the places where two configurations differ, each as deep as it can be named."""
    if old == new:
        return
    if isinstance(old, BaseModel) and type(old) is type(new):
        fields = type(old).model_fields
        for name, field in fields.items():
            key = field.alias or name
            yield from differences(getattr(old, name), getattr(new, name), (*path, key))
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key, _MISSING), new.get(key, _MISSING), (*path, key))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, (*path, index))
    else:
        yield path
