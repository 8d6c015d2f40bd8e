"""
From a file to a ``Config``, or to a list of everything that is wrong with it.

The YAML text is composed into nodes once. From the nodes come the data, with every
scalar as the text that stands in the file, and the line of every key; the models then
say what the data means. Nothing of the file is executed, expanded without bound or
shown where it could be a secret.
"""

from __future__ import annotations

import copy
import errno
import importlib.resources
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from yaml.reader import ReaderError

from otel_qtap.config.messages import (
    QUOTE_HINT,
    ConfigError,
    KeyPath,
    Problem,
    Severity,
    describe,
    did_you_mean,
    dotted,
    syntax_text,
)
from otel_qtap.config.model import (
    FILTER_GROUPS,
    GROUP_ALIASES,
    NOT_ACTIVE,
    Config,
    Inactive,
    OtelStore,
    Section,
    ValueSource,
)

__all__ = ["DEFAULT_SOURCE", "LoadedConfig", "load_config"]

DEFAULT_SOURCE = "built-in default"

MAX_FILE_SIZE = 1024 * 1024
MAX_NODES = 100_000  # aliases can make a small file unfold without end
MAX_DEPTH = 50

_CORE_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(
    _CORE_TAG + name
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "value")
)
_SURROGATE = re.compile("[\ud800-\udfff]")  # cannot be written or sent as UTF-8
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A file that can be used."""

    config: Config
    warnings: tuple[Problem, ...]
    source: str
    """The path as given, or ``built-in default``."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """A problem before it is given its line."""

    path: KeyPath
    text: str
    severity: Severity = Severity.ERROR


def load_config(path: Path | None) -> LoadedConfig:
    """
    Read the Qtap file at ``path``; without one, the built-in default.

    Raises ``ConfigError`` with all problems of the file, in the order of its lines.
    """
    if path is None:
        resource = importlib.resources.files("otel_qtap.config").joinpath("default.yaml")
        return _load(resource.read_text(encoding="utf-8"), DEFAULT_SOURCE)
    source = str(path)
    return _load(_read(path, source), source)


def _load(text: str, source: str) -> LoadedConfig:
    tree = _Tree.of(text, source)
    findings = list(tree.findings)
    config: Config | None = None
    try:
        config = Config.model_validate(tree.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        findings += [_Finding(*describe(detail, Config)) for detail in details]
    # What is right in a wrong file is checked too, so that one run tells everything.
    checked = config or _valid_part(tree.data)
    if checked is not None:
        findings += _inactive(checked, ())
        findings += _inconsistent(checked, tree.data)
    problems = sorted(
        {
            Problem(source, tree.line(f.path), dotted(f.path), f.text, f.severity): None
            for f in findings
        },
        key=lambda problem: problem.line,
    )
    if config is None or any(problem.severity is Severity.ERROR for problem in problems):
        raise ConfigError(problems)
    return LoadedConfig(config, tuple(problems), source)


# The file ----------------------------------------------------------------------------


def _read(path: Path, source: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else None
        reason = reason or f"cannot be read: {os.strerror(error.errno or errno.EIO)}"
        raise ConfigError([Problem(source, 0, "", reason)]) from None
    if len(data) > MAX_FILE_SIZE:
        raise ConfigError([Problem(source, 0, "", f"is larger than {MAX_FILE_SIZE} bytes")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = f"is not UTF-8 text: byte 0x{data[error.start]:02x}"
        raise ConfigError([Problem(source, line, "", text)]) from None


class _TooLargeError(Exception):
    """The aliases of a file repeat its parts too often."""


class _Tree:
    """The data of a YAML text and the line of each of its keys."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.findings: list[_Finding] = []
        self._lines: dict[KeyPath, int] = {}
        self._nodes = 0

    @classmethod
    def of(cls, text: str, source: str) -> _Tree:
        """Read ``text``; raises ``ConfigError`` where there is nothing to look into."""
        tree = cls()
        # The parser in Python, not libyaml: deep nesting ends in an exception, not in
        # the C stack, and a file of this size costs milliseconds.
        loader: yaml.SafeLoader | None = None
        line, problem = 0, ""
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if root is None:
                problem = "is empty"
            elif not isinstance(root, yaml.MappingNode):
                line, problem = 1, "must be a mapping of keys such as services, stacks and tap"
            else:
                tree.data = tree._mapping(root, (), loader)
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            problem = "has a control character that YAML does not allow"
        except yaml.MarkedYAMLError as error:
            line, problem = syntax_text(error, text)
        except (ValueError, OverflowError):  # "\\UFFFFFFFF": the parser does not check
            problem = "not valid YAML: an escape names no character"
        except _TooLargeError:
            problem = f"unfolds to more than {MAX_NODES} values"
        except RecursionError:
            problem = f"is nested more than {MAX_DEPTH} levels deep"
        finally:
            if loader is not None:
                loader.dispose()
        if problem:
            raise ConfigError([Problem(source, line, "", problem)])
        return tree

    def line(self, path: KeyPath) -> int:
        """Return the line of the key at ``path``, else of the nearest key above it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)

    def _value(self, node: yaml.Node, path: KeyPath, loader: yaml.SafeLoader) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _TooLargeError
        if len(path) > MAX_DEPTH:
            raise RecursionError
        if node.tag not in _KNOWN_TAGS:
            self.findings.append(_Finding(path, f"has an unknown YAML tag; {QUOTE_HINT}"))
        if isinstance(node, yaml.ScalarNode) and _SURROGATE.search(node.value):
            self.findings.append(_Finding(path, "has an escape that names half a character"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, loader)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(child, (*path, i), loader) for i, child in enumerate(node.value)]
        return None if node.tag == f"{_CORE_TAG}null" else node.value

    def _item(self, node: yaml.Node, path: KeyPath, loader: yaml.SafeLoader) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        return self._value(node, path, loader)

    def _mapping(
        self, node: yaml.MappingNode, path: KeyPath, loader: yaml.SafeLoader
    ) -> dict[str, Any]:
        own: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_CORE_TAG}merge":
                line = key.start_mark.line + 1
                if key.value in own:
                    text = f"is written twice; first in line {own[key.value]}"
                    self._lines[*path, key.value] = line
                    self.findings.append(_Finding((*path, key.value), text))
                own.setdefault(key.value, line)
        loader.flatten_mapping(node)  # replaces "<<" by what it refers to
        data: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.findings.append(_Finding(path, "has a key that is not text"))
                continue
            at = (*path, key.value)
            self._lines[at] = max(self._lines.get(at, 0), key.start_mark.line + 1)
            data[key.value] = self._value(value, at, loader)
        return data


def _valid_part(data: Mapping[str, Any]) -> Config | None:
    """Return what a wrong file says where it is right, by leaving out what is not."""
    rest = copy.deepcopy(dict(data))
    for _ in range(10):  # leaving out a value can make the one around it wrong
        try:
            return Config.model_validate(rest)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path, _text = describe(detail, Config)
                _leave_out(rest, path[:-1] if detail["type"] == "missing" else path)
    return None


def _leave_out(data: Any, path: KeyPath) -> None:
    parents: list[tuple[Any, str | int]] = []
    for key in path:
        parents.append((data, key))
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            break
    while parents:
        parent, key = parents.pop()
        # An item takes its list with it: the indices of the others must stay true.
        if isinstance(parent, dict) and parent.pop(key, parent) is not parent:
            return


# Beyond the schema -------------------------------------------------------------------


def _inactive(section: BaseModel, path: KeyPath) -> Iterator[_Finding]:
    """Yield a warning for everything that is written and has no effect."""
    if isinstance(section, Section) and section.inactive:
        yield _Finding(
            (*path, "type"), f"{_type_of(section)}: {section.inactive}", Severity.WARNING
        )
        return
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name not in section.model_fields_set or value in ((), {}):
            continue
        marks = [m for m in type(section).model_fields[name].metadata if isinstance(m, Inactive)]
        if marks:
            text = f"{name} is {NOT_ACTIVE}" if marks[0].why == NOT_ACTIVE else marks[0].why
            yield _Finding((*path, name), text, Severity.WARNING)
            continue
        yield from _inactive_below(value, (*path, name))


def _inactive_below(value: object, path: KeyPath) -> Iterator[_Finding]:
    if isinstance(value, BaseModel):
        yield from _inactive(value, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inactive_below(item, (*path, str(key)))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _inactive_below(item, (*path, index))


def _type_of(section: BaseModel) -> str:
    return str(getattr(section, "type", type(section).__name__))


def _inconsistent(config: Config, data: Mapping[str, Any]) -> Iterator[_Finding]:
    """Yield what only shows when parts of the file, or its surroundings, are compared."""
    if config.version != "2":
        yield _Finding(("version",), "is not 2; the file is read as version 2", Severity.WARNING)
    yield from _stack_reference(data)
    yield from _unknown_groups(config)
    for index, store in enumerate(config.services.event_stores):
        if isinstance(store, OtelStore):
            yield from _unset_variables(store, ("services", "event_stores", index))


def _stack_reference(data: Mapping[str, Any]) -> Iterator[_Finding]:
    if not isinstance(data.get("tap"), Mapping):
        if data.get("tap") is None:
            text = "is missing: no stack is named in tap.http.stack, so nothing will be captured"
            yield _Finding(("tap",), text, Severity.WARNING)
        return
    http = data["tap"].get("http")
    stack = http.get("stack") if isinstance(http, Mapping) else http
    path = ("tap", "http", "stack")
    stacks = data.get("stacks")
    names = list(stacks) if isinstance(stacks, Mapping) else []
    if stack in (None, "", "none"):
        text = "names no stack, so nothing will be captured"
        yield _Finding(path, text, Severity.WARNING)
    elif isinstance(http, Mapping) and isinstance(stack, str) and stack not in names:
        there = f"; there are {', '.join(names)}" if names else "; there is no stack at all"
        yield _Finding(path, f"{stack!r} is not a stack" + (did_you_mean(stack, names) or there))


def _unknown_groups(config: Config) -> Iterator[_Finding]:
    for index, group in enumerate(config.tap.filters.groups):
        path = ("tap", "filters", "groups", index)
        if group in GROUP_ALIASES:
            text = f"{group!r} is read as {GROUP_ALIASES[group]!r}"
            yield _Finding(path, text, Severity.WARNING)
        elif group not in FILTER_GROUPS:
            hint = did_you_mean(group, FILTER_GROUPS)
            text = f"{group!r} is not one of {', '.join(FILTER_GROUPS)}, so it excludes nothing"
            yield _Finding(path, text + hint, Severity.WARNING)


def _unset_variables(store: OtelStore, path: KeyPath) -> Iterator[_Finding]:
    for name in store.endpoint_variables():
        if name not in os.environ:
            text = f"environment variable {name!r} is not set"
            yield _Finding((*path, "endpoint"), text)
    for header, source in store.headers.items():
        if source.type == "env" and source.resolve() is None:
            yield _Finding((*path, "headers", header, "value"), _unset_text(source))


def _unset_text(source: ValueSource) -> str:
    if not _VARIABLE_NAME.fullmatch(source.value):  # not shown: it may be the secret itself
        return "is not the name of an environment variable, which type env asks for"
    return f"environment variable {source.value!r} is not set"
