"""
Load that saturates HAProxy: the C programs of this folder, and wrk.

``load.c`` sends an exact number of requests and so is the one for accounting; wrk runs
for a time and abandons what is in flight at the end. ``sink.c`` answers both.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from traffic.world import Program, World, WorldError

__all__ = ["LoadReport", "WrkReport", "compile_program", "run_load", "run_wrk", "start_sink"]

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / ".venv" / "traffic"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What ``load.c`` counted."""

    requests: int
    responses: int
    errors: int
    """Requests that got no whole response."""
    connections: int
    """Connections opened."""
    seconds: float
    body_bytes: int
    status_2xx: int
    status_3xx: int
    status_4xx: int
    status_5xx: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WrkReport:
    """What wrk said."""

    requests: int
    """Answered; up to ``connections`` more were sent and abandoned at the end."""
    seconds: float
    errors: int


def compile_program(name: str, directory: Path = HERE) -> Path:
    """
    Return the program made of ``name.c``, compiled once for each state of its sources.

    These are that file and the headers of its ``directory``. Raises ``WorldError`` without a
    compiler.
    """
    source = directory / f"{name}.c"
    sources = [source, *sorted(directory.glob("*.h"))]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    program = BUILD / f"{directory.name}-{name}-{digest}"
    if not program.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise WorldError("no C compiler (cc); tests/run installs one")
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".new")
        command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
        subprocess.run([*command, "-o", str(unfinished), str(source)], check=True)
        unfinished.replace(program)
    return program


def start_sink(world: World, listen: Sequence[tuple[str, int]], *, size: int = 64) -> Program:
    """Start the cheap backend on all of ``listen``; each answer has a body of ``size`` bytes."""
    command = [str(compile_program("sink")), "--size", str(size)]
    for address, port in listen:
        command += ["--listen", f"{address}:{port}"]
    name = "sink-" + "-".join(str(port) for _, port in listen)
    sink = world.start(name, command)
    world.wait_for_ports([port for _, port in listen], [sink])
    return sink


def run_load(
    world: World,
    *,
    requests: int,
    connections: int = 1,
    address: str = "127.0.0.1",
    port: int = 8085,
    path: str = "/",
    host: str = "localhost:8085",
    body_size: int = 0,
    pipeline: int = 1,
    rate: float = 0,
    new_connection: bool = False,
    numbered: bool = False,
    timeout_s: float = 120,
) -> LoadReport:
    """
    Send exactly ``requests`` requests as fast as they are answered, or at ``rate`` per second.

    ``numbered`` gives each its own query, ``?n=`` and ten digits.
    """
    options = {
        "--connect": f"{address}:{port}",
        "--requests": requests,
        "--connections": connections,
        "--pipeline": pipeline,
        "--rate": rate,
        "--host": host,
        "--path": path,
        "--body": body_size,
        "--close": int(new_connection),
        "--numbered": int(numbered),
        "--timeout": timeout_s,
    }
    arguments = [str(part) for option in options.items() for part in option]
    done = world.run([str(compile_program("load")), *arguments], timeout_s=timeout_s + 10)
    if done.returncode not in (0, 1):
        raise WorldError(f"load failed: {done.stderr.decode(errors='replace')}")
    return LoadReport(**json.loads(done.stdout))


def run_wrk(
    world: World, url: str, *, connections: int = 64, duration_s: int = 2, threads: int = 1
) -> WrkReport:
    """Keep ``connections`` connections busy for ``duration_s`` seconds."""
    options = [f"-c{connections}", f"-t{threads}", f"-d{duration_s}s"]
    done = world.run(["wrk", *options, url], timeout_s=duration_s + 20)
    text = done.stdout.decode(errors="replace")
    total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    if done.returncode or total is None:
        raise WorldError(f"wrk failed: {text}{done.stderr.decode(errors='replace')}")
    seconds = float(total[2]) * {"ms": 1e-3, "s": 1, "m": 60}[total[3]]
    failures = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, failures.groups())) if failures else 0
    return WrkReport(
        requests=int(total[1]), seconds=seconds, errors=errors + (int(refused[1]) if refused else 0)
    )
