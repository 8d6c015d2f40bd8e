"""The agent's JSON lines, as far as the checks look at them."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

__all__ = ["Captured", "levels", "read_captured", "share_of"]


@dataclass(frozen=True, slots=True)
class Captured:
    """One transaction that the agent kept."""

    pid: int
    is_ingress: bool
    method: str
    url: str
    status: int
    level: str
    """``summary``, ``headers`` or ``full``, by what the record has."""
    time_s: float
    """When the request began, in seconds since the Unix epoch."""
    duration_ms: int
    user_agent: str
    body: str
    """Of the response."""
    request_body: str

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def server(self) -> str:
        """Whom it went to (egress), without port."""
        return urlsplit(self.url).hostname or ""

    @property
    def side(self) -> str:
        return "ingress" if self.is_ingress else "egress"


def read_captured(lines: Iterable[str]) -> Iterator[Captured]:
    """Yield the transactions in the agent's output."""
    for line in lines:
        if not line.startswith("{"):
            continue
        record = json.loads(line)
        if "metadata" in record and "request" in record:
            yield _read(record)


def _read(record: dict[str, dict[str, str]]) -> Captured:
    request, response = record["request"], record["response"]
    # Bodies are looked for on both sides: a GET has none.
    has_body = "body" in request or "body" in response
    level = "full" if has_body else "headers" if "headers" in request else "summary"
    return Captured(
        pid=int(record["metadata"]["process_id"]),
        is_ingress=str(record["direction"]) == "ingress",
        method=request["method"],
        url=request["url"],
        status=int(response["status"]),
        level=level,
        time_s=datetime.fromisoformat(_six_digits(str(record["transaction_time"]))).timestamp(),
        duration_ms=int(str(record["duration_ms"])),
        user_agent=request.get("user_agent", ""),
        body=_text(response),
        request_body=_text(request),
    )


def _six_digits(time: str) -> str:
    """Cut nanoseconds off, which ``fromisoformat`` of Python 3.11 does not take."""
    whole, _, fraction = time.rstrip("Z").partition(".")
    return f"{whole}.{fraction[:6]}+00:00"


def _text(message: dict[str, str]) -> str:
    return base64.b64decode(message.get("body", "")).decode(errors="replace")


def levels(captured: Iterable[Captured]) -> str:
    """Say how many were captured at which level: ``full: 4 ingress, 4 egress``."""
    counts = Counter((item.level, item.side) for item in captured)
    if not counts:
        return "nothing"
    parts = []
    for level in ("summary", "headers", "full"):
        sides = [f"{counts[level, s]} {s}" for s in ("ingress", "egress") if counts[level, s]]
        if sides:
            parts.append(f"{level}: {', '.join(sides)}")
    return "; ".join(parts)


def share_of(captured: Iterable[Captured]) -> dict[str, float]:
    """Return the share of each server, 0 to 1, by name."""
    counts = Counter(item.server for item in captured)
    return {server: count / counts.total() for server, count in sorted(counts.items())}
