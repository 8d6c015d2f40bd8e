"""``otel-qtap rule``: what a rule means, and which of some transactions it matches."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from otel_qtap.config import Config, ConfigError, Severity, check_file
from otel_qtap.plugins import Redactor
from otel_qtap.plugins.rule_check import (
    Subject,
    SubjectError,
    check_rule,
    describe_error,
    describe_rule,
    json_subjects,
    transaction_subjects,
)
from otel_qtap.receiver.recording import Recording, RecordingError
from otel_qtap.replay import recorded_transactions
from otel_qtap.rules import Rule, RuleError

__all__ = ["main"]

_EXAMPLES = """\
examples:
  otel-qtap rule 'http.res.status >= 500 && http.req.path != "/health"'
  otel-qtap rule 'is_slow()' --config=qtap.yaml --against incident.qtaprec
  otel-qtap rule 'direction == "ingress"' --against stored.jsonl --quiet

--against takes recordings, and files of JSON lines: what an object store got with
format: json, or objects of fields such as {"http.req.path": "/api", "http.res.status": 503}.
The exit status is 0 when the rule can be used, whatever it matches, else 1.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        _print(_told(options))
    except RuleError as error:
        for line in describe_error(error):
            print(line, file=sys.stderr)  # noqa: T201 - for a person
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - many lines, for a person
    except (OSError, RecordingError, SubjectError) as error:
        print(f"otel-qtap rule: {error}", file=sys.stderr)  # noqa: T201 - the one message
    else:
        return 0
    return 1


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            print(line, flush=True)  # noqa: T201 - what was asked for
    except BrokenPipeError:  # piped into head, for instance
        sys.stderr.close()  # or the interpreter complains about stdout when it ends


def _told(options: argparse.Namespace) -> Iterator[str]:
    config = _config(options.config)
    rule = config.rule_compiler().compile(options.expression)
    redactor = Redactor.of(config.redact)
    yield from describe_rule(rule)
    for name in options.against:
        yield ""
        if len(options.against) > 1:
            yield f"{name}:"
        yield from _tried(rule, Path(name), redactor, quiet=options.quiet)


def _config(file: str) -> Config:
    """Return the file, for its macros and its way to read rules; it may lack its variables."""
    if not file:
        return Config()
    report = check_file(Path(file), unset=Severity.WARNING)
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def _tried(rule: Rule, path: Path, redactor: Redactor, *, quiet: bool) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            if lines.read(1) in ("{", "\n", ""):
                lines.seek(0)
                yield from _checked(rule, json_subjects(lines), path, quiet=quiet)
                return
    except OSError as error:
        raise SubjectError(f"cannot read {path}: {error.strerror}") from None
    with closing(Recording(path)) as recording:
        subjects = transaction_subjects(recorded_transactions(recording), redactor)
        yield from check_rule(rule, subjects, quiet=quiet)


def _checked(rule: Rule, subjects: Iterable[Subject], path: Path, *, quiet: bool) -> Iterator[str]:
    try:
        yield from check_rule(rule, subjects, quiet=quiet)
    except SubjectError as error:
        raise SubjectError(f"{path}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-qtap rule",
        description="Explain a rule, and try it on transactions that were captured before.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("expression", metavar="EXPR", help="a rulekit expression")
    add(
        "--config",
        metavar="FILE",
        default=os.environ.get("QPOINT_CONFIG", ""),
        help="Qtap file whose macros the rule may call (QPOINT_CONFIG)",
    )
    add(
        "--against",
        metavar="FILE",
        action="append",
        default=[],
        help="recording or JSON lines to try it on; may be given several times",
    )
    add("--quiet", action="store_true", help="print what matches, and not why")
    return parser
