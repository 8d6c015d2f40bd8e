"""The agent's text output, taken apart just enough to choose what to show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Transaction", "read_transactions"]

FIRST_LINE = "=== HTTP Transaction ==="
LAST_LINE = "========================"
SOURCE = re.compile(r"Source Process: (?P<process>.*) \(PID: (?P<pid>\d+)(, Container: .*)?\)")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One block of the agent's output."""

    text: str
    process: str
    pid: int
    is_egress: bool
    url: str
    has_user_agent: bool

    @property
    def is_health_check(self) -> bool:
        """Whether HAProxy asked by itself: its checks carry no ``User-Agent``, clients do."""
        return self.is_egress and not self.has_user_agent and urlsplit(self.url).path == "/health"


def read_transactions(output: str) -> Iterator[Transaction]:
    """Yield the complete blocks in ``output``, in its order."""
    block: list[str] = []
    for line in output.split("\n"):
        if line == FIRST_LINE:
            block = [line]
        elif block:
            block.append(line)
            if line == LAST_LINE:
                yield _parse(block)
                block = []


def _parse(block: list[str]) -> Transaction:
    source = SOURCE.fullmatch(block[1])
    facts = dict(line.partition(": ")[::2] for line in block[2:7])
    request, _, _ = "\n".join(block).partition("\n--- Response Headers ---")
    return Transaction(
        text="\n".join(block),
        process=source["process"] if source else "?",
        pid=int(source["pid"]) if source else 0,
        is_egress=facts.get("Direction", "").startswith("EGRESS"),
        url=facts.get("URL", ""),
        has_user_agent="\nuser-agent:" in request.lower(),
    )
