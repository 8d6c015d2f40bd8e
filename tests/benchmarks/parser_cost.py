"""
What it costs to read HTTP/1.x heads and bodies: this parser, httptools and h11.

    python tests/benchmarks/parser_cost.py --rounds 9

Each cell is the best of all rounds, in microseconds per message, from the bytes of one
system call to everything that the parser says about the message. httptools calls back
with bytes; to make its column mean the same, its callbacks build the same head tuple.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h11
import httptools

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from otel_qtap.protocol import RequestHead, RequestParser, ResponseHead, ResponseParser

REQUEST = (
    b"GET /api/orders?id=42 HTTP/1.1\r\n"
    b"host: shop.example.com\r\n"
    b"user-agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    b"accept: */*\r\n"
    b"accept-encoding: gzip, deflate, br\r\n"
    b"accept-language: en\r\n"
    b"cookie: sid=0123456789abcdef\r\n"
    b"x-request-id: 0a1b2c3d4e5f\r\n"
    b"x-forwarded-for: 192.0.2.1\r\n"
    b"\r\n"
)
RESPONSE_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"date: Tue, 01 Jul 2025 10:00:00 GMT\r\n"
    b"server: nginx\r\n"
    b"content-type: application/json\r\n"
    b"cache-control: no-store\r\n"
    b"x-request-id: 0a1b2c3d4e5f\r\n"
)
RESPONSE = RESPONSE_HEAD + b"content-length: 512\r\n\r\n" + b"x" * 512
CHUNKED = (
    RESPONSE_HEAD
    + b"transfer-encoding: chunked\r\n\r\n"
    + (b"200\r\n" + b"x" * 512 + b"\r\n") * 8
    + b"0\r\n\r\n"
)
UPLOAD_HEAD = b"POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 1048576\r\n\r\n"
UPLOAD = [UPLOAD_HEAD, *[b"x" * 16384] * 64]

Read = Callable[[], None]


def ours(parser: RequestParser | ResponseParser, pieces: list[bytes]) -> Read:
    def read() -> None:
        for piece in pieces:
            parser.feed(piece)
            while parser.next_event() is not None:
                pass

    return read


class Callbacks:
    """Builds from httptools' callbacks what our parser gives."""

    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None
        self.target = b""
        self.fields: list[tuple[str, str]] = []
        self.head: RequestHead | ResponseHead | None = None
        self.bodies: list[bytes] = []

    def on_message_begin(self) -> None:
        self.fields = []
        self.bodies = []

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_status(self, reason: bytes) -> None:
        self.target = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        parser, text, fields = self.parser, self.target.decode("latin-1"), tuple(self.fields)
        if isinstance(parser, httptools.HttpRequestParser):
            method = parser.get_method().decode("latin-1")
            self.head = RequestHead(method, text, parser.get_http_version(), fields, 0, None)
        elif parser is not None:
            version = parser.get_http_version()
            self.head = ResponseHead(parser.get_status_code(), text, version, fields, 0, None)

    def on_body(self, data: bytes) -> None:
        self.bodies.append(data)


def with_httptools(is_request: bool, pieces: list[bytes]) -> Read:
    callbacks = Callbacks()
    parser = (
        httptools.HttpRequestParser(callbacks)
        if is_request
        else httptools.HttpResponseParser(callbacks)
    )
    callbacks.parser = parser

    def read() -> None:
        for piece in pieces:
            parser.feed_data(piece)

    return read


def with_h11(is_request: bool, pieces: list[bytes]) -> Read:
    request = h11.Request(method="GET", target="/", headers=[("host", "a")])
    end = h11.EndOfMessage()

    def read() -> None:
        # A connection for each message: h11 makes the side that answers take part.
        connection = h11.Connection(h11.SERVER if is_request else h11.CLIENT)
        if not is_request:
            connection.send(request)
            connection.send(end)
        for piece in pieces:
            connection.receive_data(piece)
            while not isinstance(connection.next_event(), type(h11.NEED_DATA) | h11.EndOfMessage):
                pass

    return read


def microseconds(read: Read, rounds: int, seconds: float) -> float:
    """Return the cost of one ``read``: the best of ``rounds`` that take ``seconds`` each."""
    count, taken = 1, 0.0
    while taken < seconds / 10:
        count *= 2
        taken = _time(read, count)
    count = max(1, int(count * seconds / taken))
    return min(_time(read, count) for _ in range(rounds)) / count * 1e6


def _time(read: Read, count: int) -> float:
    gc.collect()
    gc.disable()
    start = time.process_time()
    for _ in range(count):
        read()
    taken = time.process_time() - start
    gc.enable()
    return taken


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Cost of reading HTTP/1.x messages, per parser.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts")
    parser.add_argument("--seconds", type=float, default=0.1, help="CPU time of a round")
    arguments = parser.parse_args()
    cases: list[tuple[str, bool, list[bytes]]] = [
        ("request, 8 fields", True, [REQUEST]),
        ("request, head in two pieces", True, [REQUEST[:150], REQUEST[150:]]),
        ("10 requests, pipelined", True, [REQUEST * 10]),
        ("response, 6 fields, 512 B", False, [RESPONSE]),
        ("response, 8 chunks of 512 B", False, [CHUNKED]),
        ("upload, 1 MiB in 64 calls", True, UPLOAD),
    ]
    print(f"{'microseconds each':<30}{'otel_qtap':>12}{'httptools':>12}{'h11':>12}")
    for name, is_request, pieces in cases:
        costs = [
            microseconds(read, arguments.rounds, arguments.seconds)
            for read in (
                ours(RequestParser() if is_request else ResponseParser(), pieces),
                with_httptools(is_request, pieces),
                with_h11(is_request, pieces),
            )
            if not ("pipelined" in name and read.__qualname__.startswith("with_h11"))
        ]
        cells = [f"{cost:12.2f}" for cost in costs] + ["           -"] * (3 - len(costs))
        print(f"{name:<30}{''.join(cells)}")


if __name__ == "__main__":
    main()
