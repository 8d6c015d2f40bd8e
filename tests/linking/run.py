"""
Play scenarios before the real agent and score the links it finds.

    python tests/linking/run.py --scenario all --mode fast
    python tests/linking/run.py --scenario queues retry-503 --haproxy 2.8 --drop 0 0.005

One line for each scenario and share of events left out; what is counted stands in
``score.py``. Exit status 1 when a link is wrong, an exchange is missing without a loss that
says so, a transaction is made of two, or fewer of the links than ``--recall`` were found.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "examples")]

from linking.capture import MODES, capture, find_haproxy  # noqa: E402 - the path comes first
from linking.evaluate import Result, evaluate  # noqa: E402
from linking.scenarios import Scenario, reduced, select  # noqa: E402
from linking.truth import AttemptKind  # noqa: E402
from traffic.world import WorldError  # noqa: E402

COLUMNS = (
    ("scenario", 32), ("haproxy", 8), ("requests", 8), ("local", 6), ("ingress", 13),
    ("egress", 13), ("failed", 9), ("lost", 6), ("links", 7), ("correct", 7), ("wrong", 6),
    ("missed", 6), ("false", 6), ("unsure", 6), ("unnamed", 7), ("hops", 11),
    ("precision", 9), ("recall", 9), ("methods", 0),
)  # fmt: skip
_LEFT = ("scenario", "haproxy", "methods")


def row(result: Result, version: str) -> tuple[str, ...]:
    """Return the line of the table for a result."""
    found, total = result.score, result.score.total
    hops = found.neighbours
    failed = found.kinds[AttemptKind.CONNECT_FAILED].captured
    given = total.correct + total.wrong + total.false_positives
    methods = ", ".join(f"{name} {count}" for name, count in found.methods.most_common())
    return (
        result.capture.scenario.name, version, str(found.requests), str(found.answered_by_proxy),
        f"{found.ingress}/{found.ingress_expected}", f"{found.egress}/{found.egress_expected}",
        f"{failed}/{result.capture.failed_connects}",
        str(sum(result.lost.values()) + result.dropped), str(total.true_links),
        str(total.correct), str(total.wrong), str(total.missed), str(total.false_positives),
        str(found.unsure), str(found.unidentified), f"{hops.correct}/{hops.true_links}",
        f"{found.precision:.5f}" if given else "-",
        f"{found.recall:.5f}" if total.true_links else "-", methods,
    )  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        cell.ljust(width) if name in _LEFT else cell.rjust(width)
        for (name, width), cell in zip(COLUMNS, cells, strict=True)
    ).rstrip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score the links of the agent against the truth.")
    add = parser.add_argument
    add("--haproxy", nargs="*", default=None, metavar="VERSION|PATH",
        help="versions (2.8), 'all', or paths; default: the first one found")  # fmt: skip
    add("--scenario", nargs="*", default=["all"], metavar="NAME", help="names, kinds or 'all'")
    add("--mode", choices=MODES, default="auto", help="tap.link of the agent")
    add("--rung", default="", help="how the agent sees sockets; default: as it likes")
    add("--drop", type=float, nargs="*", default=[0.0], metavar="P",
        help="shares of events to leave out; each of them from the same recording")  # fmt: skip
    add("--varied-answers", action="store_true",
        help="let the linker see the nonces, so that no two answers are alike")  # fmt: skip
    add("--seed", type=int, default=1, help="of what is left out")
    add("--requests", type=int, default=10**9, metavar="N", help="no more than that many each")
    add("--recall", type=float, default=None, metavar="R",
        help="least share of links; default: the scenario's, with --drop or passive 0")  # fmt: skip
    add("--reads", nargs="*", default=["http1"], help="protocols the agent can read")
    add("--keep", type=Path, default=None, metavar="DIR", help="keep recordings and notes there")
    return parser.parse_args()


def _chosen(wanted: Sequence[str] | None) -> dict[str, Path]:
    found = find_haproxy()
    if wanted is None:
        return dict([next(iter(found.items()))])
    chosen: dict[str, Path] = {}
    for name in wanted:
        if "/" in name:
            chosen[Path(name).name] = Path(name)
        else:
            chosen |= {v: p for v, p in found.items() if name == "all" or v.startswith(name)}
    return chosen


def _least_recall(arguments: argparse.Namespace, scenario: Scenario, drop: float) -> float:
    if arguments.recall is not None:
        return float(arguments.recall)
    if drop or arguments.mode == "passive":
        return 0.0
    by_probes = scenario.least_recall_of_probes if arguments.mode == "probe" else None
    return scenario.least_recall if by_probes is None else by_probes


def main() -> int:
    """Run what the command line says; return the exit status."""
    arguments = _arguments()
    has_failed = False
    print(_line([name for name, _ in COLUMNS]), flush=True)
    for version, binary in _chosen(arguments.haproxy).items():
        for full in select(arguments.scenario):
            if full.reads not in arguments.reads:
                continue
            scenario = reduced(full, arguments.requests)
            with tempfile.TemporaryDirectory(prefix="linking-") as temporary:
                directory = Path(temporary)
                if arguments.keep:
                    directory = arguments.keep.resolve() / f"{scenario.name}-{version}"
                    shutil.rmtree(directory, ignore_errors=True)
                try:
                    captured = capture(
                        scenario, binary, directory, mode=arguments.mode, rung=arguments.rung
                    )
                    for drop in arguments.drop:
                        result = evaluate(
                            captured, drop=drop, seed=arguments.seed,
                            masked=not arguments.varied_answers,
                        )  # fmt: skip
                        has_failed |= _print(result, version, _least_recall(arguments, full, drop))
                except WorldError as error:
                    has_failed = True
                    print(f"{scenario.name:32} {version:8} {error}", flush=True)
    return int(has_failed)


def _print(result: Result, version: str, least_recall: float) -> bool:
    """Print the line of a result and what failed; return whether anything did."""
    print(_line(row(result, version)), flush=True)
    failures = result.failures(least_recall)
    for failure in failures:
        print(f"    {failure}", flush=True)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
