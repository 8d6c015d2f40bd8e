"""
The rule language of Qtap (rulekit): an expression that a transaction matches or not.

``RuleCompiler(macros).compile(text)`` gives a ``Rule``; ``rule.matches(facts)`` asks it.
What the words of the language mean is in ``fields.py``, ``functions.py`` and
``comparison.py``; how a text becomes Python in ``lexer.py``, ``parser.py``, ``scope.py``
and ``codegen.py``, in this order.
"""

from otel_qtap.rules.errors import RuleError
from otel_qtap.rules.evaluation import Explanation, Outcome
from otel_qtap.rules.facts import Facts
from otel_qtap.rules.fields import HTTP_VOCABULARY, FieldFact, FieldType, Stage, Vocabulary
from otel_qtap.rules.rule import Rule, RuleCompiler
from otel_qtap.rules.scope import RuleWarning

__all__ = [
    "HTTP_VOCABULARY",
    "Explanation",
    "Facts",
    "FieldFact",
    "FieldType",
    "Outcome",
    "Rule",
    "RuleCompiler",
    "RuleError",
    "RuleWarning",
    "Stage",
    "Vocabulary",
]
