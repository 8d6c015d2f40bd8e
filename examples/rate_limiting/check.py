"""
Rate limiting: refused requests whole, retries with their headers.

The guide's third use case. Some requests are refused by HAProxy itself, others by a server;
a client that comes back says so in a ``Retry-After`` of its own, which is what the guide's
``is_retry`` looks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 7
BACKENDS = (Backend("app-1", "127.0.1.1", 8001), Backend("app-2", "127.0.1.2", 8002))


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    answers = stage.send("15 requests where 10 are allowed", [Request(path="/limited")] * 15)
    stage.send(
        "2 that a server refuses", [Request(path="/status/429"), Request(path="/status/503")]
    )
    retry = Request(path="/again", headers={"Retry-After": "1"})
    stage.send("1 that is made again", [retry])
    stage.send("10 others", [Request(path="/other")] * 10)
    captured = stage.finish(5 + 4 + 2)

    refused = sum(answer.status == 429 for answer in answers)
    yield Finding(refused == 5, "HAProxy refuses what is beyond ten", f"{refused} x 429")
    seen = Counter((item.path, item.status, item.side, item.level) for item in captured)
    yield Finding(
        seen["/limited", 429, "ingress", "full"] == 5
        and not seen["/limited", 429, "egress", "full"],
        "each of these is captured whole, once: no server has seen them",
    )
    yield Finding(
        all(
            seen[f"/status/{status}", status, side, "full"] == 1
            for status in (429, 503)
            for side in ("ingress", "egress")
        ),
        "what a server refuses is captured whole, on both sides",
    )
    yield Finding(
        seen["/again", 200, "ingress", "headers"] == seen["/again", 200, "egress", "headers"] == 1,
        "is_retry() matches: the retry is captured with its headers",
    )
    yield Finding(
        len(captured) == 5 + 4 + 2,
        "nothing else is captured: a request without the field is no retry",
        f"{len(captured)} transactions",
    )
