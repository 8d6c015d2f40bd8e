"""
Backend-specific capture: each pool at its own level, the first rule that matches decides.

The guide's third configuration. Its rule for slow requests needs ``http.res.duration_ms``,
which tells slow requests from others here.
"""

from __future__ import annotations

from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 3
BACKENDS = (
    Backend("backend-api-1", "127.0.1.1", 8001),
    Backend("backend-api-2", "127.0.1.2", 8002),
    Backend("backend-web-1", "127.0.1.3", 8003),
)
EXPECTED = {
    "/api/users": ("full", "an API call"),
    "/api/delay/600": ("full", "a slow API call: the first rule decides"),
    "/api/status/500": ("full", "an API call that fails"),
    "/delay/600": ("headers", "a slow page: is_slow() matches"),
    "/delay/600/status/500": ("headers", "a slow page that fails: is_slow() comes first"),
    "/status/404": ("full", "a page that is not there"),
    "/delay/100": ("none", "a page that takes 100 ms"),
    "/index.html": ("none", "a page"),
    "/apiary": ("none", "a page whose name begins like the API"),
}


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    for path, (_, what) in EXPECTED.items():
        stage.send(f"{path}, {what}", [Request(path=path)])
    kept = [path for path, (level, _) in EXPECTED.items() if level != "none"]
    captured = stage.finish(2 * len(kept))

    for path, (level, what) in EXPECTED.items():
        found = [item for item in captured if item.path == path]
        seen = {item.side: item.level for item in found}
        wanted = {} if level == "none" else {"ingress": level, "egress": level}
        yield Finding(
            seen == wanted and len(found) == len(wanted),
            f"{what}: {level}" + (" on both sides" if wanted else ""),
            "" if seen == wanted else f"captured: {seen or 'nothing'}",
        )
