"""
A syslog server that notes down what it is sent.

As a program: ``log_receiver.py UDP_PORT TCP_PORT UNIX_PATH`` listens on 127.0.0.1 and on
the path, and prints one line of JSON for each datagram, and for each read of a TCP
connection: ``{"time_ns": …, "by": "udp", "data": …}``, the bytes as ISO-8859-1 text. The
time of a UDP datagram is the kernel's, over loopback that of the sender's system call.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time

__all__ = ["command"]

SO_RCVBUFFORCE = 33  # socket(7); the module has no name for it
SO_TIMESTAMPNS = 35


def command(udp_port: int, tcp_port: int, path: str) -> list[str]:
    """Return the command that starts it; the TCP port is open once it is ready."""
    return [sys.executable, "-u", __file__, str(udp_port), str(tcp_port), path]


def _main(udp_port: str, tcp_port: str, path: str) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    udp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    udp.bind(("127.0.0.1", int(udp_port)))
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    unix.bind(path)
    listener = socket.create_server(("127.0.0.1", int(tcp_port)))
    selector = selectors.DefaultSelector()
    for sock, name in ((udp, "udp"), (unix, "unix"), (listener, "listener")):
        selector.register(sock, selectors.EVENT_READ, name)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            if key.data == "listener":
                selector.register(listener.accept()[0], selectors.EVENT_READ, "tcp")
                continue
            data, ancillary, *_ = sock.recvmsg(65536, 64)
            if not data and key.data == "tcp":
                selector.unregister(sock)
                sock.close()
                continue
            note = {"time_ns": _time_ns(ancillary), "by": key.data, "data": data.decode("latin-1")}
            print(json.dumps(note))


def _time_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    for _, kind, value in ancillary:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", value)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return time.time_ns()


if __name__ == "__main__":
    _main(*sys.argv[1:])
