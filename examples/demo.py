"""
Show otel_qtap at work on a real HAProxy.

Starts HAProxy with the front end and the five backends of Qtap's HAProxy guide (and a
sixth, so that its /health route has somebody to answer), an OpenTelemetry collector and
the agent; sends the guide's seven tests, and a request that HAProxy has to try twice;
prints the captured transactions and then the spans, as the collector received them, as one
tree per request. HAProxy and the backends run in a network namespace of their own: no port
of this machine is taken.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from haproxy_demo import scene
from haproxy_demo.receiver import Receiver, free_port
from haproxy_demo.span_tree import SpanTree
from haproxy_demo.transactions import Transaction, read_transactions
from haproxy_demo.world import Program, World, WorldError, wait_until

EXAMPLES = Path(__file__).resolve().parent
AGENT = EXAMPLES.parent / ".venv" / "bin" / "otel-qtap"
TRANSACTION_EVENT = "otel_qtap.http.transaction"  # Qtap's events are log records, too
STANDARD_ENDPOINT = "http://127.0.0.1:4318"
SIDES = sum(test.sides for test in scene.ACTS)
"""Transactions that HAProxy takes part in, each of them once as a server or a client."""


def heading(text: str) -> None:
    print(f"\n==> {text}", flush=True)


def say(text: str) -> None:
    print(f"    {text}", flush=True)


class Demo:
    """The cast, from the first to leave the stage to the last."""

    def __init__(self, stack: ExitStack, *, shows_all: bool) -> None:
        self._stack = stack
        self._shows_all = shows_all
        temporary = tempfile.TemporaryDirectory(prefix="otel_qtap-demo-")
        self._directory = Path(stack.enter_context(temporary))
        self.receiver: Receiver | None = None

    def start(self) -> None:
        """Bring everybody on stage, the agent first: without eBPF there is no play."""
        heading("Starting the collector and the agent")
        if Receiver.is_available():
            self.receiver = Receiver(self._directory)
            self._stack.callback(self.receiver.program.stop)
            self.receiver.wait_until_ready()
            say(f"rotel receives OTLP on {self.receiver.endpoint}")
        else:
            say("no collector for this machine: there will be no span trees")
        self.agent = self._start_agent()

        heading("Starting HAProxy and its backends in a network of their own")
        self.world = self._stack.enter_context(World(self._directory / "world", scene.HOSTS))
        scene.start_backends(self.world)
        for backend in scene.BACKENDS:
            say(f"{backend.name:<16} {backend.address}:{backend.port}")
        self.haproxy = scene.start_haproxy(self.world)
        say(f"{'haproxy':<16} *:{scene.FRONT_END_PORT} (PID {self.haproxy.pid})")

    def _start_agent(self) -> Program:
        config = (EXAMPLES / "qtap.yaml").read_text(encoding="utf-8")
        if self.receiver is not None:
            config = config.replace(STANDARD_ENDPOINT, self.receiver.endpoint)
        path = self._directory / "qtap.yaml"
        path.write_text(config, encoding="utf-8")
        command = [str(AGENT), "--config", str(path), "--log-level=info", "--log-encoding=console"]
        command += ["--status-listen", f"127.0.0.1:{free_port()}"]
        # A proxy for the outside world has no business between us on loopback.
        agent = Program("otel-qtap", command, self._directory, {"no_proxy": "*", "NO_PROXY": "*"})
        self._stack.callback(agent.stop, timeout_s=10)
        ready_s = agent.wait_until_it_says("READY", 30)
        say(f"otel-qtap captures (PID {agent.pid}, ready in {ready_s:.1f} s)")
        return agent

    def send_tests(self) -> None:
        """Send the seven tests and the encore, and say who answered."""
        heading(f"Sending the seven tests and an encore ({scene.REQUESTS} requests)")
        for number, test in enumerate(scene.ACTS, start=1):
            answers = list(scene.send(self.world, test))
            method = "POST" if test.json_body else "GET"
            name = "Encore" if test is scene.ENCORE else f"Test {number}"
            print(f"\n    {name}, {test.title}: {method} {test.url}")
            if test.repeat > 1:
                say("  " + ", ".join(map(scene.service_of, answers)))
            else:
                say("  " + answers[0].strip())

    def captured(self) -> list[Transaction]:
        """Return what the agent has printed about HAProxy, health checks left out."""
        return [t for t in read_transactions(self.agent.output()) if self._is_of_a_test(t)]

    def _is_of_a_test(self, transaction: Transaction) -> bool:
        return transaction.pid == self.haproxy.pid and not transaction.is_health_check

    def wait_for_capture(self) -> None:
        """Wait until both sides of every request are printed and sent, or a few seconds."""
        try:
            wait_until(lambda: len(self.captured()) >= SIDES, 5, "transactions")
            wait_until(lambda: self._spans_received() >= SIDES, 8, "spans")
        except WorldError:
            pass  # what is missing is said at the end

    def _spans_received(self) -> int:
        if self.receiver is None:
            return SIDES
        tree = self._tree(self.receiver)
        return len(tree.requests) + len(tree.attempts)

    def _tree(self, receiver: Receiver) -> SpanTree:
        spans, _ = receiver.telemetry()
        return SpanTree(spans, self.haproxy.pid)

    def stop_agent(self) -> None:
        """Stop the agent, which sends what it still holds."""
        heading("Stopping the agent")
        status = self.agent.stop(timeout_s=10)
        if status:
            raise WorldError(f"the agent ended with status {status}\n\n{self.agent.errors()}")
        say("it has sent what it held and ended")

    def show_transactions(self) -> None:
        """Print the transactions of the tests, or everything that was captured."""
        heading("Captured transactions")
        everything = list(read_transactions(self.agent.output()))
        shown = everything if self._shows_all else self.captured()
        for transaction in shown:
            print(f"\n{transaction.text}")
        print()
        say(f"{len(shown)} transactions shown")
        others = Counter(
            "HAProxy's own health checks"
            if t.pid == self.haproxy.pid
            else f"{t.process} ({'client' if t.is_egress else 'server'} side)"
            for t in everything
            if not self._is_of_a_test(t)
        )
        if others and not self._shows_all:
            counts = "; ".join(f"{count} by {who}" for who, count in others.most_common())
            counts = counts.replace("by HAProxy's own", "HAProxy's own")
            say(f"{others.total()} others captured ({counts}): examples/demo --all shows them")

    def show_spans(self) -> None:
        """Print the spans that the collector received."""
        if self.receiver is None:
            return
        heading("Spans, as the collector received them")
        spans, records = self.receiver.telemetry()
        logs = [record for record in records if record.event_name == TRANSACTION_EVENT]
        tree = SpanTree(spans, self.haproxy.pid)
        print()
        for line in tree.lines():
            print(f"    {line}".rstrip())
        attempts = len(tree.attempts)
        say(f"{len(tree.requests)} requests (SERVER), {attempts} backend attempts (CLIENT)")
        say(f"linked to their request: {len(tree.linked)} of {attempts} backend attempts")
        in_tree = {span.span_id for span in spans}
        correlated = sum(record.span_id in in_tree for record in logs)
        say(
            f"{len(logs)} log records of transactions, {correlated} of them carry the id of their"
            f" span; {len(records) - len(logs)} of Qtap's events"
        )
        if len(spans) > tree.size():
            say(
                f"{len(spans) - tree.size()} more spans: {len(tree.health_checks)} health checks,"
                " the rest of curl, the backends and other programs of this machine"
            )

    def verdict(self) -> int:
        """Say whether all was seen that was sent, and linked; return the exit status."""
        seen, spans = len(self.captured()), self._spans_received()
        heading("Done")
        say(f"{scene.REQUESTS} requests have {SIDES} sides; captured: {seen}, as spans: {spans}")
        if not seen == SIDES == spans:
            print("examples/demo: not every side was seen exactly once", file=sys.stderr)
            return 1
        if self.receiver is not None and not self._tree(self.receiver).is_linked:
            print("examples/demo: not every request is linked to its attempts", file=sys.stderr)
            return 1
        return 0

    def keep_running(self) -> None:
        """Leave everything running until Ctrl-C, printing what is captured."""
        heading("Running until Ctrl-C")
        say("send requests from another terminal:")
        say(f"  {' '.join(self.world.entrance)} curl http://localhost:{scene.FRONT_END_PORT}/")
        printed = len(list(read_transactions(self.agent.output())))
        while True:
            self.agent.require_running()
            self.haproxy.require_running()
            transactions = list(read_transactions(self.agent.output()))
            for transaction in transactions[printed:]:
                if self._shows_all or self._is_of_a_test(transaction):
                    print(f"\n{transaction.text}", flush=True)
            printed = len(transactions)
            time.sleep(0.3)


def run(arguments: argparse.Namespace) -> int:
    with ExitStack() as stack:
        demo = Demo(stack, shows_all=arguments.all)
        demo.start()
        demo.send_tests()
        demo.wait_for_capture()
        if not arguments.keep:
            demo.stop_agent()
        demo.show_transactions()
        demo.show_spans()
        status = demo.verdict()
        if arguments.keep:
            demo.keep_running()
        return status


def _leave(number: int, _frame: object) -> None:
    """End like Ctrl-C does: through every clean-up."""
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="examples/demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also show health checks and what curl, the backends and other programs did",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" had it ignored
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # arrows, in a locale that has none
    try:
        return run(arguments)
    except BrokenPipeError:  # piped into head, for instance
        sys.stderr.close()  # or the interpreter complains about stdout when it ends
        return 141
    except WorldError as error:
        print(f"\nexamples/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nexamples/demo: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
