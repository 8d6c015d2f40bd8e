"""``otel-qtap report``: the options, and the report shown once or again and again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import get_args

from otel_qtap.options import DEFAULT_STATUS
from otel_qtap.report import By, Rates, ReportSnapshot, rates_between, render_report
from otel_qtap.report_sources import (
    RecordingFile,
    ReportError,
    Source,
    open_source,
)

__all__ = ["main"]

_CLEAR_SCREEN = "\x1b[H\x1b[2J"

_EXAMPLES = """\
examples:
  otel-qtap report                              the agent on this machine
  otel-qtap report --watch 5 --process haproxy  the same, again every five seconds
  otel-qtap report 10.0.0.7:10001 --by path     another agent (its --status-listen)
  otel-qtap report incident.qtaprec             a recording
  otel-qtap report transactions.jsonl           what an agent printed with format: json
  kubectl logs ds/otel-qtap | otel-qtap report -
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with closing(open_source(options.source, follows=options.watch is not None)) as source:
            _show(source, options)
    except ReportError as error:
        print(f"otel-qtap report: {error}", file=sys.stderr)  # noqa: T201 - the one message
        return 1
    except KeyboardInterrupt:
        pass  # how watching ends
    except BrokenPipeError:  # piped into head, for instance
        sys.stderr.close()  # or the interpreter complains about stdout when it ends
    return 0


def _show(source: Source, options: argparse.Namespace) -> None:
    if options.watch is not None and not isinstance(source, RecordingFile):
        _watch(source, options)
        return
    print(_text(source.snapshot(), options), end="", flush=True)  # noqa: T201 - what was asked for
    _remark(source)


def _watch(source: Source, options: argparse.Namespace) -> None:
    before: ReportSnapshot | None = None
    before_s = 0.0
    while True:
        is_over, now_s = source.is_over, time.monotonic()
        snapshot = source.snapshot()
        rates = None
        if before is not None:
            rates = rates_between(before, snapshot, options.by, now_s - before_s)
        if sys.stdout.isatty() and not options.json:
            print(_CLEAR_SCREEN, end="")  # noqa: T201
        print(_text(snapshot, options, rates), flush=True)  # noqa: T201 - what was asked for
        if is_over:
            _remark(source)
            return
        before, before_s = snapshot, now_s
        time.sleep(options.watch)


def _text(
    snapshot: ReportSnapshot,
    options: argparse.Namespace,
    rates: Rates | None = None,
) -> str:
    if options.json:
        return snapshot.model_dump_json(indent=2 if options.watch is None else None) + "\n"
    return render_report(
        snapshot, options.by, process=options.process, limit=options.limit, rates=rates
    )


def _remark(source: Source) -> None:
    remark = source.remark()
    if remark:
        print(f"otel-qtap report: {remark}", file=sys.stderr)  # noqa: T201 - beside the report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-qtap report",
        description="Show requests, errors, latencies and HAProxy's overhead per backend.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        nargs="?",
        default=os.environ.get("STATUS_LISTEN") or DEFAULT_STATUS,
        help="address of an agent, a recording, a file of JSON lines, or - for stdin; "
        f"default: the agent on this machine, {DEFAULT_STATUS} (STATUS_LISTEN)",
    )
    add("--by", choices=get_args(By), default="backend", help="what makes a row; default backend")
    add(
        "--process",
        metavar="NAME",
        default="",
        help="only programs, or containers, with that in their name: haproxy",
    )
    add("--limit", metavar="ROWS", type=_count, default=40, help="rows of each; default 40")
    add(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=2.0,
        help="show it again that often, with requests per second; default 2, until Ctrl-C",
    )
    add("--json", action="store_true", help="print all tables as JSON")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, at least 0.1")
    return value
