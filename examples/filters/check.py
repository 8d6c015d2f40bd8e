"""
Filters: a program that one matches is left alone.

The guide shows a filter for HAProxy's executable under "Seeing only health checks?". As in
Qtap it excludes all of HAProxy's traffic, health checks or not; the neighbours are still
seen.
"""

from __future__ import annotations

from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 11
BACKENDS = (Backend("app-1", "127.0.1.1", 8001),)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    stage.send("5 requests", [Request(path="/filtered")] * 5)
    backend = stage.pid_of("app-1")
    captured = stage.finish(5, pid=backend)

    yield Finding(
        [(i.path, i.side) for i in captured] == [("/filtered", "ingress")] * 5,
        "the server's side of each request is captured",
        f"{len(captured)} by the server",
    )
    yield Finding(stage.output() == [], "nothing of HAProxy is")
