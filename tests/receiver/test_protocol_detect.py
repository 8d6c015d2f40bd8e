"""``bpf/protocol_detect.h``, compiled for this machine: what the first bytes of a flow are."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.protocol.http1 import _REGISTERED_METHODS
from otel_qtap.receiver.programs import bpf_directory

OTHER, REQUEST, RESPONSE, HTTP2, PROXY, UNDECIDED = range(6)
PROBE_BYTES = 16

_WRAPPER = """
#define __always_inline inline
#include "protocol_detect.h"
#include <string.h>

/* Bytes come in pieces, as they do from one call after the other. */
int detect(const unsigned char *bytes, const unsigned int *pieces, unsigned int count)
{
    struct probe probe = {0, 0};
    unsigned int have = 0;
    for (unsigned int i = 0; i < count; i++) {
        struct probe more = {0, 0};
        unsigned int size = pieces[i] < PROBE_BYTES ? pieces[i] : PROBE_BYTES;
        memcpy(&more, bytes, size);
        probe_append(&probe, have, &more);
        have += size;
        if (have > PROBE_BYTES)
            have = PROBE_BYTES;
        bytes += pieces[i];
    }
    return detect_protocol(&probe, have);
}
"""


@pytest.fixture(scope="session")
def detect(tmp_path_factory) -> Callable[..., int]:
    """``detect(data, pieces) -> enum protocol`` from the header itself."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("a C compiler is needed to test bpf/protocol_detect.h: apt-get install gcc")
    folder: Path = tmp_path_factory.mktemp("detect")
    (folder / "detect.c").write_text(_WRAPPER)
    subprocess.run(
        [
            compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror",
            "-Wno-unused-function", "-fsanitize=undefined", "-fno-sanitize-recover=all",
            f"-I{bpf_directory()}", "-o", "detect.so", "detect.c",
        ],
        cwd=folder, check=True,
    )  # fmt: skip
    library = ctypes.CDLL(str(folder / "detect.so"))

    def call(data: bytes, pieces: list[int] | None = None) -> int:
        sizes = [len(data)] if pieces is None else pieces
        array = (ctypes.c_uint * len(sizes))(*sizes)
        result: int = library.detect(data + bytes(PROBE_BYTES), array, len(sizes))
        return result

    return call


_HTTP = [
    pytest.param(b"GET / HTTP/1.1\r\n", REQUEST, id="get"),
    pytest.param(b"get / HTTP/1.1\r\n", REQUEST, id="lower-case"),
    pytest.param(b"OPTIONS * HTTP/1.1\r\n", REQUEST, id="asterisk"),
    pytest.param(b"GET http://h/ HTTP/1.1\r\n", REQUEST, id="absolute"),
    pytest.param(b"GET HTTP://h/ HTTP/1.1\r\n", REQUEST, id="absolute-upper"),
    pytest.param(b"CONNECT h:443 HTTP/1.1\r\n", REQUEST, id="connect"),
    pytest.param(b"CONNECT [::1]:443 HTTP/1.1\r\n", REQUEST, id="connect-ipv6"),
    pytest.param(b"CONNECT 10.0.0.1:1 HTTP/1.1\r\n", REQUEST, id="connect-ipv4"),
    pytest.param(b"A / HTTP/1.1\r\n", REQUEST, id="one-letter"),
    pytest.param(b"M-SEARCH * HTTP/1.1\r\n", REQUEST, id="hyphen"),
    pytest.param(b"\r\nGET / HTTP/1.1\r\n", REQUEST, id="empty-line-in-front"),
    pytest.param(b"\r\nDELETE /x HTTP/1.1\r\n", REQUEST, id="empty-line-and-long-method"),
    pytest.param(b"HTTP/1.1 200 OK\r\n", RESPONSE, id="status-line"),
    pytest.param(b"HTTP/1.0 404 Not Found\r\n", RESPONSE, id="status-line-1.0"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2, id="http2-preface"),
    pytest.param(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", PROXY, id="proxy-v1"),
    pytest.param(b"PROXY TCP6 ::1 ::1 1 2\r\n", PROXY, id="proxy-v1-ipv6"),
    pytest.param(b"PROXY UNKNOWN\r\n", PROXY, id="proxy-v1-unknown"),
    pytest.param(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", PROXY, id="proxy-v2"),
]
_OTHERS = [
    pytest.param(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", id="tls-hello"),
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
    pytest.param(b"EHLO mail.example\r\n", id="smtp-client"),
    pytest.param(b"220 mail.example ESMTP\r\n", id="smtp-server"),
    pytest.param(b"MAIL FROM:<a@b>\r\n", id="smtp-mail"),
    pytest.param(b"USER name\r\n", id="ftp"),
    pytest.param(b"*1\r\n$4\r\nPING\r\n", id="redis"),
    pytest.param(b"PING\r\n", id="redis-inline"),
    pytest.param(b"+OK\r\n", id="redis-answer"),
    pytest.param(b"get key\r\n", id="memcached"),
    pytest.param(b"\0\0\0\x08\x04\xd2\x16\x2f", id="postgres"),
    pytest.param(b"J\0\0\0\x0a8.0.36\0", id="mysql"),
    pytest.param(b"\x10\x1a\0\x04MQTT\x04\x02", id="mqtt"),
    pytest.param(b"AMQP\0\0\x09\x01", id="amqp"),
    pytest.param(b"HTTP/2 200\r\n", id="no-such-status-line"),
    pytest.param(b"GET  / HTTP/1.1\r\n", id="two-spaces"),
    pytest.param(b" GET / HTTP/1.1\r\n", id="space-in-front"),
    pytest.param(b"G3T / HTTP/1.1\r\n", id="digit-in-method"),
    pytest.param(b"GET\t/ HTTP/1.1\r\n", id="tab"),
    pytest.param(b"G\xc5T / HTTP/1.1\r\n", id="high-bit"),
    pytest.param(b"\r\n\r\n\r\n\r\n\r\n\r\n", id="empty-lines"),
    pytest.param(b"QUITEALONGWORDWITHNOSPACE", id="no-space"),
    pytest.param(b"\0" * 16, id="zeros"),
    pytest.param(b"\xff" * 16, id="ones"),
]


@pytest.mark.parametrize(("data", "expected"), _HTTP)
def test_http_is_recognised(detect, data, expected) -> None:
    """By its first bytes, in one piece or one byte at a time."""
    assert detect(data) == expected
    assert detect(data, [1] * min(len(data), PROBE_BYTES)) == expected


@pytest.mark.parametrize("data", _OTHERS)
def test_other_protocols_are_not_taken_for_http(detect, data) -> None:
    """In one piece or one byte at a time."""
    assert detect(data) == OTHER
    assert detect(data, [1] * min(len(data), PROBE_BYTES)) == OTHER


@pytest.mark.parametrize("method", sorted(_REGISTERED_METHODS))
def test_every_registered_method_that_fits_is_recognised(detect, method) -> None:
    """One is longer than what is looked at: it is left to somebody who sees more."""
    data = f"{method} /path HTTP/1.1\r\n".encode()
    if method == "CONNECT":
        data = b"CONNECT host:1 HTTP/1.1\r\n"
    if len(method) > PROBE_BYTES - 2:
        assert detect(data) in (OTHER, UNDECIDED)
    else:
        assert detect(data) == REQUEST


@pytest.mark.parametrize(("data", "expected"), _HTTP)
def test_nothing_is_decided_wrongly_on_the_way(detect, data, expected) -> None:
    """A beginning is undecided until it is clear, and clear for good from then on."""
    answers = [detect(data[:size]) for size in range(1, PROBE_BYTES + 1) if size <= len(data)]

    decided = next(i for i, answer in enumerate(answers) if answer != UNDECIDED)
    assert set(answers[:decided]) <= {UNDECIDED}
    assert set(answers[decided:]) == {expected}


def test_nothing_is_known_of_no_bytes(detect) -> None:
    """They may become anything."""
    assert detect(b"") == UNDECIDED


_TEXTS = st.one_of(
    st.binary(max_size=24),
    st.sampled_from([case.values[0] for case in (*_HTTP, *_OTHERS)]),
    st.from_regex(rb"(\r\n)?[A-Za-z-]{0,17} ?[/*hH]?[ -~]{0,6}", fullmatch=True),
)


@given(data=_TEXTS, cuts=st.lists(st.integers(0, 24), max_size=6))
def test_how_the_bytes_come_makes_no_difference(detect, data, cuts) -> None:
    """In any pieces, empty ones too."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [end - start for start, end in pairwise(places)]

    assert detect(data, pieces) == detect(data)


@given(data=_TEXTS)
def test_a_decision_is_never_taken_back(detect, data) -> None:
    """More bytes turn "undecided" into something, and something into nothing else."""
    answers = [detect(data[:size]) for size in range(min(len(data), PROBE_BYTES) + 1)]

    decided = [answer for answer in answers if answer != UNDECIDED]
    assert len(set(decided)) <= 1
    assert UNDECIDED not in answers[len(answers) - len(decided) :]
