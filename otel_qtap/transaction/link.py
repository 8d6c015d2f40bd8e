"""How a transaction belongs to others: what caused it, and what it caused."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from otel_qtap.protocol.events import Headers

__all__ = [
    "TRACE_CONTEXT_NAMES",
    "Ancestor",
    "Candidate",
    "HeaderChanges",
    "HopChanges",
    "HopHeaders",
    "Link",
    "LinkMethod",
    "ProxyHop",
    "ProxyName",
    "StreamKey",
    "trace_context",
]

TRACE_CONTEXT_NAMES = frozenset(
    {"traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"}
)
"""Fields that name the span of the sender: W3C Trace Context, and B3 in both of its forms."""


_others: set[str] = set()
"""Spellings of other fields. Most requests have nothing else: that is seen five times faster."""
_MAX_OTHERS = 4096
_MAX_OTHER_SIZE = 64


def trace_context(headers: Headers) -> Headers:
    """Return the fields that name a trace, and nothing else."""
    for name, _ in headers:
        if name not in _others:
            break
    else:
        return ()
    found = []
    for item in headers:
        name = item[0]
        if name.lower() in TRACE_CONTEXT_NAMES:
            found.append(item)
        elif len(name) <= _MAX_OTHER_SIZE:
            if len(_others) >= _MAX_OTHERS:  # peers choose names: keep it bounded
                _others.clear()
            _others.add(name)
    return tuple(found)


class LinkMethod(Enum):
    """The evidence for a link; each of them is exact, or there is no link."""

    STREAM = "stream"
    """HAProxy was processing the same stream when it did both."""
    HEADER = "header"
    """A field that identifies one request was the same on both sides, and on no other."""
    CONNECTION = "connection"
    """Both ends of one TCP connection were seen: what one sent is what the other received."""
    RESPONSE = "response"
    """Of all answers in question, only one can have been passed on."""


class StreamKey(NamedTuple):
    """A HAProxy stream: one client request with all that was done for it."""

    process_id: int
    address: int
    serial: int


class ProxyName(NamedTuple):
    """Where in HAProxy it happened, in the words of the Collector's haproxy receiver."""

    proxy_name: str
    """The frontend of a client's request, the backend of one to a server."""
    service_name: str
    """``FRONTEND``, or the name of the server."""


class Ancestor(NamedTuple):
    """
    Of a transaction that caused others, what decides about the ids of their spans.

    Identities are made of this and nothing else, on any thread, so whoever is given the
    same ancestors makes the same ids.
    """

    request_id: str
    context: Headers = ()
    """The trace context of its request."""
    is_first_sent: bool = False
    """It is the first request that was sent for its own parent: retries repeat what it said."""
    begun: Headers = ()
    """If its own request has none: the first trace context in what was sent because of it."""


class Candidate(NamedTuple):
    """A transaction that may have caused this one; the evidence fits others as well."""

    request_id: str
    root_id: str
    root_headers: Headers

    def __repr__(self) -> str:
        return f"Candidate({self.request_id!r}, {self.root_id!r})"  # headers stay out of logs


class HopHeaders(NamedTuple):
    """
    A request and its answer on both sides of a proxy, as they were: secrets included.

    Not for queues: ``Transaction.reduced_to`` leaves names of it.
    """

    received: Headers
    """Of the request, from the client."""
    sent: Headers
    answered: Headers | None = None
    """Of the response, from the backend; ``None`` where it is not what the client got."""
    passed_on: Headers | None = None

    def changes(self) -> HopChanges:
        """Return what the proxy did."""
        received, sent, answered, passed_on = self
        response = None
        if answered is not None and passed_on is not None:
            response = HeaderChanges.between(answered, passed_on)
        return HopChanges(HeaderChanges.between(received, sent), response)


class HopChanges(NamedTuple):
    """What a proxy did to a request, and to its answer if that is what its client got."""

    request: HeaderChanges
    response: HeaderChanges | None = None


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class HeaderChanges:
    """What the proxy did to the fields of a message: names in lower case, never values."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Headers, after: Headers) -> HeaderChanges:
        """Compare the fields of a message on the two sides of a proxy."""
        old, new = _by_name(before), _by_name(after)
        if old == new:
            return _NO_CHANGES
        return cls(
            added=tuple([name for name in new if name not in old]),
            removed=tuple([name for name in old if name not in new]),
            changed=tuple([name for name in new if old.get(name, new[name]) != new[name]]),
        )


_NO_CHANGES = HeaderChanges()


def _by_name(headers: Headers) -> dict[str, str]:
    """Return the values by name in lower case; those of one name in a row, a line each."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Link:
    """The transaction that caused this one. Nobody may assign to it once it is made."""

    method: LinkMethod
    parent_id: str
    """Its request id."""
    root_id: str
    """Request id of the first of all that were captured of this trace."""
    ancestors: tuple[Ancestor, ...] = field(default=(), repr=False)
    """Those two and all between them, the parent first; made of the ids if left out."""
    is_first_sent: bool = False
    """This is the first request that was sent for the parent."""

    def __post_init__(self) -> None:
        if not self.ancestors:
            ids = dict.fromkeys((self.parent_id, self.root_id))
            self.ancestors = tuple(Ancestor(each) for each in ids)


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class ProxyHop:
    """What a proxy did to answer one request. Nobody may assign to it once it is made."""

    attempts: int
    """Requests and connection attempts to backends; 0: the proxy answered by itself."""
    overhead_ns: int
    """Time in which it was not waiting for a backend: its own work, queueing, the client."""
