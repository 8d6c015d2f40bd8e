"""
The agent under test: a process as an operator starts it, and what it prints.

It runs outside the namespaces of the traffic, sees all traffic of the machine, and is
asked only for what a test can tell to be its own (``Seen.token``, process, port).
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from haproxy_demo.receiver import free_port
from traffic.world import Program, WorldError, wait_until

__all__ = ["PYTHON", "RUNGS", "RunningAgent", "Seen", "only", "qtap_file", "wait_until"]

PYTHON = "/.*/python[^/]*"
"""Pattern of the program that most test programs run in."""

RUNGS = ("sockets", "syscalls")

COMMAND = (sys.executable, "-m", "otel_qtap.cli")
START_S = 30.0
SEE_S = 20.0
"""How long a test waits for what it expects; far more than the agent ever takes."""

_numbers = count()


def qtap_file(
    *, level: str = "full", output: str = "json", tap: str = "", services: str = ""
) -> str:
    """Return a ``qtap.yaml`` that prints every transaction; ``tap`` adds lines to its section."""
    text = f"""\
version: 2
services:
  object_stores:
    - type: stdout
{services}
stacks:
  capture:
    plugins:
      - type: http_capture
        config:
          level: {level}
          format: {output}
tap:
  http:
    stack: capture
"""
    return text + "".join(f"  {line}\n" for line in tap.splitlines())


def only(*executables: str) -> str:
    """Return lines of the ``tap`` section that leave out all programs but these (patterns)."""
    # The first that matches decides, and what it leaves out of these is not HTTP.
    wanted = "|".join(executables)
    these = f"{{exe: '^(?:{wanted})$', strategy: regex, only: [dns]}}"
    return f"filters: {{custom: [{these}, {{exe: /, strategy: prefix}}]}}"


class Seen(NamedTuple):
    """A transaction as the agent printed it in JSON."""

    process_id: int
    executable: str
    direction: str
    connection_id: str
    method: str
    url: str
    status: int
    """Qtap's 499 and 422 when there was no response."""
    ending: str
    request_body: bytes
    request_size: int
    response_body: bytes
    response_size: int
    is_truncated: bool
    """Whether one of the bodies is not whole."""
    request_headers: dict[str, str]
    response_headers: dict[str, str]

    @property
    def is_ingress(self) -> bool:
        """Whether the process was the server."""
        return self.direction == "ingress"

    @property
    def number(self) -> int:
        """The request's ``n`` in the query."""
        found = re.search(r"[?&]n=(\d+)", self.url)
        assert found is not None, self.url
        return int(found[1])

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read one line of the agent's JSON output."""
        record = json.loads(line)
        metadata, request, response = record["metadata"], record["request"], record["response"]
        return cls(
            process_id=int(metadata["process_id"]),
            executable=metadata.get("process_exe", ""),
            direction=record["direction"],
            connection_id=metadata["connection_id"],
            method=request["method"],
            url=request.get("url", ""),
            status=response.get("status", 0),
            ending=record["ending"],
            request_body=base64.b64decode(request.get("body", "")),
            request_size=request.get("body_size", 0),
            response_body=base64.b64decode(response.get("body", "")),
            response_size=response.get("body_size", 0),
            is_truncated="body_truncated" in request or "body_truncated" in response,
            request_headers={k.lower(): v for k, v in request.get("headers", {}).items()},
            response_headers={k.lower(): v for k, v in response.get("headers", {}).items()},
        )


class RunningAgent:
    """
    One agent, ready when the ``with`` block begins and stopped cleanly at its end.

    Leaving the block ends it with SIGTERM and asserts what always holds: exit status 0
    and no traceback.
    """

    def __init__(
        self,
        directory: Path,
        config: str | None = None,
        *options: str,
        rung: str = "",
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._name = f"agent-{next(_numbers)}"
        config_file = directory / f"{self._name}.yaml"
        config_file.write_text(qtap_file() if config is None else config)
        self._status = ""
        self._options = [*command, f"--config={config_file}", *options]
        if rung:
            self._options.append(f"--rung={rung}")
        if not command:
            self._status = f"127.0.0.1:{free_port()}"
            self._options.append(f"--status-listen={self._status}")
        self._environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "", **(environment or {})}
        self._print_to = stdout
        self._read_to = 0
        self._seen: list[Seen] = []

    def __enter__(self) -> Self:
        self._program = Program(
            self._name,
            [*COMMAND, *self._options],
            self._directory,
            self._environment,
            print_to=self._print_to,
        )
        try:
            self._program.wait_until_it_says("READY", START_S)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
        else:
            self._kill()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The agent's process."""
        return self._program.process

    @property
    def pid(self) -> int:
        """Process id of the agent."""
        return self._program.pid

    def errors(self) -> str:
        """Return its log so far."""
        return self._program.errors()

    def stop(self, timeout_s: float = 15) -> None:
        """End it as systemd does; asserts a clean end. A second call does nothing more."""
        if self._program.is_running:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"no end after SIGTERM:\n{self.errors()}") from None
        assert status == 0, self.errors()
        assert "Traceback" not in self.errors(), self.errors()

    def seen(self, token: str = "", *, process_id: int = 0) -> list[Seen]:
        """Return what it has printed so far, with ``token`` in the URL, by that process."""
        with self._program.stdout.open("rb") as stream:
            stream.seek(self._read_to)
            block = stream.read()
        whole = block.rpartition(b"\n")[0]
        if whole:
            self._read_to += len(whole) + 1
            self._seen += map(Seen.parse, whole.decode().split("\n"))
        return [
            seen for seen in self._seen if token in seen.url and process_id in (0, seen.process_id)
        ]

    def wait_for(
        self, amount: int, token: str = "", *, process_id: int = 0, timeout_s: float = SEE_S
    ) -> list[Seen]:
        """Return what ``seen`` returns once it is ``amount``; asserts that it never is more."""
        self.wait_until(
            lambda: len(self.seen(token, process_id=process_id)) >= amount,
            f"{amount} transactions with {token!r}",
            timeout_s,
        )
        seen = self.seen(token, process_id=process_id)
        assert len(seen) == amount, [(s.process_id, s.direction, s.url, s.ending) for s in seen]
        return seen

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = SEE_S
    ) -> None:
        """Wait for ``condition``, and not longer than the agent lives."""
        try:
            self._program.wait_until(condition, timeout_s, what)
        except WorldError as error:
            counted = {}
            if self._program.is_running and self._status:
                counted = {name: value for name, value in self.metrics().items() if value}
            raise AssertionError(f"{error}\n{counted}\n{self.errors()}") from None

    def get(self, path: str) -> str:
        """Return what the status server says at ``path``."""
        with urllib.request.urlopen(f"http://{self._status}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """Return ``/metrics``, by name with labels."""
        lines = self.get("/metrics").splitlines()
        pairs = (line.rpartition(" ")[::2] for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def lost(self, reason: str) -> int:
        """Return how many events were lost for ``reason``, by the agent's own account."""
        name = f'otel_qtap_receiver_lost_total{{reason="{reason}"}}'
        return int(self.metrics()[name])

    def total(self, name: str) -> float:
        """Return the sum over all labels of a metric."""
        return sum(v for k, v in self.metrics().items() if k.partition("{")[0] == name)

    def lost_when_settled(self, reason: str) -> int:
        """Return ``lost(reason)`` once it stands still; the agent looks once a second."""
        last = -1
        changed_s = time.monotonic()

        def is_settled() -> bool:
            nonlocal last, changed_s
            lost = self.lost(reason)
            if lost != last:
                last, changed_s = lost, time.monotonic()
            return time.monotonic() - changed_s > 2.2

        self.wait_until(is_settled, "losses that stand still")
        return last

    def wait_until_idle(self) -> None:
        """Wait until the ring is empty, and what was taken out of it is processed."""
        names = [f"otel_qtap_receiver_{place}_pending_bytes" for place in ("ring", "backlog")]
        self.wait_until(lambda: sum(map(self.metrics().__getitem__, names)) < 4096, "an empty ring")

    def _kill(self) -> None:
        if self._program.is_running:
            self.process.kill()
        self.process.wait()
