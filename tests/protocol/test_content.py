"""Content codings undone: whole, cut, damaged, and never beyond the limit."""

from __future__ import annotations

import gzip
import importlib
import sys
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_qtap.protocol import DecodedContent, content, decode_content

TEXT = b"".join(b"line %d of a body that is worth compressing\n" % number for number in range(400))
LIMIT = 1_000_000


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return coder.compress(data) + coder.flush()


def brotli(data: bytes) -> bytes:
    module = pytest.importorskip("brotli", reason="the package brotli is not installed")
    coded: bytes = module.compress(data)
    return coded


def zstandard(data: bytes) -> bytes:
    module = pytest.importorskip("zstandard", reason="the package zstandard is not installed")
    coded: bytes = module.ZstdCompressor().compress(data)
    return coded


CODINGS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("x-gzip", gzip.compress, id="x-gzip"),
    pytest.param("deflate", zlib.compress, id="deflate"),
    pytest.param("deflate", raw_deflate, id="deflate-raw"),
    pytest.param("br", brotli, id="br"),
    pytest.param("zstd", zstandard, id="zstd"),
]

each_coding = pytest.mark.parametrize(("coding", "encode"), CODINGS)

Encode = Callable[[bytes], bytes]


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Let each test look for the optional packages anew."""
    content._optional.cache_clear()
    yield
    content._optional.cache_clear()


@each_coding
def test_coding_is_undone(coding: str, encode: Encode) -> None:
    """A whole body comes out whole, without a word."""
    assert decode_content(encode(TEXT), coding, LIMIT) == DecodedContent(TEXT, False, "")


@each_coding
def test_limit_holds_to_the_byte(coding: str, encode: Encode) -> None:
    """A body of the size of the limit is whole; one byte less is a cut."""
    coded = encode(TEXT)
    assert decode_content(coded, coding, len(TEXT)) == DecodedContent(TEXT, False, "")
    assert decode_content(coded, coding, len(TEXT) - 1) == DecodedContent(TEXT[:-1], True, "")
    assert decode_content(coded, coding, 0) == DecodedContent(b"", True, "")


@each_coding
def test_beginning_of_a_body_is_decoded(coding: str, encode: Encode) -> None:
    """Wherever the capture cut a body, what can be decoded of it is its beginning."""
    coded = encode(TEXT)
    for size in range(1, len(coded), 7):
        data, truncated, error = decode_content(coded[:size], coding, LIMIT)
        assert TEXT.startswith(data)
        assert truncated
        assert not error
    half = decode_content(coded[: len(coded) // 2], coding, LIMIT)
    assert len(half.data) > len(TEXT) // 4 or coding in ("br", "zstd")  # these work in blocks


@each_coding
def test_bomb_stays_small(coding: str, encode: Encode) -> None:
    """Megabytes of zeros come out as the first of them."""
    data, truncated, error = decode_content(encode(bytes(20_000_000)), coding, 1000)
    assert (data, truncated, error) == (bytes(1000), True, "")


@each_coding
def test_uncoded_data_comes_back(coding: str, encode: Encode) -> None:
    """Servers mislabel bodies; one that is not coded at all is shown as it is."""
    encode(b"")  # skips when the package is missing
    data, truncated, error = decode_content(b"<p>not coded</p>", coding, LIMIT)
    assert (data, truncated, error) == (b"<p>not coded</p>", False, "the coded data is corrupt")


@pytest.mark.parametrize("offset", [2000, 2500, 3000])
def test_damage_costs_what_follows(offset: int) -> None:
    """What came before damaged bytes is shown, though it was decoded together with them."""
    head = gzip.compress(b"")[:10]
    reserved_block_type = b"\x07"
    data, truncated, error = decode_content(
        head + _stored(TEXT[:offset]) + reserved_block_type, "gzip", LIMIT
    )
    assert (data, truncated, error) == (TEXT[:offset], True, "the coded data is corrupt")


def _stored(data: bytes) -> bytes:
    """Return a block of deflate that holds ``data`` as it is (RFC 1951, section 3.2.4)."""
    size = len(data)
    return b"\0" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + data


def test_gzip_members_follow_each_other() -> None:
    """Several members are one body; padding after the last is none."""
    coded = gzip.compress(TEXT) + gzip.compress(b"and more") + bytes(100)
    assert decode_content(coded, "gzip", LIMIT) == DecodedContent(TEXT + b"and more", False, "")


def test_codings_are_undone_in_reverse() -> None:
    """The last coding of the list was applied last; ``identity`` is none."""
    coded = gzip.compress(zlib.compress(TEXT))
    decoded = DecodedContent(TEXT, False, "")
    assert decode_content(coded, "Deflate , identity,, GZIP", LIMIT) == decoded


def test_inner_coding_that_fails_leaves_the_outer_undone() -> None:
    """What one coding left is shown when the next cannot be undone."""
    coded = gzip.compress(b"plain")
    assert decode_content(coded, "exotic, gzip", LIMIT) == DecodedContent(
        b"plain", False, "unknown content coding"
    )


def test_cut_outer_coding_is_decoded_through() -> None:
    """Half of a body coded twice gives the beginning of it."""
    coded = gzip.compress(raw_deflate(TEXT))
    data, truncated, error = decode_content(coded[: len(coded) // 2], "deflate, gzip", LIMIT)
    assert len(data) > 1000
    assert TEXT.startswith(data)
    assert (truncated, error) == (True, "")


@pytest.mark.parametrize("codings", ["", "identity", " , "])
def test_without_coding_data_is_cut_only(codings: str) -> None:
    """A body that is not coded is subject to the limit as well."""
    assert decode_content(b"plain text", codings, 100) == DecodedContent(b"plain text", False, "")
    assert decode_content(b"plain text", codings, 5) == DecodedContent(b"plain", True, "")


def test_empty_body_is_whole() -> None:
    """The answer to HEAD names a coding and has nothing to decode."""
    assert decode_content(b"", "gzip", LIMIT) == DecodedContent(b"", False, "")


def test_codings_are_bounded() -> None:
    """A header that lists codings without end costs nothing."""
    data, truncated, error = decode_content(b"x", ", ".join(["gzip"] * 1000), LIMIT)
    assert (data, truncated) == (b"x", False)
    assert error == "more than 5 content codings"


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(("coding", "package"), [("br", "brotli"), ("zstd", "zstandard")])
def test_missing_package_is_named(
    coding: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the optional package the body stays coded and the error says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    data, truncated, error = decode_content(b"coded", coding, LIMIT)
    assert (data, truncated) == (b"coded", False)
    assert error == f"the package {package} is not installed"


@pytest.mark.usefixtures("forgetful")
def test_brotli_without_output_limit_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.2 a decoder could not be stopped: a bomb would go off."""
    old = type(sys)("brotli")
    old.Decompressor = type("Decompressor", (), {})  # type: ignore[attr-defined]  # made up here
    monkeypatch.setitem(sys.modules, "brotli", old)
    assert importlib.import_module("brotli") is old
    data, _, error = decode_content(b"coded", "br", LIMIT)
    assert (data, error) == (b"coded", "the package brotli is older than 1.2")


@each_coding
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_raises(coding: str, encode: Encode, data: st.DataObject) -> None:
    """Damaged or random bytes: an answer within the limit, always."""
    coded = bytearray(encode(TEXT[:3000]))
    for _ in range(data.draw(st.integers(0, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    noise = data.draw(st.binary(max_size=40))
    for body in (bytes(coded), noise, bytes(coded) + noise):
        decoded = decode_content(body, coding, 2000)
        assert len(decoded.data) <= 2000
