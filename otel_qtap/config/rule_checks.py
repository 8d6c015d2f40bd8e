"""
The rules of a file: do they compile, and does ``tap`` let through what they ask for?

A rule that cannot be compiled stops the start. A rule that can never match brings a
warning, because nothing else would show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from otel_qtap.config.document import Document
from otel_qtap.config.filters import CustomFilterConfig
from otel_qtap.config.messages import Finding, KeyPath, Severity
from otel_qtap.config.model import (
    AccessLogsPlugin,
    AccessLogsRule,
    Config,
    HttpCapturePlugin,
    HttpCaptureRule,
    StackConfig,
    TapDirection,
)
from otel_qtap.rules import Rule, RuleCompiler, RuleError

__all__ = ["findings_about_rules"]

_STAND_IN = "true"  # for the body of a macro that cannot be used
_MAX_CIRCLES = 20  # of macros that use each other, told in one run

_HAPROXY_PATHS = (
    "/usr/local/sbin/haproxy",  # the container image
    "/usr/sbin/haproxy",  # Debian, Fedora, Alpine
    "/usr/bin/haproxy",
    "/opt/haproxy/sbin/haproxy",
    "/opt/bitnami/haproxy/sbin/haproxy",
)
_PROGRAM_FOLDERS = ("/usr/sbin/", "/usr/bin/", "/usr/local/sbin/", "/usr/local/bin/")
_PROCESS_FIELDS = ("src.process.path", "src.process.binary", "src.container.", "src.pod.")
_EQUALS = r"\s*(?:==|\beq\b)\s*([\"'])(.*?)\1"
_EXECUTABLE_IS = re.compile(r"(?<![\w.-])(?:src\.process\.(?:path|binary)|exe|bin)" + _EQUALS)
_DIRECTION_IS = re.compile(r"(?<![\w.-])direction" + _EQUALS)
_CALL = re.compile(r"\b([A-Za-z_]\w*)\(")

_SEEN_BY: Mapping[TapDirection, tuple[str, ...]] = {
    TapDirection.ALL: ("ingress", "egress-internal", "egress-external"),
    TapDirection.INGRESS: ("ingress",),
    TapDirection.EGRESS: ("egress-internal", "egress-external"),
    TapDirection.EGRESS_INTERNAL: ("egress-internal",),
    TapDirection.EGRESS_EXTERNAL: ("egress-external",),
}
"""What the field ``direction`` can be; Qtap's filter and label differ for few addresses."""


@dataclass(frozen=True, slots=True)
class _Expression:
    """A rule as it stands in the file."""

    path: KeyPath
    """Of its ``expr``."""
    rule: Rule


def findings_about_rules(config: Config, document: Document) -> Iterator[Finding]:
    """Yield everything about the macros and rules of a file."""
    if not _has_all_macros(config, document.data):
        return  # every rule that calls one would be found wrong
    compiler, findings = _compile_macros(config, document)
    yield from findings
    expressions: dict[str, list[_Expression]] = {}
    for name, stack in config.stacks.items():
        expressions[name] = compiled = []
        for path, text in _rules_of(name, stack):
            try:
                rule = compiler.compile(text)
            except RuleError as error:
                yield _wrong_rule(error, path, document)
                continue
            compiled.append(_Expression(path, rule))
            yield from _oddities(rule, path)
    yield from _control_rules(config, compiler, document)
    in_use = [item for name, _ in config.stacks_in_use() for item in expressions[name]]
    yield from _excluded_by_filters(config, in_use)
    yield from _excluded_by_direction(config, in_use)


# Compiling ---------------------------------------------------------------------------


def _has_all_macros(config: Config, data: Mapping[str, Any]) -> bool:
    """Whether no macro was left out of ``config`` for being wrong in some other way."""
    rulekit = data.get("rulekit")
    if rulekit is None:
        return True
    macros = rulekit.get("macros") if isinstance(rulekit, Mapping) else ()
    written = len(macros) if isinstance(macros, list) else 0 if macros is None else -1
    return written == len(config.rulekit.macros)


def _compile_macros(config: Config, document: Document) -> tuple[RuleCompiler, list[Finding]]:
    """Return a compiler and what is wrong with macros; wrong ones are replaced by ``true``."""
    is_compatible = config.rulekit.compat == "qtap"
    findings: list[Finding] = []
    paths: dict[str, KeyPath] = {}
    for index, macro in enumerate(config.rulekit.macros):
        path = ("rulekit", "macros", index)
        try:
            RuleCompiler({macro.name: _STAND_IN})
        except RuleError as error:
            findings.append(Finding((*path, "name"), error.message))
        else:
            paths[macro.name] = (*path, "expr")
    # Each by itself first: going on from one mistake to the next would be quadratic.
    macros = dict.fromkeys(paths, _STAND_IN)
    alone = RuleCompiler(macros, qtap_compat=is_compatible)
    for macro in config.rulekit.macros:
        if macro.name in paths:
            try:
                findings += _oddities(alone.compile(macro.expr), paths[macro.name])
            except RuleError as error:
                findings.append(_wrong_rule(error, paths[macro.name], document))
            else:
                macros[macro.name] = macro.expr
    for _ in range(_MAX_CIRCLES):
        try:
            return RuleCompiler(macros, qtap_compat=is_compatible), findings
        except RuleError as error:  # only together are they wrong
            findings.append(_wrong_rule(error, paths[error.macro], document))
            macros[error.macro] = _STAND_IN
    return alone, findings


def _rules_of(name: str, stack: StackConfig) -> Iterator[tuple[KeyPath, str]]:
    """Yield path and text of each rule of a stack."""
    for index, plugin in enumerate(stack.plugins):
        rules: tuple[HttpCaptureRule | AccessLogsRule, ...] = ()
        if isinstance(plugin, HttpCapturePlugin | AccessLogsPlugin):
            rules = plugin.config.rules
        for number, rule in enumerate(rules):
            path = ("stacks", name, "plugins", index, "config", "rules", number, "expr")
            yield path, rule.expr


def _control_rules(config: Config, compiler: RuleCompiler, document: Document) -> Iterator[Finding]:
    """Yield a warning for each rule of the egress controller that Qtap would not take."""
    for index, rule in enumerate(config.control.rules if config.control else ()):
        try:
            compiler.compile(rule.expr)
        except RuleError as error:
            path = ("control", "rules", index, "expr")
            yield _wrong_rule(error, path, document, Severity.WARNING)


def _oddities(rule: Rule, path: KeyPath) -> Iterator[Finding]:
    """Yield what the language finds odd, and not wrong, about a rule."""
    for warning in rule.warnings:
        yield Finding(path, f"column {warning.column}: {warning.message}", Severity.WARNING)


def _wrong_rule(
    error: RuleError, path: KeyPath, document: Document, severity: Severity = Severity.ERROR
) -> Finding:
    hint = _yaml_hint(error, document.text_of_line(document.line(path)))
    text = f"column {error.column}: {error.message}{hint}"
    return Finding(path, text, severity, excerpt=error.caret())


def _yaml_hint(error: RuleError, line: str) -> str:
    """Return what YAML did to an expression before rulekit saw it, if that may be the cause."""
    _, _, value = line.partition("expr:")
    value = value.strip()
    if value.startswith('"') and "\\" in value:
        return "; in double quotes YAML itself takes the backslashes: use single quotes"
    if value[:1] not in ("'", '"', "") and " #" in value and error.text in value:
        return "; YAML takes what follows ' #' for a comment: quote the expression"
    return ""


# Excluded by tap ---------------------------------------------------------------------


def _excluded_by_filters(config: Config, expressions: list[_Expression]) -> Iterator[Finding]:
    """Yield a warning where ``tap.filters`` leave out what a rule asks for."""
    filters = config.tap.filters
    wanted = next((item for item in expressions if _wants_haproxy(item)), None)
    told: set[int] = set()
    for path in _HAPROXY_PATHS if wanted else ():
        custom = filters.deciding(path)
        if custom is None or not custom.covers(tls=False) or id(custom) in told:
            continue
        told.add(id(custom))
        yield Finding(
            ("tap", "filters", "custom", _index(filters.custom, custom)),
            f"excludes {path}, so no rule sees any of HAProxy's traffic (a filter that matches "
            "leaves a process out); to pass over some requests only, write a rule with level: none",
            Severity.WARNING,
        )
    for item in expressions:
        for found in _EXECUTABLE_IS.finditer(_unfolded(item.rule.text, config)):
            name = found[2]
            paths = [name] if "/" in name else [folder + name for folder in _PROGRAM_FOLDERS]
            if name and all(filters.excludes(path) for path in paths):
                text = f"asks for {name!r}, which tap.filters exclude, so it never matches"
                yield Finding(item.path, text, Severity.WARNING)


def _wants_haproxy(item: _Expression) -> bool:
    """Whether a rule may match traffic of HAProxy: it says so, or names no process at all."""
    is_about_processes = any(field.startswith(_PROCESS_FIELDS) for field in item.rule.fields)
    return not is_about_processes or "haproxy" in item.rule.text


def _index(filters: tuple[CustomFilterConfig, ...], wanted: CustomFilterConfig) -> int:
    return next(index for index, item in enumerate(filters) if item is wanted)


def _excluded_by_direction(config: Config, expressions: list[_Expression]) -> Iterator[Finding]:
    """Yield a warning for rules about connections that ``tap.direction`` does not look at."""
    direction = config.tap.direction
    for item in expressions:
        for found in _DIRECTION_IS.finditer(_unfolded(item.rule.text, config)):
            wanted = found[2]
            if wanted not in _SEEN_BY[TapDirection.ALL]:
                text = (
                    f"asks for direction {wanted!r}, which there is not: "
                    f"it is one of {', '.join(_SEEN_BY[TapDirection.ALL])}"
                )
            elif wanted not in _SEEN_BY[direction]:
                text = (
                    f"asks for direction {wanted!r}, and tap.direction is "
                    f"{direction.value}, so it never matches"
                )
            else:
                continue
            yield Finding(item.path, text, Severity.WARNING)


def _unfolded(text: str, config: Config) -> str:
    """Return a rule followed by the macros that it calls, and those that these call."""
    macros = {macro.name: macro.expr for macro in config.rulekit.macros}
    texts, waiting = [text], [text]
    while waiting:
        for name in _CALL.findall(waiting.pop()):
            if name in macros:
                body = macros.pop(name)
                texts.append(body)
                waiting.append(body)
    return "\n".join(texts)
