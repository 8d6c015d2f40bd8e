"""
Blue/green: the split between two versions, measured, and the errors of each.

The guide's second use case, which promises 90/10. The weights that it prints give 90 to
each of two blue servers and 10 to green, which is 94.7/5.3; both are measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from checks.captured import Captured, share_of
from checks.stage import Backend, Finding, Request, Stage

PLACE = 6
BACKENDS = (
    Backend("blue-app-1", "127.0.1.1", 8001),
    Backend("blue-app-2", "127.0.1.2", 8002),
    Backend("green-app-1", "127.0.1.3", 8003),
)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    well, failing = Request(path="/"), Request(path="/status/503")
    requests = [well] * 40 + [failing] * 20 + [well] * 40
    stage.send("100 requests to 45/45/10, 20 of which fail", requests)
    table = stage.take_report().backend
    stage.send("190 requests to 90/90/10", [Request(path="/weights-90")] * 190)
    captured = stage.finish(290)

    yield Finding(
        len(captured) == 290 and all(item.level == "summary" for item in captured),
        "every backend request is captured, as a summary",
        f"{len(captured)} of 290",
    )
    split = share_of(item for item in captured if item.path != "/weights-90")
    yield Finding(
        abs(_green(split) - 0.10) <= 0.011,
        "45/45/10: 90 % to blue and 10 % to green",
        _told(split),
    )
    ours = ("blue-app", "green-app", "app_servers/")  # another HAProxy may run on this machine
    reported = [row.requests for row in table.rows if row.name.startswith(ours)]
    yield Finding(
        sorted(reported) == sorted(round(100 * share) for share in split.values()),
        "otel-qtap report (the table above) says the same",
        f"{', '.join(map(str, reported))} of 100",
    )
    split = share_of(item for item in captured if item.path == "/weights-90")
    yield Finding(
        abs(_green(split) - 10 / 190) <= 0.011,
        "90/90/10, as the guide prints it: 94.7 % to blue and 5.3 % to green",
        _told(split),
    )
    errors = {name: _errors(captured, name) for name in ("blue", "green")}
    yield Finding(
        sum(errors.values()) == 20 and errors["green"] > 0,
        "errors are counted for each version",
        ", ".join(f"{name} {number}" for name, number in errors.items()),
    )


def _green(split: dict[str, float]) -> float:
    return sum(share for server, share in split.items() if server.startswith("green"))


def _told(split: dict[str, float]) -> str:
    return ", ".join(f"{server} {share:.1%}" for server, share in split.items())


def _errors(captured: Iterable[Captured], name: str) -> int:
    return sum(item.status >= 500 for item in captured if item.server.startswith(name))
