"""
A server that answers health checks by plan.

As a program: ``check_backend.py ADDRESS:PORT 200,200,503`` answers one connection after
the other with the next status and the last one from then on; prints each as it is sent.
"""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Sequence

__all__ = ["command"]


def command(address: str, port: int, statuses: Sequence[int]) -> list[str]:
    """Return the command that starts it."""
    return [sys.executable, "-u", __file__, f"{address}:{port}", ",".join(map(str, statuses))]


def _main(where: str, plan: str) -> None:
    address, _, port = where.rpartition(":")
    statuses = plan.split(",")
    with socket.create_server((address, int(port))) as listener:
        for status in itertools.chain(statuses, itertools.repeat(statuses[-1])):
            client, _ = listener.accept()
            with client:
                if client.recv(65536):
                    print(status)
                    client.sendall(f"HTTP/1.0 {status} x\r\nContent-Length: 0\r\n\r\n".encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
