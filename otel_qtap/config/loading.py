"""
From a file to a ``Config``, or to a list of everything that is wrong with it.

``document.py`` makes data of the text, the models say what the data means, ``checks.py``
and ``rule_checks.py`` compare its parts. What each of them finds is told in one run, in
the order of the lines.
"""

from __future__ import annotations

import copy
import errno
import importlib.resources
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from otel_qtap.config.checks import findings_about
from otel_qtap.config.document import MAX_FILE_SIZE, Document, DocumentError, decode
from otel_qtap.config.invalid import describe
from otel_qtap.config.messages import ConfigError, Finding, KeyPath, Problem, Severity, dotted
from otel_qtap.config.model import Config
from otel_qtap.config.rule_checks import findings_about_rules

__all__ = ["DEFAULT_SOURCE", "LoadedConfig", "Report", "check", "check_file", "load_config"]

DEFAULT_SOURCE = "built-in default"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A file that can be used."""

    config: Config
    warnings: tuple[Problem, ...]
    source: str
    """The path as given, or ``built-in default``."""
    path: Path | None = None
    """``None`` for the built-in default."""


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to tell about a file, whether it can be used or not."""

    source: str
    problems: tuple[Problem, ...]
    config: Config | None
    """``None`` where there is an error."""

    @property
    def errors(self) -> int:
        """How many of the problems are errors."""
        return sum(problem.severity is Severity.ERROR for problem in self.problems)

    @property
    def warnings(self) -> int:
        """How many of the problems are warnings."""
        return len(self.problems) - self.errors

    def is_accepted(self, *, strict: bool = False) -> bool:
        """Whether the file can be used; ``strict`` asks for one without warnings, too."""
        return not (self.problems if strict else self.errors)

    def render(self, *, strict: bool = False) -> str:
        """Return all problems and a last line that sums them up, without a newline behind it."""
        verdict = "valid" if self.is_accepted(strict=strict) else "not valid"
        counts = [
            f"{count} {word}{'' if count == 1 else 's'}"
            for count, word in ((self.errors, "error"), (self.warnings, "warning"))
            if count
        ]
        last = ", ".join([f"{self.source}: {verdict}", *counts])
        return "\n".join([*(problem.render() for problem in self.problems), last])


def load_config(path: Path | None) -> LoadedConfig:
    """
    Read the Qtap file at ``path``; without one, the built-in default.

    Raises ``ConfigError`` with all problems of the file, in the order of its lines.
    """
    if path is None:
        resource = importlib.resources.files("otel_qtap.config").joinpath("default.yaml")
        report = check(resource.read_bytes(), DEFAULT_SOURCE)
    else:
        report = check_file(path)
    if report.config is None:
        raise ConfigError(report.problems)
    return LoadedConfig(report.config, report.problems, report.source, path)


def check_file(path: Path, *, unset: Severity = Severity.ERROR) -> Report:
    """Return the report on the file at ``path``, see ``check``."""
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else None
        reason = reason or f"cannot be read: {os.strerror(error.errno or errno.EIO)}"
        return Report(source, (Problem(source, 0, "", reason),), None)
    return check(data, source, unset=unset)


def check(data: bytes, source: str, *, unset: Severity = Severity.ERROR) -> Report:
    """
    Return the report on the content of a file.

    ``source`` is what messages call it. ``unset`` is how much an environment variable
    that is not set matters: the agent cannot start without it, but where a file is looked
    at on another machine than that of the agent, it need not be there.
    """
    try:
        document = Document.of(decode(data))
    except DocumentError as error:
        return Report(source, _problems(error.findings, source, None), None)
    findings = list(document.findings)
    config: Config | None = None
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        findings += [Finding(*describe(detail, Config)) for detail in _details(error)]
    # What is right in a wrong file is checked too, so that one run tells everything.
    known = config or _valid_part(document.data)
    if known is not None:
        findings += findings_about(known, document.data, is_whole=config is not None, unset=unset)
        findings += findings_about_rules(known, document)
    problems = _problems(findings, source, document)
    is_wrong = any(problem.severity is Severity.ERROR for problem in problems)
    return Report(source, problems, None if is_wrong else config)


def _problems(
    findings: Iterable[Finding], source: str, document: Document | None
) -> tuple[Problem, ...]:
    """Return the problems in the order of their lines, each once."""
    problems = {
        Problem(
            file=source,
            line=found.line or (document.line(found.path) if document else 0),
            path=dotted(found.path),
            text=found.text,
            severity=found.severity,
            excerpt=found.excerpt,
        ): None
        for found in findings
    }
    return tuple(sorted(problems, key=lambda problem: problem.line))


def _details(error: ValidationError) -> list[Any]:
    return error.errors(include_url=False)


def _valid_part(data: Mapping[str, Any]) -> Config | None:
    """Return what a wrong file says where it is right, by leaving out what is not."""
    rest = copy.deepcopy(dict(data))
    for _ in range(10):  # leaving out a value can make the one around it wrong
        try:
            return Config.model_validate(rest)
        except ValidationError as error:
            for detail in _details(error):
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
