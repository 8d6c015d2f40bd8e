"""
What only shows when parts of a file are compared, with each other or with this machine.

Each check takes the config, or the plain data where a wrong file has no config yet, and
yields findings. Warnings are about files that work and do not do what they seem to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.filters import FILTER_GROUPS, GROUP_ALIASES
from otel_qtap.config.messages import Finding, KeyPath, Severity, did_you_mean
from otel_qtap.config.model import (
    NO_STACK,
    NOT_ACTIVE,
    Config,
    HttpCapturePlugin,
    Inactive,
    OtelStore,
    S3Store,
    Section,
    StoreSelector,
    ValueSource,
)
from otel_qtap.config.section import VARIABLE_NAME
from otel_qtap.config.stacks import AccessLogsPlugin

__all__ = ["findings_about"]

_WARNING = Severity.WARNING


def findings_about(
    config: Config, data: Mapping[str, Any], *, is_whole: bool, unset: Severity
) -> Iterator[Finding]:
    """
    Yield everything about a file.

    ``is_whole`` is false when ``config`` is only what is right in ``data``; ``unset`` is
    how much an environment variable that is not set matters.
    """
    yield from _inactive(config, ())
    if config.version != "2":
        yield Finding(("version",), "is not 2; the file is read as version 2", _WARNING)
    yield from _stack_references(data)
    yield from _repeated(config)
    yield from _unknown_groups(config)
    yield from _variables(config, unset)
    if config.redact.hash_key is not None:
        path = ("redact", "hash_key")
        yield from _variable(config.redact.hash_key, path, unset, may_be_empty=False)
    if is_whole:  # what is missing from a part says nothing
        yield from _selectors(config)
        yield from _ineffective(config)


# Without effect ----------------------------------------------------------------------


def _inactive(section: Section, path: KeyPath) -> Iterator[Finding]:
    """Yield a warning for everything that is written and has no effect."""
    if section.inactive:
        kind = getattr(section, "type", type(section).__name__)
        yield Finding((*path, "type"), f"{kind}: {section.inactive}", _WARNING)
        return
    for key, name in type(section).keys().items():
        value = getattr(section, name)
        if name not in section.model_fields_set or value in ((), {}):
            continue
        marks = [m for m in type(section).model_fields[name].metadata if isinstance(m, Inactive)]
        if marks:
            text = f"{key} is {NOT_ACTIVE}" if marks[0].why == NOT_ACTIVE else marks[0].why
            yield Finding((*path, key), text, _WARNING)
            continue
        yield from _inactive_below(value, (*path, key))


def _inactive_below(value: object, path: KeyPath) -> Iterator[Finding]:
    if isinstance(value, Section):
        yield from _inactive(value, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inactive_below(item, (*path, str(key)))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _inactive_below(item, (*path, index))


def _ineffective(config: Config) -> Iterator[Finding]:
    """Yield a warning for plugins and rules that can never keep anything."""
    has_store = bool(config.event_stores() or config.object_stores())
    for name, stack in config.stacks_in_use():
        for index, plugin in enumerate(stack.plugins):
            path = ("stacks", name, "plugins", index)
            if isinstance(plugin, HttpCapturePlugin):
                yield from _ineffective_capture(plugin, path, has_store=has_store)
            elif isinstance(plugin, AccessLogsPlugin) and not _keeps_any(plugin):
                text = "prints nothing: its mode is none, and no rule has another one"
                yield Finding(path, text, _WARNING)


def _keeps_any(plugin: HttpCapturePlugin | AccessLogsPlugin) -> bool:
    return plugin.highest_level() is not CaptureLevel.NONE


def _ineffective_capture(
    plugin: HttpCapturePlugin, path: KeyPath, *, has_store: bool
) -> Iterator[Finding]:
    config = plugin.config
    if not _keeps_any(plugin):
        text = "keeps nothing: its level is none, which is the default, and no rule has another one"
        yield Finding(path, text, _WARNING)
    elif not has_store:
        text = "keeps transactions for no store: services names none that is written to"
        yield Finding(path, text, _WARNING)
    for index, rule in enumerate(config.rules):
        if rule.level is None and rule.format is None and rule.sample_rate is None:
            text = f"has no level, so the plugin's applies: {config.level.value}"
            yield Finding((*path, "config", "rules", index), text, _WARNING)


# References --------------------------------------------------------------------------


def _stack_references(data: Mapping[str, Any]) -> Iterator[Finding]:
    tap = data.get("tap")
    if tap is None:
        text = "is missing: no stack is named in tap.http.stack, so nothing will be captured"
        yield Finding(("tap",), text, _WARNING)
    if not isinstance(tap, Mapping):
        return
    stacks = data.get("stacks")
    names = dict.fromkeys(stacks) if isinstance(stacks, Mapping) else {}
    endpoints = tap.get("endpoints")
    places: list[tuple[KeyPath, Any]] = [
        (("tap", "endpoints", index, "http", "stack"), item.get("http"))
        for index, item in enumerate(endpoints if isinstance(endpoints, list) else [])
        if isinstance(item, Mapping)
    ]
    found = [
        (path, http.get("stack"))
        for path, http in [(("tap", "http", "stack"), tap.get("http")), *places]
        if isinstance(http, Mapping) and http.get("stack") not in (None, *NO_STACK)
    ]
    is_readable = tap.get("http") is None or isinstance(tap.get("http"), Mapping)
    if not found and is_readable:
        text = "names no stack, so nothing will be captured"
        yield Finding(("tap", "http", "stack"), text, _WARNING)
    for path, stack in found:
        if isinstance(stack, str) and stack not in names:
            there = f"; there are {', '.join(names)}" if names else "; there is no stack at all"
            yield Finding(path, f"{stack!r} is not a stack" + (did_you_mean(stack, names) or there))


def _repeated(config: Config) -> Iterator[Finding]:
    """Yield an error for names that must be one item's own."""
    lists: list[tuple[KeyPath, str, list[str]]] = [
        (("services", "event_stores"), "id", [s.id for s in config.services.event_stores]),
        (("services", "object_stores"), "id", [s.id for s in config.services.object_stores]),
        (
            ("tap", "endpoints"),
            "domain",
            [item.domain.lower().rstrip(".") for item in config.tap.endpoints],
        ),
    ]
    for path, key, values in lists:
        first: dict[str, int] = {}
        for index, value in enumerate(values):
            if value and first.setdefault(value, index) != index:
                text = f"is the {key} of item {first[value]} of this list already"
                yield Finding((*path, index, key), text)


def _unknown_groups(config: Config) -> Iterator[Finding]:
    for index, group in enumerate(config.tap.filters.groups):
        path = ("tap", "filters", "groups", index)
        if group in GROUP_ALIASES:
            text = f"{group!r} is read as {GROUP_ALIASES[group]!r}"
            yield Finding(path, text, _WARNING)
        elif group not in FILTER_GROUPS:
            hint = did_you_mean(group, FILTER_GROUPS)
            text = f"{group!r} is not one of {', '.join(FILTER_GROUPS)}, so it excludes nothing"
            yield Finding(path, text + hint, _WARNING)


def _selectors(config: Config) -> Iterator[Finding]:
    """Yield an error for each selector of a store that is not there."""
    objects = [store.id for store in config.services.object_stores if store.id]
    events = [store.id for store in config.services.event_stores if store.id]
    for index, store in enumerate(config.services.object_stores):
        selector = getattr(store, "event_store", None)
        yield from _selected(
            selector, events, ("services", "object_stores", index, "event_store"), "an event store"
        )
    for name, stack in config.stacks.items():
        for index, plugin in enumerate(stack.plugins):
            if isinstance(plugin, HttpCapturePlugin):
                path = ("stacks", name, "plugins", index, "config", "object_store")
                yield from _selected(plugin.config.object_store, objects, path, "an object store")


def _selected(
    selector: StoreSelector | None, ids: list[str], path: KeyPath, kind: str
) -> Iterator[Finding]:
    if selector is not None and selector.id and selector.id not in ids:
        there = f"; there are {', '.join(ids)}" if ids else "; none has an id"
        hint = did_you_mean(selector.id, ids) or there
        yield Finding((*path, "id"), f"{selector.id!r} is not the id of {kind}{hint}")


# Environment -------------------------------------------------------------------------


def _variables(config: Config, unset: Severity) -> Iterator[Finding]:
    """Yield what stores need of the environment and do not find there."""
    for index, event_store in enumerate(config.services.event_stores):
        path: KeyPath = ("services", "event_stores", index)
        if isinstance(event_store, OtelStore):
            for name in event_store.endpoint_variables():
                if name not in os.environ:
                    yield _unset(name, (*path, "endpoint"), unset)
            for header, source in event_store.headers.items():
                yield from _variable(source, (*path, "headers", header), unset)
    for index, object_store in enumerate(config.services.object_stores):
        path = ("services", "object_stores", index)
        if isinstance(object_store, S3Store):
            for key in ("access_key", "secret_key"):
                source = getattr(object_store, key)
                if source is not None:
                    yield from _variable(source, (*path, key), unset, may_be_empty=False)


def _variable(
    source: ValueSource, path: KeyPath, unset: Severity, *, may_be_empty: bool = True
) -> Iterator[Finding]:
    value = source.resolve()
    if value is None and not VARIABLE_NAME.fullmatch(source.value):
        text = "is not the name of an environment variable, which type env asks for"
        yield Finding((*path, "value"), text)
    elif value is None:
        yield _unset(source.value, (*path, "value"), unset)
    elif not value and not may_be_empty:
        is_variable = source.type == "env"
        text = "the environment variable is empty" if is_variable else "is empty"
        yield Finding((*path, "value"), text, unset if is_variable else Severity.ERROR)


def _unset(name: str, path: KeyPath, severity: Severity) -> Finding:
    # A name that is not spelled like most may be the secret itself: it is not shown.
    shown = f"environment variable {name!r}" if name.isupper() else "the environment variable"
    text = f"{shown} is not set"
    if severity is _WARNING:
        text += "; the agent will not start without it"
    return Finding(path, text, severity)
