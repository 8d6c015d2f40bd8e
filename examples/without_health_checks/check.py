"""
Without health checks: the noise left out, all traffic kept.

The guide's answer to "Seeing only health checks?", by a rule. (Its other answer, a filter,
excludes HAProxy altogether: see the example ``filters``.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 9
BACKENDS = (Backend("app-1", "127.0.1.1", 8001),)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    time.sleep(0.5)
    stage.send("5 requests", [Request(path="/a")] * 5)
    stage.send("1 that asks for /health itself", [Request(path="/health")])
    captured = stage.finish(10)

    seen = sorted((item.path, item.side, item.level) for item in captured)
    wanted = [("/a", "egress", "full")] * 5 + [("/a", "ingress", "full")] * 5
    yield Finding(seen == wanted, "both sides of every request, whole, and nothing else")
