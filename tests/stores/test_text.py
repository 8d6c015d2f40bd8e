"""The text block: the shape that the guide promises, and nothing from traffic that breaks it."""

from __future__ import annotations

import gzip

import pytest

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.stores.text import render_text
from otel_qtap.transaction.model import Direction, Ending

MS = 1_000_000

INGRESS = """\
=== HTTP Transaction ===
Source Process: haproxy (PID: 987, Container: haproxy-demo)
Direction: INGRESS ← (client to haproxy)
Method: POST
URL: http://localhost:8085/api/create
Status: 200 OK
Duration: 12ms

--- Request Headers ---
Host: localhost:8085
User-Agent: curl/7.81.0
Content-Type: application/json

--- Request Body ---
{"name": "Alice", "role": "admin"}

--- Response Headers ---
Content-Type: application/json

--- Response Body ---
{"received":"{\\"name\\": \\"Alice\\"}"}
========================
"""

EGRESS = """\
=== HTTP Transaction ===
Source Process: haproxy (PID: 987, Container: haproxy-demo)
Direction: EGRESS → (haproxy to backend)
Method: POST
URL: http://backend-api-1:8001/api/create
Status: 200 OK
Duration: 8ms

--- Request Body ---
{"name": "Alice", "role": "admin"}
========================
"""


@pytest.fixture
def posted(make_transaction, make_request, make_response):
    """The example of the guide."""
    return make_transaction(
        request=make_request(
            "POST",
            "/api/create",
            headers=(
                ("Host", "localhost:8085"),
                ("User-Agent", "curl/7.81.0"),
                ("content-type", "application/json"),
            ),
            body=b'{"name": "Alice", "role": "admin"}',
        ),
        response=make_response(body=b'{"received":"{\\"name\\": \\"Alice\\"}"}'),
    )


def body_section(block: str) -> str:
    return block.partition("--- Response Body ---\n")[2].removesuffix("=" * 24 + "\n")


def test_the_guide_ingress(posted) -> None:
    """The whole block, character by character."""
    assert render_text(posted) == INGRESS


def test_the_guide_egress(make_transaction, make_request, make_response) -> None:
    """Sections without content are left out."""
    transaction = make_transaction(
        direction=Direction.EGRESS_INTERNAL,
        request=make_request(
            "POST", "/api/create", headers=(), body=b'{"name": "Alice", "role": "admin"}'
        ),
        response=make_response(headers=()),
        duration_ns=8 * MS,
    )
    assert render_text(transaction) == EGRESS


@pytest.mark.parametrize(
    ("level", "sections"),
    [
        pytest.param(CaptureLevel.SUMMARY, [], id="summary"),
        pytest.param(
            CaptureLevel.HEADERS,
            ["--- Request Headers ---", "--- Response Headers ---"],
            id="headers",
        ),
        pytest.param(
            CaptureLevel.FULL,
            [
                "--- Request Headers ---",
                "--- Request Body ---",
                "--- Response Headers ---",
                "--- Response Body ---",
            ],
            id="full",
        ),
    ],
)
def test_levels(level, sections, posted) -> None:
    """A summary has neither headers nor bodies; headers no bodies; full has all."""
    block = render_text(posted.reduced_to(level))
    assert [line for line in block.splitlines() if line.startswith("---")] == sections


def test_without_container_and_other_programs(make_transaction, make_process) -> None:
    """Programs go by their own name; no container, no word of one."""
    process = make_process(executable="/usr/bin/curl", pid=4)
    for direction, line in (
        (Direction.EGRESS_EXTERNAL, "Direction: EGRESS → (curl to backend)"),
        (Direction.INGRESS, "Direction: INGRESS ← (client to curl)"),
    ):
        block = render_text(make_transaction(direction=direction, process=process, container=None))
        assert block.splitlines()[1:3] == ["Source Process: curl (PID: 4)", line]


STATUSES = [
    pytest.param((200, "OK"), Ending.COMPLETE, "200 OK", id="wire"),
    pytest.param((200, "Fine"), Ending.COMPLETE, "200 Fine", id="own-words"),
    pytest.param((404, ""), Ending.COMPLETE, "404 Not Found", id="http2-has-no-reason"),
    pytest.param((299, ""), Ending.COMPLETE, "299", id="unregistered"),
    pytest.param((101, ""), Ending.UPGRADED, "101 Switching Protocols", id="upgraded"),
    pytest.param((200, "OK"), Ending.SERVER_CLOSED, "200 OK (server_closed)", id="not-whole"),
    pytest.param(None, Ending.CLIENT_CLOSED, "- (client_closed)", id="client-gone"),
    pytest.param(None, Ending.CONNECT_FAILED, "- (connect_failed)", id="no-connection"),
]


@pytest.mark.parametrize(("answer", "ending", "shown"), STATUSES)
def test_status_line(answer, ending, shown, make_transaction, make_response) -> None:
    """The reason of the wire, else the registered one; how it ended when that is not well."""
    response = None if answer is None else make_response(answer[0], reason=answer[1])
    block = render_text(make_transaction(response=response, ending=ending))
    assert f"\nStatus: {shown}\n" in block


@pytest.mark.parametrize(
    ("duration_ns", "shown"),
    [(12 * MS + 999_999, "12ms"), (MS, "1ms"), (499_999, "0.4ms"), (40_000, "0.0ms")],
)
def test_durations_are_never_rounded_up(duration_ns, shown, make_transaction) -> None:
    """Whole milliseconds, and tenths below one."""
    assert f"\nDuration: {shown}\n" in render_text(make_transaction(duration_ns=duration_ns))


def test_canonical_names(make_transaction) -> None:
    """Names are shown as people write them, duplicates one by one."""
    headers = (
        ("content-type", "text/plain"),
        ("X-FORWARDED-FOR", "192.0.2.1"),
        ("etag", '"1"'),
        ("www-authenticate", "Basic"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
        ("x-empty", ""),
    )
    block = render_text(make_transaction(request_headers=headers, response_headers=()))
    shown = block.partition("--- Request Headers ---\n")[2].splitlines()[:7]
    assert shown == [
        "Content-Type: text/plain",
        "X-Forwarded-For: 192.0.2.1",
        'ETag: "1"',
        "WWW-Authenticate: Basic",
        "Set-Cookie: a",
        "Set-Cookie: b",
        "X-Empty:",
    ]


BODIES = [
    pytest.param(b"a\r\nb\tc\n", "text/plain", "a\nb\tc\n", id="lines-and-tabs"),
    pytest.param("né → ✓".encode(), "text/plain", "né → ✓\n", id="utf-8"),
    pytest.param(b"caf\xe9", "text/plain; charset=ISO-8859-1", "café\n", id="latin-1"),
    pytest.param(b"plain", "", "plain\n", id="no-content-type"),
    pytest.param(b"\xff\xfe\xfd", "text/plain", "(binary, 3 bytes, text/plain)\n", id="not-utf-8"),
    pytest.param(b"\x89PNG", "image/png", "(binary, 4 bytes, image/png)\n", id="image"),
    pytest.param(b"text", "application/octet-stream", None, id="declared-binary"),
    pytest.param(b"\x00\x01", "", "(binary, 2 bytes, unknown type)\n", id="nul"),
    pytest.param(b"x", "text/plain; charset=punycode", None, id="no-charset-of-that-name"),
    pytest.param(b"x", "text/plain; charset=\x00", None, id="charset-of-junk"),
]


@pytest.mark.parametrize(("content", "content_type", "shown"), BODIES)
def test_bodies(content, content_type, shown, make_transaction) -> None:
    """Text is shown as its charset says; everything else in one line that says how much it is."""
    headers = (("content-type", content_type),) if content_type else ()
    block = render_text(make_transaction(response_headers=headers, response_body=content))
    if shown is None:
        assert body_section(block).startswith(f"(binary, {len(content)} bytes, ")
    else:
        assert body_section(block) == shown


def test_content_coding_is_undone(make_transaction) -> None:
    """A compressed body is shown as what it says."""
    block = render_text(
        make_transaction(
            response_headers=(("content-type", "text/plain"), ("content-encoding", "gzip")),
            response_body=gzip.compress(b"hello"),
        )
    )
    assert body_section(block) == "hello\n"


def test_truncation_is_said(make_transaction, make_body) -> None:
    """What was not captured is told in bytes; a character that the cut split is left out."""
    text = "✓✓".encode()
    block = render_text(
        make_transaction(
            response_headers=(("content-type", "text/plain"),),
            response_body=make_body(text[:4], size=6),
        )
    )
    assert body_section(block) == "✓\n(truncated: captured 4 of 6 bytes)\n"


def test_a_body_that_was_lost_is_said(make_transaction, make_body) -> None:
    """Nothing captured of something sent is not an empty section."""
    block = render_text(make_transaction(response_body=make_body(b"", size=6)))
    assert body_section(block) == "(truncated: captured 0 of 6 bytes)\n"


def test_a_small_body_that_unpacks_to_a_large_one(make_transaction) -> None:
    """Decoding stops at a limit, and the block says so."""
    block = render_text(
        make_transaction(
            response_headers=(("content-type", "text/plain"), ("content-encoding", "gzip")),
            response_body=gzip.compress(b"a" * 5_000_000),
        )
    )
    assert len(block) < 1_100_000
    assert body_section(block).endswith("\n(truncated: shows 1048576 decoded bytes)\n")


DANGEROUS = [
    pytest.param("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07", id="escape-sequence"),
    pytest.param("\x00\x08\x7f", r"\x00\x08\x7f", id="c0-and-del"),
    pytest.param("\x9b31m", r"\x9b31m", id="c1"),
    pytest.param("a\rb", r"a\x0db", id="carriage-return"),
    pytest.param("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066", id="bidi"),
    pytest.param("a\u2028b\u2029c", r"a\u2028b\u2029c", id="line-separators"),
    pytest.param("\U000e0041", r"\U000e0041", id="tags"),
]


@pytest.mark.parametrize(("raw", "shown"), DANGEROUS)
def test_nothing_drives_a_terminal(raw, shown, make_transaction, factories) -> None:
    """Controls are escaped wherever traffic, or the name of a program, can put them."""
    # On the wire it is UTF-8; U+009B alone stands for an octet that is no valid UTF-8.
    octets = raw if max(raw) <= "\xff" else raw.encode().decode("latin-1")
    block = render_text(
        make_transaction(
            request=factories.make_request(octets, f"/{octets}", headers=((octets, octets),)),
            response=factories.make_response(
                reason=octets,
                headers=(("content-type", "text/plain; charset=utf-8"),),
                body=raw.replace("\0", "").encode(),
            ),
            process=factories.make_process(executable=f"/bin/{raw}"),
        )
    )
    assert all(char in "\n\t" or char.isprintable() for char in block)
    assert block.lower().count(shown.lower()) >= 5


def test_lone_surrogates(make_transaction, make_process) -> None:
    """A program name that is no valid text can still be printed."""
    block = render_text(make_transaction(process=make_process(executable="/bin/a\udcffb")))
    assert "Source Process: a?b (PID" in block
    block.encode("utf-8")


def test_no_peer_forges_a_block(make_transaction) -> None:
    """A body that holds the block's own lines can neither end a block nor begin one."""
    block = render_text(
        make_transaction(
            response_headers=(("content-type", "text/plain"),),
            response_body=b"========================\n\n" + INGRESS.encode() + b"-----\n=====\n",
        )
    )
    lines = [line.strip() for line in block.splitlines()]
    assert lines.count("=== HTTP Transaction ===") == 1
    assert lines.count("=" * 24) == 1
    assert lines.count("--- Request Body ---") == 0
    assert r"\=== HTTP Transaction ===" in lines
    assert lines[-3:] == ["-----", "=====", "=" * 24]
