"""Rules and the compiler that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from otel_qtap.rules.codegen import compile_about, compile_condition
from otel_qtap.rules.evaluation import Evaluator, Explanation
from otel_qtap.rules.facts import Facts
from otel_qtap.rules.fields import HTTP_VOCABULARY, Stage, Vocabulary
from otel_qtap.rules.parser import parse
from otel_qtap.rules.scope import RuleWarning, Scope
from otel_qtap.rules.tree import Expression

__all__ = ["Rule", "RuleCompiler"]


class Rule:
    """A compiled expression. What ``matches`` says of the same facts never changes."""

    __slots__ = (
        "_expression",
        "_may_match",
        "_scope",
        "fields",
        "matches",
        "needs",
        "text",
        "warnings",
    )

    def __init__(self, text: str, expression: Expression, scope: Scope) -> None:
        """Raises ``RuleError`` for a name that is not known."""
        self.text = text
        """As written."""
        self._expression = expression
        self._scope = scope
        extent = scope.measure(expression, text)
        self.fields: frozenset[str] = extent.fields
        """Canonical names of all fields that it reads, through macros too."""
        self.needs: Stage = extent.needs
        """From when on all of them are known."""
        self.warnings: tuple[RuleWarning, ...] = scope.warnings(expression, text)
        """What is odd about it: old names, names that no transaction has."""
        self.matches: Callable[[Facts], bool] = compile_condition(expression, scope)
        """Whether the rule holds; a missing field never makes it hold. Never raises."""
        self._may_match: dict[Stage, Callable[[Facts], bool]] = {}

    def __str__(self) -> str:
        return str(self._expression)

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def may_match(self, facts: Facts, known: Stage) -> bool:
        """
        Return whether the rule can still hold in the end.

        ``facts`` are those of a transaction that has come as far as ``known``; what
        becomes known later may be anything. False is certain; from ``needs`` on so is
        true.
        """
        test = self._may_match.get(known)
        if test is None:
            test = compile_condition(self._expression, self._scope, known=known)
            self._may_match[known] = test
        return test(facts)

    def about(self, facts: Facts, subject: str) -> Callable[[Any], bool]:
        """
        Return ``matches`` as a function of what ``facts`` are about.

        It sets their attribute ``subject`` to what it is given, and asks them.
        """
        return compile_about(self._expression, self._scope, facts, subject)

    def explain(self, facts: Facts) -> Explanation:
        """Return what comes of the rule and of each of its parts."""
        return Evaluator(self._scope).explain(self._expression, facts)


class RuleCompiler:
    """Compiles the expressions of one file, which share its macros."""

    def __init__(
        self,
        macros: Mapping[str, str] | None = None,
        *,
        qtap_compat: bool = False,
        vocabulary: Vocabulary = HTTP_VOCABULARY,
    ) -> None:
        """
        Check all macros, used or not; raises ``RuleError`` for the first bad one.

        With ``qtap_compat`` expressions mean what they mean to Qtap, its peculiarities
        included: ``||`` binds tighter than ``&&``, ``!`` does not negate, names of two
        hex digits are octets, block comments end at the last ``*/``.
        """
        self._scope = Scope(macros or {}, vocabulary, qtap_compat=qtap_compat)
        self.warnings: tuple[RuleWarning, ...] = self._scope.macro_warnings
        """What is odd about the macros; each rule has its own."""

    def compile(self, text: str) -> Rule:
        """Return the rule; raises ``RuleError``."""
        expression = parse(text, qtap_compat=self._scope.qtap_compat)
        return Rule(text, expression, self._scope)
