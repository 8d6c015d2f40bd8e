"""What may be read of a message: character sets, content codings, and nothing dangerous."""

from __future__ import annotations

import unicodedata
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.transaction.model import Body, Response
from otel_qtap.transaction.readable import (
    escape_block,
    escape_line,
    is_textual,
    readable_body,
    readable_text,
)

OCTETS = st.text(alphabet=st.characters(max_codepoint=255))
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()))  # lone surrogates included


@given(ANY_TEXT)
def test_escaped_text_is_harmless(text) -> None:
    """No control, bidirectional or line-breaking character is left but a block's own \\n, \\t."""
    for escaped, allowed in ((escape_line(text), ""), (escape_block(text), "\n\t")):
        for char in escaped:
            assert char in allowed or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
            assert unicodedata.bidirectional(char) not in ("LRE", "RLE", "LRO", "RLO", "PDF")
            assert unicodedata.bidirectional(char) not in ("LRI", "RLI", "FSI", "PDI")
        escaped.encode("utf-8")


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_utf8_on_the_wire_is_read_as_such(text) -> None:
    """What was sent as UTF-8 comes back as the text it was."""
    assert readable_text(text.encode().decode("latin-1")) == text


@given(ANY_TEXT)
def test_readable_text_can_be_encoded(text) -> None:
    """Names that no encoding can carry are replaced, so no exporter fails on them."""
    readable_text(text).encode("utf-8")


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/html", True),
        ("TEXT/CSV; header=present", True),
        ("application/json", True),
        ("application/ld+json", True),
        ("application/xml", True),
        ("application/yaml", True),
        ("application/x-www-form-urlencoded", True),
        ("application/foo;charset=latin-1", True),
        ("application/javascript", False),
        ("application/octet-stream", False),
        ("image/png", False),
        ("", False),
    ],
)
def test_is_textual(content_type, expected) -> None:
    """The list of the conventions, no more."""
    assert is_textual(content_type) is expected


@given(
    st.binary(max_size=200),
    OCTETS
    | st.sampled_from(["text/plain; charset=utf-16", "text/plain; charset=zip", "image/png"]),
    OCTETS | st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity"]),
    st.integers(0, 50),
    st.integers(0, 300),
)
def test_no_body_breaks_it(content, content_type, coding, missing, limit) -> None:
    """Any bytes under any headers give an answer within the limit."""
    response = Response(
        status=200,
        reason="",
        version="1.1",
        headers=(("Content-Type", content_type), ("content-encoding", coding)),
        body=Body(content=content, size=len(content) + missing),
    )
    readable = readable_body(response, limit)
    assert len(readable.data) <= limit
    assert readable.is_cut or not missing


def test_several_content_encoding_headers() -> None:
    """Codings listed on several lines are undone in the order of all lines together."""
    response = Response(
        status=200,
        reason="",
        version="1.1",
        headers=(("content-encoding", "deflate"), ("Content-Encoding", "deflate")),
        body=Body(content=zlib.compress(zlib.compress(b"hello")), size=30),
    )
    assert readable_body(response, 100).text == "hello"
