"""
One HTTP request with its response, as one process on this host saw it.

The assembler makes transactions, plugins reduce them, exporters and stores write
them. All are immutable: whoever wants another one makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, TypeVar, dataclass_transform

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.connection.model import Container, Peer, Process
from otel_qtap.protocol.events import Headers
from otel_qtap.protocol.haproxy_log import AccessLogLine
from otel_qtap.transaction.link import (
    Candidate,
    HopChanges,
    HopHeaders,
    Link,
    ProxyHop,
    ProxyName,
    StreamKey,
    trace_context,
)

__all__ = [
    "Body",
    "Direction",
    "Ending",
    "Request",
    "Response",
    "Timings",
    "Transaction",
]


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """
    Make ``cls`` a keyword-only, slotted dataclass that nobody may assign to.

    The type checker forbids it, not the interpreter: a frozen dataclass sets each field
    through ``object.__setattr__``, which triples the time it takes to make one, and a
    transaction is made of fifty fields.
    """
    return dataclass(slots=True, kw_only=True, unsafe_hash=True)(cls)


class Direction(Enum):
    """Qtap's words for who opened the connection, and to where."""

    INGRESS = "ingress"
    EGRESS_INTERNAL = "egress-internal"
    """To a private address (RFC 1918, fc00::/7)."""
    EGRESS_EXTERNAL = "egress-external"
    """To any other address; as in Qtap, loopback and link-local count as external."""

    @property
    def is_ingress(self) -> bool:
        """Whether the process served this transaction."""
        return self is Direction.INGRESS


class Ending(Enum):
    """How a transaction ended."""

    COMPLETE = "complete"
    CLIENT_CLOSED = "client_closed"
    """The client went away before the response was complete."""
    SERVER_CLOSED = "server_closed"
    """The server went away before the response was complete."""
    RESET = "reset"
    TIMED_OUT = "timed_out"
    CONNECT_FAILED = "connect_failed"
    """No connection came to be, so nothing was sent."""
    LOST = "lost"
    """The agent lost bytes that were needed to see the end."""
    UNREADABLE = "unreadable"
    """The bytes broke the rules of HTTP where the rest of the message should have been."""
    UPGRADED = "upgraded"
    """The connection went on in another protocol (101, CONNECT)."""
    UNFINISHED = "unfinished"
    """Still running when the agent stopped, or given up to keep within a bound."""

    @property
    def error_type(self) -> str | None:
        """The ``error.type`` for a transaction that got no complete answer; else ``None``."""
        return _ERROR_TYPES.get(self)


_ERROR_TYPES = {
    Ending.SERVER_CLOSED: "server_closed",
    Ending.RESET: "connection_reset",
    Ending.TIMED_OUT: "timeout",
    Ending.CONNECT_FAILED: "connect_failed",
}


@value
class Body:
    """The payload of one message, chunked framing removed, content coding left on."""

    content: bytes = field(default=b"", repr=False)
    """What was captured of it, from the start; never more than ``size`` bytes."""
    size: int = 0
    """Bytes that passed, captured or not."""
    wire_size: int = 0
    """Bytes on the wire, chunked framing included."""

    @property
    def is_truncated(self) -> bool:
        """Whether ``content`` is not all of it."""
        return len(self.content) < self.size


@value
class Request:
    """What the client sent."""

    method: str
    target: str
    """As on the wire: ``/path?query``, an absolute URL, ``host:port`` or ``*``."""
    version: str
    headers: Headers = field(default=(), repr=False)
    trailers: Headers = field(default=(), repr=False)
    body: Body = Body()
    head_size: int = 0

    def header(self, name: str) -> str | None:
        """Return the first value of the field ``name`` (lower case), or ``None``."""
        return _first(self.headers, name)


@value
class Response:
    """What the server answered."""

    status: int
    reason: str
    version: str
    headers: Headers = field(default=(), repr=False)
    trailers: Headers = field(default=(), repr=False)
    body: Body = Body()
    head_size: int = 0
    interim_statuses: tuple[int, ...] = ()
    """1xx responses that came before this one."""

    def header(self, name: str) -> str | None:
        """Return the first value of the field ``name`` (lower case), or ``None``."""
        return _first(self.headers, name)


@value
class Timings:
    """
    Kernel times in nanoseconds since the Unix epoch; 0 where it never happened or was not seen.

    They are the times at which the system call that carried the byte had returned.
    """

    request_start_ns: int
    """First byte of the request."""
    request_head_ns: int = 0
    request_end_ns: int = 0
    response_start_ns: int = 0
    """First byte of the final (not 1xx) response."""
    response_head_ns: int = 0
    response_end_ns: int = 0
    end_ns: int = 0
    """When the transaction was over, whatever ended it; never before the other times."""
    connect_start_ns: int = 0
    """Set on the first transaction of a connection that this process opened."""
    connect_end_ns: int = 0

    @property
    def duration_ns(self) -> int:
        """First request byte to the last response byte (or to what ended it)."""
        duration = (self.response_end_ns or self.end_ns) - self.request_start_ns
        return duration if duration > 0 else 0  # noqa: FURB136 - rules ask often; it takes longer


@value
class Transaction:
    """A request with its response, if it got one."""

    request_id: str
    """Xid text: 20 characters, unique, sorted by time."""
    connection_id: str
    """Xid text, the same for all transactions of a connection."""
    index: int
    """Number of the request on its connection, from 0; on late-joined ones from what was seen."""
    direction: Direction
    process: Process
    container: Container | None = None
    local: Peer
    remote: Peer
    remote_name: str = ""
    """Host name of the remote end as the captured process knows it; empty when unknown."""
    request: Request
    response: Response | None = None
    timings: Timings
    ending: Ending
    scheme: str = "http"
    proxied_source: Peer | None = None
    """The client that a PROXY protocol header named."""
    joined_late: bool = False
    thread_id: int = 0
    """Thread that read (ingress) or sent (egress) the head of the request."""
    stream: StreamKey | None = None
    """The HAProxy stream that it was part of."""
    is_health_check: bool = False
    """HAProxy sent it on nobody's behalf."""
    resend_count: int = 0
    """Attempts that were made before this one to answer the same client's request."""
    was_given_up: bool = False
    """The proxy did not wait for its answer any longer, though the client did."""
    link: Link | None = None
    """What caused it."""
    candidates: tuple[Candidate, ...] = ()
    """What may have caused it, where that is not known."""
    hop: ProxyHop | None = None
    """What a proxy did to answer it."""
    hop_headers: HopHeaders | None = field(default=None, repr=False)
    """Of a request to a backend: until it is known whether the level keeps headers."""
    hop_changes: HopChanges | None = None
    """What the proxy changed on the way, known at the levels that keep headers."""
    begun: Headers = field(default=(), repr=False)
    """If its own request has none: the first trace context in what was sent because of it."""
    proxy_name: ProxyName | None = None
    """Which of HAProxy's frontends served it, or which of its servers was asked, where known."""
    haproxy_log: AccessLogLine | None = None
    """What HAProxy itself wrote about it, less the request."""
    level: CaptureLevel = CaptureLevel.FULL
    format: CaptureFormat = CaptureFormat.JSON

    @property
    def path(self) -> str:
        """The path of the request target, without query."""
        return split_target(self.request.target)[1]

    @property
    def query(self) -> str:
        """The query of the request target, without its ``?``."""
        return split_target(self.request.target)[2]

    @property
    def authority(self) -> str:
        """Host and port the client asked for: absolute target, else Host header, else empty."""
        if self.request.method == "CONNECT":
            return self.request.target
        return split_target(self.request.target)[0] or self.request.header("host") or ""

    @property
    def url(self) -> str:
        """
        The URL as the text output and ``http.req.url`` show it.

        Ingress: with the authority that the client asked for. Egress: with the name
        (else the address) and the port of the server that the process chose, since the
        Host header of a proxied request does not say that.
        """
        authority = self.authority if self.direction.is_ingress else ""
        if not authority:
            end = self.local if self.direction.is_ingress else self.remote
            name = "" if self.direction.is_ingress else self.remote_name
            authority = end.authority(name)
        if self.request.method == "CONNECT":
            return authority
        _, path, query = split_target(self.request.target)
        if path == "*":
            path = "/*"
        return f"{self.scheme}://{authority}{path}" + (f"?{query}" if query else "")

    def reduced_to(self, level: CaptureLevel, format_: CaptureFormat | None = None) -> Transaction:
        """
        Return this transaction with no more content than ``level`` allows.

        Header fields stay, because a summary names some of them (user agent, content
        type); writers show them as headers only where ``level.has_headers``. Those of the
        other side of a proxy, which nobody redacts, become the names of what it changed.
        """
        is_reduced = self.hop_headers is None and not self.candidates
        if is_reduced and self.level is level and format_ in (None, self.format):
            return self
        reduced = _copy(self)
        _reduce_relations(reduced, level)
        _set(reduced, "level", level)
        if format_ is not None:
            _set(reduced, "format", format_)
        if not level.has_bodies:
            if self.request.body.content or self.request.trailers:
                body = replace(self.request.body, content=b"")
                _set(reduced, "request", replace(self.request, body=body, trailers=()))
            response = self.response
            if response is not None and (response.body.content or response.trailers):
                body = replace(response.body, content=b"")
                _set(reduced, "response", replace(response, body=body, trailers=()))
        return reduced


_set = setattr  # on a copy that nobody has seen yet


def _reduce_relations(transaction: Transaction, level: CaptureLevel) -> None:
    """Take the headers of others out of a copy that nobody has seen yet."""
    headers = transaction.hop_headers
    if headers is not None:
        _set(transaction, "hop_headers", None)
    if not level.has_headers:
        _set(transaction, "hop_changes", None)
    elif headers is not None:
        _set(transaction, "hop_changes", headers.changes())
    if transaction.candidates:
        candidates = tuple(
            candidate._replace(root_headers=trace_context(candidate.root_headers))
            for candidate in transaction.candidates
        )
        _set(transaction, "candidates", candidates)


_FIELD_NAMES = tuple(item.name for item in fields(Transaction))


def _make_copier() -> Callable[[Transaction], Transaction]:
    """
    Return a function that copies a transaction: one assignment for each field.

    Written out by a program, as ``dataclasses`` does it too; ``dataclasses.replace``
    takes seven times as long, and every captured transaction is copied once.
    """
    lines = "".join(f"    copy.{name} = original.{name}\n" for name in _FIELD_NAMES)
    scope: dict[str, Any] = {"new": Transaction.__new__, "Transaction": Transaction}
    source = f"def copier(original):\n    copy = new(Transaction)\n{lines}    return copy\n"
    exec(source, scope)  # noqa: S102 - the text above, nothing from outside
    copier: Callable[[Transaction], Transaction] = scope["copier"]
    return copier


_copy = _make_copier()


def split_target(target: str) -> tuple[str, str, str]:
    """Return (authority, path, query) of a request target in any of its four forms."""
    authority = ""
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if separator and scheme.isalpha():
            authority, slash, path = rest.partition("/")
            authority, question, query = authority.partition("?")
            target = slash + path if slash else "/"
            if question:
                target = f"/?{query}{slash}{path}"
            authority = authority.rpartition("@")[2]
    path, _, query = target.partition("?")
    return authority, path, query


def _first(headers: Headers, name: str) -> str | None:
    for key, value in headers:
        if key.lower() == name:
            return value
    return None
