"""
A network of its own for programs that must not touch the machine's.

HAProxy and its backends run in a network namespace where every port is free and in a
mount namespace with their own ``/etc/hosts``; everybody else, the agent included,
stays outside. Nothing is left once the last process is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Program", "World", "WorldError", "wait_until"]

LISTEN = "0A"  # TCP_LISTEN as /proc/net/tcp writes it


class WorldError(Exception):
    """A world or a program in it did not come up; the text says why."""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return as soon as ``condition`` holds; raise ``WorldError`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise WorldError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)


class Program:
    """A process with its output in files; ended by its own pid and nobody else's."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
        *,
        print_to: int | None = None,
    ) -> None:
        """``print_to`` is a descriptor that takes its stdout in place of the file."""
        self.name = name
        self.started_s = time.monotonic()
        self.stdout = directory / f"{name}.out"
        self.stderr = directory / f"{name}.err"
        # setpriv: the program ends with us even if we are killed outright.
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=out if print_to is None else print_to,
                stderr=err,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for whoever started us
            )

    @property
    def pid(self) -> int:
        """Process id as the machine sees it; every wrapper above it has exec'ed away."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def output(self) -> str:
        """Return what it has printed on stdout so far."""
        return self.stdout.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        """Return what it has printed on stderr so far."""
        return self.stderr.read_text(encoding="utf-8", errors="replace")

    def require_running(self) -> None:
        """Raise with its last words when it has ended."""
        if not self.is_running:
            words = (self.errors() + self.output()).strip()[-2000:]
            raise WorldError(f"{self.name} ended with status {self.process.returncode}: {words}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Return as soon as ``condition`` holds; raise when it ends first, or takes too long."""

        def holds() -> bool:
            self.require_running()
            return condition()

        wait_until(holds, timeout_s, f"{self.name}, {what}")

    def wait_until_it_says(self, text: str, timeout_s: float) -> float:
        """Wait until its stderr has ``text``; return the seconds since it was started."""
        self.wait_until(lambda: text in self.errors(), timeout_s, text)
        return time.monotonic() - self.started_s

    def stop(self, timeout_s: float = 3) -> int:
        """Ask it to end, insist after ``timeout_s``; return its exit status."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


class World:
    """
    A network and mount namespace, held by one idle process.

    ``hosts`` maps names to loopback addresses. Programs are started with ``start`` or
    ``run`` and are all gone when the ``with`` block ends. Start them from the main
    thread: a program is killed when the thread that started it ends.
    """

    def __init__(self, directory: Path, hosts: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._hosts = {"localhost": "127.0.0.1", **(hosts or {})}
        self._programs: list[Program] = []
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        hosts = self._directory / "hosts"
        hosts.write_text("".join(f"{ip}\t{name}\n" for name, ip in self._hosts.items()))
        script = 'ip link set lo up && mount --bind "$0" /etc/hosts && echo up && exec cat'
        unshare = ("unshare", "--net", "--mount", "--propagation", "private")
        # `cat` ends when our end of its stdin closes, so the holder cannot outlive us.
        self._holder = subprocess.Popen(
            [*unshare, "--", "sh", "-c", script, str(hosts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None  # noqa: S101 - a pipe was asked for
        if self._holder.stdout.readline() != "up\n":
            _, reason = self._holder.communicate()
            raise WorldError(f"no network and mount namespace of our own: {reason.strip()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for program in reversed(self._programs):
            program.stop()
        if self._holder is not None:
            self._holder.communicate()
            self._holder = None

    @property
    def pid(self) -> int:
        """Process id of the holder: its ``/proc`` entry leads into the namespaces."""
        if self._holder is None:
            raise WorldError("this world is not there (yet, or any more)")
        return self._holder.pid

    @property
    def entrance(self) -> list[str]:
        """The command prefix that runs a command in here."""
        holder = f"/proc/{self.pid}"
        # --root: entering a mount namespace leads out of a chroot otherwise.
        namespaces = [f"--net={holder}/ns/net", f"--mount={holder}/ns/mnt"]
        return ["nsenter", *namespaces, f"--root={holder}/root", f"--wd={holder}/cwd"]

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start a program that goes on running; ``stop`` it or leave it to the world."""
        program = Program(name, [*self.entrance, *command], self._directory, environment)
        self._programs.append(program)
        return program

    def run(
        self, command: Sequence[str], *, timeout_s: float = 30, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end and return its status and output."""
        return subprocess.run(
            [*self.entrance, *command],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def listening_ports(self) -> set[int]:
        """TCP ports that somebody listens on, read without a packet that could be captured."""
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == LISTEN:
                    ports.add(int(local.rpartition(":")[2], 16))
        return ports

    def wait_for_ports(self, ports: Sequence[int], programs: Sequence[Program] = ()) -> None:
        """Wait until all ``ports`` are listened on; raise when one of ``programs`` ends first."""

        def is_ready() -> bool:
            for program in programs:
                program.require_running()
            return set(ports) <= self.listening_ports()

        wait_until(is_ready, 15, f"listening on {', '.join(map(str, ports))}")
