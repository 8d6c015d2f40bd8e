"""Spans as trees in plain text, one per trace."""

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
    """The traces that lead through one process: what called it, and what hangs below it."""

    def __init__(self, spans: Sequence[Span], process_id: int) -> None:
        in_time = sorted(spans, key=lambda span: span.start_ns)
        self._known = {span.span_id: span for span in in_time}
        self._children: dict[str, list[Span]] = defaultdict(list)
        own = []
        for span in in_time:
            if span.parent_id in self._known:
                self._children[span.parent_id].append(span)
            if span.process_id == process_id:
                own.append(span)
        self.health_checks = [span for span in own if _is_health_check(span)]
        """What it asked on nobody's behalf."""
        self.requests = [span for span in own if span.kind == "SERVER"]
        self.attempts = [
            span for span in own if span.kind == "CLIENT" and not _is_health_check(span)
        ]
        """What it sent to backends, failed attempts included."""
        requests = {span.span_id for span in self.requests}
        self.linked = [span for span in self.attempts if span.parent_id in requests]
        """Those that are children of a request."""
        self.unlinked = [span for span in self.attempts if span.parent_id not in requests]
        tops = {self._top(span).span_id for span in (*self.requests, *self.attempts)}
        self.roots = [span for span in in_time if span.span_id in tops]

    @property
    def is_linked(self) -> bool:
        """Whether every attempt has its request, and every request an attempt."""
        parents = {span.parent_id for span in self.linked}
        return not self.unlinked and all(span.span_id in parents for span in self.requests)

    def size(self) -> int:
        """Return how many spans are shown, all levels counted."""
        return sum(1 for root in self.roots for _ in self._rows(root, "", ""))

    def _top(self, span: Span) -> Span:
        while span.parent_id in self._known:
            span = self._known[span.parent_id]
        return span

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
        yield _Row(
            label=f"{branch}{span.kind} {span.name}",
            service=span.resource.get("service.name", "?"),
            target=span.attributes.get("url.full") or _server_target(span),
            status=_status(span),
            duration=f"{(span.end_ns - span.start_ns) / 1e6:.2f} ms",
            remark="not linked to a request" if span in self.unlinked else _remark(span),
        )
        children = self._children[span.span_id]
        for child in children:
            is_last = child is children[-1]
            below = indent + ("   " if is_last else "│  ")
            yield from self._rows(child, indent + ("└─ " if is_last else "├─ "), below)


def _status(span: Span) -> str:
    status = span.attributes.get("http.response.status_code", "")
    error = span.attributes.get("error.type", "error") if span.is_error else ""
    return " ".join(word for word in (status, error if error != status else "") if word) or "-"


def _remark(span: Span) -> str:
    """Say how the parent was found, and what the attributes tell about a proxy's work."""
    attributes = span.attributes
    remarks = []
    if method := attributes.get("otel_qtap.link.method"):
        remarks.append(f"by {method}")
    if resends := attributes.get("http.request.resend_count"):
        remarks.append(f"resend {resends}")
    if overhead := attributes.get("otel_qtap.proxy.overhead"):
        remarks.append(f"overhead {float(overhead) * 1e3:.2f} ms")
    return ", ".join(remarks)


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
