"""
Show that the examples do what they say, on a real HAProxy.

Each folder beside this file that has a qtap.yaml, a haproxy.cfg and a check.py is an
example. Its HAProxy, backends and clients run in a network namespace of their own, the
agent beside them; the check sends requests, looks at what was captured, and compares that
with what the example promises. No port of this machine is taken, nothing is left.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from checks.stage import PROMPT_S, Finding, Stage
from haproxy_demo.world import WorldError

EXAMPLES = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the names of all examples, in the order of the guide."""
    found = [path.parent.name for path in EXAMPLES.glob("*/check.py")]
    return sorted(found, key=lambda name: (load(name).PLACE, name))


def load(name: str) -> ModuleType:
    """Return the module of an example."""
    return importlib.import_module(f"{name}.check")


def perform(
    name: str, say: Callable[[str], None], *, is_reduced: bool = False
) -> Iterator[Finding]:
    """Run the check of an example; yield findings, and ``say`` what happens."""
    with (
        tempfile.TemporaryDirectory(prefix=f"otel_qtap-{name}-") as directory,
        Stage(name, Path(directory), say, is_reduced=is_reduced) as stage,
    ):
        yield from load(name).check(stage)
        if stage.late:
            promise = f"all of it is there within {PROMPT_S:g} s, and not only when the agent stops"
            yield Finding(False, promise, f"{stage.late} are late or missing")


def say(text: str) -> None:
    """Print a line under the heading of the example."""
    print(f"    {text}".rstrip(), flush=True)


def show(name: str) -> bool:
    """Run a check and print it as it goes; return whether all was as promised."""
    started_s = time.monotonic()
    print(f"\n==> {name}: {summary(name)}\n", flush=True)
    failed: list[str] = []
    try:
        for is_so, promise, evidence in perform(name, say):
            say(f"{'ok    ' if is_so else 'FAILED'}    {promise}")
            if evidence:
                say(f"          {evidence}")
            if not is_so:
                failed.append(promise)
    except WorldError as error:
        say(f"FAILED    {error}")
        failed.append(str(error))
    verdict = "OK" if not failed else f"FAILED: {'; '.join(failed)}"
    print()
    say(f"{name}: {verdict} ({time.monotonic() - started_s:.1f} s)")
    return not failed


def summary(name: str) -> str:
    """Return what an example is about."""
    return str(load(name).__doc__).strip().splitlines()[0]


def run(chosen: Sequence[str]) -> int:
    results = {name: show(name) for name in chosen}
    if len(results) > 1:
        print("\n==> Results\n")
        for name, is_ok in results.items():
            print(f"    {'OK    ' if is_ok else 'FAILED'}  {name}")
    return 0 if all(results.values()) else 1


def list_examples() -> None:
    """Print what there is."""
    known = names()
    width = max(map(len, known))
    for name in known:
        print(f"  {name.ljust(width)}  {summary(name)}")
    print(f"  {'(demo)'.ljust(width)}  everything in full, both sides: examples/demo shows it")


def _leave(number: int, _frame: object) -> None:
    """End like Ctrl-C does: through every clean-up."""
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="examples/check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="an example; default: list them")
    parser.add_argument("--all", action="store_true", help="check all of them")
    arguments = parser.parse_args()
    known = names()
    for name in arguments.names:
        if name not in known:
            parser.error(f"there is no example {name!r}; there are: {', '.join(known)}")
    if not arguments.names and not arguments.all:
        list_examples()
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" had it ignored
    try:
        return run(known if arguments.all else arguments.names)
    except BrokenPipeError:  # piped into head, for instance
        sys.stderr.close()  # or the interpreter complains about stdout when it ends
        return 141
    except KeyboardInterrupt:
        print("\nexamples/check: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
