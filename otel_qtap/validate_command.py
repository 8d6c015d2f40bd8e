"""``otel-qtap validate``: everything there is to tell about a Qtap file, without an agent."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from otel_qtap.config import Report, Severity, check, check_file
from otel_qtap.config.document import MAX_FILE_SIZE
from otel_qtap.config.schema import SCHEMA_PATH

__all__ = ["main"]

_EXAMPLES = """\
examples:
  otel-qtap validate qtap.yaml
  otel-qtap validate --strict qtap.yaml && otel-qtap reload-config
  helm template . | otel-qtap validate --other-host -
  otel-qtap validate --schema > qtap.schema.json     for an editor

The exit status is 0 when an agent would start with the file, else 1. An environment
variable that the file names and that is not set is an error, as at the start; with
--other-host it is a warning, for a file that is checked elsewhere than it is used.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.schema:
        print(SCHEMA_PATH.read_text("utf-8"), end="")  # noqa: T201 - what was asked for
        return 0
    if not options.file:
        parser.error("the following arguments are required: FILE")
    report = _check(options.file, Severity.WARNING if options.other_host else Severity.ERROR)
    print(report.render(strict=options.strict))  # noqa: T201 - what was asked for
    return 0 if report.is_accepted(strict=options.strict) else 1


def _check(file: str, unset: Severity) -> Report:
    if file == "-":
        return check(sys.stdin.buffer.read(MAX_FILE_SIZE + 1), "standard input", unset=unset)
    return check_file(Path(file), unset=unset)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-qtap validate",
        description="Check a Qtap file and its rules, and tell every problem at once.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        nargs="?",
        default=os.environ.get("QPOINT_CONFIG", ""),
        help="the Qtap file, or - for stdin (QPOINT_CONFIG)",
    )
    add("--strict", action="store_true", help="accept no file that brings warnings, either")
    add(
        "--other-host",
        action="store_true",
        help="do not insist on the environment variables that the file names",
    )
    add("--schema", action="store_true", help="print the JSON schema of Qtap files, and no more")
    return parser
