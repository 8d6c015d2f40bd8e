"""
What it costs to make and to read an event: a named tuple, and two kinds of dataclass.

    python tests/benchmarks/event_cost.py

The tap makes four ``DataEvent`` per proxied request and takes each of them apart twice.
Each cell is the best of all rounds, in nanoseconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from otel_qtap.events import DataEvent, Flow

VALUES = (4711, 1_000_000_000, 100, 101, Flow.RECEIVE, 4096, 512, True, b"x" * 512)
_FIELDS = list(get_type_hints(DataEvent).items())
FROZEN = make_dataclass("FROZEN", _FIELDS, frozen=True, slots=True)
PLAIN = make_dataclass("PLAIN", _FIELDS, slots=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds for each thing that is done with an event."""

    make: float
    read_one: float
    read_all: float


def measure(kind: Callable[..., Any], rounds: int, count: int) -> Cost:
    """Return what events of ``kind`` cost."""
    return Cost(
        make=best(lambda: make(kind, count), rounds) / count,
        read_one=best(lambda: read_one(kind(*VALUES), count), rounds) / count,
        read_all=best(lambda: read_all(kind(*VALUES), count), rounds) / count,
    )


def make(kind: Callable[..., Any], count: int) -> None:
    """Make an event, as ``decode`` does it."""
    connection, now, process, thread, flow, offset, size, turned, data = VALUES
    for _ in range(count):
        kind(connection, now, process, thread, flow, offset, size, turned, data)


def read_one(event: Any, count: int) -> None:
    """Read one field."""
    for _ in range(count):
        _ = event.connection_id


def read_all(event: Any, count: int) -> None:
    """Read seven fields, as the assembler does: by unpacking where the kind allows it."""
    if isinstance(event, tuple):
        for _ in range(count):
            _, _now, _process, _thread, _flow, _offset, _size, _turned, _data = event
        return
    for _ in range(count):
        _now, _process, _thread = event.timestamp_ns, event.process_id, event.thread_id
        _flow, _offset, _turned, _data = event.flow, event.offset, event.turned, event.data


def best(action: Callable[[], None], rounds: int) -> int:
    """Return the shortest time of ``action``, in nanoseconds of CPU."""
    times = []
    for _ in range(rounds):
        start = time.process_time_ns()
        action()
        times.append(time.process_time_ns() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=50_000, help="events of a round")
    arguments = parser.parse_args()
    print(f"{'nanoseconds each':<32}{'make':>8}{'read one':>10}{'read seven':>12}")
    kinds: list[tuple[str, Callable[..., Any]]] = [
        ("NamedTuple (otel_qtap.events)", DataEvent),
        ("dataclass, frozen, slots", FROZEN),
        ("dataclass, slots", PLAIN),
    ]
    for name, kind in kinds:
        cost = measure(kind, arguments.rounds, arguments.count)
        print(f"{name:<32}{cost.make:>8.0f}{cost.read_one:>10.0f}{cost.read_all:>12.0f}")


if __name__ == "__main__":
    main()
