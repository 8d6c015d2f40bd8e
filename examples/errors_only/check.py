"""
Errors only: what goes well is counted and not kept.

The guide's answer to "Too much traffic?". The table that ``otel-qtap report`` makes has
all requests, captured or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 10
BACKENDS = (Backend("app-1", "127.0.1.1", 8001),)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    count = stage.amount(100, 20)
    stage.send(f"{count} requests that go well", [Request(path="/a")] * count)
    stage.send("2 errors of the server", [Request(path="/status/404"), Request(path="/status/500")])
    stage.send("1 request that nobody is there for", [Request(path="/nobody")])
    rows = stage.take_report().backend.rows
    captured = stage.finish(5)

    seen = Counter((item.path, item.status, item.side, item.level) for item in captured)
    yield Finding(
        seen
        == {
            ("/status/404", 404, "ingress", "full"): 1,
            ("/status/404", 404, "egress", "full"): 1,
            ("/status/500", 500, "ingress", "full"): 1,
            ("/status/500", 500, "egress", "full"): 1,
            ("/nobody", 503, "ingress", "full"): 1,
        },
        "both sides of each error of the server, and HAProxy's own 503, whole",
        f"{len(captured)} transactions of {2 * count + 6}",
    )
    row = next((row for row in rows if row.name in ("app-1:8001", "app_servers/app1")), None)
    yield Finding(
        row is not None
        and (row.requests, row.client_errors, row.server_errors) == (count + 2, 1, 1),
        "the report counts all of them",
        "" if row is None else f"{row.requests} requests, {row.client_errors} x 4xx",
    )
