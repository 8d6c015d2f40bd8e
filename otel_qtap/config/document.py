"""
The text of a Qtap file as plain data, with the line of every key.

Nothing of the file is executed, expanded without bound or shown where it could be a
secret. What is wrong on the way becomes a finding where the rest can still be read, and
a ``DocumentError`` where it cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

import yaml
from yaml.composer import ComposerError
from yaml.constructor import SafeConstructor
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from otel_qtap.config.messages import QUOTE_HINT, Finding, KeyPath, syntax_text, unquoted_not

__all__ = ["MAX_DEPTH", "MAX_FILE_SIZE", "MAX_NODES", "Document", "DocumentError", "decode"]

MAX_FILE_SIZE = 1024 * 1024
MAX_NODES = 100_000  # aliases can make a small file unfold without end
MAX_DEPTH = 50

_CORE_TAG = "tag:yaml.org,2002:"
_NULL_TAG = f"{_CORE_TAG}null"
_MERGE_TAG = f"{_CORE_TAG}merge"
_KNOWN_TAGS = frozenset(
    _CORE_TAG + name
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "value")
)
_SURROGATE = re.compile("[\ud800-\udfff]")  # cannot be written or sent as UTF-8

# "expr: !is_internal() && …": YAML takes "!…" for a tag. "!!str" is one, on purpose.
_UNQUOTED_NOT = re.compile(r"(\s*(?:- +)*expr\s*:\s+)(!(?!!str\b)\S.*?)\s*(?:\s#.*)?")


class DocumentError(Exception):
    """A text that cannot be looked into; ``findings`` say why."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(findings)
        self.findings = findings

    @classmethod
    def at(cls, line: int, text: str) -> DocumentError:
        """Return the error with one reason; ``line`` counts from 1 and is 0 for no line."""
        return cls(Finding((), text, line=line))


def decode(data: bytes) -> str:
    """Return the text of a file; raises ``DocumentError`` where it is none, or too long."""
    if len(data) > MAX_FILE_SIZE:
        raise DocumentError.at(0, f"is larger than {MAX_FILE_SIZE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"is not UTF-8 text: byte 0x{data[error.start]:02x}"
        raise DocumentError.at(line, problem) from None


class Document:
    """The data of a YAML text, the line of each of its keys, and what is wrong with it."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.findings: list[Finding] = []
        self._lines: dict[KeyPath, int] = {}
        self._texts: list[str] = []
        self._nodes = 0
        self._flatten = SafeConstructor().flatten_mapping

    @classmethod
    def of(cls, text: str) -> Document:
        """Read ``text``; raises ``DocumentError`` where there is nothing to look into."""
        text, repaired = _quote_nots(text)
        document = cls()
        document._texts = text.splitlines()
        try:
            document._read(text)
        except DocumentError as error:
            unquoted = [Finding((), words, line=line) for line, words in repaired.items()]
            raise DocumentError(*unquoted, *error.findings) from None
        places = {line: path for path, line in document._lines.items() if path[-1] == "expr"}
        document.findings += [
            Finding(places.get(line, ()), words, line=line) for line, words in repaired.items()
        ]
        return document

    def _read(self, text: str) -> None:
        line, problem = 0, ""
        try:
            root = _compose(text)
            if root is None:
                problem = "is empty"
            elif not isinstance(root, yaml.MappingNode):
                line, problem = 1, "must be a mapping of keys such as services, stacks and tap"
            else:
                self.data = self._mapping(root, ())
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            problem = "has a control character that YAML does not allow"
        except yaml.MarkedYAMLError as error:
            line, problem = syntax_text(error, text)
        except (ValueError, OverflowError):  # "\\UFFFFFFFF": the parser does not check
            problem = "not valid YAML: an escape names no character"
        except RecursionError:
            problem = f"is nested more than {MAX_DEPTH} levels deep"
        if problem:
            raise DocumentError.at(line, problem)

    def line(self, path: KeyPath) -> int:
        """Return the line of the key at ``path``, else of the nearest key above it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)

    def text_of_line(self, line: int) -> str:
        """Return the text of a line (from 1); empty where there is none."""
        return self._texts[line - 1] if 0 < line <= len(self._texts) else ""

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise DocumentError.at(0, f"unfolds to more than {MAX_NODES} values")
        if len(path) > MAX_DEPTH:
            raise RecursionError
        if node.tag not in _KNOWN_TAGS:
            self.findings.append(Finding(path, f"has an unknown YAML tag; {QUOTE_HINT}"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
        if _SURROGATE.search(node.value):
            self.findings.append(Finding(path, "has an escape that names half a character"))
        return None if node.tag == _NULL_TAG else node.value

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        return self._value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
                line = key.start_mark.line + 1
                if key.value in own:
                    text = f"is written twice; first in line {own[key.value]}"
                    self._lines[*path, key.value] = line
                    self.findings.append(Finding((*path, key.value), text))
                own.setdefault(key.value, line)
        self._flatten(node)  # replaces "<<" by what it refers to
        data: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.findings.append(Finding(path, "has a key that is not text"))
                continue
            at = (*path, key.value)
            self._lines[at] = max(self._lines.get(at, 0), key.start_mark.line + 1)
            data[key.value] = self._value(value, at)
        return data


def _quote_nots(text: str) -> tuple[str, dict[int, str]]:
    """
    Quote expressions that begin with a bare ``!``, so that the rest can be checked.

    Returns the text and, by line, what to tell about it. The file stays wrong: what YAML
    makes of such a line is not what its author means.
    """
    repaired: dict[int, str] = {}
    if "!" not in text:
        return text, repaired
    lines = text.split("\n")
    for index, line in enumerate(lines):
        found = _UNQUOTED_NOT.fullmatch(line.rstrip("\r"))
        if found:
            quoted = "'" + found[2].replace("'", "''") + "'"
            lines[index] = found[1] + quoted
            repaired[index + 1] = unquoted_not(quoted)
    return "\n".join(lines), repaired


# From events to nodes ----------------------------------------------------------------


class _Parser(Protocol):
    def get_event(self) -> Any: ...

    def dispose(self) -> None: ...


def _compose(text: str) -> yaml.Node | None:
    """
    Return the root node of the one document in ``text``.

    libyaml reads it, ten times as fast; what it refuses is read again by the parser in
    Python, which explains itself better.
    """
    if yaml.__with_libyaml__:
        try:
            return _compose_with(yaml.CSafeLoader(text))
        except (yaml.YAMLError, ValueError):
            pass
    return _compose_with(yaml.SafeLoader(text))


def _compose_with(parser: _Parser) -> yaml.Node | None:
    composer = _Composer(parser)
    try:
        return composer.document()
    finally:
        parser.dispose()


_END_EVENTS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


class _Composer:
    """
    Makes nodes of a parser's events.

    The composers of PyYAML call themselves for each level of nesting, the fast one in C,
    where a hostile file ends the process; this one stops at ``MAX_DEPTH``.
    """

    def __init__(self, parser: _Parser) -> None:
        self._next = parser.get_event
        self._anchors: dict[str, yaml.Node] = {}
        self._resolve = Resolver().resolve

    def document(self) -> yaml.Node | None:
        """Return the root of the only document, ``None`` when there is none."""
        self._next()  # the start of the stream
        first = self._next()
        if type(first) is yaml.StreamEndEvent:
            return None
        root = self._node(self._next(), 0)
        self._next()  # the end of the document
        second = self._next()
        if type(second) is not yaml.StreamEndEvent:
            raise ComposerError(
                "expected a single document in the stream", first.start_mark,
                "but found another document", second.start_mark,
            )  # fmt: skip
        return root

    def _node(self, event: Any, depth: int) -> yaml.Node:
        if depth > MAX_DEPTH:
            raise RecursionError
        kind = type(event)
        if kind is yaml.AliasEvent:
            if event.anchor not in self._anchors:
                text = f"found undefined alias {event.anchor!r}"
                raise ComposerError(None, None, text, event.start_mark)
            return self._anchors[event.anchor]
        if kind is yaml.ScalarEvent:
            return self._made(yaml.ScalarNode, event, event.value)
        if kind is yaml.SequenceStartEvent:
            node = self._made(yaml.SequenceNode, event, None)
            node.value = list(self._children(depth))
        else:
            node = self._made(yaml.MappingNode, event, None)
            children = self._children(depth)
            node.value = list(zip(children, children, strict=True))  # keys and values in turn
        return node

    def _made(self, kind: type[yaml.Node], event: Any, value: str | None) -> yaml.Node:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolve(kind, value, event.implicit)  # type: ignore[no-untyped-call]
        node = kind(tag, value, event.start_mark, event.end_mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _children(self, depth: int) -> Iterator[yaml.Node]:
        while type(event := self._next()) not in _END_EVENTS:
            yield self._node(event, depth + 1)
