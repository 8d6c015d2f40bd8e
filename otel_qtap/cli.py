"""
The command line: the options of Qtap's guide, and commands around recordings.

Exit status: 0 done, 1 this machine or a file does not allow it, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from otel_qtap import __version__
from otel_qtap.agent import Agent, AgentOptions, Recorder, epoch_offset_ns, replay
from otel_qtap.config import Config, ConfigError, LoadedConfig, load_config
from otel_qtap.counters import CounterSet
from otel_qtap.pipeline import PipelineOptions
from otel_qtap.receiver.programs import MachineError, Rung
from otel_qtap.receiver.recording import Recording, RecordingError, RecordingWriter
from otel_qtap.status import StatusServer

__all__ = ["main"]

log = logging.getLogger("otel_qtap")

ALWAYS = 100
"""Level of the few lines that no --log-level hides."""

_LEVELS = {
    "trace": logging.DEBUG, "debug": logging.DEBUG, "info": logging.INFO,
    "warn": logging.WARNING, "error": logging.ERROR,
    "dpanic": logging.CRITICAL, "panic": logging.CRITICAL, "fatal": logging.CRITICAL,
}  # fmt: skip
_DEFAULT_STATUS = "127.0.0.1:10001"
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(b|kb|mb|gb)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}
_MAX_BUFFER = 2 * 1024**3

_EXAMPLES = {
    "run": """\
commands:
  otel-qtap [run]           capture traffic on this machine (the default)
  otel-qtap record FILE     write what the kernel side sees to a file
  otel-qtap replay FILE     make transactions from such a file, without root
  each takes --help

examples:
  otel-qtap --config=qtap.yaml --log-level=info --log-encoding=console
  QPOINT_CONFIG=/etc/qtap.yaml LOG_LEVEL=warn otel-qtap
  curl http://127.0.0.1:10001/metrics     what was seen, and what was lost
""",
    "record": """\
examples:
  otel-qtap record incident.qtaprec --duration 30
  otel-qtap replay incident.qtaprec --config=qtap.yaml

A recording holds traffic as it was on the wire, credentials included. It is made
readable by its owner only; treat it accordingly.
""",
    "replay": """\
examples:
  otel-qtap replay incident.qtaprec
  otel-qtap replay incident.qtaprec --config=qtap.yaml > transactions.txt
""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words and words[0] in ("run", "record", "replay") else "run"
    options = _parser(command).parse_args(words)
    _set_up_logging(options.log_level, options.log_encoding)
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
    except (MachineError, RecordingError) as error:
        print(f"otel-qtap: {error}", file=sys.stderr)  # noqa: T201 - the one message
    return 1


def _run(options: argparse.Namespace, loaded: LoadedConfig) -> int:
    counters = CounterSet()
    started = time.monotonic()
    agent = Agent(loaded.config, _agent_options(options), counters, sys.stdout.buffer)
    status = _start_status(options.status_listen, counters, lambda: agent.is_ready)
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
        may_hurry=not options.no_hurry,
        docker_socket=Path(options.docker_socket_endpoint),
        pipeline=PipelineOptions(http_buffer_bytes=options.http_buffer_size),
    )


def _tell_warnings(loaded: LoadedConfig) -> None:
    for problem in loaded.warnings:
        log.warning("%s", problem)


@dataclass(frozen=True, slots=True)
class _Listen:
    host: str
    port: int
    text: str
    is_default: bool


def _start_status(
    listen: _Listen | None, counters: CounterSet, is_ready: object
) -> StatusServer | None:
    if listen is None:
        return None
    try:
        return StatusServer(listen.host, listen.port, counters, is_ready)  # type: ignore[arg-type]
    except OSError as error:
        text = (
            f"cannot listen on {listen.text} for the status server ({error.strerror}); choose "
            "another address with --status-listen HOST:PORT, or none with --status-listen off"
        )
        if listen.is_default:  # another agent, perhaps: capturing matters more
            log.warning("%s", text)
            return None
        raise MachineError(text) from None


# Options ------------------------------------------------------------------------------


def _parser(command: str) -> argparse.ArgumentParser:
    descriptions = {
        "run": "Capture the HTTP traffic of this machine with eBPF and emit spans, logs and text.",
        "record": "Write what the kernel side sees to FILE, for a replay.",
        "replay": "Make transactions from a recording, without root and without a kernel.",
    }
    parser = argparse.ArgumentParser(
        prog="otel-qtap" if command == "run" else f"otel-qtap {command}",
        description=descriptions[command],
        epilog=_EXAMPLES[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command == "run":
        parser.add_argument("--version", action="version", version=f"otel-qtap {__version__}")
    else:
        parser.add_argument("file", metavar="FILE", help="the recording")
    add = parser.add_argument
    env = os.environ
    add(
        "--config",
        metavar="FILE",
        default=env.get("QPOINT_CONFIG"),
        help="Qtap file, version 2; without it, print what leaves this host (QPOINT_CONFIG)",
    )
    add(
        "--log-level",
        metavar="LEVEL",
        default=env.get("LOG_LEVEL", "info"),
        type=_level,
        help="debug, info, warn or error; default info (LOG_LEVEL)",
    )
    add(
        "--log-encoding",
        choices=("console", "json"),
        default=_log_encoding(env),
        help="default: console on a terminal, else json (LOG_ENCODING)",
    )
    add(
        "--http-buffer-size",
        metavar="SIZE",
        default=env.get("HTTP_BUFFER_SIZE", "2mb"),
        type=_buffer_size,
        help="most that is kept of a body; default 2mb (HTTP_BUFFER_SIZE)",
    )
    if command == "replay":
        return parser
    add(
        "--rung",
        choices=[rung.value for rung in Rung],
        default=None,
        help="how to see socket bytes; default: the cheapest that the kernel carries",
    )
    add(
        "--ring-size",
        metavar="SIZE",
        default="16mb",
        type=_ring_size,
        help="ring buffer between kernel and agent, a power of two; default 16mb",
    )
    add(
        "--no-hurry",
        action="store_true",
        help="lose events rather than raise the agent's priority when its ring buffer fills up",
    )
    add(
        "--docker-socket-endpoint",
        metavar="PATH",
        default=env.get("DOCKER_SOCKET", "/var/run/docker.sock"),
        help="where to ask for container names (DOCKER_SOCKET)",
    )
    if command == "run":
        add(
            "--status-listen",
            metavar="HOST:PORT|off",
            type=_listen,
            default=env.get("STATUS_LISTEN") or _DEFAULT_STATUS,
            help=f"/readyz, /healthz, /metrics; default {_DEFAULT_STATUS} (STATUS_LISTEN)",
        )
    else:
        add(
            "--duration",
            metavar="SECONDS",
            type=_seconds,
            default=float("inf"),
            help="stop after that long; default: at Ctrl-C",
        )
        add(
            "--max-size",
            metavar="SIZE",
            type=_size,
            default="1gb",
            help="stop when the uncompressed content has that size; default 1gb",
        )
    return parser


def _log_encoding(env: os._Environ[str]) -> str:
    wanted = env.get("LOG_ENCODING", "")
    return wanted if wanted in ("console", "json") else "console" if sys.stderr.isatty() else "json"


def _level(text: str) -> str:
    if text.lower() not in _LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of debug, info, warn, error")
    return text.lower()


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size: write a number with b, kb, mb or gb"
        )
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def _buffer_size(text: str) -> int:
    size = _size(text)
    if size > _MAX_BUFFER:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 2gb")
    return size


def _ring_size(text: str) -> int:
    size = _size(text)
    if size & (size - 1) or not 65536 <= size <= 1024**3:
        raise argparse.ArgumentTypeError(f"{text!r} is not a power of two between 64kb and 1gb")
    return size


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _listen(text: str) -> _Listen | None:
    if text in ("off", "none", ""):
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, or off")
    every_interface = "0.0.0.0"  # noqa: S104 - what an address without a host means
    return _Listen(
        host.strip("[]") or every_interface, int(port), text, is_default=text == _DEFAULT_STATUS
    )


# Logging ------------------------------------------------------------------------------


class _ConsoleFormatter(logging.Formatter):
    """One line, with Qtap's time layout."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = "INFO" if record.levelno == ALWAYS else record.levelname
        text = f"{stamp}.{int(record.msecs):03d} {level:<7} {record.getMessage()}"
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _JsonFormatter(logging.Formatter):
    """One JSON object in a line; the text is under ``message``, as in Qtap."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": "info" if record.levelno == ALWAYS else record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


def _set_up_logging(level: str, encoding: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if encoding == "json" else _ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(_LEVELS[level])


if __name__ == "__main__":
    raise SystemExit(main())
