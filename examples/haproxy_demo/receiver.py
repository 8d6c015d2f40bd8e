"""
Rotel, an OpenTelemetry collector that comes as a Python wheel, and what it printed.

The demo reads the spans back from the collector's own text, so that what it shows has
gone all the way: encoded, sent by OTLP, received and decoded by somebody else.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import socket
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from haproxy_demo.world import Program

__all__ = ["LogRecord", "Receiver", "Span", "free_port", "read_telemetry"]


@dataclass(slots=True)
class Span:
    """What the tree shows of a span."""

    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    name: str = ""
    kind: str = ""
    """``SERVER``, ``CLIENT``, …"""
    start_ns: int = 0
    end_ns: int = 0
    is_error: bool = False
    resource: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def process_id(self) -> int:
        """Process that was captured, 0 when the resource does not say."""
        return int(self.resource.get("process.pid", "0"))


@dataclass(slots=True)
class LogRecord:
    """Which span a log record belongs to."""

    event_name: str = ""
    trace_id: str = ""
    span_id: str = ""
    resource: dict[str, str] = field(default_factory=dict)


def free_ports(count: int) -> list[int]:
    """Return different ports of the loopback address that nobody uses at this moment."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_port() -> int:
    """Return one of them."""
    return free_ports(1)[0]


class Receiver:
    """A running ``rotel-agent`` that prints every span and log record it is sent."""

    def __init__(self, directory: Path) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        command = [str(_binary()), "start"]
        command += ["--pid-file", str(directory / "rotel.pid")]
        command += ["--log-file", str(directory / "rotel.log")]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{self.port}"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc_port}"]
        command += ["--exporter", "blackhole", "--batch-timeout", "50ms"]
        command += ["--debug-log", "traces", "--debug-log", "logs"]
        command += ["--debug-log-verbosity", "detailed"]
        self.program = Program("rotel", command, directory, _library_path())

    @staticmethod
    def is_available() -> bool:
        """Whether there is a wheel of it for this machine (``examples/setup`` installs it)."""
        return _binary() is not None

    def wait_until_ready(self, timeout_s: float = 15) -> None:
        """Wait until it takes connections of both kinds."""
        self.program.wait_until(self._is_ready, timeout_s, "ports")

    def _is_ready(self) -> bool:
        for port in (self.port, self.grpc_port):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return False
        return True

    def telemetry(self) -> tuple[list[Span], list[LogRecord]]:
        """Return what it has received so far."""
        return read_telemetry(self.program.output())


def _binary() -> Path | None:
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).with_name("rotel-agent")


def _library_path() -> dict[str, str]:
    """Name the folder of libpython when only this interpreter knows it."""
    library = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    try:
        ctypes.CDLL(library)
    except OSError:
        return {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")}
    return {}


FIELD = re.compile(r"    ([A-Z][A-Za-z ]*?) *: (.*)")
TIME = re.compile(r"(Start|End) time: (\d+)")
ATTRIBUTE = re.compile(r"     -> ([^:]+): [A-Za-z]+\((.*)\)")


def read_telemetry(text: str) -> tuple[list[Span], list[LogRecord]]:
    """Return the spans and log records in the collector's detailed text."""
    reader = _Reader()
    for line in text.split("\n"):
        reader.read(line)
    return reader.spans, reader.logs


class _Reader:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.logs: list[LogRecord] = []
        self._resource: dict[str, str] = {}
        self._item: Span | LogRecord | None = None
        self._attributes: dict[str, str] | None = None

    def read(self, line: str) -> None:
        if line.startswith(("ResourceSpans #", "ResourceLog #")):
            self._resource = {}
            self._item = None
        elif line == "Resource attributes:":
            self._attributes = self._resource
        elif re.fullmatch(r"Span #\d+", line):
            self._item = Span(resource=self._resource)
            self.spans.append(self._item)
            self._attributes = None
        elif re.fullmatch(r"LogRecord #\d+", line):
            self._item = LogRecord(resource=self._resource)
            self.logs.append(self._item)
            self._attributes = None
        elif line in ("Events:", "Links:") or line.startswith(("ScopeSpans #", "ScopeLogs #")):
            self._attributes = None
        elif line == "Attributes:" and isinstance(self._item, Span):
            self._attributes = self._item.attributes
        elif self._attributes is not None and (attribute := ATTRIBUTE.fullmatch(line)):
            self._attributes[attribute[1]] = attribute[2]
        elif isinstance(self._item, Span):
            self._read_span_field(self._item, line)
        elif isinstance(self._item, LogRecord):
            self._read_log_field(self._item, line)

    def _read_span_field(self, span: Span, line: str) -> None:
        if time := TIME.fullmatch(line):
            if time[1] == "Start":
                span.start_ns = int(time[2])
            else:
                span.end_ns = int(time[2])
        elif found := FIELD.fullmatch(line):
            match found[1]:
                case "Trace ID":
                    span.trace_id = found[2]
                case "ID":
                    span.span_id = found[2]
                case "Parent ID":
                    span.parent_id = found[2]
                case "Name":
                    span.name = found[2]
                case "Kind":
                    span.kind = found[2].removeprefix("SPAN_KIND_")
                case "Status code":
                    span.is_error = found[2] == "STATUS_CODE_ERROR"

    def _read_log_field(self, record: LogRecord, line: str) -> None:
        if line.startswith("EventName: "):
            record.event_name = line.removeprefix("EventName: ")
        elif found := FIELD.fullmatch(line):
            match found[1]:
                case "Trace ID":
                    record.trace_id = found[2]
                case "Span ID":
                    record.span_id = found[2]
