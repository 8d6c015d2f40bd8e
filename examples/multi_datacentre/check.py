"""
Two data centres: everything to the backup, errors of the primary.

The guide's fourth use case. The URL of a backend request has the server's name, so
``is_backup_dc()`` can tell the data centres apart, and ``!is_backup_dc() && …`` is true
for the primary.
"""

from __future__ import annotations

from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 8
BACKENDS = (
    Backend("dc1-web-1", "127.0.1.1", 8001),
    Backend("dc1-web-2", "127.0.1.2", 8002),
    Backend("dc2-web-1", "127.0.2.1", 8001),
    Backend("dc2-web-2", "127.0.2.2", 8002),
)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    count = stage.amount(20, 6)
    before = stage.send(f"{count} requests, all is well", [Request(path="/well")] * count)
    stage.send("one that the primary fails on", [Request(path="/status/500")])
    stage.send("one for something that is not there", [Request(path="/status/404")])
    for name in ("dc1-web-1", "dc1-web-2"):
        stage.kill(name)
    stage.note("the primary data centre is gone")
    for name in ("dc1-web1", "dc1-web2"):
        stage.wait_until_haproxy_says(f"Server geo_distributed/{name} is DOWN")
    after = stage.send(f"{count} requests to what is left", [Request(path="/failover")] * count)
    captured = stage.finish(count + 1)

    yield Finding(
        {answer.service for answer in before} == {"dc1-web-1", "dc1-web-2"},
        "the primary answers while it is there",
    )
    yield Finding(
        [i for i in captured if i.path == "/well"] == [],
        "nothing of that is captured",
    )
    failed = [(i.server[:4], i.status, i.level) for i in captured if i.path.startswith("/status")]
    yield Finding(
        failed == [("dc1-", 500, "full")],
        "!is_backup_dc() && http.res.status >= 500 matches the primary's error, and no 404",
        str(failed),
    )
    served = {answer.service for answer in after}
    backup = [item for item in captured if item.path == "/failover"]
    yield Finding(
        len(backup) == count
        and all(i.level == "full" and i.server.startswith("dc2-") for i in backup),
        "every request to the backup is captured whole",
        f"{len(backup)} of {count}, served by {', '.join(sorted(served))}",
    )
