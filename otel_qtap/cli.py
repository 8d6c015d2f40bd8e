"""
The command line: the options of Qtap's guide, and one word for each other command.

Exit status: 0 done, 1 this machine or a file does not allow it, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from otel_qtap.agent import Agent
from otel_qtap.agent_log import ALWAYS, set_up_logging
from otel_qtap.clock import epoch_offset_ns
from otel_qtap.config import Config, ConfigError, LoadedConfig, load_config
from otel_qtap.counters import CounterSet
from otel_qtap.destinations import DestinationError
from otel_qtap.options import Listen, make_parser
from otel_qtap.pipeline import PipelineOptions
from otel_qtap.receiver.programs import MachineError, Rung
from otel_qtap.receiver.recording import Recording, RecordingError, RecordingWriter
from otel_qtap.recorder import Recorder
from otel_qtap.replay import replay
from otel_qtap.report import Report
from otel_qtap.status import StatusServer
from otel_qtap.tap import AgentOptions

__all__ = ["main"]

log = logging.getLogger("otel_qtap")

# Each is a module with a ``main`` that is imported when it is asked for.
_COMMANDS = {
    "reload-config": "otel_qtap.reload_command",
    "report": "otel_qtap.report_command",
    "rule": "otel_qtap.rule_command",
    "validate": "otel_qtap.validate_command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _COMMANDS:
        module = importlib.import_module(_COMMANDS[words[0]])
        run_command: Callable[[Sequence[str]], int] = module.main
        return run_command(words[1:])
    command = words.pop(0) if words and words[0] in ("run", "record", "replay") else "run"
    options = make_parser(command).parse_args(words)
    set_up_logging(options.log_level, options.log_encoding)
    try:
        loaded = load_config(Path(options.config) if options.config else None)
        _tell_warnings(loaded)
        if command == "replay":
            return _replay(options, loaded.config)
        if command == "record":
            return _record(options, loaded.config)
        return _run(options, loaded)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - many lines, for a person
    except (DestinationError, MachineError, RecordingError) as error:
        print(f"otel-qtap: {error}", file=sys.stderr)  # noqa: T201 - the one message
    return 1


def _run(options: argparse.Namespace, loaded: LoadedConfig) -> int:
    counters = CounterSet()
    started = time.monotonic()
    report = Report()
    agent_options = _agent_options(options)
    observed = replace(agent_options.pipeline, observers=(report,))
    agent = Agent(loaded, replace(agent_options, pipeline=observed), counters, sys.stdout.buffer)
    pages = {"/report.json": lambda: report.snapshot().model_dump_json()}
    status = _start_status(options.status_listen, counters, lambda: agent.is_ready, pages)
    log.log(
        ALWAYS,
        "READY: capturing with rung %s on Linux %s after %.2f s, configuration %s%s",
        agent.receiver.rung.value, platform.release(), time.monotonic() - started, loaded.source,
        f", status on http://{options.status_listen.text}" if status else "",
    )  # fmt: skip
    delivered = agent.run()
    if status:
        status.close()
    captured = counters.total("otel_qtap.transactions")
    lost = counters.total("otel_qtap.receiver.lost")
    log.info("stopped: %d transactions seen, %d kernel events lost", captured, lost)
    if not delivered:
        log.warning(
            "not everything captured was delivered within %.0f s; see the counters above",
            agent.options.flush_deadline_s,
        )
    return 0


def _record(options: argparse.Namespace, config: Config) -> int:
    writer = RecordingWriter(
        Path(options.file), epoch_offset_ns=epoch_offset_ns(), limit_bytes=options.max_size
    )
    try:
        recorder = Recorder(config, _agent_options(options), CounterSet(), writer)
    except MachineError:
        writer.discard()
        raise
    log.log(ALWAYS, "READY: recording to %s; stop with Ctrl-C", options.file)
    reason = recorder.run(options.duration)
    size = Path(options.file).stat().st_size
    log.log(ALWAYS, "recorded %d events, %.1f MiB: %s", writer.records, size / 1024**2, reason)
    return 0


def _replay(options: argparse.Namespace, config: Config) -> int:
    recording = Recording(Path(options.file))
    counters = CounterSet()
    replay(
        recording, config, counters, sys.stdout.buffer,
        PipelineOptions(http_buffer_bytes=options.http_buffer_size),
    )  # fmt: skip
    if not recording.is_complete:
        log.warning("%s has no end: its agent was killed, or the file was cut", options.file)
    log.info("replayed %d transactions", counters.total("otel_qtap.transactions"))
    return 0


def _agent_options(options: argparse.Namespace) -> AgentOptions:
    return AgentOptions(
        rung=Rung(options.rung) if options.rung else None,
        ring_bytes=options.ring_size,
        backlog_bytes=options.backlog_size,
        may_hurry=not options.no_hurry,
        docker_socket=Path(options.docker_socket_endpoint),
        pipeline=PipelineOptions(http_buffer_bytes=options.http_buffer_size),
    )


def _tell_warnings(loaded: LoadedConfig) -> None:
    for problem in loaded.warnings:
        log.warning("%s", problem)


def _start_status(
    listen: Listen | None,
    counters: CounterSet,
    is_ready: Callable[[], bool],
    pages: Mapping[str, Callable[[], str]],
) -> StatusServer | None:
    if listen is None:
        return None
    try:
        return StatusServer(listen.host, listen.port, counters, is_ready, pages)
    except OSError as error:
        text = (
            f"cannot listen on {listen.text} for the status server ({error.strerror}); choose "
            "another address with --status-listen HOST:PORT, or none with --status-listen off"
        )
        if listen.is_default:  # another agent, perhaps: capturing matters more
            log.warning("%s", text)
            return None
        raise MachineError(text) from None


if __name__ == "__main__":
    raise SystemExit(main())
