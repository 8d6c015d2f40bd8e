"""The command line: options, exit status, and one message for each thing that can be wrong."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conversations import Script, encode
from kept_logging import kept_logging

from otel_qtap import __version__, agent_log, cli, options
from otel_qtap.config import LoadedConfig
from otel_qtap.connection.model import Process
from otel_qtap.destinations import DestinationError
from otel_qtap.receiver.programs import MachineError, Rung
from otel_qtap.receiver.recording import RecordingWriter

_VARIABLES = (
    "QPOINT_CONFIG", "LOG_LEVEL", "LOG_ENCODING", "HTTP_BUFFER_SIZE", "DOCKER_SOCKET",
    "STATUS_LISTEN",
)  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch) -> Iterator[None]:
    """No variable of this shell counts, and pytest gets its loggers back."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with kept_logging():
        yield


@pytest.fixture
def config(write_config) -> Path:
    path: Path = write_config()
    return path


@pytest.fixture
def recording(tmp_path) -> Path:
    """Ten exchanges and their end."""
    path: Path = tmp_path / "some.qtaprec"
    writer = RecordingWriter(path, epoch_offset_ns=1_788_000_000 * 10**9, limit_bytes=10**9)
    writer.write_process(Process(pid=987, executable="/usr/sbin/haproxy"), None)
    script = Script()
    for number in range(10):
        script.ask(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % number)
        script.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
    for event in script.events:
        writer.write_record(encode(event))
    writer.close("stopped")
    return path


class FakeAgent:
    """An agent that stops at once, on any machine."""

    made: list[FakeAgent]
    refusal: Exception | None = None
    delivers = True

    def __init__(self, loaded: LoadedConfig, options: Any, counters: Any, _stdout: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.config, self.options, self.counters = loaded.config, options, counters
        self.is_ready = True
        self.receiver = SimpleNamespace(rung=Rung.SOCKETS)
        type(self).made.append(self)

    def run(self) -> bool:
        self.counters.counter("otel_qtap.transactions", "{transaction}", "").add(12)
        return self.delivers


class FakeRecorder(FakeAgent):
    """A recorder that writes one record."""

    durations: list[float]

    def __init__(self, config: Any, options: Any, counters: Any, writer: RecordingWriter) -> None:
        super().__init__(LoadedConfig(config, (), "a file"), options, counters, None)
        self.writer = writer

    def run(self, duration_s: float) -> str:  # type: ignore[override]
        type(self).durations.append(duration_s)
        self.writer.write_record(b"\x63")
        self.writer.close("the duration was over")
        return "the duration was over"


@pytest.fixture(autouse=True)
def agent(monkeypatch) -> type[FakeAgent]:
    """No test here touches the kernel."""
    monkeypatch.setattr(FakeAgent, "made", [], raising=False)
    monkeypatch.setattr(FakeRecorder, "made", [], raising=False)
    monkeypatch.setattr(FakeRecorder, "durations", [], raising=False)
    monkeypatch.setattr(cli, "Agent", FakeAgent)
    monkeypatch.setattr(cli, "Recorder", FakeRecorder)
    return FakeAgent


def run(*arguments: str, status: str = "off") -> int:
    return cli.main([f"--status-listen={status}", *arguments])


def usage_error(capfd, *arguments: str) -> str:
    """Return what a wrong command line is told; its exit status must be 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    told = capfd.readouterr()
    assert told.out == ""
    message: str = told.err.splitlines()[-1]
    return message


# Options -----------------------------------------------------------------------------


def test_defaults(agent) -> None:
    """What the help promises."""
    assert run() == 0

    (made,) = agent.made
    assert made.options.rung is None
    assert made.options.ring_bytes == 16 * 1024**2
    assert made.options.backlog_bytes == 32 * 1024**2
    assert made.options.may_hurry
    assert made.options.docker_socket == Path("/var/run/docker.sock")
    assert made.options.pipeline.http_buffer_bytes == 2 * 1024**2
    assert made.config.tap.direction.value == "egress"


@pytest.mark.parametrize("words", [[], ["run"]], ids=["without", "with-command"])
def test_every_option_of_a_run(agent, config, words) -> None:
    """Each reaches the agent; ``run`` may be left out."""
    arguments = [
        "--config", str(config), "--log-level=error", "--log-encoding=json",
        "--http-buffer-size=1kb", "--rung=syscalls", "--ring-size=1mb", "--no-hurry",
        "--docker-socket-endpoint=/x/docker.sock", "--status-listen=off", "--backlog-size=0",
    ]  # fmt: skip
    assert cli.main([*words, *arguments]) == 0

    (made,) = agent.made
    assert made.config.tap.direction.value == "all"
    assert made.options.rung is Rung.SYSCALLS
    assert made.options.ring_bytes == 1024**2
    assert made.options.backlog_bytes == 0
    assert not made.options.may_hurry
    assert made.options.docker_socket == Path("/x/docker.sock")
    assert made.options.pipeline.http_buffer_bytes == 1024


def test_variables_stand_in_for_options(agent, config, monkeypatch, capfd) -> None:
    """And an option beats its variable."""
    for name, value in {
        "QPOINT_CONFIG": str(config), "LOG_LEVEL": "warn", "LOG_ENCODING": "json",
        "HTTP_BUFFER_SIZE": "4kb", "DOCKER_SOCKET": "/y", "STATUS_LISTEN": "off",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert cli.main([]) == 0
    assert cli.main(["--http-buffer-size=8kb"]) == 0

    first, second = agent.made
    assert first.config.tap.direction.value == "all"
    assert first.options.docker_socket == Path("/y")
    assert first.options.pipeline.http_buffer_bytes == 4096
    assert second.options.pipeline.http_buffer_bytes == 8192
    assert json.loads(capfd.readouterr().err.splitlines()[0])["level"] == "info"


_SIZES = [("1", 1), ("64b", 64), ("1kb", 1024), ("1.5MB", 1536 * 1024), (" 2 gb ", 2 * 1024**3)]


@pytest.mark.parametrize(("text", "size"), _SIZES)
def test_sizes_are_written_as_in_qtap(agent, text, size) -> None:
    """With or without a unit, in any case."""
    assert run(f"--http-buffer-size={text}") == 0
    assert agent.made[0].options.pipeline.http_buffer_bytes == size


_WRONG = [
    (["--http-buffer-size=big"], "'big' is not a size: write a number with b, kb, mb or gb"),
    (["--http-buffer-size=3gb"], "'3gb' is more than 2gb"),
    (["--http-buffer-size=-1"], "'-1' is not a size"),
    (["--ring-size=3mb"], "'3mb' is not a power of two between 64kb and 1gb"),
    (["--ring-size=32kb"], "'32kb' is not a power of two between 64kb and 1gb"),
    (["--ring-size=2gb"], "'2gb' is not a power of two between 64kb and 1gb"),
    (["--log-level=loud"], "'loud' is not one of debug, info, warn, error"),
    (["--log-encoding=xml"], "invalid choice: 'xml'"),
    (["--rung=kprobes"], "invalid choice: 'kprobes'"),
    (["--status-listen=10001"], "'10001' is not HOST:PORT, or off"),
    (["--status-listen=h:99999"], "'h:99999' is not HOST:PORT, or off"),
    (["--conf=x"], "unrecognized arguments: --conf=x"),
    (["--colour"], "unrecognized arguments: --colour"),
    (["capture"], "unrecognized arguments: capture"),
    (["--config"], "expected one argument"),
    (["record"], "the following arguments are required: FILE"),
    (["replay"], "the following arguments are required: FILE"),
    (["record", "f", "--duration=soon"], "'soon' is not a number of seconds"),
    (["record", "f", "--duration=0"], "'0' is not a number of seconds"),
    (["record", "f", "--duration=-3"], "'-3' is not a number of seconds"),
    (["record", "f", "--duration=nan"], "'nan' is not a number of seconds"),
    (["record", "f", "--max-size=lots"], "'lots' is not a size"),
    (["record", "f", "--status-listen=off"], "unrecognized arguments"),
    (["replay", "f", "--rung=sockets"], "unrecognized arguments"),
]


@pytest.mark.parametrize(("arguments", "message"), _WRONG, ids=lambda v: str(v)[:40])
def test_wrong_usage_is_told_and_ends_with_2(capfd, agent, arguments, message) -> None:
    """Nothing is started."""
    assert message in usage_error(capfd, *arguments)
    assert agent.made == []


def test_a_wrong_variable_is_wrong_usage_too(capfd, monkeypatch) -> None:
    """The message names the option that it stands for."""
    monkeypatch.setenv("HTTP_BUFFER_SIZE", "much")
    assert "--http-buffer-size: 'much' is not a size" in usage_error(capfd)


@pytest.mark.parametrize("command", ["run", "record", "replay"])
def test_help_shows_every_option_with_an_example(capfd, command) -> None:
    """On stdout, with exit status 0; variables are named beside their options."""
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    text = capfd.readouterr().out

    assert caught.value.code == 0
    options = {
        "run": "config log-level log-encoding http-buffer-size rung ring-size backlog-size "
        "no-hurry docker-socket-endpoint status-listen version",
        "record": "config log-level log-encoding http-buffer-size rung ring-size backlog-size "
        "no-hurry docker-socket-endpoint duration max-size",
        "replay": "config log-level log-encoding http-buffer-size",
    }[command]
    shown = set(re.findall(r"^  --([a-z-]+)", text, re.MULTILINE))
    shown |= set(re.findall(r"^  -h, --(help)", text, re.MULTILINE))
    assert shown == {*options.split(), "help"}
    assert "examples:" in text
    assert "otel-qtap" in text
    for name in ("QPOINT_CONFIG", "LOG_LEVEL", "LOG_ENCODING", "HTTP_BUFFER_SIZE"):
        assert name in text


def test_the_version_is_that_of_the_package(capfd) -> None:
    """One line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])

    assert caught.value.code == 0
    assert capfd.readouterr().out == f"otel-qtap {__version__}\n"


# A run -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
def test_ready_is_said_at_every_level(capfd, config, level) -> None:
    """Scripts wait for it: with the rung, the kernel and the configuration."""
    assert run("--config", str(config), f"--log-level={level}", "--log-encoding=console") == 0

    told = capfd.readouterr()
    ready = [line for line in told.err.splitlines() if "READY" in line]
    assert len(ready) == 1
    assert re.search(
        r"INFO +READY: capturing with rung sockets on Linux \S+ after [\d.]+ s", ready[0]
    )
    assert str(config) in ready[0]
    assert told.out == ""


def test_a_run_ends_with_its_sum(capfd) -> None:
    """Unless only warnings are wanted."""
    assert run("--log-encoding=console") == 0
    assert "stopped: 12 transactions seen, 0 kernel events lost" in capfd.readouterr().err
    assert run("--log-encoding=console", "--log-level=warn") == 0
    assert "stopped" not in capfd.readouterr().err


def test_undelivered_transactions_are_told_at_the_end(capfd, agent, monkeypatch) -> None:
    """That is no failure of the run."""
    monkeypatch.setattr(agent, "delivers", False)

    assert run("--log-encoding=console") == 0
    assert "not everything captured was delivered within 5 s" in capfd.readouterr().err


def test_log_lines_can_be_json(capfd) -> None:
    """One object in a line: time, level, message."""
    assert run("--log-encoding=json") == 0

    for line in capfd.readouterr().err.splitlines():
        content = json.loads(line)
        assert set(content) == {"time", "level", "message"}
        assert content["level"] == "info"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", content["time"])


@pytest.mark.parametrize("encoding", ["json", "console"])
def test_an_exception_is_logged_with_its_place(capfd, encoding) -> None:
    """A defect of ours should be reportable; in JSON it stays one line."""
    agent_log.set_up_logging("info", encoding)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("otel_qtap").exception("an event could not be processed")

    told = capfd.readouterr().err
    assert "an event could not be processed" in told
    assert "ValueError: odd" in told
    assert len(told.splitlines()) == 1 or encoding == "console"


def test_a_machine_that_cannot_is_one_message_and_1(capfd, agent, monkeypatch) -> None:
    """Without a trace of the interpreter."""
    monkeypatch.setattr(agent, "refusal", MachineError("loading eBPF programs needs root"))

    assert run() == 1
    assert capfd.readouterr().err == "otel-qtap: loading eBPF programs needs root\n"


def test_a_destination_that_can_never_work_is_one_message_and_1(
    capfd, agent, monkeypatch, config, recording
) -> None:
    """In a run and in a replay, which print nothing else."""
    monkeypatch.setattr(agent, "refusal", DestinationError("the event store x cannot be used"))
    assert run("--config", str(config)) == 1
    assert capfd.readouterr().err == "otel-qtap: the event store x cannot be used\n"

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")
    store = "services:\n  event_stores: [{type: otel, id: mine}]"
    config.write_text(config.read_text().replace("services:", store))
    assert cli.main(["replay", str(recording), f"--config={config}"]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("otel-qtap: the event store mine cannot be used")
    assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["validate", "rule", "reload-config", "report"])
def test_every_other_command_explains_itself(capfd, command) -> None:
    """With examples; the help of the agent names it."""
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    text = capfd.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--help"])

    assert caught.value.code == 0
    assert text.startswith(f"usage: otel-qtap {command} ")
    assert "examples:" in text
    assert f"otel-qtap {command} " in capfd.readouterr().out


# The status server -------------------------------------------------------------------


def test_the_status_server_says_where_it_listens(capfd) -> None:
    """In the line that says READY."""
    assert run("--log-encoding=console", status="127.0.0.1:0") == 0
    assert "status on http://127.0.0.1:0" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["off", "none", ""])
def test_the_status_server_can_be_left_out(capfd, text) -> None:
    """Then nothing is said of it."""
    assert run("--log-encoding=console", status=text) == 0
    assert "status on" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_an_error_if_it_was_asked_for(capfd) -> None:
    """With the reason, and both ways out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run(status=address) == 1

    told = capfd.readouterr().err
    assert f"cannot listen on {address} for the status server (Address already in use)" in told
    assert "--status-listen HOST:PORT, or none with --status-listen off" in told


def test_the_default_port_being_taken_is_a_warning(capfd, monkeypatch) -> None:
    """Another agent, perhaps: capturing matters more."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(options, "DEFAULT_STATUS", address)
        assert cli.main(["--log-encoding=console"]) == 0

    told = capfd.readouterr().err
    assert "WARNING cannot listen on" in told
    assert "READY" in told


# Configuration -----------------------------------------------------------------------


def test_a_bad_configuration_is_told_whole_and_ends_with_1(capfd, agent, config) -> None:
    """Every problem, with its place, its value and the way out."""
    text = config.read_text()
    config.write_text(text.replace("level: full", "level: fulll").replace("direction", "directoin"))

    assert run("--config", str(config)) == 1
    told = capfd.readouterr().err
    assert "'fulll'" in told
    assert "did you mean 'full'?" in told
    assert "directoin" in told
    assert "Traceback" not in told
    assert agent.made == []


@pytest.mark.parametrize("command", [[], ["record", "f"], ["replay", "f"]], ids=len)
def test_a_configuration_that_cannot_be_read_ends_every_command(capfd, tmp_path, command) -> None:
    """With the reason, before anything else is done."""
    path = tmp_path / "none.yaml"
    assert cli.main([*command, f"--config={path}"]) == 1

    told = capfd.readouterr().err
    assert str(path) in told
    assert "no such file" in told
    assert not Path("f").exists()


def test_warnings_about_the_configuration_do_not_stop_a_run(capfd, config) -> None:
    """They name what has no effect."""
    first = "- type: http_capture"
    silent = "- type: access_logs\n        config: {mode: none}"
    config.write_text(config.read_text().replace(first, f"{silent}\n      {first}"))

    assert run("--config", str(config), "--log-encoding=console", "--log-level=warn") == 0
    told = capfd.readouterr().err
    assert "WARNING" in told
    assert "stacks.s.plugins.0: prints nothing: its mode is none" in told


# Recordings --------------------------------------------------------------------------


def test_a_recording_becomes_transactions_on_stdout(capfd, config, recording) -> None:
    """Only they are on stdout, so that it can be sent into a file."""
    arguments = ["replay", str(recording), f"--config={config}", "--log-encoding=console"]
    assert cli.main(arguments) == 0

    told = capfd.readouterr()
    assert told.out.count("=== HTTP Transaction ===") == 10
    assert "replayed 10 transactions" in told.err
    assert "has no end" not in told.err


def test_a_recording_that_was_cut_is_replayed_with_a_warning(capfd, config, recording) -> None:
    """As far as it goes."""
    content = gzip.decompress(recording.read_bytes())
    recording.write_bytes(gzip.compress(content[: len(content) * 2 // 3])[:-6])

    assert cli.main(["replay", str(recording), f"--config={config}", "--log-level=warn"]) == 0
    told = capfd.readouterr()
    assert 2 <= told.out.count("=== HTTP Transaction ===") <= 8
    assert "has no end: its agent was killed, or the file was cut" in told.err


def test_a_damaged_recording_is_one_message_and_1(capfd, config, recording) -> None:
    """After what could be read."""
    content = gzip.decompress(recording.read_bytes())
    end = content.rindex(b"E\x15\0\0\0")
    recording.write_bytes(gzip.compress(content[:end] + b"P\2\0\0\0{}"))

    assert cli.main(["replay", str(recording), f"--config={config}"]) == 1
    assert f"otel-qtap: {recording} is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file or directory"), (b"text", "not a gzip file"), (b"", "not a recording")],
    ids=["missing", "text", "empty"],
)
def test_what_is_no_recording_is_one_message_and_1(capfd, tmp_path, content, message) -> None:
    """With the name of the file."""
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)

    assert cli.main(["replay", str(path)]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert re.fullmatch(
        rf"otel-qtap: [^\n]*{re.escape(str(path))}[^\n]*{message}[^\n]*\n", told.err
    )


def test_a_recording_is_made_with_its_options(capfd, tmp_path, config) -> None:
    """For so long, into that file; the end says how much and why."""
    path = tmp_path / "f"
    arguments = ["record", str(path), "--duration=2.5", "--max-size=5kb", "--ring-size=1mb"]
    assert cli.main([*arguments, f"--config={config}", "--log-encoding=console"]) == 0

    (made,) = FakeRecorder.made
    assert made.writer._limit == 5 * 1024
    assert made.options.ring_bytes == 1024**2
    assert FakeRecorder.durations == [2.5]
    told = capfd.readouterr().err
    assert f"READY: recording to {path}; stop with Ctrl-C" in told
    assert "recorded 1 events, 0.0 MiB: the duration was over" in told


def test_a_recording_without_duration_goes_on_until_it_is_stopped(tmp_path) -> None:
    """Ctrl-C."""
    assert cli.main(["record", str(tmp_path / "f")]) == 0
    assert FakeRecorder.durations == [float("inf")]


def test_a_recording_that_cannot_be_written_is_one_message_and_1(capfd, tmp_path) -> None:
    """Before the kernel is touched."""
    assert cli.main(["record", str(tmp_path)]) == 1
    told = capfd.readouterr().err
    assert told == f"otel-qtap: cannot write the recording {tmp_path}: Is a directory\n"
    assert FakeRecorder.made == []


def test_a_recording_on_a_machine_that_cannot_leaves_nothing(capfd, tmp_path, monkeypatch) -> None:
    """An old recording of that name stays, a new one is not begun."""
    monkeypatch.setattr(FakeRecorder, "refusal", MachineError("no root"))
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")

    assert cli.main(["record", str(old)]) == 1
    assert cli.main(["record", str(new)]) == 1
    assert capfd.readouterr().err == "otel-qtap: no root\n" * 2
    assert old.read_text() == "precious"
    assert not new.exists()
