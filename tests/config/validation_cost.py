"""
What it costs to check a file: CPU time by number of rules.

    python tests/config/validation_cost.py

Each stack has a hundred rules, every tenth rule has a macro of its own.
"""

from __future__ import annotations

import statistics
import time

import yaml

from otel_qtap.config import check

ROUNDS = 5


def make_file(rules: int) -> bytes:
    """Return a file with that many rules."""
    lines = ["version: 2", "services:", "  object_stores:", "    - type: stdout"]
    lines += ["rulekit:", "  macros:"]
    for number in range(max(rules // 10, 1)):
        lines += [f"    - name: is_{number}"]
        lines += [f"      expr: http.req.path matches /^\\/api\\/v{number}\\//"]
    lines += ["stacks:"]
    for first in range(0, rules, 100):
        lines += [f"  stack_{first // 100}:", "    plugins:", "      - type: http_capture"]
        lines += ["        config:", "          level: none", "          rules:"]
        for number in range(first, min(first + 100, rules)):
            macro = f"is_{number % max(rules // 10, 1)}()"
            lines += [f'            - name: "rule {number}"']
            lines += [f"              expr: {macro} && http.res.status >= 400"]
            lines += ["              level: full"]
    lines += ["tap:", "  http:", "    stack: stack_0", ""]
    return "\n".join(lines).encode()


def cost_s(data: bytes) -> float:
    """Return the median of the CPU seconds that checking ``data`` takes."""
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        report = check(data, "large.yaml")
        times.append(time.process_time() - started)
        assert report.render() == "large.yaml: valid"
    return statistics.median(times)


def main() -> None:
    """Print a line for each size, with libyaml and without."""
    with_libyaml = yaml.__with_libyaml__
    print(f"{'rules':>7} {'lines':>7} {'KiB':>7} {'libyaml':>10} {'without':>10}")
    for rules in (10, 100, 1000, 5000):
        data = make_file(rules)
        seconds = []
        for yaml.__with_libyaml__ in (with_libyaml, False):
            seconds.append(cost_s(data))
        yaml.__with_libyaml__ = with_libyaml
        lines = len(data.splitlines())
        size = f"{rules:7} {lines:7} {len(data) / 1024:7.0f}"
        print(size + "".join(f" {value * 1000:7.1f} ms" for value in seconds))


if __name__ == "__main__":
    main()
