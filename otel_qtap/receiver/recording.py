"""
Recordings: what the receiver emitted, in a file, for tests, bug reports and golden files.

A gzip stream. Its first line is JSON (format, versions, kernel, clock); frames follow,
each one byte of kind, four of length (little-endian) and a payload:

    R  a ring-buffer record as the kernel wrote it (``bpf/events.h``, ``wire_version``)
    P  facts about a process, JSON: they are in ``/proc`` only while it lives
    N  a name for an address as a process knows it, JSON
    L  something was lost, JSON
    H  where a HAProxy process keeps its streams, JSON
    S  the names of frontends and servers in a HAProxy process, JSON
    E  the end, JSON: why the recording stopped

A recording holds traffic as it was, credentials included, so the file is made readable
by its owner alone. A file without its end (a killed agent) is read as far as it goes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

from otel_qtap import __version__
from otel_qtap.connection.model import Container, Process
from otel_qtap.events import LostEvent
from otel_qtap.haproxy import CheckedServer, NameTables, ServerName
from otel_qtap.haproxy.layout import Layout, Offsets, StreamSource
from otel_qtap.receiver.wire import WIRE_VERSION

__all__ = [
    "AddressName",
    "RecordedFact",
    "RecordedLayout",
    "RecordedNames",
    "RecordedProcess",
    "Recording",
    "RecordingError",
    "RecordingWriter",
]

FORMAT = "otel-qtap recording"
FORMAT_VERSION = 2
MAX_FRAME_BYTES = 1024 * 1024
_FRAME = struct.Struct("<cI")
_FLUSH_BYTES = 1024 * 1024
_NAME_TABLES = ("servers", "checked", "frontends", "hosts")
_MAX_NAMES = 2000  # of each kind, so that a frame stays small


class RecordingError(Exception):
    """A recording that cannot be written or read; the text names the file and the reason."""


class RecordedProcess(NamedTuple):
    """Facts about a process at the time of the next record."""

    process: Process
    container: Container | None


class AddressName(NamedTuple):
    """The name that a process has for an address."""

    process_id: int
    address: str
    name: str


class RecordedLayout(NamedTuple):
    """A process is a HAProxy, and its memory is laid out like this."""

    process_id: int
    layout: Layout


class RecordedNames(NamedTuple):
    """What HAProxy's configuration or the process itself says of its names."""

    process_id: int
    tables: NameTables


RecordedFact: TypeAlias = RecordedProcess | AddressName | RecordedLayout | RecordedNames | LostEvent


class RecordingWriter:
    """Writes one recording, up to a size."""

    def __init__(self, path: Path, *, epoch_offset_ns: int, limit_bytes: int) -> None:
        """
        Open ``path``; an existing file is replaced once something is written.

        ``limit_bytes`` bounds the uncompressed content. Raises ``RecordingError``.
        """
        self.path = path
        self._epoch_offset_ns = epoch_offset_ns
        self._is_new = not path.exists()
        self.is_full = False
        self.records = 0
        self._limit = limit_bytes
        self._written = 0
        self._unflushed = 0
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RecordingError(f"cannot write the recording {path}: {error.strerror}") from None
        self._file: IO[bytes] = os.fdopen(descriptor, "wb")
        self._stream: gzip.GzipFile | None = None

    def discard(self) -> None:
        """Close without having recorded anything: leave things as they were before."""
        self._file.close()
        if self._is_new:
            self.path.unlink(missing_ok=True)

    def _start(self) -> gzip.GzipFile:
        """Replace what the file held, and write the header."""
        descriptor = self._file.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # never change a device or a pipe
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
        stream = gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=self._file)
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "wire_version": WIRE_VERSION,
            "agent": __version__,
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "epoch_offset_ns": self._epoch_offset_ns,
        }
        stream.write(json.dumps(header).encode() + b"\n")
        return stream

    def write_record(self, record: memoryview | bytes) -> None:
        """Add a ring-buffer record."""
        self.records += 1
        self._frame(b"R", bytes(record))

    def write_process(self, process: Process, container: Container | None) -> None:
        """Add facts; to be called before the first record of the process."""
        content = {
            "process": asdict(process) | {"arguments": ()},  # a command line may hold secrets
            "container": asdict(container) if container else None,
        }
        self._frame(b"P", json.dumps(content).encode())

    def write_name(self, name: AddressName) -> None:
        """Add a name for an address."""
        self._frame(b"N", json.dumps(name._asdict()).encode())

    def write_layout(self, process_id: int, layout: Layout) -> None:
        """Add where a HAProxy process keeps its streams."""
        content = asdict(layout) | {"source": layout.source.name}
        body = {"process_id": process_id, "layout": content}
        self._frame(b"H", json.dumps(body).encode())

    def write_names(self, process_id: int, tables: NameTables) -> None:
        """Add the names of a HAProxy process, in place of those that it had so far."""
        content = {"asked_ns": tables.asked_ns, "has_log": tables.has_log} | {
            # JSON has lists for tuples, and no keys but strings.
            name: [[*end, value] for end, value in list(getattr(tables, name).items())[:_MAX_NAMES]]
            for name in _NAME_TABLES
        }
        body = {"process_id": process_id, "tables": content}
        self._frame(b"S", json.dumps(body).encode())

    def write_loss(self, event: LostEvent) -> None:
        """Add the news of a loss."""
        self._frame(b"L", json.dumps(event._asdict()).encode())

    def close(self, reason: str) -> None:
        """Finish the file. Raises ``RecordingError`` if the disk refuses."""
        try:
            body = json.dumps({"reason": reason}).encode()
            self._stream = self._stream or self._start()
            self._stream.write(_FRAME.pack(b"E", len(body)) + body)
            self._stream.close()
            self._file.close()
        except OSError as error:
            self._abandon()
            raise RecordingError(
                f"cannot finish the recording {self.path}: {error.strerror}"
            ) from None

    def _frame(self, kind: bytes, payload: bytes) -> None:
        if self.is_full:
            return
        if self._written + len(payload) + _FRAME.size > self._limit:
            self.is_full = True
            return
        self._put(_FRAME.pack(kind, len(payload)) + payload)

    def _put(self, data: bytes) -> None:
        try:
            self._stream = self._stream or self._start()
            self._stream.write(data)
            self._written += len(data)
            self._unflushed += len(data)
            if self._unflushed >= _FLUSH_BYTES:  # so that a killed agent leaves most of it
                self._unflushed = 0
                self._stream.flush(zlib.Z_SYNC_FLUSH)
        except OSError as error:
            self._abandon()
            raise RecordingError(
                f"cannot write the recording {self.path}: {error.strerror}"
            ) from None

    def _abandon(self) -> None:
        """Let go of a file that refuses to be written."""
        for stream in (self._stream, self._file):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()


class Recording:
    """A recording to read: iterate over it for its records, facts and losses, in order."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and read its header; raises ``RecordingError``."""
        self.path = path
        self.is_complete = False
        """Whether the end was found; known after the iteration."""
        self.stop_reason = ""
        try:
            self._stream = gzip.open(path, "rb")  # noqa: SIM115 - closed by close()
            header = json.loads(self._stream.readline(65536))
        except OSError as error:
            reason = error.strerror or "it is not a gzip file"
            raise RecordingError(f"cannot read the recording {path}: {reason}") from None
        except (ValueError, EOFError, zlib.error):
            header = None
        if (
            not isinstance(header, dict)
            or header.get("format") != FORMAT
            or not isinstance(header.get("epoch_offset_ns"), int)
        ):
            raise RecordingError(f"{path} is not a recording made by otel-qtap record")
        found = (header.get("version"), header.get("wire_version"))
        if found != (FORMAT_VERSION, WIRE_VERSION):
            raise RecordingError(
                f"{path} was made by otel-qtap {header.get('agent')} in format "
                f"{found[0]}.{found[1]}; this is {__version__}, which reads "
                f"{FORMAT_VERSION}.{WIRE_VERSION}"
            )
        self.header: dict[str, Any] = header
        self.epoch_offset_ns: int = header["epoch_offset_ns"]

    def __iter__(self) -> Iterator[bytes | RecordedFact]:
        while True:
            try:
                head = self._stream.read(_FRAME.size)
                if len(head) < _FRAME.size:
                    return
                kind, size = _FRAME.unpack(head)
                if size > MAX_FRAME_BYTES:
                    raise RecordingError(f"{self.path} is damaged: a frame of {size} bytes")
                payload = self._stream.read(size)
            except (EOFError, zlib.error, gzip.BadGzipFile):
                return  # cut short: what was read is good
            if len(payload) < size:
                return
            if kind == b"E":
                self.stop_reason = self._decode_end(payload)
                self.is_complete = True
                return
            if kind == b"R":
                yield payload
            else:
                yield self._decode(kind, payload)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _decode_end(self, payload: bytes) -> str:
        try:
            return str(json.loads(payload)["reason"])
        except (ValueError, KeyError, TypeError):
            raise self._damage() from None

    def _damage(self) -> RecordingError:
        return RecordingError(f"{self.path} is damaged: a frame that cannot be read")

    def _decode(self, kind: bytes, payload: bytes) -> RecordedFact:
        try:
            content = json.loads(payload)
            if kind == b"P":
                container = content["container"]
                return RecordedProcess(
                    Process(**_tuples(content["process"])),
                    Container(**_tuples(container)) if container else None,
                )
            if kind == b"N":
                return AddressName(**content)
            if kind == b"H":
                layout = content["layout"]
                layout["source"] = StreamSource[layout["source"]]
                layout["offsets"] = Offsets(*layout["offsets"])
                return RecordedLayout(content["process_id"], Layout(**layout))
            if kind == b"S":
                return RecordedNames(content["process_id"], _name_tables(content["tables"]))
            if kind == b"L":
                return LostEvent(**content)
        except (ValueError, KeyError, TypeError):
            pass
        raise self._damage()


def _name_tables(content: dict[str, Any]) -> NameTables:
    tables: dict[str, dict[tuple[str, int], Any]] = {
        name: {(host, port): value for host, port, value in content[name]} for name in _NAME_TABLES
    }
    tables["servers"] = {
        end: value and ServerName(*value) for end, value in tables["servers"].items()
    }
    tables["checked"] = {
        end: value and CheckedServer(ServerName(*value[0]), *value[1:])
        for end, value in tables["checked"].items()
    }
    return NameTables(**tables, asked_ns=content["asked_ns"], has_log=content["has_log"])


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; the models have no lists."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list) else value

    return {key: convert(value) for key, value in content.items()}
