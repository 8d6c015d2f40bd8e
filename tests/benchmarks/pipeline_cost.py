"""
What each step of the tap thread costs, in microseconds per proxied request.

    python tests/benchmarks/pipeline_cost.py --rounds 9 --level summary

A recording of real HAProxy 2.6 goes through a longer and longer part of the chain; what
a step costs is the difference to the part without it. A proxied request is two
transactions and four data events: HAProxy reads it, sends it on, reads the answer and
sends that back. The shortest of all rounds counts, measured as CPU time of one thread,
so a busy machine disturbs little. No root, no kernel.

``--record FILE`` (root) makes such a recording anew, with the same traffic.
"""

from __future__ import annotations

import argparse
import gc
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import Config
from otel_qtap.connection.model import Process
from otel_qtap.connection.tracker import Connection, ConnectionTracker
from otel_qtap.counters import CounterSet
from otel_qtap.events import CloseEvent, DataEvent, Event, Flow, OpenEvent
from otel_qtap.pipeline import Pipeline, PipelineOptions
from otel_qtap.receiver.recording import AddressName, RecordedProcess, Recording, RecordingWriter
from otel_qtap.receiver.wire import decode
from otel_qtap.replay import RecordedFacts
from otel_qtap.transaction.assembler import Assembler, AssemblerLimits
from otel_qtap.transaction.conversation import Conversation
from otel_qtap.transaction.exchange import Exchange
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Ending, Transaction

RECORDING = Path(__file__).with_name("proxied_requests.qtaprec")
RECORDED_REQUESTS = 1000
STEPS = ("decode", "tracker", "parse+assemble", "emit", "plugin")


class Silence:
    """Takes what a step would hand on, and does nothing with it."""

    def stream_data(self, event: DataEvent) -> None:
        """Stand where a conversation stands."""

    def stream_gap(self, flow: Flow, size: int, timestamp_ns: int) -> None:
        """Stand where a conversation stands."""

    def stream_step(self, event: CloseEvent) -> None:
        """Stand where a conversation stands."""

    def give_up(self, timestamp_ns: int) -> None:
        """Stand where a conversation stands."""

    def consume(self, transaction: Transaction) -> None:
        """Stand where the plugins stand."""


class SilentAssembler(Assembler):
    """Reads conversations to their ends and makes no transactions of them."""

    def emit(self, talk: Conversation, exchange: Exchange, ending: Ending, end_ns: int) -> None:
        """Leave out what is measured as the next step."""


class Material:
    """What a recording holds, read once."""

    def __init__(self, path: Path) -> None:
        self.facts = RecordedFacts()
        self.records: list[bytes] = []
        for item in Recording(path):
            if isinstance(item, bytes):
                self.records.append(item)
            elif isinstance(item, RecordedProcess | AddressName):
                self.facts.learn(item)
        self.events = [decode(record) for record in self.records]
        counters = CounterSet()
        tracker = ConnectionTracker(self.assembler(Assembler, counters).open, counters)
        self.feed(tracker.consume)
        self.requests = counters.total("otel_qtap.transactions") / 2

    def feed(self, take: Callable[[Event], None]) -> None:
        """Give every event to ``take``."""
        for event in self.events:
            take(event)

    def assembler(
        self, kind: type[Assembler], counters: CounterSet, body_bytes: int = 0
    ) -> Assembler:
        """Return an assembler whose transactions go nowhere."""
        return kind(
            Silence(), self.facts, counters,
            limits=AssemblerLimits(body_bytes=body_bytes), ids=IdGenerator(), epoch_offset_ns=0,
        )  # fmt: skip


def decode_all(records: Iterable[bytes]) -> None:
    """Decode every record, as out of the ring."""
    for record in map(memoryview, records):
        decode(record)


def cumulative(material: Material, config: Config) -> list[Callable[[], Callable[[], None]]]:
    """
    Return, for each step after decoding, what sets up the chain that ends with it.

    That in turn returns what is to be timed.
    """
    full = config.highest_capture_level() is CaptureLevel.FULL
    body_bytes = PipelineOptions().http_buffer_bytes if full else 0

    def tracker() -> Callable[[], None]:
        def open_reader(_connection: Connection) -> Silence:
            return Silence()

        chain = ConnectionTracker(open_reader, CounterSet())
        return lambda: material.feed(chain.consume)

    def assembling(kind: type[Assembler]) -> Callable[[], None]:
        counters = CounterSet()
        assembler = material.assembler(kind, counters, body_bytes)
        chain = ConnectionTracker(assembler.open, counters)
        return lambda: material.feed(chain.consume)

    def whole() -> Callable[[], None]:
        chain = Pipeline(
            config, material.facts, CounterSet(), io.BytesIO(),
            options=PipelineOptions(), epoch_offset_ns=0,
        )  # fmt: skip
        return lambda: material.feed(chain.accept_event)

    return [tracker, lambda: assembling(SilentAssembler), lambda: assembling(Assembler), whole]


def measure(material: Material, config: Config, rounds: int) -> dict[str, float]:
    """Return the cost of each step, in microseconds per request."""
    chains = [lambda: lambda: decode_all(material.records), *cumulative(material, config)]
    best = [float("inf")] * len(chains)
    gc.collect()
    gc.freeze()  # as the agent has it
    gc.set_threshold(50_000, 20, 50)
    for _ in range(rounds):
        for index, set_up in enumerate(chains):
            best[index] = min(best[index], thread_time_ns(set_up()))
    costs = [best[0], best[1], *(best[n] - best[n - 1] for n in (2, 3, 4))]
    return {step: cost / 1000 / material.requests for step, cost in zip(STEPS, costs, strict=True)}


def thread_time_ns(action: Callable[[], None]) -> int:
    """Return the CPU time that ``action`` takes on this thread."""
    start = time.thread_time_ns()
    action()
    return time.thread_time_ns() - start


def make_config(level: str, store: str) -> Config:
    """Return a configuration with one ``http_capture`` plugin."""
    plugin = {"type": "http_capture", "config": {"level": level, "format": "json"}}
    return Config.model_validate(
        {
            "version": 2,
            "services": {
                "event_stores": [{"type": "disabled"}],
                "object_stores": [{"type": store}],
            },
            "stacks": {"measured": {"plugins": [plugin]}},
            "tap": {"direction": "all", "http": {"stack": "measured"}},
        }
    )


def record(path: Path) -> None:
    """Record what HAProxy does with ``RECORDED_REQUESTS`` requests on 16 connections."""
    from benchmarks.haproxy_cost import Scene  # noqa: PLC0415 - needs root and a compiler

    with tempfile.TemporaryDirectory() as directory, Scene(Path(directory)) as scene:
        everything = Path(directory) / "everything.qtaprec"
        scene.record(everything, requests=RECORDED_REQUESTS, connections=16)
        keep_haproxy(everything, path, scene.haproxy_pid)


def keep_haproxy(source: Path, path: Path, pid: int) -> None:
    """Copy what a recording says of one process, and nothing of the machine it ran on."""
    recording = Recording(source)
    writer = RecordingWriter(
        path, epoch_offset_ns=recording.epoch_offset_ns, limit_bytes=64 * 1024 * 1024
    )
    writer.write_process(Process(pid=pid, executable="/usr/sbin/haproxy"), None)
    for item in recording:
        if isinstance(item, bytes):
            event = decode(item)
            if isinstance(event, OpenEvent | DataEvent | CloseEvent) and event.process_id == pid:
                writer.write_record(item)
    writer.close("stopped")
    path.chmod(0o644)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=15)
    add("--level", choices=[level.value for level in CaptureLevel], default="summary")
    add("--store", choices=("disabled", "stdout"), default="disabled")
    add("--recording", type=Path, default=RECORDING, help="another recording of proxied requests")
    add("--record", type=Path, metavar="FILE", help="make a recording instead (root)")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        return
    material = Material(arguments.recording)
    costs = measure(material, make_config(arguments.level, arguments.store), arguments.rounds)
    print(
        f"{material.requests:.0f} proxied requests, {len(material.events)} events, "
        f"level {arguments.level}, store {arguments.store}"
    )
    print(f"{'step':<18}{'µs per request':>16}")
    for step, cost in costs.items():
        print(f"{step:<18}{cost:>16.1f}")
    print(f"{'sum':<18}{sum(costs.values()):>16.1f}")


if __name__ == "__main__":
    main()
