"""
The HTTP/1.x parser on random valid traffic: against h11, against httptools, and with loss.

Messages are made from a description, put on the wire, and must come out as described.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import h11
import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_qtap.protocol import (
    BodyData,
    Headers,
    MessageEnd,
    MessageEnding,
    ParseError,
    RequestHead,
    RequestParser,
    ResponseHead,
    ResponseParser,
)


class Message(NamedTuple):
    """A request or response as it was meant, or as a parser understood it."""

    start: tuple[str, ...]
    """Method and target, or status and reason."""
    headers: Headers
    """Names in lower case: that is how h11 gives them."""
    body: bytes
    trailers: Headers


class Sent(NamedTuple):
    """A message, how it is framed, and what that makes on the wire."""

    message: Message
    method: str
    """Of the request, or of the request that the response answers."""
    wire: bytes


def lower(headers: Iterable[tuple[str, str]]) -> Headers:
    return tuple((name.lower(), value) for name, value in headers)


NAMES = st.from_regex(r"[Xx]-[A-Za-z0-9_!#$-]{1,12}", fullmatch=True)
VALUES = st.from_regex("([!-~\xa1-\xff]([ -~\xa1-\xff]{0,20}[!-~\xa1-\xff])?)?", fullmatch=True)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
TARGETS = st.from_regex(r"/[a-z0-9/._%-]{0,20}(\?[a-z0-9=&]{0,10})?", fullmatch=True)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"])
BODIES = st.binary(max_size=60) | st.sampled_from([b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"\n"])
REASONS = st.from_regex(r"([A-Za-z'][A-Za-z' -]{0,12}[A-Za-z'])?", fullmatch=True)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[tuple[str, str]], bytes, bytes, Headers]:
    """Return the framing fields, the body on the wire, the body, and the trailers."""
    if draw(st.booleans()):
        body = draw(BODIES)
        return [("Content-Length", str(len(body)))], body, body, ()
    chunks = draw(st.lists(st.binary(min_size=1, max_size=30), max_size=4))
    trailers = draw(FIELDS)
    wire = b""
    for chunk in chunks:
        size = draw(st.sampled_from(["%x", "%X", "0%x"])) % len(chunk)
        wire += size.encode() + draw(st.sampled_from([b"", b";a=b"])) + b"\r\n" + chunk + b"\r\n"
    wire += b"0\r\n" + field_lines(trailers) + b"\r\n"
    return [("transfer-encoding", "chunked")], wire, b"".join(chunks), tuple(trailers)


def field_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    method, target, fields = draw(METHODS), draw(TARGETS), draw(FIELDS)
    framing, wire_body, body, trailers = draw(bodies() | st.just(([], b"", b"", ())))
    headers = [("Host", "shop.example"), *fields, *framing]
    head = f"{method} {target} HTTP/1.1\r\n".encode() + field_lines(headers) + b"\r\n"
    message = Message((method, target), lower(headers), body, lower(trailers))
    return Sent(message, method, head + wire_body)


@st.composite
def responses(draw: st.DrawFn, methods: Sequence[str] = ("GET", "HEAD")) -> Sent:
    method, reason, fields = draw(st.sampled_from(methods)), draw(REASONS), draw(FIELDS)
    status = draw(st.sampled_from([200, 201, 204, 206, 301, 304, 400, 404, 500, 503, 599]))
    framing, wire_body, body, trailers = draw(bodies())
    if status == 204:
        framing = []  # RFC 9110, section 8.6
    headers = [*fields, *framing]
    head = f"HTTP/1.1 {status} {reason}\r\n".encode() + field_lines(headers) + b"\r\n"
    if method == "HEAD" or status in (204, 304):
        wire_body, body, trailers = b"", b"", ()
    message = Message((str(status), reason), lower(headers), body, lower(trailers))
    return Sent(message, method, head + wire_body)


CUTS = st.lists(st.integers(1, 50), min_size=1, max_size=5)


def cut(data: bytes, sizes: Sequence[int]) -> Iterable[bytes]:
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(data):
            return
        yield data[start : start + size]
        start += size


class Reader:
    """Our own parser, giving messages."""

    def __init__(self, parser: RequestParser | ResponseParser) -> None:
        self.parser = parser
        self.messages: list[Message] = []
        """Those that came out whole."""
        self.errors = 0

    def drain(self) -> None:
        while True:
            try:
                event = self.parser.next_event()
            except ParseError:
                self.errors += 1
                continue
            match event:
                case None:
                    return
                case RequestHead():
                    self._start, self._headers = (event.method, event.target), event.headers
                    self._body, self._missing = b"", 0
                case ResponseHead():
                    self._start, self._headers = (str(event.status), event.reason), event.headers
                    self._body, self._missing = b"", 0
                case BodyData(data, size):
                    self._body += data
                    self._missing += size - len(data)
                case MessageEnd(MessageEnding.COMPLETE, trailers, _) if not self._missing:
                    self.messages.append(
                        Message(self._start, lower(self._headers), self._body, lower(trailers))
                    )


def read(parser: RequestParser | ResponseParser, pieces: Iterable[bytes]) -> list[Message]:
    reader = Reader(parser)
    for piece in pieces:
        parser.feed(piece)
        reader.drain()
    assert reader.errors == 0
    assert parser.is_idle
    return reader.messages


def decoded(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    return tuple((name.decode(), value.decode("latin-1")) for name, value in fields)


def read_with_h11(connection: h11.Connection, answer: Sequence[h11.Event]) -> Message:
    """Let h11 read one message; ``answer`` is what the other side says before or after."""
    if connection.our_role is h11.CLIENT:
        for event in answer:
            connection.send(event)
    start: tuple[str, ...] = ()
    headers: Headers = ()
    body = b""
    while True:
        said = connection.next_event()
        if isinstance(said, h11.Request):
            start, headers = (said.method.decode(), said.target.decode()), decoded(said.headers)
        elif isinstance(said, h11.Response):
            start = (str(said.status_code), bytes(said.reason).decode())
            headers = decoded(said.headers)
        elif isinstance(said, h11.Data):
            body += said.data
        else:
            assert isinstance(said, h11.EndOfMessage)
            break
    if connection.our_role is h11.SERVER:
        for reply in answer:
            connection.send(reply)
    connection.start_next_cycle()
    return Message(start, headers, body, decoded(said.headers))


class Callbacks:
    """What httptools calls."""

    parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def on_message_begin(self) -> None:
        self._first = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers: list[tuple[bytes, bytes]] = []
        self._fields = self._headers
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._first += url

    def on_status(self, reason: bytes) -> None:
        self._first += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._fields = self._trailers

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if isinstance(self.parser, httptools.HttpRequestParser):
            start = (self.parser.get_method().decode(), self._first.decode())
        else:
            start = (str(self.parser.get_status_code()), self._first.decode())
        headers, trailers = lower(decoded(self._headers)), lower(decoded(self._trailers))
        self.messages.append(Message(start, headers, self._body, trailers))


@settings(max_examples=250, deadline=None)
@given(sent=st.lists(requests(), min_size=1, max_size=4), cuts=CUTS)
def test_requests_are_read_as_sent(sent: list[Sent], cuts: list[int]) -> None:
    """Pipelined requests come out as they were meant, however sliced; h11 and httptools agree."""
    wire = b"".join(each.wire for each in sent)
    messages = [each.message for each in sent]

    assert read(RequestParser(), cut(wire, cuts)) == messages

    connection = h11.Connection(h11.SERVER)
    connection.receive_data(wire)
    answer = [h11.Response(status_code=204, headers=[]), h11.EndOfMessage()]
    assert [read_with_h11(connection, answer) for _ in sent] == messages

    callbacks = Callbacks()
    callbacks.parser = httptools.HttpRequestParser(callbacks)
    for piece in cut(wire, cuts):
        callbacks.parser.feed_data(piece)
    assert callbacks.messages == messages


@settings(max_examples=250, deadline=None)
@given(sent=st.lists(responses(), min_size=1, max_size=4), cuts=CUTS)
def test_responses_are_read_as_sent(sent: list[Sent], cuts: list[int]) -> None:
    """Responses come out as they were meant, those to HEAD among them; h11 agrees."""
    wire = b"".join(each.wire for each in sent)
    messages = [each.message for each in sent]

    parser = ResponseParser()
    for each in sent:
        parser.expect(each.method)
    assert read(parser, cut(wire, cuts)) == messages

    connection = h11.Connection(h11.CLIENT)
    connection.receive_data(wire)
    for each in sent:
        request = h11.Request(method=each.method, target="/", headers=[("host", "a")])
        assert read_with_h11(connection, [request, h11.EndOfMessage()]) == each.message


@settings(max_examples=150, deadline=None)
@given(sent=st.lists(responses(methods=("GET",)), min_size=1, max_size=4), cuts=CUTS)
def test_responses_are_read_as_httptools_reads_them(sent: list[Sent], cuts: list[int]) -> None:
    """httptools cannot be told of HEAD; in all else it agrees."""
    wire = b"".join(each.wire for each in sent)
    callbacks = Callbacks()
    callbacks.parser = httptools.HttpResponseParser(callbacks)
    for piece in cut(wire, cuts):
        callbacks.parser.feed_data(piece)
    assert callbacks.messages == read(ResponseParser(), cut(wire, cuts))


SYSTEM_CALLS = st.lists(st.integers(3, 60), min_size=1, max_size=5)


def read_with_gap(
    parser: RequestParser | ResponseParser, sent: list[Sent], gap: range, calls: list[int]
) -> list[Message]:
    """Return the messages that come out whole when the bytes in ``gap`` are missing."""
    reader = Reader(parser)
    position = 0
    for each in sent:
        for piece in cut(each.wire, calls):
            missing = range(max(gap.start, position), min(gap.stop, position + len(piece)))
            parser.boundary()
            if missing:
                parser.feed(piece[: missing.start - position])
                parser.gap(len(missing))
                parser.feed(piece[missing.stop - position :])
            else:
                parser.feed(piece)
            position += len(piece)
            reader.drain()
    return reader.messages


def untouched(sent: list[Sent], gap: range) -> list[Message]:
    """Return the messages that have no byte in ``gap``."""
    messages = []
    start = 0
    for each in sent:
        end = start + len(each.wire)
        if end <= gap.start or gap.stop <= start:
            messages.append(each.message)
        start = end
    return messages


def is_contained(few: list[Message], many: list[Message]) -> bool:
    """Whether all of ``few`` are in ``many``, in the same order."""
    rest = iter(many)
    return all(message in rest for message in few)


@settings(max_examples=300, deadline=None)
@given(sent=st.lists(requests(), min_size=2, max_size=5), calls=SYSTEM_CALLS, data=st.data())
def test_gap_costs_the_requests_it_touches(
    sent: list[Sent], calls: list[int], data: st.DataObject
) -> None:
    """Each request of which no byte is missing comes out whole, wherever the gap is."""
    total = sum(len(each.wire) for each in sent)
    start = data.draw(st.integers(0, total - 1))
    gap = range(start, data.draw(st.integers(start + 1, total)))
    assert is_contained(untouched(sent, gap), read_with_gap(RequestParser(), sent, gap, calls))


@settings(max_examples=300, deadline=None)
@given(
    sent=st.lists(responses(methods=("GET",)), min_size=2, max_size=5),
    calls=SYSTEM_CALLS,
    data=st.data(),
)
def test_gap_costs_the_responses_it_touches(
    sent: list[Sent], calls: list[int], data: st.DataObject
) -> None:
    """Each response of which no byte is missing comes out whole, wherever the gap is."""
    total = sum(len(each.wire) for each in sent)
    start = data.draw(st.integers(0, total - 1))
    gap = range(start, data.draw(st.integers(start + 1, total)))
    assert is_contained(untouched(sent, gap), read_with_gap(ResponseParser(), sent, gap, calls))


@settings(max_examples=150, deadline=None)
@given(sent=st.lists(requests(), min_size=2, max_size=4), calls=SYSTEM_CALLS, data=st.data())
def test_late_parser_reads_from_the_next_request_on(
    sent: list[Sent], calls: list[int], data: st.DataObject
) -> None:
    """Joined in the middle of a request, all that follow come out whole."""
    first, *others = sent
    rest = first._replace(wire=first.wire[data.draw(st.integers(1, len(first.wire))) :])
    parser = RequestParser(joined_late=True)
    read_messages = read_with_gap(parser, [rest, *others], range(0), calls)
    assert is_contained([each.message for each in others], read_messages)
