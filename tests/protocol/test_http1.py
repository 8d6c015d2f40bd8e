"""
The HTTP/1.x parser on recorded bytes: what it makes of each sample, however it is sliced.

A sample in ``tests/wire/http1`` says in its first line what it shows, then which parser
reads it, then what arrives and what must come out. In its stream, line breaks of the file
mean nothing and ``\\r \\n \\t \\xNN \\\\`` mean what they mean in Python; a line in brackets
is a call other than ``feed``: ``[gap 10]``, ``[boundary]``, ``[end]``, ``[tunnel]``; and
``[repeat 100 x]`` feeds one byte many times.
"""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_qtap.protocol import (
    BodyData,
    Headers,
    HttpEvent,
    MessageEnd,
    MessageEnding,
    ParseError,
    ProxyHeader,
    RequestHead,
    RequestParser,
    ResponseHead,
    ResponseParser,
    TunnelStart,
)

WIRE = Path(__file__).parents[1] / "wire" / "http1"

Parser = RequestParser | ResponseParser
Call = tuple[str, bytes | int]
"""A call of a parser's method: its name, and the bytes or the size it gets."""


@dataclass(frozen=True)
class Sample:
    """One file of ``tests/wire/http1``."""

    name: str
    direction: str
    joined_late: bool
    expected_methods: tuple[str, ...]
    calls: tuple[Call, ...]
    events: str

    def parser(self) -> Parser:
        if self.direction == "request":
            return RequestParser(joined_late=self.joined_late)
        parser = ResponseParser(joined_late=self.joined_late)
        for method in self.expected_methods:
            parser.expect(method)
        return parser


def load(path: Path) -> Sample:
    head, _, rest = path.read_text("utf-8").partition("--- stream\n")
    stream, _, events = rest.partition("--- events\n")
    options = dict(line.partition(": ")[::2] for line in head.splitlines()[1:])
    expected = options.get("expect", "")
    return Sample(
        name=path.stem,
        direction=options["parser"],
        joined_late="joined late" in options,
        expected_methods=tuple(expected.split(", ")) if expected else (),
        calls=tuple(_calls(stream.splitlines())),
        events=events,
    )


def _calls(lines: Iterable[str]) -> list[Call]:
    calls: list[Call] = []
    for line in lines:
        name, *arguments = line.strip("[]").split(" ") if line.startswith("[") else ("",)
        if not name:
            data = _unescape(line)
        elif name == "repeat":
            data = int(arguments[0]) * _unescape(arguments[1])
        else:
            calls.append((name, int(arguments[0]) if arguments else 0))
            continue
        if calls and isinstance(calls[-1][1], bytes):
            calls[-1] = ("feed", calls[-1][1] + data)
        else:
            calls.append(("feed", data))
    return calls


def _unescape(line: str) -> bytes:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if code[0] == "x" else {"r": "\r", "n": "\n", "t": "\t"}[code]

    parts = line.split("\\\\")
    return "\\".join(re.sub(r"\\(x..|.)", replace, part) for part in parts).encode("latin-1")


def run(parser: Parser, calls: Iterable[Call]) -> list[HttpEvent | ParseError]:
    """Make the calls and return what came out, parts of a body joined."""
    events: list[HttpEvent | ParseError] = []
    for name, argument in calls:
        if name == "feed":
            assert isinstance(argument, bytes)
            parser.feed(argument)
        elif name == "gap":
            assert isinstance(argument, int)
            parser.gap(argument)
        elif name == "tunnel":
            parser.start_tunnel()
        else:
            getattr(parser, name)()
        for event in drain(parser):
            last = events[-1] if events else None
            if isinstance(event, BodyData) and isinstance(last, BodyData):
                events[-1] = BodyData(last.data + event.data, last.size + event.size)
            else:
                events.append(event)
    return events


def drain(parser: Parser) -> list[HttpEvent | ParseError]:
    events: list[HttpEvent | ParseError] = []
    while True:
        try:
            event = parser.next_event()
        except ParseError as error:
            events.append(error)
            continue
        if event is None:
            return events
        events.append(event)


def comparable(events: Iterable[HttpEvent | ParseError]) -> list[object]:
    """Errors equal each other; everything else equals what has the same fields."""
    return [ParseError if isinstance(event, ParseError) else event for event in events]


def render(events: Iterable[HttpEvent | ParseError]) -> str:
    return "".join(line + "\n" for event in events for line in _render(event))


def _render(event: HttpEvent | ParseError) -> list[str]:
    lines: Headers = ()
    match event:
        case RequestHead(method, target, version, lines, size, length):
            line = f"request {method} {_text(target)} {version}, size {size}{_length(length)}"
        case ResponseHead(status, reason, version, lines, size, length):
            interim = ", interim" if event.is_interim else ""
            line = f"response {status} '{_text(reason)}' {version}{interim}, size {size}"
            line += _length(length)
        case BodyData(data, size):
            shown = _text(data[:40].decode("latin-1")) + ("..." if len(data) > 40 else "")
            seen = f"{len(data)} of {size}" if len(data) != size else f"{size}"
            line = f"body {seen}: {shown}"
        case MessageEnd(ending, lines, wire_body_size):
            line = f"end {ending.value}, {wire_body_size} on the wire"
        case ProxyHeader(version, source, source_port, destination, destination_port):
            line = f"proxy v{version} {source or '-'} {source_port} to "
            line += f"{destination or '-'} {destination_port}"
        case TunnelStart(protocol):
            line = f"tunnel {protocol}"
        case ParseError():
            line = f"error: {event}"
    return [line, *(f"    {name}: {_text(value)}".rstrip() for name, value in lines)]


def _length(content_length: int | None) -> str:
    return "" if content_length is None else f", length {content_length}"


def _text(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


SAMPLES = [load(path) for path in sorted(WIRE.glob("*.txt"))]

each_sample = pytest.mark.parametrize(
    "sample", [pytest.param(sample, id=sample.name) for sample in SAMPLES]
)


def sliced(calls: Iterable[Call], cuts: Sequence[int]) -> list[Call]:
    """Cut what is fed into pieces whose sizes ``cuts`` gives, over and over."""
    result: list[Call] = []
    sizes = itertools.cycle(cuts)
    for name, argument in calls:
        if not isinstance(argument, bytes):
            result.append((name, argument))
            continue
        start = 0
        while start < len(argument):
            end = start + next(sizes)
            result.append(("feed", argument[start:end]))
            start = end
    return result


@each_sample
def test_sample_gives_its_events(sample: Sample) -> None:
    """Fed in one piece between other calls, a sample gives the events its file lists."""
    assert render(run(sample.parser(), sample.calls)) == sample.events


@each_sample
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_slicing_makes_no_difference(sample: Sample, cuts: list[int]) -> None:
    """However the stream is cut into ``feed`` calls, the events are the same."""
    whole = run(sample.parser(), sample.calls)
    assert comparable(run(sample.parser(), sliced(sample.calls, cuts))) == comparable(whole)


@pytest.mark.parametrize(
    "sample", [pytest.param(s, id=s.name) for s in SAMPLES if s.name.startswith("proxy_")]
)
def test_proxy_header_may_be_cut_anywhere(sample: Sample) -> None:
    """One cut, at each byte in turn, does not hide a PROXY protocol header."""
    whole = comparable(run(sample.parser(), sample.calls))
    ((_, data),) = sample.calls
    assert isinstance(data, bytes)
    for cut in range(1, len(data)):
        parts = [("feed", data[:cut]), ("feed", data[cut:])]
        assert comparable(run(sample.parser(), parts)) == whole


@each_sample
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_damaged_samples_cost_no_more_than_parse_errors(
    sample: Sample, data: st.DataObject
) -> None:
    """Bytes changed, dropped or repeated: no other exception, each head with its end."""
    calls = list(sample.calls)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(calls) - 1))
        calls[index] = _damaged(calls[index], data)
    calls.append(("end", 0))
    events = run(sample.parser(), calls)
    assert _is_well_formed(events)


def _damaged(call: Call, data: st.DataObject) -> Call:
    name, argument = call
    if not isinstance(argument, bytes) or not argument:
        return call
    start = data.draw(st.integers(0, len(argument) - 1))
    size = data.draw(st.integers(0, 12))
    repeats = data.draw(st.integers(0, 2))
    filling = data.draw(st.binary(max_size=3) | st.sampled_from([b"\r\n", b"\n", b":", b" ", b"0"]))
    return name, argument[:start] + filling + argument[start : start + size] * repeats + argument[
        start + size :
    ]


def _is_well_formed(events: Iterable[HttpEvent | ParseError]) -> bool:
    """Whether each head has one end, and bodies lie between the two."""
    is_open = False
    for event in events:
        match event:
            case RequestHead() | ResponseHead():
                if is_open:
                    return False
                is_open = True
            case BodyData(data, size):
                if not is_open or not 0 <= len(data) <= size:
                    return False
            case MessageEnd():
                if not is_open:
                    return False
                is_open = False
            case _ if is_open:
                return False
    return not is_open


HTTP_BYTES = st.lists(
    st.binary(max_size=8)
    | st.sampled_from(
        [
            *(b"\r\n", b"\n", b"\r\n\r\n", b" ", b":", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\r"),
            *(b"GET / HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"PROXY TCP4 ", b"HTTP/1.1 "),
            *(b"HTTP/1.1 101 \r\n", b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n"),
            *(b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n", b"Upgrade: x"),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
        ]
    ),
    max_size=12,
).map(b"".join)

ANY_CALL = (
    st.tuples(st.just("feed"), HTTP_BYTES)
    | st.tuples(st.just("gap"), st.integers(-1, 20))
    | st.sampled_from([("boundary", 0), ("boundary", 0), ("end", 0), ("tunnel", 0)])
)


@settings(max_examples=600, deadline=None)
@given(
    calls=st.lists(ANY_CALL, max_size=10),
    is_request=st.booleans(),
    joined_late=st.booleans(),
    methods=st.lists(st.sampled_from(["GET", "HEAD", "CONNECT"]), max_size=3),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_no_bytes_crash_a_parser(
    calls: list[Call], is_request: bool, joined_late: bool, methods: list[str], cuts: list[int]
) -> None:
    """Any calls in any order: no exception but ``ParseError``, and slicing changes nothing."""
    sample = Sample(
        name="",
        direction="request" if is_request else "response",
        joined_late=joined_late,
        expected_methods=tuple(methods),
        calls=tuple(calls),
        events="",
    )
    whole = run(sample.parser(), [*calls, ("end", 0)])
    assert _is_well_formed(whole)
    pieces = run(sample.parser(), sliced([*calls, ("end", 0)], cuts))
    assert comparable(pieces) == comparable(whole)


def test_errors_hold_no_traffic() -> None:
    """What cannot be read may be a secret: neither the text nor the frames of an error have it."""
    for sample in SAMPLES:
        for event in run(sample.parser(), sample.calls):
            if isinstance(event, ParseError):
                assert event.__context__ is None
                frames = traceback.extract_tb(event.__traceback__)
                assert {frame.name for frame in frames} == {"drain", "next_event"}
                assert not re.search(r"hello|192\.0|GET|X-|Ho st", str(event))


def held(parser: Parser) -> int:
    """Bytes that a parser keeps for later."""
    return len(parser._buffer)


@pytest.mark.parametrize(
    ("start", "filling"),
    [
        pytest.param(b"", b"x", id="start line"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"a: b\r\n", id="header lines"),
        pytest.param(b"GET / HTTP/1.1\r\nX: ", b"x", id="header value"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x", id="chunk"),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"a: b\r\n",
            id="trailers",
        ),
        pytest.param(b"PROXY UNKNOWN ", b"x", id="PROXY line"),
        pytest.param(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", b"x", id="PROXY block"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_memory_is_bounded(start: bytes, filling: bytes, size: int) -> None:
    """What never ends is given up at a bound, in reasonable time."""
    parser = RequestParser()
    parser.feed(start)
    data = (filling * 140_000)[:140_000]
    for position in range(0, len(data), size):
        parser.feed(data[position : position + size])
        assert held(parser) <= RequestParser.MAX_HEAD_SIZE + 16 + size
    assert any(isinstance(event, ParseError) for event in drain(parser))
    assert held(parser) == 0


def test_memory_is_bounded_while_lost() -> None:
    """Neither a line that never ends nor a thousand boundaries fill a lost parser."""
    parser = RequestParser(joined_late=True)
    for _ in range(70_000):
        parser.boundary()
        parser.feed(b"A")
        assert len(parser._candidates) <= RequestParser.MAX_CANDIDATES
    parser.boundary()
    parser.feed(b"GET /" + b"a" * 100_000)
    assert held(parser) == 0
    assert drain(parser) == []


def test_late_body_is_not_kept() -> None:
    """A lost parser holds on to nothing that cannot start a message."""
    parser = ResponseParser(joined_late=True)
    parser.boundary()
    parser.feed(b"binary " * 100)
    assert held(parser) == 0
    assert parser.is_idle


def test_idle_tells_where_messages_begin() -> None:
    """A parser is idle from the last byte of a message to the first of the next."""
    parser = RequestParser()
    assert parser.is_idle
    for data, is_idle in [
        (b"P", False),
        (b"OST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n", False),
        (b"o", False),
        (b"k", True),
        (b"\r\n", True),
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\n\r\nG", False),
    ]:
        parser.feed(data)
        assert parser.is_idle is is_idle


def test_idle_until_a_candidate_comes_up() -> None:
    """Lost bytes are of no message; a possible start line may be."""
    parser = RequestParser(joined_late=True)
    parser.feed(b"rest of a body")
    assert parser.is_idle
    parser.boundary()
    parser.feed(b"GET /")
    assert not parser.is_idle


def test_boundaries_do_not_disturb_a_parser_that_is_not_lost() -> None:
    """A head that comes in many system calls is one head."""
    parser = RequestParser()
    for piece in (b"GET / HT", b"TP/1.1\r\nHost:", b" GET\r\n", b"\r\n"):
        parser.boundary()
        parser.feed(piece)
    assert render(drain(parser)) == (
        "request GET / 1.1, size 29\n    Host: GET\nend complete, 0 on the wire\n"
    )


def test_expected_methods_are_bounded_and_stay_in_step() -> None:
    """Beyond the bound methods are forgotten, but not that there was a request."""
    parser = ResponseParser()
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    for _ in range(ResponseParser.MAX_EXPECTED + 1):
        parser.expect("GET")
    parser.feed(empty * ResponseParser.MAX_EXPECTED)
    parser.expect("HEAD")  # not remembered either: a response before its own is still to come
    parser.feed(empty * 2)
    parser.expect("HEAD")
    parser.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    head, end = drain(parser)[-2:]
    assert isinstance(head, ResponseHead)
    assert head.content_length == 5
    assert end == MessageEnd(MessageEnding.COMPLETE, (), 0)


def test_start_tunnel_ends_what_is_open() -> None:
    """A message in the middle of which HTTP ends is incomplete; nothing comes after."""
    parser = RequestParser()
    parser.feed(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
    parser.start_tunnel()
    parser.feed(b"GET / HTTP/1.1\r\n\r\n")
    parser.gap(5)
    parser.end()
    *_, end = drain(parser)
    assert end == MessageEnd(MessageEnding.INCOMPLETE, (), 2)


def test_end_comes_once() -> None:
    """A second end, or bytes after it, say nothing new."""
    parser = ResponseParser()
    parser.feed(b"HTTP/1.0 200 OK\r\n\r\nabc")
    parser.end()
    parser.end()
    parser.feed(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert render(drain(parser)).splitlines()[1:] == ["body 3: abc", "end closed, 3 on the wire"]
