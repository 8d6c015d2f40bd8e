"""
HTTP events: what every parser in this package emits, whatever the version on the wire.

Header names keep the spelling of the wire; values are decoded as ISO-8859-1, which
maps every byte to one character (RFC 9110, section 5.5: field values are octets).
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeAlias

__all__ = [
    "BodyData",
    "Headers",
    "HttpEvent",
    "MessageEnd",
    "MessageEnding",
    "ParseError",
    "ProxyHeader",
    "RequestHead",
    "ResponseHead",
    "TunnelStart",
]

Headers: TypeAlias = tuple[tuple[str, str], ...]
"""Field lines in order of arrival, duplicates kept, folded lines joined by one space."""


class RequestHead(NamedTuple):
    """A complete request line and its header section."""

    method: str
    target: str
    """As on the wire: origin, absolute, authority or asterisk form (RFC 9112, section 3.2)."""
    version: str
    """``1.0``, ``1.1``: without the name of the protocol."""
    headers: Headers
    size: int
    """Bytes of the head on the wire, the empty line included."""
    content_length: int | None
    """What the head says of the body, ``None`` when it says nothing or is chunked."""


class ResponseHead(NamedTuple):
    """A complete status line and its header section; 1xx responses are heads of their own."""

    status: int
    reason: str
    version: str
    headers: Headers
    size: int
    content_length: int | None

    @property
    def is_interim(self) -> bool:
        """Whether a final response is still to come (1xx; 101 ends HTTP and is final)."""
        return 100 <= self.status < 200 and self.status != 101


class BodyData(NamedTuple):
    """Bytes of a body, chunked framing removed, content coding left as it is."""

    data: bytes
    size: int
    """Bytes that passed: more than ``len(data)`` where bytes were lost or not copied."""


class MessageEnding(Enum):
    """How the end of a message became known."""

    COMPLETE = "complete"
    """Its framing said so."""
    CLOSED = "closed"
    """The stream ended, which is the rightful end of an until-close body."""
    INCOMPLETE = "incomplete"
    """The stream ended in the middle of the message."""
    LOST = "lost"
    """Bytes were lost that were needed to find the end; the next message was found without it."""


class MessageEnd(NamedTuple):
    """The end of the message whose head came last."""

    ending: MessageEnding
    trailers: Headers
    wire_body_size: int
    """Bytes of the body on the wire, chunked framing and trailers included."""


class ProxyHeader(NamedTuple):
    """A PROXY protocol line or block in front of the first request (version 1 or 2)."""

    version: int
    source_address: str
    """Empty for ``UNKNOWN`` and ``LOCAL``."""
    source_port: int
    destination_address: str
    destination_port: int


class TunnelStart(NamedTuple):
    """HTTP ended here: what follows belongs to another protocol (101, CONNECT)."""

    protocol: str
    """The ``Upgrade`` value in lower case (``websocket``), or ``connect``."""


HttpEvent: TypeAlias = (
    RequestHead | ResponseHead | BodyData | MessageEnd | ProxyHeader | TunnelStart
)


class ParseError(Exception):
    """The stream is not HTTP, or breaks its rules; the text never quotes the stream."""
