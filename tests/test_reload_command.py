"""``otel-qtap reload-config``: finding the agent, telling it, and saying what came of it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_qtap import cli, reload_command

AGENT = """\
import signal, sys, threading
from otel_qtap.counters import CounterSet
from otel_qtap.status import StatusServer

counters = CounterSet()
results = {
    result: counters.counter("otel_qtap.config.reloads", "{reload}", "", result=result)
    for result in ("done", "failed")
}
def reload(*_):
    if sys.argv[1] in results:
        results[sys.argv[1]].add()
signal.signal(signal.SIGHUP, reload)
server = StatusServer("127.0.0.1", 0, counters, lambda: True)
print(server.port, flush=True)
threading.Event().wait()
"""


class FakeAgent:
    """A process with the status server of an agent, which answers a signal as it is told."""

    def __init__(self, script: Path, answer: str) -> None:
        script.write_text(AGENT)
        self._process = subprocess.Popen(
            [sys.executable, str(script), answer], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{self._process.stdout.readline().strip()}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


OTHER = """\
from http.server import BaseHTTPRequestHandler, HTTPServer
server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., FakeAgent]]:
    monkeypatch.delenv("STATUS_LISTEN", raising=False)
    agents: list[FakeAgent] = []

    def start(answer: str, name: str = "otel-qtap") -> FakeAgent:
        agents.append(FakeAgent(tmp_path / name, answer))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


def reload_config(capfd, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["reload-config", *arguments])
    return status, *capfd.readouterr()


def test_an_agent_that_reloads(capfd, start) -> None:
    """The command waits for it."""
    agent = start("done")
    expected = (0, f"process {agent.pid} has reloaded its configuration\n", "")

    assert reload_config(capfd, f"--status-listen={agent.address}") == expected
    assert reload_config(capfd, f"--status-listen={agent.address}") == expected


def test_an_agent_that_keeps_what_it_has(capfd, start) -> None:
    """Is a failure, and its log says why."""
    agent = start("failed")
    status, out, err = reload_config(capfd, f"--status-listen={agent.address}")

    assert (status, out) == (1, "")
    assert f"process {agent.pid} keeps its old configuration; its log says" in err


def test_an_agent_that_does_not_answer(capfd, start, monkeypatch) -> None:
    """Is not waited for without end."""
    monkeypatch.setattr(reload_command, "_RELOAD_S", 0.3)
    agent = start("nothing")
    status, _, err = reload_config(capfd, f"--status-listen={agent.address}")

    assert status == 1
    assert f"process {agent.pid} has not reloaded within" in err


def test_the_address_of_the_variable(capfd, start, monkeypatch) -> None:
    """``STATUS_LISTEN``, as for the agent; every interface is asked at this host."""
    agent = start("done")
    monkeypatch.setenv("STATUS_LISTEN", agent.address.replace("127.0.0.1", "0.0.0.0"))

    assert reload_config(capfd)[0] == 0


def test_a_proxy_is_not_asked(capfd, start, monkeypatch) -> None:
    """Whatever the environment says about HTTP."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    assert reload_config(capfd, f"--status-listen={start('done').address}")[0] == 0


def test_an_agent_without_a_status_server(capfd, start) -> None:
    """Is named by its process id; nobody can say what comes of it."""
    agent = start("done")
    status, out, _ = reload_config(capfd, f"--pid={agent.pid}")

    assert status == 0
    assert out == f"process {agent.pid} was told; its log says what came of it\n"
    status, _, err = reload_config(capfd, "--status-listen=off")
    assert status == 1
    assert "found by --pid only" in err


def test_a_process_that_is_no_agent_is_left_alone(capfd, start) -> None:
    """The signal would end it."""
    other = start("done", name="other")
    for arguments in ([f"--pid={other.pid}"], [f"--status-listen={other.address}"]):
        status, _, err = reload_config(capfd, *arguments)
        assert status == 1
        assert f"process {other.pid} is no otel-qtap" in err
    assert other.is_running


def test_a_process_that_is_gone(capfd, start) -> None:
    """Is said to be."""
    agent = start("done")
    agent.stop()
    status, _, err = reload_config(capfd, f"--pid={agent.pid}")

    assert status == 1
    assert f"there is no process {agent.pid} here" in err


def test_nobody_listens(capfd) -> None:
    """Both ways out are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, _, err = reload_config(capfd, f"--status-listen=127.0.0.1:{port}")

    assert status == 1
    assert f"no agent answers at 127.0.0.1:{port}" in err
    assert "--status-listen HOST:PORT" in err
    assert "--pid" in err


def test_something_else_listens(capfd, tmp_path) -> None:
    """An HTTP server of another kind."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as other:  # fmt: skip
        address = f"127.0.0.1:{other.stdout.readline().strip()}"
        status, _, err = reload_config(capfd, f"--status-listen={address}")
        other.kill()

    assert status == 1
    assert f"what answers at {address} is no otel-qtap" in err


@pytest.mark.parametrize("pid", ["0", "1", "-5", "all"])
def test_a_wrong_process_id_is_wrong_usage(capfd, pid) -> None:
    """0 and negative ones mean whole groups of processes."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["reload-config", f"--pid={pid}"])

    assert caught.value.code == 2
    assert f"{pid!r} is not a process id" in capfd.readouterr().err
