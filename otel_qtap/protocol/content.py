"""
Content codings undone for display (RFC 9110, section 8.4.1).

Bodies are kept as they passed; only what shows them to a person decodes them, and what
it gets here may be cut: by the capture, which keeps the beginning of a body, or by the
limit, which keeps a small body from becoming a large one.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

__all__ = ["DecodedContent", "decode_content"]

MAX_CODINGS = 5  # as curl; nobody applies more in earnest

_PIECE_SIZE = 1024
_ZSTD_PIECE_SIZE = 256  # its decoder takes no limit; 64 blocks of 128 KiB is the worst of a piece
_CORRUPT = "the coded data is corrupt"
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_ZSTD_WINDOW_SIZE = 8 * 1024 * 1024  # RFC 9659: what a sender may ask for
_INNER_ALLOWANCE = 64 * 1024  # what is still coded can be a little larger than what it holds

_RAW_DEFLATE = -zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_GZIP = zlib.MAX_WBITS | 16


class DecodedContent(NamedTuple):
    """What could be made of a coded body."""

    data: bytes
    truncated: bool
    """Whether there is more than ``data``: beyond the limit, or in coded bytes that are missing."""
    error: str
    """Why ``data`` is not all that was to be had; empty when nothing went wrong."""


class _Stage(NamedTuple):
    """What one decoder made of its input."""

    data: bytes
    is_whole: bool
    error: str = ""
    is_decoded: bool = True


def decode_content(data: bytes, codings: str, limit: int) -> DecodedContent:
    """
    Undo the content codings that a ``Content-Encoding`` value lists.

    Never raises and never returns more than ``limit`` bytes. Where a coding cannot be
    undone at all, ``data`` is what the codings applied after it left, and ``error`` says
    why; where it breaks off, ``data`` is what came before.
    """
    limit = max(0, limit)
    if not data:
        return DecodedContent(b"", truncated=False, error="")
    names = [name.strip().lower() for name in codings.split(",")]
    names = [name for name in names if name not in {"", "identity"}]
    error = ""
    is_whole = True
    if len(names) > MAX_CODINGS:
        names, error = [], f"more than {MAX_CODINGS} content codings"
    while names and not error:
        decode = _DECODERS.get(names.pop())
        if decode is None:
            error = "unknown content coding"
            break
        stage = decode(data, limit + 1 if not names else limit + _INNER_ALLOWANCE)
        if not stage.is_decoded:
            error = stage.error
            break
        data, error = stage.data, stage.error
        is_whole = is_whole and stage.is_whole
    return DecodedContent(data[:limit], not is_whole or len(data) > limit, error)


def _gunzip(data: bytes, limit: int) -> _Stage:
    return _inflate(data, limit, _GZIP)


def _undeflate(data: bytes, limit: int) -> _Stage:
    """RFC 9110, section 8.4.1.2: the coding means zlib, but some senders leave its frame out."""
    stage = _inflate(data, limit, _ZLIB)
    return stage if stage.is_decoded else _inflate(data, limit, _RAW_DEFLATE)


def _inflate(data: bytes, limit: int, window_bits: int) -> _Stage:
    decoder = zlib.decompressobj(window_bits)
    output = bytearray()
    position, step = 0, _PIECE_SIZE
    while position < len(data) and len(output) < limit:
        if decoder.eof:
            if window_bits != _GZIP or not data.startswith(_GZIP_MAGIC, position):
                break  # padding, which all decoders pass over
            decoder = zlib.decompressobj(window_bits)  # a further member: RFC 1952, section 2.2
        piece = data[position : position + step]
        before = decoder.copy() if step > 1 else decoder
        try:
            output += decoder.decompress(piece, limit - len(output))
        except zlib.error:
            if step == 1:
                return _Stage(bytes(output), False, _CORRUPT, is_decoded=bool(output))
            decoder, step = before, 1  # an error takes the output of its piece with it
            continue
        position += len(piece) - len(decoder.unused_data)
    return _Stage(bytes(output), is_whole=decoder.eof)


def _unbrotli(data: bytes, limit: int) -> _Stage:
    brotli = _optional("brotli")
    if brotli is None:
        return _Stage(b"", False, "the package brotli is not installed", is_decoded=False)
    decoder = brotli.Decompressor()
    if not hasattr(decoder, "can_accept_more_data"):
        # an older one cannot be kept from turning a kilobyte into a gigabyte
        return _Stage(b"", False, "the package brotli is older than 1.2", is_decoded=False)
    output = bytearray()
    position = 0
    try:
        while len(output) < limit and not decoder.is_finished():
            piece = b""
            if decoder.can_accept_more_data():
                piece = data[position : position + _PIECE_SIZE]
                if not piece:
                    break
                position += len(piece)
            output += decoder.process(piece, output_buffer_limit=limit - len(output))
    except brotli.error:
        return _Stage(bytes(output), False, _CORRUPT, is_decoded=bool(output))
    return _Stage(bytes(output), is_whole=decoder.is_finished())


def _unzstd(data: bytes, limit: int) -> _Stage:
    zstandard = _optional("zstandard")
    if zstandard is None:
        return _Stage(b"", False, "the package zstandard is not installed", is_decoded=False)
    frames = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_SIZE)
    decoder = frames.decompressobj()
    output = bytearray()
    position = 0
    try:
        while position < len(data) and len(output) < limit:
            if decoder.eof:
                decoder = frames.decompressobj()
            piece = data[position : position + _ZSTD_PIECE_SIZE]
            output += decoder.decompress(piece)
            position += len(piece) - len(decoder.unused_data)
    except zstandard.ZstdError:
        return _Stage(bytes(output), False, _CORRUPT, is_decoded=bool(output))
    return _Stage(bytes(output), is_whole=decoder.eof)


@cache
def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


_DECODERS: dict[str, Callable[[bytes, int], _Stage]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,  # RFC 9110, section 8.4.1.3: the same
    "deflate": _undeflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
