"""Sans-I/O parsers: ordered bytes of one direction in, HTTP events out."""

from otel_qtap.protocol.content import DecodedContent, decode_content
from otel_qtap.protocol.events import (
    BodyData,
    Headers,
    HttpEvent,
    MessageEnd,
    MessageEnding,
    ProxyHeader,
    RequestHead,
    ResponseHead,
    TunnelStart,
)
from otel_qtap.protocol.http1 import ParseError, RequestParser, ResponseParser

__all__ = [
    "BodyData",
    "DecodedContent",
    "Headers",
    "HttpEvent",
    "MessageEnd",
    "MessageEnding",
    "ParseError",
    "ProxyHeader",
    "RequestHead",
    "RequestParser",
    "ResponseHead",
    "ResponseParser",
    "TunnelStart",
    "decode_content",
]
