"""
Clients that begin to talk, wait, and go on: ``kept.py MODE PORT PATH FLAG CONNECTIONS``.

``keep`` has had one exchange on each connection by then, ``upload`` has sent half of a
request, ``download`` has received a part of a response. They go on once the file FLAG is
there, and every connection then has an exchange with a body of its own.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

SIZE = 3_000_000
HALF = SIZE // 2


def request(target: str, body: bytes) -> bytes:
    """Return a POST request."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost:8085\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_response(sock: socket.socket, so_far: bytes = b"") -> bytes:
    """Return the body of a response (with a Content-Length)."""
    data = so_far
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = (line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = next(int(value) for name, value in fields if name == b"content-length")
    while len(body) < length:
        more = sock.recv(262144)
        if not more:
            raise SystemExit("the connection ended early")
        body += more
    return body


def main() -> None:
    """Talk, wait, talk."""
    mode, port, path, flag, connections = sys.argv[1:]
    socks = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(int(connections))]
    body = b"u" * SIZE
    parts = []
    for number, sock in enumerate(socks):
        target = f"{path}?echo=1&n={number}"
        if mode == "keep":
            sock.sendall(request(target, b"first-%d" % number))
            read_response(sock)
        elif mode == "upload":
            sock.sendall(request(target, body)[:HALF])
        else:
            sock.sendall(request(f"{path}?size={SIZE}&n={number}", b""))
            parts.append(sock.recv(1000))
    print("begun", flush=True)
    while not Path(flag).exists():
        time.sleep(0.01)
    for number, sock in enumerate(socks):
        if mode == "upload":
            sock.sendall(request(f"{path}?echo=1&n={number}", body)[HALF:])
        if mode != "keep":
            read_response(sock, parts[number] if parts else b"")
    following = path if mode == "keep" else f"{path}-next"
    for number, sock in enumerate(socks):
        sent = b"second-%d" % number
        sock.sendall(request(f"{following}?echo=1&n={number}", sent))
        if read_response(sock) != sent:
            raise SystemExit("a wrong answer")
    print("done", flush=True)


if __name__ == "__main__":
    main()
