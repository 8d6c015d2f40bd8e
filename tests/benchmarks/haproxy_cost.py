"""
What the agent costs a real HAProxy, and what it costs itself.

    python tests/benchmarks/haproxy_cost.py --rounds 5 --agent sockets:off --agent sockets:fast

Run as root on an otherwise quiet machine with two processors or more. HAProxy, a load
program and a backend live in a network namespace of their own, the agent outside of it,
as in production. In each round every variant runs once, one after the other: without an
agent, without one again (the control: what the machine's own noise looks like), and with
each agent asked for: on a rung, with a way of linking (``tap.link``). The order is turned
by one from round to round, each variant is compared to the run without an agent of the
same round, and the median of these ratios counts. The quartiles behind a ratio say how far
it can be trusted.

Three loads, over 64 keep-alive connections:

cost        HAProxy alone on one processor, everything else on the others, as fast as
            the load program goes, or at ``--rate``: CPU per request
saturation  nobody pinned, as fast as it goes: requests per second, and whether anything
            is lost when all want the same processors
steady      nobody pinned, a fixed 5,000 requests per second: latency and CPU

As fast as it goes means fewer requests with an agent, because it takes its share of the
processors; and a HAProxy that gets fewer requests at a time pays more for each. What watching
costs by itself shows at one rate for all: ``--load cost --rate 5000``.

After each run with the agent: transactions captured + requests counted as lost = 2 x
requests, since HAProxy has a client's and a server's side of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))

from haproxy_demo.receiver import Receiver, free_port
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.load import LoadReport, compile_program, run_load, start_sink
from traffic.world import Program, World, WorldError

ROOT = Path(__file__).resolve().parents[2]
BACKEND_PORT = 8999
STEADY_RATE = 5000
NO_AGENT, CONTROL = "without", "without again"
AGENTS = tuple(
    f"{rung}:{link}"
    for rung in ("sockets", "syscalls")
    for link in ("off", "fast", "probe", "passive")
)
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? ([0-9.e+-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory in KiB, as ``/proc`` splits it."""

    total: int = 0
    anonymous: int = 0
    """The agent's own."""
    file: int = 0
    """Programs, libraries and the ring, which is mapped twice in a row and so counts twice."""
    proportional: int = 0
    """All of it, each page divided by the number of its mappings: the ring once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One load with one variant."""

    report: LoadReport
    haproxy_us: float
    """CPU per request."""
    agent_us: float = 0
    """CPU per request, delivery included."""
    captured: int = 0
    lost: int = 0
    memory: Memory = Memory()

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.report.responses / self.report.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Seconds from the start of the agent's process."""

    ready_s: float
    captured_s: float


class Agent:
    """An agent that captures one HAProxy and nothing else of the machine."""

    def __init__(self, directory: Path, config: Path, rung: str) -> None:
        self._port = free_port()
        self._program = Program(
            "agent",
            [
                sys.executable, "-m", "otel_qtap.cli", "--config", str(config), "--rung", rung,
                "--log-encoding", "console", "--status-listen", f"127.0.0.1:{self._port}",
            ],
            directory,
            {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._program.stop(10)

    def wait_until_ready(self) -> float:
        """Return the seconds it took to attach."""
        return self._program.wait_until_it_says("READY", 30)

    def wait_until_captured(self) -> float:
        """Return the seconds until the first transaction was there."""
        self._program.wait_until(lambda: self.counted()[0] > 0, 10, "a captured transaction")
        return time.monotonic() - self._program.started_s

    def counted(self) -> tuple[int, int]:
        """Return (transactions captured, requests counted as lost) so far."""
        url = f"http://127.0.0.1:{self._port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        captured = lost = 0.0
        for name, labels, value in SAMPLE.findall(text):
            if name == "otel_qtap_transactions_total":
                captured += float(value)
            elif name == "otel_qtap_receiver_lost_total" and labels == 'reason="requests"':
                lost += float(value)
        return int(captured), int(lost)

    def wait_until_counted(self, expected: int) -> tuple[int, int]:
        """
        Return what ``counted`` says once it is ``expected`` in all, or after 20 s.

        Where something was lost, answers that nothing followed are looked for after 5 s of calm.
        """
        deadline_s = time.monotonic() + 20
        while True:
            captured, lost = self.counted()
            if captured + lost >= expected or time.monotonic() > deadline_s:
                return captured, lost
            time.sleep(0.05)

    def cpu_time_ns(self) -> int:
        """Return the CPU time of all its threads so far."""
        tasks = Path(f"/proc/{self._program.pid}/task").iterdir()
        total = 0
        for task in tasks:
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended since
                total += int((task / "schedstat").read_text().split()[0])
        return total

    def memory(self) -> Memory:
        """Return what it occupies."""
        status = Path(f"/proc/{self._program.pid}/status").read_text()
        rollup = Path(f"/proc/{self._program.pid}/smaps_rollup").read_text()
        found = dict(re.findall(r"\b(VmRSS|RssAnon|RssFile|Pss):\s+(\d+) kB", status + rollup))
        total, anonymous, file, proportional = (
            int(found[name]) for name in ("VmRSS", "RssAnon", "RssFile", "Pss")
        )
        return Memory(total=total, anonymous=anonymous, file=file, proportional=proportional)


class Scene:
    """HAProxy with a backend in a world of its own, ready for load."""

    def __init__(self, directory: Path, *, level: str = "summary", store: str = "disabled") -> None:
        self._directory = directory
        self._level = level
        self._store = store
        self._world = World(directory)
        # A copy, so that its path tells it from any other HAProxy of the machine.
        binary = next(iter(find_binaries().values()), None)
        if binary is None:
            raise WorldError("haproxy is not installed; tests/run installs it")
        own = directory / "haproxy"
        shutil.copy2(binary, own)
        settings = HAProxySettings(servers=(Server("s1", "127.0.0.1", BACKEND_PORT),))
        self._haproxy = HAProxy(self._world, directory / "run", settings, binary=own)
        self._own = own
        self._receiver: Receiver | None = None

    def __enter__(self) -> Self:
        self._world.__enter__()
        try:
            self._sink = start_sink(self._world, [("127.0.0.1", BACKEND_PORT)], size=256)
            self._haproxy.__enter__()
            if self._store == "otel":
                self._receiver = Receiver(self._directory)
                self._receiver.wait_until_ready()
            self._config = self._directory / "qtap.yaml"
            self._config.write_text(json.dumps(self._configuration("auto")))  # JSON is YAML
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._receiver is not None:
            self._receiver.program.stop()
        self._haproxy.stop()
        self._world.__exit__(kind, error, traceback)

    def _configuration(self, link: str) -> dict[str, object]:
        endpoint = self._receiver.endpoint if self._receiver else ""
        otel = {"type": "otel", "endpoint": endpoint, "protocol": "http"}
        event_store = otel if self._receiver else {"type": "disabled"}
        object_store = {"type": "stdout" if self._store == "stdout" else "disabled"}
        plugin = {"type": "http_capture", "config": {"level": self._level, "format": "json"}}
        # The first filter that matches decides; what this one leaves out is not HTTP.
        only_haproxy = {"exe": str(self._own), "strategy": "exact", "only": ["dns"]}
        everybody_else = {"exe": "/", "strategy": "prefix"}
        return {
            "version": 2,
            "services": {"event_stores": [event_store], "object_stores": [object_store]},
            "stacks": {"measured": {"plugins": [plugin]}},
            "tap": {
                "direction": "all",
                "ignore_loopback": False,
                "link": link or "auto",
                "http": {"stack": "measured"},
                "filters": {"custom": [only_haproxy, everybody_else]},
            },
        }

    @property
    def haproxy_version(self) -> str:
        """As HAProxy gives it."""
        info = self._haproxy.info()
        return f"{info['Name']} {info['Version']}"

    def agent(self, variant: str) -> Agent:
        """Start an agent."""
        rung, _, link = variant.partition(":")
        config = self._directory / f"qtap-{link}.yaml"
        config.write_text(json.dumps(self._configuration(link)))  # JSON is YAML
        return Agent(self._directory, config, rung)

    def load(self, requests: int, rate: float = 0, connections: int = 64) -> LoadReport:
        """Send requests; all of them have to be answered."""
        report = run_load(
            self._world, requests=requests, connections=connections, rate=rate,
            path="/api/orders?page=2",
        )  # fmt: skip
        if report.errors or report.status_2xx != requests:
            raise WorldError(f"{requests - report.status_2xx} of {requests} requests failed")
        return report

    def run(self, variant: str, requests: int, rate: float) -> Run:
        """Send requests with or without an agent."""
        if variant in (NO_AGENT, CONTROL):
            haproxy_ns = self._haproxy.cpu_time_ns()
            report = self.load(requests, rate)
            spent_ns = self._haproxy.cpu_time_ns() - haproxy_ns
            return Run(report=report, haproxy_us=spent_ns / requests / 1000)
        with self.agent(variant) as agent:
            agent.wait_until_ready()
            haproxy_ns, agent_ns = self._haproxy.cpu_time_ns(), agent.cpu_time_ns()
            report = self.load(requests, rate)
            haproxy_ns = self._haproxy.cpu_time_ns() - haproxy_ns
            captured, lost = agent.wait_until_counted(2 * requests)
            return Run(
                report=report,
                haproxy_us=haproxy_ns / requests / 1000,
                agent_us=(agent.cpu_time_ns() - agent_ns) / requests / 1000,
                captured=captured,
                lost=lost,
                memory=agent.memory(),
            )

    def measure_start(self, rung: str) -> Start:
        """Start an agent while requests come in all the time."""
        command = [str(compile_program("load")), "--connect", "127.0.0.1:8085", "--close", "1"]
        trickle = self._world.start("trickle", [*command, "--requests", "20000", "--rate", "200"])
        try:
            with self.agent(rung) as agent:
                ready_s = agent.wait_until_ready()
                return Start(ready_s=ready_s, captured_s=agent.wait_until_captured())
        finally:
            trickle.stop()

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Give HAProxy one processor and everybody else the others."""
        processors = sorted(os.sched_getaffinity(0))
        if len(processors) < 2:
            raise WorldError("one processor is not enough to give HAProxy one of its own")
        before = {pid: os.sched_getaffinity(pid) for pid in self._pids()}
        for pid in before:
            os.sched_setaffinity(pid, processors[1:])
        os.sched_setaffinity(self._haproxy.worker_pid, processors[:1])
        try:
            yield
        finally:
            for pid, affinity in before.items():
                os.sched_setaffinity(pid, affinity)

    def _pids(self) -> list[int]:
        """Ourselves, whom new programs take after, and all threads of the programs that run."""
        own = [os.getpid(), self._haproxy.worker_pid, self._sink.pid]
        if self._receiver is not None:
            own.append(self._receiver.program.pid)
        return [int(task.name) for pid in own for task in Path(f"/proc/{pid}/task").iterdir()]

    @property
    def haproxy_pid(self) -> int:
        """The process that serves."""
        return self._haproxy.worker_pid

    def record(self, path: Path, *, requests: int, connections: int) -> None:
        """Write a recording of ``requests`` proxied requests."""
        command = [sys.executable, "-m", "otel_qtap.cli", "record", str(path)]
        command += ["--config", str(self._config), "--log-encoding", "console"]
        recorder = Program("recorder", command, self._directory, {"PYTHONPATH": str(ROOT)})
        recorder.wait_until_it_says("READY", 30)
        self.load(requests, rate=2000, connections=connections)
        time.sleep(0.2)  # its tap sleeps up to 50 ms
        recorder.stop(10)


class Result:
    """The runs of one load, by variant."""

    def __init__(self, title: str, variants: Sequence[str], requests: int) -> None:
        self.title = title
        self.requests = requests
        self.runs: dict[str, list[Run]] = {variant: [] for variant in variants}

    def ratio(self, variant: str, figure: Callable[[Run], float]) -> str:
        """Return the median of the ratios to the run without an agent, and its quartiles."""
        ratios = [
            figure(run) / figure(base)
            for run, base in zip(self.runs[variant], self.runs[NO_AGENT], strict=True)
        ]
        if variant == NO_AGENT:
            return "1"
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return f"{middle:.3f} ({low:.2f}-{high:.2f})"

    def median(self, variant: str, figure: Callable[[Run], float]) -> float:
        """Return the median over the rounds."""
        return statistics.median(map(figure, self.runs[variant]))

    def print(self) -> None:
        """Print the table and what the accounts say."""
        show("")
        print(f"\n{self.title}")
        columns = ("", "requests/s", "ratio", "HAProxy µs", "ratio", "p50 ratio", "p99 ratio")
        row = "{:<14}{:>11}{:>19}{:>12}{:>19}{:>19}{:>19}{:>10}"
        print(row.format(*columns, "agent µs"))
        for variant in self.runs:
            print(
                row.format(
                    variant,
                    f"{self.median(variant, lambda run: run.rate):.0f}",
                    self.ratio(variant, lambda run: run.rate),
                    f"{self.median(variant, lambda run: run.haproxy_us):.1f}",
                    self.ratio(variant, lambda run: run.haproxy_us),
                    self.ratio(variant, lambda run: run.report.p50_us),
                    self.ratio(variant, lambda run: run.report.p99_us),
                    f"{self.median(variant, lambda run: run.agent_us):.1f}",
                )
            )
        for variant, runs in self.runs.items():
            if variant not in (NO_AGENT, CONTROL):
                print(f"{variant}: {self._account(runs)}", flush=True)

    def _account(self, runs: Sequence[Run]) -> str:
        expected = 2 * self.requests
        wrong = [run for run in runs if run.captured + run.lost != expected]
        lost = sum(run.lost for run in runs)
        text = f"captured + lost = 2 x requests in {len(runs) - len(wrong)} of {len(runs)} rounds"
        text += f", lost {lost} of {expected * len(runs)}"
        for run in wrong:
            text += f"; captured {run.captured} + lost {run.lost}, expected {expected}"
        memory = max((run.memory for run in runs), key=lambda memory: memory.total)
        return text + (
            f"; at most {memory.total / 1024:.1f} MiB resident: {memory.anonymous / 1024:.1f} own, "
            f"{memory.file / 1024:.1f} files and ring (mapped twice); proportional set "
            f"{memory.proportional / 1024:.1f} MiB"
        )


def measure(
    scene: Scene, title: str, variants: Sequence[str], requests: int, rounds: int, rate: float = 0
) -> Result:
    """Run all variants in every round, in an order that turns by one each time."""
    result = Result(title, variants, requests)
    scene.load(requests // 10, rate)  # nobody's first run: caches, pools, file systems
    for number in range(rounds):
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            show(f"{title.partition(':')[0]}: round {number + 1} of {rounds}, {variant}")
            result.runs[variant].append(scene.run(variant, requests, rate))
    return result


def show(progress: str) -> None:
    """Say where we are, to people only."""
    if sys.stderr.isatty():
        print(f"\r{progress:<60}\r", end="", file=sys.stderr, flush=True)


def measure_starts(scene: Scene, rungs: Sequence[str], rounds: int) -> None:
    """Print how long it takes to see the first transaction."""
    print("\nstart, while 200 requests/s come in (median, slowest)")
    for rung in rungs:
        starts = [scene.measure_start(rung) for _ in range(rounds)]
        ready, captured = [s.ready_s for s in starts], [s.captured_s for s in starts]
        print(
            f"{rung:<14}READY after {statistics.median(ready):.2f} s, {max(ready):.2f} s; first "
            f"transaction after {statistics.median(captured):.2f} s, {max(captured):.2f} s"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, default=20_000, help="of each run; default 20000")
    add("--rounds", type=int, default=5, help="default 5")
    add("--agent", action="append", choices=AGENTS, metavar="RUNG[:LINK]",
        help=f"one of {', '.join(AGENTS)}; default: both without linking, and fast")  # fmt: skip
    add("--level", choices=("none", "summary", "headers", "full"), default="summary")
    add("--store", choices=("disabled", "stdout", "otel"), default="disabled",
        help="where transactions go: nowhere, a file, a rotel on this machine")  # fmt: skip
    add("--load", action="append", choices=("cost", "saturation", "steady", "start"),
        help="what to measure; default: everything")  # fmt: skip
    add("--rate", type=float, default=0, metavar="N",
        help=f"requests per second of the loads cost and steady; default: as fast as it goes, "
             f"and {STEADY_RATE}")  # fmt: skip
    arguments = parser.parse_args()
    agents = arguments.agent or ["sockets:off", "sockets:fast", "syscalls:off"]
    loads = arguments.load or ["cost", "saturation", "steady", "start"]
    if os.geteuid() != 0:
        parser.error("only root may load eBPF programs")
    variants = (NO_AGENT, CONTROL, *agents)
    requests, rounds = arguments.requests, max(2, arguments.rounds)
    with (
        tempfile.TemporaryDirectory(prefix="otel-qtap-cost-") as directory,
        Scene(Path(directory), level=arguments.level, store=arguments.store) as scene,
    ):
        print(
            f"{scene.haproxy_version}, Linux {platform.release()}, {os.cpu_count()} processors; "
            f"{rounds} rounds of {requests} requests, level {arguments.level}, "
            f"store {arguments.store}; ratios are medians, quartiles in brackets"
        )
        if "cost" in loads:
            with scene.pinned():
                title = "cost: HAProxy alone on one processor, all others on the rest"
                if arguments.rate:
                    title += f", {arguments.rate:.0f} requests/s"
                measure(scene, title, variants, requests, rounds, arguments.rate).print()
        if "saturation" in loads:
            title = "saturation: nobody pinned"
            measure(scene, title, variants, requests, rounds).print()
        if "steady" in loads:
            rate = arguments.rate or STEADY_RATE
            title = f"steady: nobody pinned, {rate:.0f} requests/s"
            measure(scene, title, variants, requests, rounds, rate).print()
        if "start" in loads:
            measure_starts(scene, agents, rounds)


if __name__ == "__main__":
    try:
        main()
    except WorldError as error:
        sys.exit(f"haproxy_cost: {error}")
