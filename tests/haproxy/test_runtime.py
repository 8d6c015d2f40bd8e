"""The runtime socket is asked three things, and what it answers is understood."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest
from haproxy.runtime_server import ANSWERS, RuntimeServer
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.haproxy.runtime import RuntimeProblem, query


@pytest.fixture
def serve(tmp_path):
    """``serve(answers)`` starts a server whose socket is at ``tmp_path/s``."""
    servers = []

    def start(answers: dict[str, str]) -> RuntimeServer:
        servers.append(RuntimeServer(tmp_path / "s", answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_three_commands_that_only_show_are_sent(serve) -> None:
    """Nothing else: the socket may be one on which HAProxy could be changed."""
    server = serve(ANSWERS)
    query(server.path, 5)

    assert server.commands == ["show info", "show servers state", "show stat"]


def test_servers_have_addresses_names_and_checks(serve) -> None:
    """The state says where a server is, the statistics how it is checked."""
    runtime = query(serve(ANSWERS).path, 5)
    a, six, off, unix = runtime.servers

    assert runtime.process_id == 77
    assert runtime.listener_id == os.getpid()
    assert (a.backend, a.name, a.backend_id, a.server_id) == ("back", "a", 3, 1)
    assert (a.address, a.port, a.host_name) == ("127.0.1.1", 8001, "backend-a")
    assert (a.rise, a.fall, a.health) == (4, 2, 5)
    assert (six.address, six.host_name, six.rise) == ("::1", "", 0)
    assert (off.check_address, off.check_port) == ("127.0.1.6", 8010)
    assert (a.check_address, a.check_port) == ("127.0.1.1", 8001)
    assert (unix.address, unix.port) == ("", 0)


BAD = [
    pytest.param({"show info": "Unknown command.\n"}, "socket_answer", id="no-process-id"),
    pytest.param({"show info": ""}, "socket_answer", id="empty"),
    pytest.param({"show info": "Pid: x\n"}, "socket_answer", id="no-number"),
    pytest.param({"show servers state": "2\n# x\n"}, "socket_answer", id="other-version"),
    pytest.param({"show servers state": "Permission denied\n"}, "socket_answer", id="refused"),
    pytest.param({"show servers state": "1\n# be_id\n" + "1 " * 25}, "socket_answer", id="table"),
    pytest.param({"show stat": None}, "socket_timeout", id="silent"),
    pytest.param({"show info": None}, "socket_timeout", id="silent-from-the-first"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_what_cannot_be_used_has_a_reason(serve, change, reason) -> None:
    """And takes no longer than it may."""
    answers = {**ANSWERS, **change}
    server = serve({command: answer for command, answer in answers.items() if answer is not None})
    started = time.monotonic()
    with pytest.raises(RuntimeProblem) as raised:
        query(server.path, 0.3)

    assert raised.value.reason == reason
    assert time.monotonic() - started < 2


def test_nobody_at_the_socket_is_a_reason_too(tmp_path) -> None:
    """A file that is not there, one that nobody listens at, and one that is none."""
    with socket.socket(socket.AF_UNIX) as unheard:
        unheard.bind(str(tmp_path / "unheard"))
    (tmp_path / "file").touch()
    for name in ("missing", "unheard", "file"):
        with pytest.raises(RuntimeProblem, match="socket_refused"):
            query(str(tmp_path / name), 1)


def test_a_queue_that_is_full_does_not_hold_us_up(tmp_path) -> None:
    """A process that hangs accepts nobody: connecting must not wait for it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        waiting = []
        started = time.monotonic()
        for _ in range(4):
            with pytest.raises(RuntimeProblem):
                query(str(tmp_path / "s"), 0.2)
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(tmp_path / "s"))
            waiting.append(client)
        assert time.monotonic() - started < 3
        for client in waiting:
            client.close()


def test_an_answer_that_trickles_is_not_waited_for(tmp_path) -> None:
    """The time is for all of it, not for each byte."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def trickle() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                for _ in range(60):
                    client.sendall(b"x")
                    time.sleep(0.05)

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        with pytest.raises(RuntimeProblem, match="socket_timeout"):
            query(str(tmp_path / "s"), 0.3)

        assert time.monotonic() - started < 2
        thread.join()


@given(state=st.text(max_size=200), statistics=st.text(max_size=200))
def test_no_answer_raises_anything_else(state, statistics, tmp_path_factory) -> None:
    """Whoever listens at the path that a configuration names may be anybody."""
    directory = tmp_path_factory.mktemp("runtime")
    answers = {"show servers state": state, "show stat": statistics}
    server = RuntimeServer(directory / "s", {**ANSWERS, **answers})
    try:
        reason = "" if query(server.path, 5).process_id == 77 else "another process"
    except RuntimeProblem as problem:
        reason = problem.reason
    finally:
        server.close()
    assert reason in {"", "socket_answer"}
