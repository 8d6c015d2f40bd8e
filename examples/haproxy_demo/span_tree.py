"""Spans as trees in plain text, one per request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from haproxy_demo.receiver import Span

__all__ = ["SpanTree"]


class _Row(NamedTuple):
    label: str
    service: str
    target: str
    status: str
    duration: str
    remark: str


class SpanTree:
    """The traces that begin in one process, with all that hangs below them."""

    def __init__(self, spans: Sequence[Span], process_id: int) -> None:
        known = {span.span_id for span in spans}
        self._children: dict[str, list[Span]] = defaultdict(list)
        roots = []
        for span in sorted(spans, key=lambda span: span.start_ns):
            if span.parent_id in known:
                self._children[span.parent_id].append(span)
            elif span.process_id == process_id:
                roots.append(span)
        self.health_checks = [span for span in roots if _is_health_check(span)]
        self.roots = [span for span in roots if not _is_health_check(span)]
        """In order of time: a SERVER span is a request, a CLIENT span one without its request."""

    @property
    def requests(self) -> list[Span]:
        """The SERVER spans."""
        return [span for span in self.roots if span.kind == "SERVER"]

    @property
    def unlinked(self) -> list[Span]:
        """The CLIENT spans that have no parent."""
        return [span for span in self.roots if span.kind == "CLIENT"]

    @property
    def linked(self) -> int:
        """How many CLIENT spans are children of a request."""
        return sum(
            child.kind == "CLIENT"
            for span in self.requests
            for child in self._children[span.span_id]
        )

    def size(self) -> int:
        """Return how many spans are shown, all levels counted."""
        return sum(1 for root in self.roots for _ in self._rows(root, "", ""))

    def lines(self) -> Iterator[str]:
        """Yield the text, columns aligned over all trees."""
        trees = [(root, list(self._rows(root, "", ""))) for root in self.roots]
        rows = [row for _, tree in trees for row in tree]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(_Row._fields))]
        for root, tree in trees:
            yield f"trace {root.trace_id}"
            for row in tree:
                cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
                cells[-2] = row.duration.rjust(widths[-2])
                yield "  " + "  ".join(cells).rstrip()
            yield ""

    def _rows(self, span: Span, branch: str, indent: str) -> Iterator[_Row]:
        attributes = span.attributes
        is_alone = span.kind == "CLIENT" and not branch
        yield _Row(
            label=f"{branch}{span.kind} {span.name}",
            service=span.resource.get("service.name", "?"),
            target=attributes.get("url.full") or _server_target(span),
            status=attributes.get("http.response.status_code", "-")
            + (f" {attributes.get('error.type', 'error')}" if span.is_error else ""),
            duration=f"{(span.end_ns - span.start_ns) / 1e6:.2f} ms",
            remark="no parent: not linked to a request" if is_alone else "",
        )
        children = self._children[span.span_id]
        for child in children:
            is_last = child is children[-1]
            below = indent + ("   " if is_last else "│  ")
            yield from self._rows(child, indent + ("└─ " if is_last else "├─ "), below)


def _server_target(span: Span) -> str:
    query = span.attributes.get("url.query", "")
    return span.attributes.get("url.path", "") + (f"?{query}" if query else "")


def _is_health_check(span: Span) -> bool:
    """Tell HAProxy's own checks from a client's: they carry no ``User-Agent``."""
    if span.attributes.get("otel_qtap.health_check") == "true":
        return True
    path = urlsplit(span.attributes.get("url.full", "")).path
    return (
        span.kind == "CLIENT"
        and path == "/health"
        and "user_agent.original" not in span.attributes
        and "http.request.header.user-agent" not in span.attributes
    )
