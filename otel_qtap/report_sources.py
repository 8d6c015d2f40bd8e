"""
What ``otel-qtap report`` can make a report of.

A running agent (its status server), a recording, or the JSON lines that an agent has
printed.
"""

from __future__ import annotations

import http.client
import io
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from otel_qtap.receiver.recording import Recording, RecordingError
from otel_qtap.replay import recorded_transactions
from otel_qtap.report import Report, ReportSnapshot, read_record

__all__ = ["RecordingFile", "ReportError", "Source", "open_source"]

_TIMEOUT_S = 5.0
_CHUNK_BYTES = 1024 * 1024
_GZIP = b"\x1f\x8b"
_TEXT_BLOCK = "=== HTTP Transaction ==="


class ReportError(Exception):
    """A source that gives no report; the text says which, why and what to do."""


class Source(Protocol):
    """Something that a report can be had from."""

    is_over: bool
    """Whether nothing more will come."""

    def snapshot(self) -> ReportSnapshot:
        """Return the report as it is now; raises ``ReportError``."""

    def remark(self) -> str:
        """Return what a reader should know about the source, or nothing."""

    def close(self) -> None:
        """Let go of the source."""


class LiveAgent:
    """The status server of a running agent."""

    is_over = False

    def __init__(self, address: str) -> None:
        self.url = address if "://" in address else f"http://{address}"
        try:
            parts = urlsplit(self.url)
            self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 10001
        except ValueError:
            raise ReportError(f"{address} is no address of an agent, which is HOST:PORT") from None

    def snapshot(self) -> ReportSnapshot:
        """Ask the agent."""
        # Not urllib: an agent on this machine is not asked through an HTTP proxy.
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            with closing(connection):
                connection.request("GET", "/report.json")
                answer = connection.getresponse()
                body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or error
            raise ReportError(
                f"no agent answers on {self.url} ({reason}); name its --status-listen, or a file"
            ) from None
        if answer.status != 200:
            raise ReportError(f"{self.url} answers {answer.status} and no report")
        try:
            return ReportSnapshot.model_validate_json(body)
        except ValidationError:
            raise ReportError(f"{self.url} answers, but not with a report") from None

    def remark(self) -> str:
        """Nothing: the report is the agent's own."""
        return ""

    def close(self) -> None:
        """Nothing is open between two questions."""


class RecordingFile:
    """A recording, replayed once."""

    is_over = True

    def __init__(self, path: Path) -> None:
        report = Report()
        try:
            with closing(Recording(path)) as recording:
                for transaction in recorded_transactions(recording):
                    report.consume(transaction)
        except RecordingError as error:
            raise ReportError(str(error)) from None
        self._snapshot = report.snapshot()

    def snapshot(self) -> ReportSnapshot:
        """Return what the recording holds."""
        return self._snapshot

    def remark(self) -> str:
        """Nothing: all of it was read."""
        return ""

    def close(self) -> None:
        """It was closed when it had been read."""


class JsonLines:
    """Lines of ``format: json``, from a file that may grow or from a pipe."""

    def __init__(self, file: io.FileIO, *, follows: bool) -> None:
        """
        ``file`` is read past Python's buffers.

        Their lock, held by a thread that waits for a pipe, would abort the interpreter
        when it exits.
        """
        self._file = file
        self._report = Report(is_coarse=True)
        self._unfinished = b""
        self._others = 0
        self._has_text_blocks = False
        self.is_over = not follows
        self._is_read_aside = follows and not file.seekable()
        if self._is_read_aside:  # reading may wait for ever, refreshing must not
            threading.Thread(target=self._read_to_end, name="report", daemon=True).start()

    def snapshot(self) -> ReportSnapshot:
        """Read what has come, and return the report."""
        if self.is_over and not self._is_read_aside:
            self._read_to_end()
        elif not self._is_read_aside:
            self._read()
        snapshot = self._report.snapshot()
        if not snapshot.transactions and self._has_text_blocks:
            raise ReportError(
                "these transactions are in format: text; a report can be made of format: json"
            )
        return snapshot

    def remark(self) -> str:
        """Say how many lines were something else."""
        return f"{self._others} other lines were passed over" if self._others else ""

    def close(self) -> None:
        """Close the file, unless it is stdin or somebody still reads it."""
        if not self._is_read_aside:
            self._file.close()

    def _read_to_end(self) -> None:
        self._read()
        self._read_line(self._unfinished)
        self._unfinished = b""
        self.is_over = True

    def _read(self) -> None:
        """Read all whole lines that there are."""
        while data := self._file.read(_CHUNK_BYTES):
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            for line in lines:
                self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        transaction = read_record(text)
        if transaction is not None:
            self._report.consume(transaction)
        elif text.strip():
            self._others += 1
            self._has_text_blocks |= text.startswith(_TEXT_BLOCK)


def open_source(name: str, *, follows: bool) -> Source:
    """
    Return the source that ``name`` means: an address, a file, or ``-`` for stdin.

    ``follows``: it will be asked again. Raises ``ReportError``.
    """
    if name == "-":
        return JsonLines(io.FileIO(sys.stdin.fileno(), closefd=False), follows=follows)
    path = Path(name)
    if not path.exists() and (name.startswith("http://") or name.rpartition(":")[2].isdigit()):
        return LiveAgent(name)
    try:
        if path.is_file():  # what is read of a pipe is gone
            with path.open("rb") as file:
                if file.read(len(_GZIP)) == _GZIP:
                    return RecordingFile(path)
        return JsonLines(io.FileIO(name), follows=follows)
    except OSError as error:
        raise ReportError(f"cannot read {name}: {error.strerror}") from None
