"""A report as it is shown and sent: values, and their JSON (``/report.json``, ``--json``)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["ReportRow", "ReportSnapshot", "ReportTable", "Spread"]


class _Value(BaseModel):
    # An agent may be newer than who asks it: what is not known is passed over.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(_Value):
    """How durations are spread, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float


class ReportRow(_Value):
    """The requests of one process to one backend, at one frontend or for one path."""

    process: str
    name: str
    """Empty in a sum."""
    requests: int
    """Health checks are not among them."""
    share: float
    """Of the requests of the process in this table, 0 to 1."""
    client_errors: int
    """Answers 400 to 499."""
    server_errors: int
    """Answers 500 and above."""
    failed: int
    """Requests that got no whole answer: closed, reset, timed out, connect failed."""
    aborted: int
    """Requests whose client went away before the answer was complete."""
    unseen: int
    """Requests whose answer the agent did not see: lost bytes, or not over yet."""
    retries: int
    """Attempts after the first for the same client's request."""
    answered_by_proxy: int
    """Requests that HAProxy answered itself."""
    health_checks_passed: int
    health_checks_failed: int
    latency_ms: Spread | None
    """First request byte to last response byte; of what was answered."""
    overhead_ms: Spread | None
    """The part of it that the proxy took itself; ``None`` where the two sides are not linked."""


class ReportTable(_Value):
    """Rows, those with most requests first, and their sum for each process."""

    rows: tuple[ReportRow, ...] = ()
    totals: tuple[ReportRow, ...] = ()


class ReportSnapshot(_Value):
    """All that is known at one moment."""

    transactions: int = 0
    since_ns: int = 0
    """When the first request began, in nanoseconds since the Unix epoch; 0: none was seen."""
    until_ns: int = 0
    """When the last one was over."""
    is_coarse: bool = False
    """Whether latencies are whole milliseconds to the head of the response, as in JSON records."""
    backend: ReportTable = ReportTable()
    frontend: ReportTable = ReportTable()
    path: ReportTable = ReportTable()
