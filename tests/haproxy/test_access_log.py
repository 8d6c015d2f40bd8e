"""HAProxy's lines say what the client knows to be true, whatever stands in front of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_qtap.haproxy import AccessLogLine, LogFormat, parse_line, split_lines

GOLDEN = Path(__file__).with_name("golden")


def read_golden():
    """Yield every line that HAProxy wrote, with what its client knew (``golden/make.py``)."""
    for path in sorted(GOLDEN.glob("*.jsonl")):
        for number, text in enumerate(path.read_text().splitlines()):
            row = json.loads(text)
            name = f"{path.stem}-{number}-{row['case']}".replace(" ", "-")
            yield pytest.param(row, id=name)


LINES = list(read_golden())


@pytest.mark.parametrize("row", LINES)
def test_a_line_of_haproxy_says_what_its_client_knows(row) -> None:
    """Each of the default formats, each header, each way a request can end."""
    (data,) = split_lines(row["line"].encode("latin-1"))
    line = parse_line(data)

    if row["expected"] is None:
        assert line is None
        return
    assert line is not None
    expected = {"client_port": row["client_port"]} | row["expected"]
    said = {name: getattr(line, name) for name in expected}
    said["format"] = line.format.value
    said["captures"] = [list(group) for group in line.captures]
    if line.is_cut:
        assert len(line.target) > 100
        assert expected.pop("target").startswith(said.pop("target"))
    assert said == expected


def test_the_golden_lines_cover_every_format_in_both_versions() -> None:
    """So that a change of ``make.py`` cannot quietly leave one out."""
    rows = [(param.id[:11], param.values[0]) for param in LINES]
    formats = {(version, (row["expected"] or {}).get("format")) for version, row in rows}

    assert formats == {
        (version, name)
        for version in ("haproxy-2.6", "haproxy-2.8")
        for name in ("httplog", "httpslog", "httplog clf", None)
    }


LINE = (
    b"10.0.1.2:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/20/30/69/129 200 2750"
    b' - - ---- 1/2/3/4/5 6/7 {1wt.eu} {} "GET /index.html HTTP/1.1"'
)


def test_every_number_goes_to_its_field() -> None:
    """The example of the manual, with numbers that differ."""
    line = parse_line(LINE)

    assert line is not None
    assert line.format is LogFormat.HTTP
    assert (line.client_address, line.client_port) == ("10.0.1.2", 33317)
    assert line.start_ms == 1_233_922_454_655  # 2009-02-06T12:14:14.655Z
    assert (line.frontend, line.backend, line.server) == ("http-in", "static", "srv1")
    assert (line.request_ms, line.queue_ms, line.connect_ms) == (10, 20, 30)
    assert (line.response_ms, line.active_ms) == (69, 129)
    assert (line.status, line.bytes_read, line.termination_state) == (200, 2750, "----")
    assert (line.process_connections, line.frontend_connections) == (1, 2)
    assert (line.backend_connections, line.server_connections) == (3, 4)
    assert (line.retries, line.server_queue, line.backend_queue) == (5, 6, 7)
    assert line.captures == (("1wt.eu",), ("",))
    assert (line.method, line.target, line.version) == ("GET", "/index.html", "1.1")
    assert line.has_request


HEADERS = [
    pytest.param(b"", id="raw"),
    pytest.param(b"<134>", id="priority"),
    pytest.param(b"<6>", id="short"),
    pytest.param(b"<134>Feb  6 12:14:14 haproxy[14389]: ", id="local"),
    pytest.param(b"<134>Feb  6 12:14:14 edge-1.example haproxy[14389]: ", id="rfc3164"),
    pytest.param(b"<134>Feb 16 12:14:14 my-tag: ", id="tag-without-process"),
    pytest.param(b"<134>1 2009-02-06T12:14:14.655+01:00 host haproxy 14389 - - ", id="rfc5424"),
    pytest.param(
        b'<134>1 2009-02-06T12:14:14Z host haproxy 14389 - [a b="c\\]"][d e="f"] ', id="data"
    ),
    pytest.param(b"<134>1 - - haproxy 1 - - ", id="rfc5424-without-time"),
    pytest.param(b"2009-02-06T12:14:14.655123+00:00 ", id="iso"),
    pytest.param(b"<6>2009-02-06T12:14:14.655123+00:00 ", id="timed"),
]
ENDS = [pytest.param(end, id=repr(end)) for end in (b"", b"\n", b"\r\n", b"\0", b"\n\0")]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("header", HEADERS)
def test_what_stands_around_a_line_makes_no_difference(header, end) -> None:
    """Every header that HAProxy can put in front, and every end of a datagram."""
    assert parse_line(header + LINE + end) == parse_line(LINE)


OTHERS = [
    pytest.param(b"", id="empty"),
    pytest.param(b"Server back/a is DOWN, reason: Layer4 timeout.", id="state"),
    pytest.param(b"Connect from 10.0.1.2:33312 to 10.0.3.31:8012 (www/HTTP)", id="default"),
    pytest.param(
        b"10.0.1.2:33313 [06/Feb/2009:12:12:51.443] fnt bck/srv1 0/0/5007 212 -- 0/0/0/0/3 0/0",
        id="tcplog",
    ),
    pytest.param(b"10.0.1.2:33313 [06/Feb/2009:12:12:51.443] frt/f1: Timeout", id="error"),
    pytest.param(LINE + b" extra", id="extended"),
    pytest.param(LINE.replace(b"06/Feb", b"31/Feb"), id="no-such-day"),
    pytest.param(LINE.replace(b"Feb", b"Fev"), id="no-such-month"),
    pytest.param(LINE.replace(b"12:14:14", b"12:99:14"), id="no-such-minute"),
    pytest.param(LINE.replace(b".655", b":655"), id="no-milliseconds"),
    pytest.param(b"agent " + LINE, id="something-in-front"),
    pytest.param(b"mozilla/5.0 {" + LINE, id="a-line-inside-of-a-field"),
    pytest.param(LINE.replace(b"2750", b"2750" * 20), id="endless-number"),
    pytest.param(LINE + b"x" * 70_000, id="too-long"),
]


@pytest.mark.parametrize("data", OTHERS)
def test_what_is_no_line_of_a_known_format_is_not_guessed_at(data) -> None:
    """A client writes part of every line, so only whole lines count."""
    assert parse_line(data) is None


TARGETS = [
    pytest.param("/a#22b", '/a"b', id="quote"),
    pytest.param("/a#23b", "/a#b", id="escape-character"),
    pytest.param("/#C3#A9", "/\xc3\xa9", id="bytes-as-latin-1"),
    pytest.param("/#zz#2", "/#zz#2", id="no-escape"),
    pytest.param("/with space", "/with space", id="space"),
]


@pytest.mark.parametrize(("logged", "sent"), TARGETS)
def test_escapes_of_the_target_are_undone(logged, sent) -> None:
    """The target is then what a capture of the request shows."""
    line = parse_line(LINE.replace(b"/index.html", logged.encode()))

    assert line is not None
    assert line.target == sent


CUTS = [
    pytest.param(b' HTTP/1.1"', ("GET", "/index.html", ""), id="before-the-version"),
    pytest.param(b'1"', ("GET", "/index.html", "1."), id="in-the-version"),
    pytest.param(b'TP/1.1"', ("GET", "/index.html", ""), id="in-the-protocol"),
    pytest.param(b'.html HTTP/1.1"', ("GET", "/index", ""), id="in-the-target"),
    pytest.param(b'T /index.html HTTP/1.1"', ("", "", ""), id="in-the-method"),
]


@pytest.mark.parametrize(("missing", "request_line"), CUTS)
def test_a_line_may_be_cut_anywhere_in_the_request(missing, request_line) -> None:
    """``len`` of the ``log`` line, 1,024 by default; what is there counts."""
    line = parse_line(LINE.removesuffix(missing))

    assert line is not None
    assert line.is_cut
    assert (line.method, line.target, line.version) == request_line


def test_dates_of_clf_are_utc() -> None:
    """It is the only format that names its time zone."""
    line = parse_line(
        b'10.0.1.2 - - [06/Feb/2009:14:14:14 +0200] "GET / HTTP/1.1" 200 2750 "" "" 33317 655'
        b' "in" "static" "srv1" 10 0 30 69 109 ---- 1 1 1 1 0 0 0 "" ""'
    )

    assert line is not None
    assert line.start_ms == 1_233_922_454_000


def test_repr_tells_no_secrets() -> None:
    """Headers and targets may hold credentials, and lines may end up in an error message."""
    data = LINE.replace(b"1wt.eu", b"Bearer hush").replace(b"/index", b"/?password=hush")
    line = parse_line(data.replace(b" - - ", b" SID=hush SID=hush "))

    assert line is not None
    assert "hush" not in repr(line)
    assert "static/srv1" in repr(line)


def test_a_line_can_be_kept_without_what_was_asked() -> None:
    """Of the request and of captured headers nothing is left; all else is."""
    line = parse_line(
        b"192.0.2.7:51234 [21/Nov/2026:14:49:12.345] front back/a 0/0/0/1/1 200 244 - - ----"
        b' 1/1/0/0/0 0/0 {token=secret} "GET /x?password=secret HTTP/1.1"'
    )
    assert line is not None
    kept = line.without_request()

    assert (line.captures, line.target) == ((("token=secret",),), "/x?password=secret")
    assert kept == line._replace(captures=(), method="", target="")
    assert type(kept) is AccessLogLine


def test_cookies_are_not_kept() -> None:
    """They are captured to follow sessions: as good as passwords."""
    line = parse_line(LINE.replace(b" - - ", b' SID=hush SID="hu sh" '))

    assert line is not None
    assert not any("hu" in str(value) for value in tuple(line))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"a", [b"a"], id="datagram"),
        pytest.param(b"a\n", [b"a\n"], id="descriptor"),
        pytest.param(b"a\nb\n", [b"a", b"b"], id="forwarded-ring"),
        pytest.param(b"\n\n", [], id="empty"),
        pytest.param(b"\n", [], id="newline"),
        pytest.param(b"5 <1>ab6 <1>abc", [b"<1>ab", b"<1>abc"], id="counted"),
        pytest.param(b"5 <1>ab6 <1>a", [b"<1>ab", b"<1>a"], id="counted-and-cut"),
        pytest.param(b"5 apples", [b"5 apples"], id="no-count"),
    ],
)
def test_one_call_may_write_several_lines(data, lines) -> None:
    """A ring that forwards over TCP collects them."""
    assert split_lines(data) == lines


@given(st.binary(max_size=400))
def test_no_bytes_raise(data) -> None:
    """What others write to a descriptor is nobody's promise."""
    assert parse_line(data) is None or isinstance(parse_line(data), AccessLogLine)


@given(
    st.lists(st.tuples(st.integers(0, len(LINE) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(LINE)),
)
@example([], len(LINE))
def test_no_damage_to_a_line_raises(changes, end) -> None:
    """A few bytes changed, and cut anywhere; what is recognised all the same has its types."""
    data = bytearray(LINE)
    for at, byte in changes:
        data[at] = byte
    line = parse_line(bytes(data[:end]))

    assert line is None or {type(value) for value in line} <= {
        str, int, bool, tuple, LogFormat,
    }  # fmt: skip


printable = st.characters(min_codepoint=33, max_codepoint=126)
names = st.text(st.sampled_from("abcXYZ019-_.:"), min_size=1, max_size=12)
timers = st.integers(-1, 10**9)
counts = st.integers(0, 10**9)


def escape(text: str, also: str = "") -> str:
    """As HAProxy writes it (manual, section 8.6)."""
    return "".join(f"#{ord(c):02X}" if c in '#"' + also or ord(c) > 126 else c for c in text)


@given(
    client=st.sampled_from(["192.0.2.7", "::1", "2001:db8::7"]),
    port=st.integers(0, 65535),
    names=st.tuples(names, names, names),
    timers=st.tuples(timers, timers, timers, timers, timers),
    numbers=st.tuples(*[counts] * 6),
    target=st.text(printable | st.characters(min_codepoint=160, max_codepoint=255), min_size=1),
    capture=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
)
def test_what_haproxy_writes_is_read_back(
    client, port, names, timers, numbers, target, capture
) -> None:
    """A writer after the manual, and every field comes back."""
    frontend, backend, server = names
    text = (
        f"{client}:{port} [21/Nov/2026:14:49:12.007] {frontend} {backend}/{server}"
        f" {'/'.join(map(str, timers))} 200 {numbers[0]} - - SHVN"
        f" {numbers[1]}/{numbers[2]}/{numbers[3]}/{numbers[4]}/+{numbers[5]} 0/0"
        f' {{{escape(capture, "{|}")}}} "PUT {escape(target)} HTTP/1.1"'
    )
    line = parse_line(text.encode("latin-1"))

    assert line is not None
    assert (line.client_address, line.client_port) == (client, port)
    assert (line.frontend, line.backend, line.server) == names
    assert line[9:14] == timers
    assert (line.bytes_read, line.retries, line.is_redispatched) == (numbers[0], numbers[5], True)
    assert line.captures == ((capture,),)
    assert (line.method, line.target) == ("PUT", target)
