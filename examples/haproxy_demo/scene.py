"""Who is on stage: HAProxy, six backends, the seven tests of the guide and an encore."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from haproxy_demo.world import Program, World, WorldError

__all__ = [
    "ACTS",
    "BACKENDS",
    "ENCORE",
    "HOSTS",
    "TESTS",
    "Backend",
    "GuideTest",
    "send",
    "start_backends",
    "start_haproxy",
]

EXAMPLES = Path(__file__).resolve().parent.parent
FRONT_END_PORT = 8085
RETRY_PORT = 8086
STATS_PORT = 8404


class Backend(NamedTuple):
    """One process of ``backend_service.py``."""

    name: str
    address: str
    port: int


BACKENDS = (
    Backend("backend-api-1", "127.0.1.1", 8001),
    Backend("backend-api-2", "127.0.1.2", 8002),
    Backend("backend-web-1", "127.0.1.3", 8003),
    Backend("backend-web-2", "127.0.1.4", 8004),
    Backend("backend-static", "127.0.1.5", 8005),
    # The guide routes /health to localhost:8080, where nothing listens: here it answers.
    Backend("health", "127.0.0.1", 8080),
)
HOSTS = {backend.name: backend.address for backend in BACKENDS if backend.name != "health"}
HOSTS["backend-gone"] = "127.0.1.9"  # nobody listens there


class GuideTest(NamedTuple):
    """One test of the guide, or in its manner."""

    title: str
    path: str
    repeat: int = 1
    json_body: str = ""
    port: int = FRONT_END_PORT
    attempts: int = 1
    """How often HAProxy asks a backend for each request."""

    @property
    def url(self) -> str:
        """What a client types."""
        return f"http://localhost:{self.port}{self.path}"

    @property
    def sides(self) -> int:
        """How many transactions HAProxy takes part in."""
        return self.repeat * (1 + self.attempts)

    def command(self) -> list[str]:
        """Return the ``curl`` command of the guide (or what does the same without curl)."""
        curl = shutil.which("curl")
        client = [curl] if curl else [sys.executable, str(Path(__file__).with_name("fetch.py"))]
        if not self.json_body:
            return [*client, "-s", self.url]
        content_type = "Content-Type: application/json"
        return [*client, "-s", "-X", "POST", self.url, "-H", content_type, "-d", self.json_body]


TESTS = (
    GuideTest("to a web server", "/"),
    GuideTest("six times, to see the web servers share the load", "/", repeat=6),
    GuideTest("to an API server", "/api/users"),
    GuideTest("six times, to see the API servers take turns", "/api/data", repeat=6),
    GuideTest(
        "POST to an API server", "/api/create", json_body='{"name": "Alice", "role": "admin"}'
    ),
    GuideTest("static content", "/static/image.png"),
    GuideTest("health check, by a client", "/health"),
)
ENCORE = GuideTest("a server that is down: HAProxy asks another", "/", port=RETRY_PORT, attempts=2)
"""Not in the guide."""
ACTS = (*TESTS, ENCORE)
REQUESTS = sum(test.repeat for test in ACTS)


def start_backends(world: World) -> list[Program]:
    """Start all backends and wait until they listen."""
    service = str(EXAMPLES / "backend_service.py")
    programs = [
        world.start(
            backend.name,
            [sys.executable, service, str(backend.port), backend.address],
            {"SERVICE_NAME": backend.name, "OTEL_SERVICE_NAME": backend.name},
        )
        for backend in BACKENDS
    ]
    world.wait_for_ports([backend.port for backend in BACKENDS], programs)
    return programs


def start_haproxy(world: World) -> Program:
    """Start HAProxy on ``haproxy.cfg`` and ``retry.cfg`` and wait until it listens."""
    binary = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin")
    if binary is None:
        raise WorldError("haproxy is not installed")
    files = (EXAMPLES / "haproxy.cfg", Path(__file__).with_name("retry.cfg"))
    options = [option for file in files for option in ("-f", str(file))]
    haproxy = world.start("haproxy", [binary, "-db", *options])
    world.wait_for_ports([FRONT_END_PORT, RETRY_PORT, STATS_PORT], [haproxy])
    return haproxy


def send(world: World, test: GuideTest) -> Iterator[str]:
    """Send the requests of ``test`` one after the other; yield what was answered to each."""
    for _ in range(test.repeat):
        done = world.run(test.command())
        if done.returncode:
            raise WorldError(f"no answer from {test.url}: {done.stderr.decode(errors='replace')}")
        yield done.stdout.decode(errors="replace")


def service_of(answer: str) -> str:
    """Return which backend gave this answer."""
    try:
        return str(json.loads(answer)["service"])
    except (ValueError, KeyError, TypeError):
        return "?"
