"""A PROXY protocol header told from a request, and what it says of the client."""

from __future__ import annotations

import pytest

from otel_qtap.protocol import ParseError, ProxyHeader
from otel_qtap.protocol.proxy_header import read_proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PORTS = (51234).to_bytes(2) + (443).to_bytes(2)
IPV6 = bytes.fromhex("20010db8000000000000000000000001")

HEADERS = [
    pytest.param(
        b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 443\r\n",
        ProxyHeader(1, "192.0.2.7", 51234, "198.51.100.1", 443),
        id="v1-ipv4",
    ),
    pytest.param(
        b"PROXY TCP6 2001:DB8:0::1 2001:db8::2 51234 443\r\n",
        ProxyHeader(1, "2001:db8::1", 51234, "2001:db8::2", 443),
        id="v1-ipv6",
    ),
    pytest.param(b"PROXY UNKNOWN\r\n", ProxyHeader(1, "", 0, "", 0), id="v1-unknown"),
    pytest.param(
        SIGNATURE + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 198, 51, 100, 1]) + PORTS,
        ProxyHeader(2, "192.0.2.7", 51234, "198.51.100.1", 443),
        id="v2-ipv4",
    ),
    pytest.param(
        SIGNATURE + b"\x21\x21\x00\x27" + IPV6 + IPV6 + PORTS + b"\x04\x00\x00",
        ProxyHeader(2, "2001:db8::1", 51234, "2001:db8::1", 443),
        id="v2-ipv6-and-more",
    ),
    pytest.param(
        SIGNATURE + b"\x20\x11\x00\x0c" + bytes(12), ProxyHeader(2, "", 0, "", 0), id="v2-local"
    ),
    pytest.param(
        SIGNATURE + b"\x21\x31\x00\x02ab", ProxyHeader(2, "", 0, "", 0), id="v2-unix-socket"
    ),
]


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_a_header_is_read_up_to_its_end(data, header) -> None:
    """Wherever it stands; what follows is the request."""
    assert read_proxy_header(b"..." + data + b"GET / HTTP/1.1", 3) == (header, 3 + len(data))


@pytest.mark.parametrize(("data", "_header"), HEADERS)
def test_part_of_a_header_waits_for_the_rest(data, _header) -> None:
    """However little there is."""
    assert [read_proxy_header(data[:size], 0) for size in range(1, len(data))] == [None] * (
        len(data) - 1
    )


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"PROXYING / HTTP/1.1\r\n", b"\r\nGET / HTTP/1.1\r\n", b"PUT"]
)
def test_a_request_is_no_header(data) -> None:
    """Nor are the empty lines that may stand in front of one."""
    assert read_proxy_header(data, 0) == (None, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 51234\r\n", "malformed"),
        (b"PROXY TCP4 192.0.2.7 2001:db8::1 51234 443\r\n", "malformed"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 65536\r\n", "malformed"),
        (b"PROXY TCP4 " + b"1" * 96, "no end"),
        (SIGNATURE + b"\x31\x11\x00\x0c", "unknown version"),
        (SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11), "too short"),
    ],
)
def test_a_header_that_breaks_the_rules_is_told(data, reason) -> None:
    """Without quoting it."""
    with pytest.raises(ParseError, match=reason) as caught:
        read_proxy_header(data, 0)
    assert "192" not in str(caught.value)
