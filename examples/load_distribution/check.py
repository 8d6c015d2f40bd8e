"""
Load distribution: which server answered how many requests.

The guide's first configuration: backend requests only, as summaries in JSON. It promises
that the log shows how the traffic is spread over the servers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 1
BACKENDS = (
    Backend("backend-api-1", "127.0.1.1", 8001),
    Backend("backend-api-2", "127.0.1.2", 8002),
    Backend("backend-web-1", "127.0.1.3", 8003),
    Backend("backend-web-2", "127.0.1.4", 8004),
)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    count = stage.amount(60, 20)
    answers = stage.send(f"{count} API requests", [Request(path="/api/data")] * count)
    # A client that keeps its connection is no single unit: each of its requests is balanced.
    other = Request(path="/", connection="kept")
    answers += stage.send(f"{count} other requests, on one connection", [other] * count)
    captured = stage.finish(2 * count)

    of_clients = [item for item in captured if item.user_agent]
    yield Finding(
        all(item.level == "summary" and not item.is_ingress for item in captured),
        "only the side to the servers, only summaries",
    )
    seen = Counter(item.server for item in of_clients)
    told = Counter(answer.service for answer in answers)
    yield Finding(
        seen == told,
        "the log counts for each server what that server has answered",
        ", ".join(f"{server} {number}" for server, number in sorted(seen.items())),
    )
    api = seen["backend-api-1"], seen["backend-api-2"]
    yield Finding(
        abs(api[0] - api[1]) <= 1,
        "roundrobin: the API servers take turns",
        f"{api[0]} and {api[1]} of {count}",
    )
    web = seen["backend-web-1"] + seen["backend-web-2"]
    yield Finding(web == count, "leastconn: the web servers have the rest", f"{web} of {count}")
