"""
A backend that does what the query of each request asks for.

As a program: ``backend.py NAME=ADDRESS:PORT [NAME=ADDRESS:PORT ...]`` prints ``ready``
once it listens on all of them. Without a query the answer is a line of JSON; with one:

=================  =============================================================
``size=N``         a body of N bytes, the same for the same N and ``seed``
``seed=S``         another body of that size
``echo=1``         the request's body
``chunked=N``      in chunks of N bytes (1: of 16 KiB) instead of a Content-Length
``status=S``       this status
``delay_ms=T``     wait before answering
``close=before``   close instead of answering; ``mid``: after half of the body;
                   ``after``: after the whole response, announced
``reset=1``        close with RST instead of FIN, where ``close`` closes
=================  =============================================================

Every answer carries ``X-Backend``, and ``X-Request-Size`` and ``X-Request-SHA256`` of the
request's body as it arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

__all__ = ["Listener", "command", "payload"]

CHUNK_SIZE = 16 * 1024


class Listener(NamedTuple):
    """One address of the process, with the name it gives in ``X-Backend``."""

    name: str
    address: str
    port: int


def command(listeners: Sequence[Listener]) -> list[str]:
    """Return the command that starts one process for all ``listeners``."""
    return [sys.executable, __file__, *(f"{n}={address}:{port}" for n, address, port in listeners)]


def payload(size: int, seed: int = 0) -> bytes:
    """Return ``size`` bytes that nobody else sends: the same for the same arguments."""
    return random.Random(f"{size}-{seed}").randbytes(size)  # noqa: S311 - nothing secret


async def read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    """Read a message head; return its first line and its fields (names in lower case)."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    fields = (line.partition(":")[::2] for line in lines)
    return first, {name.lower(): value.strip() for name, value in fields}


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Read the body that ``headers`` announce (chunked, Content-Length or none)."""
    if "chunked" not in headers.get("transfer-encoding", "").lower():
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(parts)


def frame_chunks(body: bytes, size: int) -> bytes:
    """Return ``body`` in chunked framing, without trailers."""
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def abort(writer: asyncio.StreamWriter, *, with_reset: bool) -> None:
    """Close at once; with ``with_reset`` so that the peer gets an RST."""
    if with_reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


class Backend:
    """Serves the connections of one listener."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the client has gone or a query said to close."""
        try:
            while (head := await read_head(reader)) and await self._answer(head, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # clients that leave in the middle are what this is for
        finally:
            writer.close()

    async def _answer(
        self,
        head: tuple[str, dict[str, str]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Answer one request; return whether the connection stays open."""
        request_line, headers = head
        method, target, _ = request_line.split(" ", 2)
        if "expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        received = await read_body(reader, headers)
        query = dict(parse_qsl(urlsplit(target).query))
        if delay := int(query.get("delay_ms", "0")):
            await asyncio.sleep(delay / 1000)
        closing = query.get("close", "")
        with_reset = query.get("reset") == "1"
        if closing == "before" or (with_reset and not closing):
            abort(writer, with_reset=with_reset)
            return False

        body = self._body(method, target, query, received)
        fields = [
            f"HTTP/1.1 {query.get('status', '200')} {'OK' if 'status' not in query else ''}",
            f"X-Backend: {self._name}",
            f"X-Request-Size: {len(received)}",
            f"X-Request-SHA256: {hashlib.sha256(received).hexdigest()}",
            "Content-Type: application/octet-stream",
        ]
        if chunk := int(query.get("chunked", "0")):
            fields.append("Transfer-Encoding: chunked")
            body = frame_chunks(body, chunk if chunk > 1 else CHUNK_SIZE)
        else:
            fields.append(f"Content-Length: {len(body)}")
        if closing == "after":
            fields.append("Connection: close")
        message = "\r\n".join([*fields, "", ""]).encode()
        if method != "HEAD":
            message += body[: len(body) // 2] if closing == "mid" else body
        writer.write(message)
        await writer.drain()
        if closing == "mid" and with_reset:
            await asyncio.sleep(0.02)  # an RST overtakes what is still unread
        if closing:
            abort(writer, with_reset=with_reset)
        return not closing

    def _body(self, method: str, target: str, query: dict[str, str], received: bytes) -> bytes:
        if query.get("echo") == "1":
            return received
        if "size" in query:
            return payload(int(query["size"]), int(query.get("seed", "0")))
        answer = {"backend": self._name, "method": method, "target": target}
        return json.dumps(answer).encode()


async def _main(listeners: Sequence[str]) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    servers = []
    for listener in listeners:
        name, _, where = listener.partition("=")
        address, _, port = where.rpartition(":")
        serve = Backend(name).serve
        servers.append(await asyncio.start_server(serve, address, int(port), backlog=1024))
    print("ready", flush=True)
    await stopping.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
