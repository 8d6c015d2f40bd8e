"""
HAProxy's runtime socket: three commands that only show, and what their answers say.

Commands and columns are those of the management manual, section 9.3, the same in 2.6 and
2.8; the socket's ``level user`` is enough for all of them.
"""

from __future__ import annotations

import csv
import io
import socket
import struct
import time
from typing import NamedTuple

__all__ = ["Runtime", "RuntimeProblem", "RuntimeServer", "query"]

COMMANDS = ("show info", "show servers state", "show stat")
"""All that is ever sent."""

MAX_ANSWER_SIZE = 32 * 1024 * 1024  # 20,000 servers take about 10 MB
_NO_VALUE = frozenset({"", "-"})
_SERVER = "2"  # column "type" of "show stat"
_PEER_CREDENTIALS = struct.Struct("3i")


class RuntimeProblem(Exception):  # noqa: N818 - not a defect: HAProxy did not answer
    """The socket gave no answer that can be used; ``reason`` is one of a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RuntimeServer(NamedTuple):
    """A server as the running process has it."""

    backend: str
    name: str
    backend_id: int
    server_id: int
    address: str
    """Empty for one on a Unix socket or without an address yet."""
    port: int
    """0: the port that the client connected to."""
    host_name: str
    """The name the address was looked up for; empty when it is none."""
    check_address: str
    check_port: int
    rise: int
    """Successful checks that bring it up; 0 when it is not checked."""
    fall: int
    health: int
    """0 is down for long, ``rise`` just up, ``rise + fall - 1`` up for long."""


class Runtime(NamedTuple):
    """What one process told about itself."""

    process_id: int
    """As the process sees it: in its own container."""
    listener_id: int
    """Process that opened the socket, as this one sees it; 0 when it is not visible."""
    servers: tuple[RuntimeServer, ...]


def query(path: str, timeout_s: float) -> Runtime:
    """
    Ask the process at the Unix socket ``path``, within ``timeout_s`` in all.

    Raises ``RuntimeProblem`` with ``socket_refused``, ``socket_timeout`` or
    ``socket_answer``.
    """
    deadline = time.monotonic() + timeout_s
    try:
        answers = [_ask(path, command, deadline) for command in COMMANDS]
        info, state, statistics = (answer for answer, _ in answers)
        return Runtime(_process_id(info), answers[0][1], _servers(state, statistics))
    except TimeoutError:
        raise RuntimeProblem("socket_timeout") from None
    except OSError:
        raise RuntimeProblem("socket_refused") from None
    except (ValueError, KeyError, csv.Error):
        raise RuntimeProblem("socket_answer") from None


def _ask(path: str, command: str, deadline: float) -> tuple[str, int]:
    """Return the answer to one command, and who listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_left(deadline))
        client.connect(path)
        client.sendall(f"{command}\n".encode())
        option = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        answer = bytearray()
        while True:
            client.settimeout(_left(deadline))
            part = client.recv(65536)
            if not part:
                return answer.decode("utf-8", "replace"), _PEER_CREDENTIALS.unpack(option)[0]
            answer += part
            if len(answer) > MAX_ANSWER_SIZE:
                raise ValueError("the answer does not end")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _process_id(info: str) -> int:
    for line in info.splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value)
    raise ValueError("no process id")


def _servers(state: str, statistics: str) -> tuple[RuntimeServer, ...]:
    checks = {
        (row["pxname"], row["svname"]): row
        for row in csv.DictReader(io.StringIO(statistics.removeprefix("# ")))
        if row.get("type") == _SERVER
    }
    version, _, table = state.lstrip().partition("\n")
    if version.strip() != "1":
        raise ValueError("another version of the server state")
    # Values hold no spaces, and columns only ever came at the end.
    rows = (line.split() for line in table.removeprefix("# ").splitlines() if line)
    columns = next(rows)
    return tuple(
        _server(dict(zip(columns, row, strict=False)), checks) for row in rows if len(row) > 18
    )


def _server(row: dict[str, str], checks: dict[tuple[str, str], dict[str, str]]) -> RuntimeServer:
    backend, name = row["be_name"], row["srv_name"]
    check = checks.get((backend, name), {})
    address, port = _text(row["srv_addr"]), int(row["srv_port"])
    return RuntimeServer(
        backend,
        name,
        int(row["be_id"]),
        int(row["srv_id"]),
        address,
        port,
        _text(row["srv_fqdn"]).lower(),
        _text(row.get("srv_check_addr", "")) or address,
        _number(row.get("srv_check_port", "")) or port,
        _number(check.get("check_rise", "")),
        _number(check.get("check_fall", "")),
        _number(check.get("check_health", "")),
    )


def _text(value: str) -> str:
    return "" if value in _NO_VALUE else value


def _number(value: str | None) -> int:
    return int(value) if value and value.isdecimal() else 0
