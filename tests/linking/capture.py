"""
A scenario played before the real agent: what it recorded, and what really happened.

Backend, HAProxy and load run in namespaces of their own; ``otel-qtap record`` watches these
HAProxy processes and nothing else. Everything is over, and both sides' notes are written,
when ``capture`` returns.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kernel.agent import RunningAgent, only
from linking.fetch_haproxy import fetched, root_of
from linking.identify import Topology
from linking.scenarios import DEAD_ADDRESSES, SERVER_PORTS, Scenario, options
from linking.truth import Truth
from traffic.haproxy import HAProxy, HAProxySettings, find_binaries
from traffic.load import compile_program
from traffic.world import Program, World, WorldError, wait_until

__all__ = ["BODY_BYTES", "MODES", "Capture", "capture", "find_haproxy"]

HERE = Path(__file__).resolve().parent
MODES = ("auto", "fast", "probe", "passive")
QTAP_FILE = """\
version: 2
stacks:
  capture:
    plugins:
      - type: http_capture
        config: {level: full}
tap:
  http: {stack: capture}
"""
"""Bodies are captured, and nothing is delivered anywhere."""

BODY_BYTES = 64 * 1024
"""Captured of each body; nonces stand at its start."""

_LOAD_S = 240.0
_STOP_S = 120.0
_SETTLE_S = 0.5  # for the agent to have a look at new processes; reloads get no such time


def find_haproxy() -> dict[str, Path]:
    """Return the HAProxy programs that can be used, by version; newer ones when fetched."""
    return find_binaries() | fetched()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One run of a scenario: what the agent recorded, and what really happened."""

    scenario: Scenario
    recording: Path
    config: Path
    truth: Truth
    failed_connects: int
    """Attempts that got no connection, by the kernel's count."""
    seconds: float
    """How long the load took."""

    @property
    def topology(self) -> Topology:
        """Return which ports are whose."""
        fronts = self.scenario.fronts
        return Topology(
            entries=frozenset(self.scenario.entries),
            server_ports=frozenset(p for p in SERVER_PORTS if not fronts or p in fronts),
            fronts=fronts,
            dead_addresses=frozenset(DEAD_ADDRESSES),
        )


class _Stage:
    """HAProxy programs of our own, so that the agent can be told to watch only these."""

    def __init__(self, original: Path, directory: Path) -> None:
        self._root = root_of(original)
        self._original = original
        self._directory = directory
        self._inside: list[Path] = []

    def program(self, name: str) -> tuple[Path, Path]:
        """Return a copy: the program to start, and its path as the agent sees it."""
        place = self._directory / name
        place.mkdir(parents=True)
        copy = place / "haproxy"
        if self._root is None:
            shutil.copy(self._original, copy)
            if (libraries := self._original.with_name("lib")).is_dir():  # of a wheel
                copy.with_name("lib").symlink_to(libraries)
            return copy, copy
        inside = self._root / place.relative_to("/")
        inside.mkdir(parents=True)
        self._inside.append(inside)
        shutil.copy(self._root / "usr/sbin/haproxy", inside / "haproxy")
        copy.write_text(f'#!/bin/sh\nexec chroot {self._root} {copy} "$@"\n')
        copy.chmod(0o755)
        return copy, inside / "haproxy"

    def share(self, world: World, directory: Path) -> None:
        """Let HAProxy find ``directory`` under its usual path."""
        if self._root is None:
            return
        inside = self._root / directory.relative_to("/")
        inside.mkdir(parents=True)
        self._inside.append(inside)
        done = world.run(["mount", "--bind", str(directory), str(inside)])
        if done.returncode:
            raise WorldError(f"mount: {done.stderr.decode(errors='replace')}")

    def close(self) -> None:
        """Remove what was put into the directory of a fetched HAProxy; its mounts are gone."""
        for inside in self._inside:
            shutil.rmtree(inside)
            with suppress(OSError):  # as far up as there is nothing else
                for parent in inside.parents:
                    parent.rmdir()


def capture(
    scenario: Scenario, binary: Path, directory: Path, *, mode: str = "auto", rung: str = ""
) -> Capture:
    """Play a scenario and record it; raises ``WorldError`` when its programs do not work."""
    directory.mkdir(parents=True, exist_ok=True)
    raw = directory / "scenario.qtaprec"
    stage = _Stage(binary, directory)
    with ExitStack() as stack:
        stack.callback(stage.close)
        watched, seen_as = stage.program("watched")
        config = directory / "qtap.yaml"
        tap = f"{only(str(seen_as), str(watched))}\nlink: {mode}"
        config.write_text(QTAP_FILE + "".join(f"  {line}\n" for line in tap.splitlines()))
        world = stack.enter_context(World(directory / "world"))
        work = directory / "haproxy"
        work.mkdir()
        stage.share(world, work)
        _make_certificate(scenario, work)
        backend = _start_backend(world, scenario, directory)
        agent = stack.enter_context(
            RunningAgent(
                directory / "agent", config.read_text(), "--ring-size=256mb",
                f"--http-buffer-size={BODY_BYTES}b", rung=rung, command=("record", str(raw)),
            )
        )  # fmt: skip
        with ExitStack() as proxies_stack:

            def start(settings: HAProxySettings, program: Path) -> HAProxy:
                place = work / str(settings.port)
                placed = _placed(settings, work)
                return proxies_stack.enter_context(HAProxy(world, place, placed, binary=program))

            proxies = [start(settings, watched) for settings in reversed(scenario.proxies)]
            if scenario.outside:
                outside = stage.program("outside")[0]
                for settings in reversed(scenario.outside):
                    start(settings, outside)
            time.sleep(_SETTLE_S)
            seconds = _run_load(world, scenario, directory, proxies)
            failed_connects = _failed_connects(world)
        backend.stop()
        agent.stop(_STOP_S)
    truth = Truth.read(
        directory / "client.truth", directory / "backend.truth",
        has_checks=scenario.kind == "health checks",
    )  # fmt: skip
    return Capture(
        scenario=scenario, recording=raw, config=config, truth=truth,
        failed_connects=failed_connects, seconds=seconds,
    )  # fmt: skip


def _start_backend(world: World, scenario: Scenario, directory: Path) -> Program:
    command = [str(compile_program("backend", HERE)), "--truth", str(directory / "backend.truth")]
    for port in SERVER_PORTS:
        command += ["--listen", f"127.0.0.1:{port}"]
    program = world.start("backend", [*command, *options(scenario.backend)])
    world.wait_for_ports(SERVER_PORTS, [program])
    return program


def _run_load(
    world: World, scenario: Scenario, directory: Path, proxies: Sequence[HAProxy]
) -> float:
    """Run the client to its end, with the reloads in between; return its seconds."""
    command = [str(compile_program("load", HERE)), "--truth", str(directory / "client.truth")]
    for port in scenario.entries:
        command += ["--connect", f"127.0.0.1:{port}"]
    command += ["--requests", str(scenario.requests), "--timeout", str(_LOAD_S)]
    started = time.monotonic()
    load = world.start("load", [*command, *options(scenario.client)])
    for _ in range(scenario.reloads):
        time.sleep(0.3)
        for proxy in proxies:
            proxy.reload()
    if scenario.reloads and not load.is_running:
        raise WorldError("the load was over before the last reload")
    wait_until(lambda: not load.is_running, _LOAD_S + 10, "the end of the load")
    if load.process.returncode:
        raise WorldError(f"load: {load.errors()}{load.output()}")
    return float(json.loads(load.output())["seconds"]) or time.monotonic() - started


def _failed_connects(world: World) -> int:
    """Return how many connects were refused; nobody but HAProxy tries where nobody listens."""
    lines = Path(f"/proc/{world.pid}/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["AttemptFails"])


def _placed(settings: HAProxySettings, directory: Path) -> HAProxySettings:
    """Put the directory's path where the scenario has a place for it."""

    def fill(text: str) -> str:
        return text.replace("{directory}", str(directory))

    servers = tuple(replace(each, options=fill(each.options)) for each in settings.servers)
    return replace(settings, servers=servers, bind_options=fill(settings.bind_options))


def _make_certificate(scenario: Scenario, directory: Path) -> None:
    if scenario.reads != "tls":
        return
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    files = ("-keyout", str(key), "-out", str(certificate))
    command = ["openssl", "req", "-x509", *kind, "-subj", "/CN=localhost", *files]
    subprocess.run(command, check=True, capture_output=True)
    (directory / "server.pem").write_text(certificate.read_text() + key.read_text())
