"""
What it costs to ask a rule about a transaction, and to compile one.

    python tests/benchmarks/rule_cost.py --rounds 9

``first`` is what the first rule of a plugin costs for a transaction, ``next`` what each
further one does that reads the same fields. ``walk`` is the plain evaluator of
``evaluation.py``, for comparison. Microseconds, the best of all rounds.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.plugins.rule_facts import RuleBinder, TransactionFacts
from otel_qtap.rules import HTTP_VOCABULARY, RuleCompiler
from otel_qtap.rules.evaluation import Evaluator
from otel_qtap.rules.parser import parse
from otel_qtap.rules.scope import Scope

MACROS = {
    "is_health_check": 'http.req.path == "/health"',
    "is_error": "http.res.status >= 400",
    "is_slow": "http.res.duration_ms > 500",
    "is_backup_dc": "http.req.url matches /dc2-/",
}
RULES = [
    "http.res.status >= 400",
    "http.res.status in [429, 503]",
    "is_slow()",
    'http.req.path != "/health"',
    "is_error() && !is_health_check()",
    "is_health_check() && is_error()",
    'http.req.headers.retry-after != ""',
    "src.ip in 10.0.0.0/8",
    'direction == "ingress" && tags contains "bin:haproxy"',
    'starts_with(http.req.path, "/api")',
    r"http.req.path matches /^\/api\// && http.res.status >= 400",
    r"http.req.path matches /^\/api\/v[0-9]+\/(users|orders)/ && http.res.status >= 400",
    "!is_backup_dc() && http.res.status >= 500",
    'in_zone(http.req.host, "example.com")',
]


def load_factories() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "factories.py"
    spec = importlib.util.spec_from_file_location("factories", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def microseconds(
    call: Callable[[Any], object], subjects: list[Any], rounds: int, seconds: float
) -> float:
    """Return the cost of one call: the best of ``rounds`` that take ``seconds`` each."""
    count, taken = 1, 0.0
    while taken < seconds / 10:
        count *= 2
        taken = _time(call, subjects * count)
    count = max(1, int(count * seconds / taken))
    best = min(_time(call, subjects * count) for _ in range(rounds))
    return best / count / len(subjects) * 1e6


def _time(call: Callable[[Any], object], subjects: list[Any]) -> float:
    gc.collect()
    gc.disable()
    start = time.process_time()
    for subject in subjects:
        call(subject)
    taken = time.process_time() - start
    gc.enable()
    return taken


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Cost of rules, in microseconds.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts")
    parser.add_argument("--seconds", type=float, default=0.1, help="CPU time of a round")
    arguments = parser.parse_args()
    make_transaction = load_factories().make_transaction
    headers = tuple((f"x-header-{number}", "value") for number in range(8))
    one, other = (
        make_transaction(
            status=503,
            target=f"/api/v1/users?id={number}",
            request_headers=(("host", "api.example.com"), *headers),
        )
        for number in range(2)
    )
    facts = TransactionFacts(one)
    compiler = RuleCompiler(MACROS)
    evaluator = Evaluator(Scope(MACROS, HTTP_VOCABULARY, qtap_compat=False))

    def cost(call: Callable[[Any], object], *subjects: Any) -> str:
        return f"{microseconds(call, [*subjects], arguments.rounds, arguments.seconds):9.3f}"

    print(f"{'microseconds each':<84}{'first':>9}{'next':>9}{'walk':>9}{'compile':>9}")
    for text in RULES:
        bound = RuleBinder().bind(compiler.compile(text), CaptureLevel.FULL)
        tree = parse(text)
        cells = [
            cost(bound.matches, one, other),  # each time another one than the time before
            cost(bound.matches, one),
            cost(lambda facts, tree=tree: evaluator.outcome(tree, facts), facts),
            cost(compiler.compile, text),
        ]
        print(f"{text:<84}{''.join(cells)}")


if __name__ == "__main__":
    main()
