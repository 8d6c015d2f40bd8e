"""
A server and a client that move their bytes with the calls that a test names.

As a program: ``peers.py '{"style": "writev", "port": 7001, "path": "/x", ...}'``. Both ends
are threads of one process, so a capture shows each exchange twice under its pid. Every
request is ``POST PATH?n=N`` with a body of its own, and the answer has that body. A second
argument names a file: the talk begins once that is there.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["STYLES", "Plan", "body_of", "command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the two of them do."""

    port: int
    path: str
    style: str = "send"
    host: str = "127.0.0.1"
    bind: str = ""
    """Where the server listens; empty: ``host``."""
    exchanges: int = 3
    body_size: int = 3000
    new_connection: bool = False
    serve: str = "thread"
    """Who answers: ``thread``, ``relay`` (a thread for each step) or ``fork`` (a child)."""


def command(plan: Plan) -> list[str]:
    """Return the command that carries out ``plan``."""
    return [sys.executable, __file__, json.dumps(asdict(plan))]


def body_of(number: int, size: int) -> bytes:
    """Return the body of request ``number`` and of its answer."""
    return (b"%d." % number * size)[:size]


# How to send, how to receive: `receive` returns some bytes, b"" at the end.

Send = Callable[[socket.socket, bytes], None]
Receive = Callable[[socket.socket], bytes]


def send_in_calls(call: Callable[[socket.socket, bytes], int]) -> Send:
    """Repeat ``call`` until all is sent."""

    def send(sock: socket.socket, data: bytes) -> None:
        while data:
            data = data[call(sock, data) :]

    return send


def in_pieces(data: bytes) -> list[bytes]:
    """Cut so that neither lines nor sixteen-byte blocks stay whole, with an empty piece."""
    return [data[:1], b"", data[1:6], data[6:30], data[30:]]


def receive_message(sock: socket.socket) -> bytes:
    """Receive into three buffers of which the last may stay empty."""
    buffers = [bytearray(5), bytearray(700), bytearray(65536)]
    count = sock.recvmsg_into(buffers)[0]
    return b"".join(buffers)[:count]


def receive_vector(sock: socket.socket) -> bytes:
    """Do the same with readv."""
    buffers = [bytearray(3), bytearray(40), bytearray(65536)]
    count = os.readv(sock.fileno(), buffers)
    return b"".join(buffers)[:count]


def receive_peeking(sock: socket.socket) -> bytes:
    """Look twice before taking: what is looked at does not move."""
    sock.recv(10, socket.MSG_PEEK)
    sock.recvmsg(65536, 0, socket.MSG_PEEK)
    return sock.recv(65536)


def receive_eagerly(sock: socket.socket) -> bytes:
    """Ask before there is anything, as event loops do."""
    sock.setblocking(False)
    while True:
        try:
            return sock.recv(65536)
        except BlockingIOError:
            select.select([sock], [], [])


def send_eagerly(sock: socket.socket, data: bytes) -> None:
    """Send until the buffer is full and go on when it is not."""
    sock.setblocking(False)
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            select.select([], [sock], [])


def send_file(sock: socket.socket, data: bytes) -> None:
    """Send the head as usual and the body from a file, past the memory of this process."""
    head, mark, body = data.partition(b"\r\n\r\n")
    sock.sendall(head + mark)
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        at = 0
        while at < len(body):
            at += os.sendfile(sock.fileno(), file.fileno(), at, len(body) - at)


STYLES: dict[str, tuple[Send, Receive]] = {
    "send": (send_in_calls(socket.socket.send), lambda s: s.recv(65536)),
    "sendto": (lambda s, data: s.sendall(data), lambda s: s.recvfrom(65536)[0]),
    "write": (
        send_in_calls(lambda s, data: os.write(s.fileno(), data)),
        lambda s: os.read(s.fileno(), 65536),
    ),
    "sendmsg": (send_in_calls(lambda s, data: s.sendmsg(in_pieces(data))), receive_message),
    "writev": (
        send_in_calls(lambda s, data: os.writev(s.fileno(), in_pieces(data))),
        receive_vector,
    ),
    "peek": (lambda s, data: s.sendall(data), receive_peeking),
    "eager": (send_eagerly, receive_eagerly),
    "bytewise": (send_in_calls(lambda s, data: s.send(data[:1])), lambda s: s.recv(1)),
    "sendfile": (send_file, lambda s: s.recv(65536)),
}


# The talk --------------------------------------------------------------------------------


def read_message(sock: socket.socket, receive: Receive) -> tuple[str, bytes] | None:
    """Return the first line and the body of the next message (with a Content-Length)."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = receive(sock)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    length = next(int(f[15:]) for f in fields if f.startswith("Content-Length:"))
    while len(body) < length:
        body += receive(sock)
    return first, body


def message(first_line: str, body: bytes) -> bytes:
    """Return a message."""
    return f"{first_line}\r\nHost: peers\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def answer_all(sock: socket.socket, style: str) -> None:
    """Serve one connection to its end."""
    send, receive = STYLES[style]
    with sock:
        while (request := read_message(sock, receive)) is not None:
            send(sock, message("HTTP/1.1 200 OK", request[1]))


def answer_by_relay(sock: socket.socket, style: str) -> None:
    """Serve one connection so that no two calls in a row come from the same thread."""
    send, _ = STYLES[style]

    def elsewhere(work: Callable[..., bytes | None], *arguments: object) -> bytes:
        result: list[bytes | None] = []
        thread = threading.Thread(target=lambda: result.append(work(*arguments)))
        thread.start()
        thread.join()
        return result[0] or b""

    def receive_a_little(sock: socket.socket) -> bytes:
        return elsewhere(lambda: sock.recv(1000))

    with sock:
        while (request := read_message(sock, receive_a_little)) is not None:
            answer = message("HTTP/1.1 200 OK", request[1])
            elsewhere(send, sock, answer[:10])
            elsewhere(send, sock, answer[10:])


def serve(listener: socket.socket, plan: Plan, connections: int) -> None:
    """Accept that many connections and have each answered."""
    for _ in range(connections):
        sock, _ = listener.accept()
        if plan.serve == "fork":
            child = os.fork()
            if child == 0:
                listener.close()
                answer_all(sock, plan.style)
                os._exit(0)
            sock.close()
            os.waitpid(child, 0)
        elif plan.serve == "relay":
            answer_by_relay(sock, plan.style)
        else:
            answer_all(sock, plan.style)


def ask(plan: Plan) -> None:
    """Send every request and check every answer."""
    send, receive = STYLES[plan.style]
    sock = None
    for number in range(plan.exchanges):
        sock = sock or socket.create_connection((plan.host, plan.port))
        body = body_of(number, plan.body_size)
        send(sock, message(f"POST {plan.path}?n={number} HTTP/1.1", body))
        if read_message(sock, receive) != ("HTTP/1.1 200 OK", body):
            raise SystemExit(f"a wrong answer to request {number}")
        if plan.new_connection:
            sock.close()
            sock = None
    if sock is not None:
        sock.close()


def main() -> None:
    """Carry out the plan that the command line holds."""
    plan = Plan(**json.loads(sys.argv[1]))
    while sys.argv[2:] and not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    where = plan.bind or plan.host
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    listener = socket.create_server((where, plan.port), family=family, dualstack_ipv6=where == "::")
    connections = plan.exchanges if plan.new_connection else 1
    if plan.serve == "fork":  # a child beside threads is asking for trouble
        child = os.fork()
        if child == 0:
            serve(listener, plan, connections)
            os._exit(0)
        ask(plan)
        os.waitpid(child, 0)
        return
    server = threading.Thread(target=serve, args=(listener, plan, connections))
    server.start()
    ask(plan)
    server.join()


if __name__ == "__main__":
    main()
