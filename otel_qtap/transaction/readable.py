"""
What a person or a tool may read of the octets in a transaction.

Stores and exporters show the same message in different shapes; the questions they
share are answered here: which character set, which content coding, text or binary,
and which characters must never reach a terminal.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus

from otel_qtap.protocol.content import decode_content
from otel_qtap.transaction.model import Request, Response

__all__ = [
    "ReadableBody",
    "escape_block",
    "escape_line",
    "is_textual",
    "readable_body",
    "readable_text",
    "status_phrase",
]

# C0 and C1 controls and DEL drive terminals; bidirectional controls, invisible
# operators and tag characters make a line look like another one; U+2028 and U+2029
# break lines; lone surrogates cannot be encoded.
_UNSAFE_RANGES = (
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSAFE_IN_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_UNSAFE_RANGES}]")
_UNSAFE_IN_BLOCK = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_UNSAFE_RANGES}]")

# What the conventions call textual (http.request.body.content): these types, or any
# type that names a charset.
_TEXTUAL_SUFFIXES = ("/json", "+json", "/xml", "+xml", "/yaml", "+yaml")
_TEXTUAL_TYPES = frozenset({"application/x-www-form-urlencoded"})

# Media types that are never text, whatever their bytes happen to decode to.
_BINARY_PREFIXES = ("image/", "audio/", "video/", "font/", "model/")
_BINARY_TYPES = frozenset(
    {
        "application/gzip",
        "application/octet-stream",
        "application/pdf",
        "application/protobuf",
        "application/vnd.google.protobuf",
        "application/wasm",
        "application/x-gzip",
        "application/x-protobuf",
        "application/x-tar",
        "application/zip",
        "application/zstd",
    }
)

# Only plain character sets: Python's codecs also hold transforms and slow decoders
# (punycode, unicode_escape) that a peer must not be able to choose.
_CHARSETS = re.compile(
    r"utf-(8|8-sig|16|16-le|16-be|32|32-le|32-be)|ascii|iso8859-\d+|cp125\d|koi8-[ru]"
    r"|shift_jis|euc_(jp|kr)|gb2312|gbk|gb18030|big5"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableBody:
    """A body with its content coding undone as far as that worked."""

    data: bytes = field(repr=False)
    text: str | None = field(repr=False)
    """``data`` as characters; ``None`` when it is not text."""
    content_type: str
    """As sent, empty when it was not."""
    is_cut: bool
    """``data`` is not all of what was sent: not captured, lost, or above the limit."""


def readable_text(value: str) -> str:
    """
    Return a header value or target as its sender meant it.

    Parsers map every octet to one character. Senders that use more than ASCII mean
    UTF-8 nearly always, so what is valid UTF-8 is shown as such. Characters that no
    encoding can carry are replaced.
    """
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return value
    except UnicodeEncodeError:  # not octets: a process or container name, say
        return value.encode("utf-8", "replace").decode("utf-8")


def escape_line(value: str) -> str:
    r"""Return ``value`` as one harmless line: what could drive a terminal becomes ``\x1b``."""
    return value if value.isascii() and value.isprintable() else _UNSAFE_IN_LINE.sub(_hex, value)


def escape_block(value: str) -> str:
    """Return ``value`` as harmless lines: like ``escape_line``, but ends of line and tabs stay."""
    return _UNSAFE_IN_BLOCK.sub(_hex, value.replace("\r\n", "\n"))


def status_phrase(response: Response) -> str:
    """Return the reason phrase of the wire, else the registered one, else nothing."""
    if response.reason:
        return readable_text(response.reason)
    try:
        return HTTPStatus(response.status).phrase
    except ValueError:
        return ""


def is_textual(content_type: str) -> bool:
    """Whether the semantic conventions call this media type textual."""
    media_type, _, parameters = content_type.lower().partition(";")
    media_type = media_type.strip()
    return (
        media_type.startswith("text/")
        or media_type.endswith(_TEXTUAL_SUFFIXES)
        or media_type in _TEXTUAL_TYPES
        or _charset_name(parameters) is not None
    )


def readable_body(message: Request | Response, limit: int) -> ReadableBody:
    """Return the body of ``message``, content coding undone, at most ``limit`` bytes of it."""
    body = message.body
    content_type = message.header("content-type") or ""
    codings = ",".join(
        value for name, value in message.headers if name.lower() == "content-encoding"
    )
    if codings and body.content:
        # What cannot be decoded comes back as it is, and then is hardly valid text.
        decoded = decode_content(body.content, codings, limit)
        data = decoded.data
        is_cut = body.is_truncated or decoded.truncated
    else:
        data = body.content[:limit]
        is_cut = len(data) < body.size
    text = _decode(data, content_type, is_cut=is_cut)
    return ReadableBody(data=data, text=text, content_type=content_type, is_cut=is_cut)


def _decode(data: bytes, content_type: str, *, is_cut: bool) -> str | None:
    """Return ``data`` as text; a character that the cut split is left out."""
    media_type, _, parameters = content_type.lower().partition(";")
    media_type = media_type.strip()
    if media_type in _BINARY_TYPES or media_type.startswith(_BINARY_PREFIXES):
        return None
    if media_type.startswith("application/grpc"):
        return None
    charset = _charset(_charset_name(parameters) or "utf-8")
    if charset is None:
        return None
    try:
        text = codecs.getincrementaldecoder(charset)("strict").decode(data, final=not is_cut)
    except UnicodeError:
        return None
    return None if "\0" in text else text


def _charset_name(parameters: str) -> str | None:
    for parameter in parameters.split(";"):
        name, separator, value = parameter.partition("=")
        if separator and name.strip() == "charset":
            return value.strip().strip('"')
    return None


@lru_cache(maxsize=64)
def _charset(name: str) -> str | None:
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):  # ValueError: a name with a NUL in it
        return None
    return found if _CHARSETS.fullmatch(found) else None


def _hex(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
