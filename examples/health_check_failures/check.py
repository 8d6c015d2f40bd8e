"""
Health-check failures: nothing while servers are well, everything once one fails.

The guide's second configuration: rules leave out good checks, and keep failed ones and all
other errors of servers whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 2
BACKENDS = (
    Backend("backend-api-1", "127.0.1.1", 8001),
    Backend("backend-api-2", "127.0.1.2", 8002),
)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    count = stage.amount(10, 4)
    stage.send(f"{count} requests while all is well", [Request(path="/a")] * count)
    stage.send("one that its server fails on", [Request(path="/status/500")])
    time.sleep(1)  # five checks of each server
    ill_s = stage.change_health("backend-api-1")
    stage.note("backend-api-1 answers its health checks with 503 from now on")
    stage.wait_until_haproxy_says("Server api_servers/api1 is DOWN")
    answers = stage.send(f"{count} requests with one server down", [Request(path="/b")] * count)
    well_s = stage.change_health("backend-api-1")
    stage.note("backend-api-1 is well again")
    stage.wait_until_haproxy_says("Server api_servers/api1 is UP")
    time.sleep(0.5)
    stage.kill("backend-api-2")
    stage.note("backend-api-2 is killed")
    stage.wait_until_haproxy_says("Server api_servers/api2 is DOWN")
    time.sleep(0.3)
    captured = stage.finish(3)

    checks = [item for item in captured if item.path == "/health"]
    others = [item for item in captured if item.path != "/health"]
    early = [item for item in checks if item.time_s < ill_s]
    late = [item for item in checks if item.time_s > well_s]
    failed = [item for item in checks if ill_s <= item.time_s <= well_s]
    yield Finding(not early, "no health check is captured before a server fails")
    yield Finding(
        len(failed) >= 2
        and all((i.server, i.status, i.level) == ("backend-api-1", 503, "full") for i in failed),
        "once backend-api-1 fails, its failed checks are captured, whole",
        f"{len(failed)} x 503, body {failed[0].body!r}" if failed else "none",
    )
    yield Finding(not late, "none after it is well again")
    yield Finding(
        {answer.service for answer in answers} == {"backend-api-2"},
        "meanwhile every request goes to backend-api-2",
    )
    yield Finding(
        [(i.status, i.level, i.path) for i in others] == [(500, "full", "/status/500")],
        "an error that is no health check is captured, too: !is_health_check() holds",
        f"{len(others)} captured",
    )
