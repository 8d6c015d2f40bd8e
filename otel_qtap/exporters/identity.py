"""
Which trace a transaction belongs to, and under which id its span goes.

Spans, log records and every destination must agree on this, so it is a function of the
transaction alone: of its request id, of the trace context in its request, and of the same
of all that caused it (``Link.ancestors``).

A proxy that knows nothing of traces passes on what its client sent, and its backends name
that client's span as their parent. Where a proxy, or a filter in it, writes a span id of its
own, the CLIENT span of that request goes by this id, so that what an instrumented backend
does hangs below it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from otel_qtap.protocol.events import Headers
from otel_qtap.transaction.link import TRACE_CONTEXT_NAMES, Ancestor, Candidate, trace_context
from otel_qtap.transaction.model import Transaction

__all__ = ["IdentifySpan", "SpanIdentifier", "SpanIdentity", "remote_parent"]

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE_KEY = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_TRACESTATE_MEMBER = re.compile(
    rf"({_TRACESTATE_KEY})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_MAX_TRACESTATE_MEMBERS = 32  # W3C Trace Context, section 3.3.1.1
_B3_TRACE_ID = re.compile(r"[0-9a-fA-F]{16}|[0-9a-fA-F]{32}")
_B3_SPAN_ID = re.compile(r"[0-9a-fA-F]{16}")


@dataclass(frozen=True, slots=True)
class SpanIdentity:
    """The place of one span in its trace, and what it has to do with other traces."""

    context: SpanContext
    parent: SpanContext | None
    links: tuple[SpanContext, ...] = ()
    """Spans that may have caused it, and the one that its own request names elsewhere."""


IdentifySpan: TypeAlias = Callable[[Transaction], SpanIdentity]
"""Must give the same answer for the same transaction, on any thread."""


class SpanIdentifier:
    """
    Make identities: the caller's trace if somebody named one, else a new trace.

    Ids are a keyed hash of request ids under a random key of this agent: as random as
    ``os.urandom``, and yet the same for every destination and for the children of a span,
    without a table that threads would have to share.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = os.urandom(32) if key is None else key

    def __call__(self, transaction: Transaction) -> SpanIdentity:
        """Return the identity of the span of ``transaction``."""
        lineage = _lineage(transaction)
        named = [remote_parent(each.context) for each in lineage]
        own, caller = named[0], named[-1]
        begun = caller or remote_parent(lineage[-1].begun)
        trace_id = self._ids(lineage[-1].request_id)[0] if begun is None else begun.trace_id
        span_id = self._span_id(lineage, named, trace_id)
        links = [self._candidate(each) for each in transaction.candidates]
        if len(lineage) == 1:
            parent = caller
        else:
            parent_id = self._span_id(lineage[1:], named[1:], trace_id)
            is_remote = transaction.direction.is_ingress
            parent = _context(trace_id, parent_id, is_remote=is_remote)
            if own is not None and own.trace_id != trace_id:
                links.append(own)
        state = _latest_state(own, begun)
        return SpanIdentity(_context(trace_id, span_id, state), parent, tuple(links))

    def _span_id(
        self, lineage: Sequence[Ancestor], named: Sequence[SpanContext | None], trace_id: int
    ) -> int:
        """Return the id of the first span of ``lineage``: its own, unless it sent another one."""
        sent = named[0]
        if lineage[0].is_first_sent and sent is not None and sent.trace_id == trace_id:
            passed_on = {each.span_id for each in named[1:] if each is not None}
            if sent.span_id not in passed_on:
                return sent.span_id
        return self._ids(lineage[0].request_id)[1]

    def _candidate(self, candidate: Candidate) -> SpanContext:
        """Return the span of ``candidate``; what was served never goes by another's id."""
        trace_id, span_id = self._ids(candidate.root_id)[0], self._ids(candidate.request_id)[1]
        caller = remote_parent(candidate.root_headers)
        return _context(trace_id if caller is None else caller.trace_id, span_id)

    def _ids(self, request_id: str) -> tuple[int, int]:
        """Return the trace that begins with a request, and the id of its span."""
        digest = hashlib.blake2b(request_id.encode(), digest_size=24, key=self._key).digest()
        return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1


def _lineage(transaction: Transaction) -> tuple[Ancestor, ...]:
    """Return what decides about the ids of a transaction, and of all that caused it."""
    link = transaction.link
    own = Ancestor(
        transaction.request_id,
        trace_context(transaction.request.headers),
        is_first_sent=link is not None and link.is_first_sent,
        begun=transaction.begun,
    )
    return (own,) if link is None else (own, *link.ancestors)


def _latest_state(own: SpanContext | None, begun: SpanContext | None) -> TraceState | None:
    """Return the tracestate of the request itself, else the one that the trace began with."""
    if begun is None:
        return None
    if own is not None and own.trace_id == begun.trace_id and own.trace_state:
        return own.trace_state
    return begun.trace_state


def remote_parent(headers: Headers) -> SpanContext | None:
    """Return the span that the sender of ``headers`` names: W3C first, then B3."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        key = name.lower()
        if key in TRACE_CONTEXT_NAMES:
            found.setdefault(key, []).append(value.strip())
    if not found:
        return None
    return _w3c_parent(found) or _b3_parent(found)


def _w3c_parent(found: dict[str, list[str]]) -> SpanContext | None:
    values = found.get("traceparent", [])
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    context = SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=_trace_state(found.get("tracestate", [])),
    )
    return context if context.is_valid else None


def _trace_state(values: list[str]) -> TraceState | None:
    """Return the members in order; ``None`` for all if one is wrong (checked here, since
    the SDK would write what a peer sent into the log)."""
    members = [member.strip() for value in values for member in value.split(",")]
    matches = [_TRACESTATE_MEMBER.fullmatch(member) for member in members if member]
    pairs = [(match[1], match[2]) for match in matches if match]
    is_valid = (
        len(pairs) == len(matches)
        and len(pairs) <= _MAX_TRACESTATE_MEMBERS
        and len({key for key, _ in pairs}) == len(pairs)
    )
    return TraceState(pairs) if pairs and is_valid else None


def _b3_parent(found: dict[str, list[str]]) -> SpanContext | None:
    """Return the parent that B3 headers name; the single header wins over the several."""
    single = found.get("b3", [])
    if single:
        parts = single[0].split("-") if len(single) == 1 else []
        if not 2 <= len(parts) <= 4:  # "0" alone: do not sample, and no ids
            return None
        trace_id, span_id = parts[:2]
        sampled = parts[2] if len(parts) > 2 else ""
    else:
        ids = (found.get("x-b3-traceid", []), found.get("x-b3-spanid", []))
        if any(len(values) != 1 for values in ids):
            return None
        (trace_id,), (span_id,) = ids
        sampled = next(iter(found.get("x-b3-sampled", [])), "")
    if not (_B3_TRACE_ID.fullmatch(trace_id) and _B3_SPAN_ID.fullmatch(span_id)):
        return None
    is_sampled = sampled.lower() in ("1", "d", "true")
    context = SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT),
    )
    return context if context.is_valid else None


def _context(
    trace_id: int, span_id: int, trace_state: TraceState | None = None, *, is_remote: bool = False
) -> SpanContext:
    # Sampled whatever the caller decided: this span is recorded and exported.
    return SpanContext(
        trace_id=trace_id,
        span_id=span_id,
        is_remote=is_remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=trace_state,
    )
