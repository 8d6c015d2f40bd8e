"""
What every check needs: HAProxy, its backends and clients in a world, the agent outside.

A check gets a ``Stage``, sends requests with it, asks for what was captured and says what
it found. Nothing is left when the ``with`` block ends.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from haproxy_demo.receiver import free_port
from haproxy_demo.scene import Backend
from haproxy_demo.world import Program, World, WorldError, wait_until

from checks.captured import Captured, levels, read_captured
from otel_qtap.report import ReportSnapshot, render_report

__all__ = ["Answer", "Backend", "Finding", "Request", "Stage"]

EXAMPLES = Path(__file__).resolve().parent.parent
AGENT = EXAMPLES.parent / ".venv" / "bin" / "otel-qtap"
PORT = 8085
PROMPT_S = 5.0


class Finding(NamedTuple):
    """Something that was promised, and whether it is so."""

    is_so: bool
    promise: str
    evidence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client sends."""

    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    address: str = ""
    """Where the client is, on the loopback network; empty for 127.0.0.1."""
    connection: str = ""
    """Name of a connection to be kept; empty for one of its own."""
    port: int = PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; ``status`` 0: nothing."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def service(self) -> str:
        """Name of the backend that answered."""
        try:
            return str(json.loads(self.body)["service"])
        except (ValueError, KeyError, TypeError):
            return "?"


class Stage:
    """One example at work: its ``qtap.yaml``, its ``haproxy.cfg``, its backends."""

    def __init__(
        self, name: str, directory: Path, say: Callable[[str], None], *, is_reduced: bool = False
    ) -> None:
        """``say`` takes each line for people; ``is_reduced`` asks for fewer requests."""
        self._name = name
        self.directory = directory
        """Goes away when the check is over."""
        self._say = say
        self._is_reduced = is_reduced
        self._stack = ExitStack()
        self._programs: dict[str, Program] = {}
        self._sent = 0
        self.late = 0
        """How many of the transactions were not there soon after the last request."""
        self.reported: ReportSnapshot | None = None
        self.environment: dict[str, str] = {}
        """For the agent, to be set before ``start``."""
        self.replacements: dict[str, str] = {}
        """What a machine of its own means for ``qtap.yaml``: text by the text it replaces."""
        self.status_port = free_port()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # Before -----------------------------------------------------------------------------

    def start(self, backends: Sequence[Backend]) -> None:
        """Start the agent, the backends and HAProxy; return when all of them are ready."""
        agent = self._start_agent()
        hosts = {backend.name: backend.address for backend in backends}
        self.world = self._stack.enter_context(World(self.directory / "world", hosts))
        for backend in backends:
            self._programs[backend.name] = self._start_backend(backend)
        self.world.wait_for_ports([b.port for b in backends], list(self._programs.values()))
        agent.wait_until_it_says("READY", 30)
        self._start_haproxy()

    def amount(self, full: int, reduced: int) -> int:
        """Return how many of something there shall be."""
        return reduced if self._is_reduced else full

    def on_exit(self, clean_up: Callable[[], object]) -> None:
        """Have ``clean_up`` called in the end."""
        self._stack.callback(clean_up)

    def _start_agent(self) -> Program:
        config = (EXAMPLES / self._name / "qtap.yaml").read_text(encoding="utf-8")
        for text, other in self.replacements.items():
            if text not in config:
                raise WorldError(f"{self._name}/qtap.yaml does not have {text!r}")
            config = config.replace(text, other)
        path = self.directory / "qtap.yaml"
        path.write_text(config, encoding="utf-8")
        command = [str(AGENT), "--config", str(path), "--log-level=info", "--log-encoding=console"]
        command += ["--status-listen", f"127.0.0.1:{self.status_port}"]
        # A proxy for the outside world has no business between us on loopback.
        environment = {"no_proxy": "*", "NO_PROXY": "*", **self.environment}
        self.agent = Program("otel-qtap", command, self.directory, environment)
        self._stack.callback(self.agent.stop, timeout_s=10)
        return self.agent

    def _start_backend(self, backend: Backend) -> Program:
        service = [sys.executable, str(EXAMPLES / "backend_service.py")]
        return self.world.start(
            backend.name,
            [*service, str(backend.port), backend.address],
            {"SERVICE_NAME": backend.name},
        )

    def _start_haproxy(self) -> None:
        binary = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin")
        if binary is None:
            raise WorldError("haproxy is not installed")
        config = EXAMPLES / self._name / "haproxy.cfg"
        self.haproxy = self.world.start("haproxy", [binary, "-db", "-f", str(config)])
        self.world.wait_for_ports([PORT], [self.haproxy])

    # During -----------------------------------------------------------------------------

    def send(self, what: str, requests: Sequence[Request]) -> list[Answer]:
        """Send ``requests``, one after the other; ``what`` says what they are."""
        lines = "".join(f"{json.dumps(asdict(request))}\n" for request in requests)
        client = [sys.executable, str(EXAMPLES / "checks" / "client.py")]
        done = self.world.run(client, stdin=lines.encode(), timeout_s=60)
        answers = [Answer(**json.loads(line)) for line in done.stdout.splitlines()]
        if len(answers) != len(requests):
            raise WorldError(f"the client failed: {done.stderr.decode(errors='replace')}")
        self._sent += len(answers)
        statuses = Counter(answer.status for answer in answers)
        told = ", ".join(f"{count} x {status or 'no answer'}" for status, count in statuses.items())
        self._say(f"sent      {what}: {told}")
        return answers

    def note(self, text: str) -> None:
        """Say what happens."""
        self._say(f"          {text}")

    def change_health(self, backend: str) -> float:
        """Make a backend fail its health checks, or well again; return when, in epoch seconds."""
        moment_s = time.time()
        self._programs[backend].process.send_signal(signal.SIGUSR1)
        return moment_s

    def pid_of(self, backend: str) -> int:
        """Return the process id of a backend."""
        return self._programs[backend].pid

    def kill(self, backend: str) -> float:
        """End a backend at once; return when, in epoch seconds."""
        moment_s = time.time()
        self._programs[backend].stop(0)
        return moment_s

    def wait_until_haproxy_says(self, text: str, times: int = 1) -> None:
        """Wait until HAProxy's log has ``text`` that often."""

        def has_said() -> bool:
            return (self.haproxy.output() + self.haproxy.errors()).count(text) >= times

        self.haproxy.wait_until(has_said, 10, f"saying {text!r}")

    # After ------------------------------------------------------------------------------

    def output(self, pid: int = 0) -> list[Captured]:
        """Return what the agent has printed about a process, or HAProxy, so far."""
        lines = self.agent.output().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [item for item in read_captured(whole) if item.pid == (pid or self.haproxy.pid)]

    def finish(self, expected: int, pid: int = 0) -> list[Captured]:
        """
        Wait until that many transactions are printed, then stop the agent.

        Returns what it has captured of HAProxy, or of process ``pid``. Shows what the agent
        reports of HAProxy, captured or not, now or when ``take_report`` was called.
        """
        try:
            wait_until(lambda: len(self.output(pid)) >= expected, PROMPT_S, "transactions")
        except WorldError:
            self.late = expected - len(self.output(pid))
        if self.reported is None:
            self.take_report(waits=not pid)
        self.stop_agent()
        captured = self.output(pid)
        self._say(f"captured  {levels(captured)}")
        self._say("")
        assert self.reported is not None  # noqa: S101 - taken above
        for line in render_report(self.reported, "backend", process="haproxy").splitlines():
            self._say(line)
        self._say("")
        return captured

    def take_report(self, *, waits: bool = True) -> ReportSnapshot:
        """Return what the agent reports now; by default once it knows of all that was sent."""
        if waits:
            with suppress(WorldError):
                wait_until(self._is_reported, 5, "all requests")
        self.reported = self.report()
        return self.reported

    def report(self) -> ReportSnapshot:
        """Return what ``otel-qtap report`` says of the running agent, or asks it for."""
        if self._is_reduced:  # starting a program takes longer than all the rest of a check
            return ReportSnapshot.model_validate_json(self._get("/report.json"))
        command = [str(AGENT), "report", f"127.0.0.1:{self.status_port}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            raise WorldError(f"otel-qtap report ended with {done.returncode}: {done.stderr}")
        return ReportSnapshot.model_validate_json(done.stdout)

    def _is_reported(self) -> bool:
        """Whether the agent knows of all requests that were sent, captured or not."""
        snapshot = ReportSnapshot.model_validate_json(self._get("/report.json"))
        seen = {
            table: sum(
                r.requests for r in getattr(snapshot, table).totals if "haproxy" in r.process
            )
            for table in ("frontend", "backend")
        }
        return (seen["frontend"] or seen["backend"]) >= self._sent

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric of the agent over all series that have ``labels``."""
        return sum(
            value
            for series, value in self._metrics()
            if series.partition("{")[0] == name
            and all(f'{key}="{text}"' in series for key, text in labels.items())
        )

    def _metrics(self) -> list[tuple[str, float]]:
        lines = self._get("/metrics").splitlines()
        split = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return [(series, float(value)) for series, _, value in split]

    def _get(self, path: str) -> str:
        connection = HTTPConnection("127.0.0.1", self.status_port, timeout=5)
        with closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def stop_agent(self) -> None:
        """Stop the agent, which writes what it still holds."""
        status = self.agent.stop(timeout_s=10)
        if status:
            raise WorldError(f"the agent ended with status {status}\n\n{self.agent.errors()}")
