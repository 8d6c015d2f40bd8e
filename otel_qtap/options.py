"""The options of the commands that capture or replay, each with its environment variable."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass

from otel_qtap import __version__
from otel_qtap.agent_log import LEVELS
from otel_qtap.receiver.programs import Rung

__all__ = ["DEFAULT_STATUS", "Listen", "listen", "make_parser"]

DEFAULT_STATUS = "127.0.0.1:10001"
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(b|kb|mb|gb)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}
_MAX_BUFFER = 2 * 1024**3

_EXAMPLES = {
    "run": """\
commands:
  otel-qtap [run]           capture traffic on this machine (the default)
  otel-qtap record FILE     write what the kernel side sees to a file
  otel-qtap replay FILE     make transactions from such a file, without root
  otel-qtap validate FILE   check a configuration
  otel-qtap rule EXPR       explain a rule, and try it on what was captured
  otel-qtap reload-config   have the agent read its configuration again
  otel-qtap report          show requests, errors and latencies by backend
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


@dataclass(frozen=True, slots=True)
class Listen:
    """An address for the status server."""

    host: str
    port: int
    text: str
    """As written."""
    is_default: bool


def make_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of ``run``, ``record`` or ``replay``."""
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
        "--backlog-size",
        metavar="SIZE",
        default="32mb",
        type=_size,
        help="most memory for what waits outside of the ring buffer when more comes than can be "
        "processed; default 32mb",
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
            type=listen,
            default=env.get("STATUS_LISTEN") or DEFAULT_STATUS,
            help=f"/readyz, /healthz, /metrics; default {DEFAULT_STATUS} (STATUS_LISTEN)",
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
    if text.lower() not in LEVELS:
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


def listen(text: str) -> Listen | None:
    """Return the address that ``HOST:PORT`` means, ``None`` for ``off``."""
    if text in ("off", "none", ""):
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, or off")
    every_interface = "0.0.0.0"  # noqa: S104 - what an address without a host means
    return Listen(
        host.strip("[]") or every_interface, int(port), text, is_default=text == DEFAULT_STATUS
    )
