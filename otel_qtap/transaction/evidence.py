"""
What messages themselves say of whom they belong to: values that name one request, bodies.

For processes of which no stream is known. ``passive.py`` judges it. Values are kept and
compared as hashes: SipHash of 64 bits, with a key that nobody knows.
"""

from __future__ import annotations

from typing import TypeAlias

from otel_qtap.protocol.events import BodyData, Headers, RequestHead

__all__ = ["BodyKey", "BodyStart", "carries", "form_of", "identities", "line_of", "path_of"]

BodyKey: TypeAlias = tuple[int, int]
"""Size and hash: the same for equal bodies."""

_IDENTITIES = frozenset(
    {
        "b3", "cf-ray", "idempotency-key", "request-id", "sec-websocket-key", "traceparent",
        "x-amz-cf-id", "x-correlation-id", "x-request-id", "x-unique-id",
    }
)  # fmt: skip
"""Fields that are to name one request; whether a value does is another question."""

_REWRITTEN = frozenset(
    {
        "accept-encoding", "connection", "content-length", "expect", "forwarded", "host",
        "keep-alive", "proxy-authorization", "proxy-connection", "te", "transfer-encoding",
        "upgrade", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port",
        "x-forwarded-proto", "x-real-ip",
    }
)  # fmt: skip
"""Fields that proxies write anew (RFC 9110, section 7.6.1) or add to."""

_others: set[str] = set()
"""Spellings of other fields: most requests have nothing else, and that is seen faster."""
_MAX_OTHERS = 4096
_MAX_OTHER_SIZE = 64


def identities(headers: Headers) -> tuple[int, ...]:
    """Return the fields of a request whose values should be in no other."""
    for name, _ in headers:
        if name not in _others:
            break
    else:
        return ()
    found = set()
    for name, value in headers:
        key = name.lower()
        if key in _IDENTITIES:
            found.add(hash((key, value)))
        elif len(name) <= _MAX_OTHER_SIZE:
            if len(_others) >= _MAX_OTHERS:  # peers choose names: keep it bounded
                _others.clear()
            _others.add(name)
    return tuple(found)


def line_of(head: RequestHead) -> int:
    """Return method and target, which a request may have to itself."""
    return hash((head.method, head.target))


def path_of(head: RequestHead) -> int:
    """Return method and path, whatever the query."""
    return hash((head.method, head.target.partition("?")[0]))


def form_of(head: RequestHead) -> int:
    """Return what all requests have in common that one piece of a program makes."""
    return hash((path_of(head), tuple([name for name, _ in head.headers])))


def carries(sent: RequestHead, asked: RequestHead) -> bool:
    """Whether ``sent`` asks for the same as ``asked`` and has all its end-to-end fields."""
    if asked.method != sent.method or asked.target != sent.target:
        return False
    there = {(name.lower(), value) for name, value in sent.headers}
    return all(
        field in there
        for field in ((name.lower(), value) for name, value in asked.headers)
        if field[0] not in _REWRITTEN
    )


class BodyStart:
    """
    Tells bodies apart by their true size and their first bytes, however they were sliced.

    So much is copied at every level: 16 KiB of a turn of the talk, heads included.
    """

    COMPARED_BYTES = 4096

    __slots__ = ("_hash", "_pieces", "_room", "size")

    def __init__(self) -> None:
        self.size = 0
        self._room = self.COMPARED_BYTES
        """Bytes still to come of those that are compared; -1 if some were not seen."""
        self._pieces: list[bytes] = []
        self._hash = 0

    def add(self, event: BodyData) -> None:
        """Take the next piece, framing removed."""
        data, size = event
        self.size += size
        room = self._room
        if room <= 0:
            return
        length = len(data)
        if length < size and length < room:
            self._room = -1
            self._pieces.clear()
        elif length < room:
            self._pieces.append(data)
            self._room = room - length
        else:
            self._pieces.append(data[:room])
            self._room = 0
            self._hash = hash(b"".join(self._pieces))
            self._pieces.clear()

    def key(self) -> BodyKey | None:
        """Return what equal bodies share; ``None`` if bytes that matter were not seen."""
        if self._room < 0:
            return None
        return self.size, hash(b"".join(self._pieces)) if self._room else self._hash
