"""An agent's life: ready, stopped, killed, in company, and with destinations that fail."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from haproxy_demo.receiver import free_port
from kernel.agent import COMMAND, Seen, qtap_file, wait_until
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server
from traffic.load import run_load, start_sink

REQUESTS = 20


@pytest.fixture
def config(only_haproxy):
    """Our HAProxy, everything."""
    return qtap_file(tap=only_haproxy)


@pytest.fixture
def ask(world, any_haproxy, token):
    """``ask()``: send requests through HAProxy; returns how many transactions that makes."""

    def ask(path: str = token, requests: int = REQUESTS) -> int:
        plan = ClientPlan(port=8086, requests=requests, target=f"{path}?n={{n}}&size=100")
        assert run_client(world, plan).outcomes == {"complete": requests}
        return 2 * requests

    return ask


def comparable(seen) -> Counter:
    """Everything but ids."""
    return Counter(
        str(one._replace(connection_id="", request_headers={}, response_headers={})) for one in seen
    )


def test_status_server(start_agent, config, ask, token) -> None:
    """Ready and healthy from its READY line on; the counters are in Prometheus' text format."""
    with start_agent(config) as agent:
        assert agent.get("/readyz") == "ready\n"
        assert agent.get("/healthz") == "healthy\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            agent.get("/other")
        before = agent.total("otel_qtap_transactions_total")
        agent.wait_for(ask(), token)
        assert agent.total("otel_qtap_transactions_total") == before + 2 * REQUESTS
        lines = agent.get("/metrics").splitlines()
        sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+]+')
        assert all(
            line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line) for line in lines
        )


def test_sigterm_delivers_what_was_captured(start_agent, config, ask, token) -> None:
    """Stopped right after the last answer, the agent still prints all of it before it ends."""
    with start_agent(config) as agent:
        expected = ask(requests=200)
        agent.stop(timeout_s=10)
        assert len(agent.seen(token)) == expected


def test_a_second_agent_sees_the_same(start_agent, config, ask, token) -> None:
    """Two agents side by side, each of them complete; one more after the first has gone."""
    with start_agent(config) as first, start_agent(config) as second:
        amount = ask()
        assert comparable(first.wait_for(amount, token)) == comparable(
            second.wait_for(amount, token)
        )
        first.stop()
        assert len(second.wait_for(amount + ask(f"{token}-more"), token)) == 2 * amount


def test_a_destination_that_is_down_does_not_end_the_agent(
    start_agent, only_haproxy, ask, token
) -> None:
    """Nobody listens at the OTLP endpoint: stdout goes on, what was not delivered is counted."""
    store = f"{{type: otel, protocol: http, endpoint: 'http://127.0.0.1:{free_port()}'}}"
    config = qtap_file(services=f"  event_stores:\n    - {store}", tap=only_haproxy)
    with start_agent(config) as agent:
        agent.wait_for(ask(), token)
        agent.wait_for(2 * ask(), token)
        agent.stop(timeout_s=20)


@contextmanager
def broken_stdout(how: str):
    """A pipe that nobody reads, closed (``closed``) or full (``blocked``)."""
    reader, writer = os.pipe()
    if how == "closed":
        os.close(reader)
    else:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield writer
    finally:
        os.close(writer)
        if how != "closed":
            os.close(reader)


@pytest.mark.parametrize("how", ["closed", "blocked"])
def test_a_stdout_that_nobody_reads_does_not_stall_the_agent(start_agent, config, ask, how) -> None:
    """Capture goes on and is counted, and SIGTERM ends it within its deadline."""
    with broken_stdout(how) as writer, start_agent(config, stdout=writer) as agent:
        for round_ in (1, 2, 3):
            amount = ask()
            agent.wait_until(
                lambda n=round_ * amount: agent.total("otel_qtap_transactions_total") >= n,
                "transactions counted",
            )
        assert agent.get("/healthz") == "healthy\n"
        agent.stop(timeout_s=15)


def programs_of(pid: int) -> set[int]:
    """Return the ids of the BPF programs that a process holds."""
    ids = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        if found := re.search(r"^prog_id:\s*(\d+)", entry.read_text(), re.MULTILINE):
            ids.add(int(found[1]))
    return ids


def has_program(program_id: int) -> bool:
    """Ask the kernel for a program by its id (bpf(2), BPF_PROG_GET_FD_BY_ID)."""
    script = """
import ctypes, sys
attribute = (ctypes.c_uint32 * 32)(int(sys.argv[1]))
descriptor = ctypes.CDLL(None, use_errno=True).syscall(321, 13, attribute, 128)
raise SystemExit(0 if descriptor >= 0 else 1)
"""
    return (
        subprocess.run([sys.executable, "-c", script, str(program_id)], check=False).returncode == 0
    )


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of bpf(2) is written out")
def test_kill_9_under_load(world, any_binary, start_agent, config, tmp_path) -> None:
    """HAProxy fails no request, and none of the agent's programs stays in the kernel."""
    start_sink(world, [("127.0.2.2", 9002)])
    settings = HAProxySettings(servers=(Server("s", "127.0.2.2", 9002),), port=8094)
    with HAProxy(world, tmp_path / "h", settings, binary=any_binary), ThreadPoolExecutor() as pool:
        agent = start_agent(config).__enter__()
        programs = programs_of(agent.pid)
        assert programs
        assert all(map(has_program, programs))
        running = pool.submit(run_load, world, port=8094, requests=6000, connections=16, rate=3000)
        agent.wait_until(
            lambda: agent.total("otel_qtap_transactions_total") > 1000, "traffic in the agent"
        )
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait()
        load = running.result()
    assert (load.responses, load.errors) == (6000, 0)
    wait_until(lambda: not any(map(has_program, programs)), 10, "the end of its programs")


def replayed(recording: Path, tmp_path: Path, config: str) -> list[Seen]:
    file = tmp_path / "replay.yaml"
    file.write_text(config)
    command = [*COMMAND, "replay", str(recording), f"--config={file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Seen.parse(line) for line in done.stdout.splitlines()]


def test_a_replay_shows_what_the_live_agent_showed(
    start_agent, config, ask, token, tmp_path
) -> None:
    """The same transactions, bodies included, and without a kernel."""
    file = tmp_path / "run.qtaprec"
    with (
        start_agent(config) as live,
        start_agent(config, command=("record", str(file))) as recorder,
    ):
        seen = live.wait_for(ask(), token)
        recorder.stop()
    again = [one for one in replayed(file, tmp_path, config) if token in one.url]
    assert comparable(again) == comparable(seen)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("option", "reason"),
    [("--duration=2", "the duration was over"), ("--max-size=64kb", "the size limit was reached")],
)
def test_a_recording_ends_at_its_limit(
    start_agent, config, ask, token, tmp_path, option, reason
) -> None:
    """By itself, with the reason, and readable up to there."""
    file = tmp_path / "limited.qtaprec"
    with start_agent(config, option, command=("record", str(file))) as recorder:
        expected = ask(requests=300 if "size" in option else 20)
        wait_until(lambda: recorder.process.poll() is not None, 10, "the end of the recording")
        assert reason in recorder.errors()
    again = [one for one in replayed(file, tmp_path, config) if token in one.url]
    assert 0 < len(again) <= expected
    assert len(again) == expected or "size" in option
