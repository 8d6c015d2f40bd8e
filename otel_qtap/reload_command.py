"""``otel-qtap reload-config``: have a running agent read its configuration again."""

from __future__ import annotations

import argparse
import http.client
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from otel_qtap.options import DEFAULT_STATUS, Listen, listen

__all__ = ["main"]

_EXAMPLES = """\
examples:
  otel-qtap reload-config                                 the agent on this machine
  otel-qtap reload-config --status-listen 127.0.0.1:9999  the one that listens there
  otel-qtap reload-config --pid 4711                      one without a status server
  kill -HUP 4711                                          the same, without this command

A file that cannot be used changes nothing: the agent goes on with what it has. Its log
says what was wrong, and otel-qtap validate says it beforehand.
"""

_TIMEOUT_S = 5.0
_RELOAD_S = 30.0
_POLL_S = 0.1
_RELOADS = re.compile(r'otel_qtap_config_reloads_total\{result="(done|failed)"\} (\d+)')
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where who listens is asked


class _ReloadError(Exception):
    """The configuration was not reloaded; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.pid:
            _signal(options.pid)
            text = f"process {options.pid} was told; its log says what came of it"
        elif options.status_listen is None:
            raise _ReloadError("without a status server the agent is found by --pid only")
        else:
            text = _reload(_StatusPages(options.status_listen))
    except _ReloadError as error:
        print(f"otel-qtap reload-config: {error}", file=sys.stderr)  # noqa: T201 - the one message
        return 1
    print(text)  # noqa: T201 - what was asked for
    return 0


class _StatusPages:
    """What the status server of an agent says."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen

    @property
    def process_id(self) -> int:
        """Of the agent."""
        text = self._get("/pid").strip()
        if not text.isdigit():
            raise _ReloadError(f"what answers at {self._listen.text} is no otel-qtap")
        return int(text)

    def reloads(self) -> dict[str, int]:
        """Return how often it has reloaded its configuration, by result."""
        return {result: int(count) for result, count in _RELOADS.findall(self._get("/metrics"))}

    def _get(self, path: str) -> str:
        listen = self._listen
        host = _EVERYWHERE.get(listen.host, listen.host)
        # Not urllib: an agent on this machine is not asked through an HTTP proxy.
        connection = http.client.HTTPConnection(host, listen.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise _ReloadError(f"what answers at {listen.text} is no otel-qtap")
            return answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or error
            raise _ReloadError(
                f"no agent answers at {listen.text} ({reason}); say where it listens with "
                "--status-listen HOST:PORT, or which process it is with --pid"
            ) from None
        finally:
            connection.close()


def _reload(pages: _StatusPages) -> str:
    """Have the agent reload, and wait for what comes of it."""
    process_id, before = pages.process_id, pages.reloads()
    _signal(process_id)
    deadline_s = time.monotonic() + _RELOAD_S
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        now = pages.reloads()
        if now.get("failed", 0) > before.get("failed", 0):
            raise _ReloadError(
                f"process {process_id} keeps its old configuration; its log says what is wrong "
                "with the new one"
            )
        if now.get("done", 0) > before.get("done", 0):
            return f"process {process_id} has reloaded its configuration"
    raise _ReloadError(f"process {process_id} has not reloaded within {_RELOAD_S:.0f} s")


def _signal(process_id: int) -> None:
    """Send SIGHUP, which would end a process that is no agent."""
    try:
        if not _is_agent(Path(f"/proc/{process_id}/cmdline").read_text(errors="replace")):
            raise _ReloadError(f"process {process_id} is no otel-qtap, as far as seen from here")
        os.kill(process_id, signal.SIGHUP)
    except PermissionError:
        raise _ReloadError(f"process {process_id} belongs to another user") from None
    except OSError:
        raise _ReloadError(f"there is no process {process_id} here") from None


def _is_agent(command_line: str) -> bool:
    """Whether it is ``otel-qtap``, with or without an interpreter, or ``-m otel_qtap.cli``."""
    words = command_line.split("\0")[:3]
    return any(Path(word).name.startswith(("otel-qtap", "otel_qtap")) for word in words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otel-qtap reload-config",
        description="Have a running agent read its configuration again. No connection is lost.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--status-listen",
        metavar="HOST:PORT",
        type=listen,
        default=os.environ.get("STATUS_LISTEN") or DEFAULT_STATUS,
        help=f"where the agent's status server is; default {DEFAULT_STATUS} (STATUS_LISTEN)",
    )
    add("--pid", metavar="PID", type=_process_id, help="process id of the agent")
    return parser


def _process_id(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id")
    return int(text)
