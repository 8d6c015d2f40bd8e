"""
The status server: ``/readyz``, ``/healthz`` and two pages of metrics on one small HTTP port.

``/metrics`` is everything, ``/system/metrics`` what the agent counts about itself; these
paths and the port are Qtap's. The address is not, because counters of other people's
traffic do not belong on every interface. ``/pid`` is whom to send a signal.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType

from otel_qtap.counters import CounterSet, HistogramSample, Sample

__all__ = ["StatusServer", "render_metrics"]

_PROMETHEUS_UNITS = {"By": "bytes", "ms": "ms", "s": "seconds"}
_PATHS = ("/readyz", "/healthz", "/pid", "/metrics", "/system/metrics")
_METRICS_TYPE = "text/plain; version=0.0.4"


class StatusServer:
    """Answers in a thread of its own; stops with the agent."""

    def __init__(
        self,
        host: str,
        port: int,
        counters: CounterSet,
        is_ready: Callable[[], bool],
        pages: Mapping[str, Callable[[], str]] = MappingProxyType({}),
    ) -> None:
        """
        Listen on ``host:port`` (port 0: any free one); raises ``OSError`` if it cannot.

        ``pages`` are further paths, each with what makes its JSON on a thread of the server.
        """

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, port), _handler(counters, is_ready, pages))
        self.port = int(self._server.server_address[1])
        Thread(target=self._server.serve_forever, name="status", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def render_metrics(counters: CounterSet, prefix: str = "") -> str:
    """
    Return all counters in Prometheus text format, version 0.0.4.

    With ``prefix`` only those whose (OpenTelemetry) name begins with it.
    """
    lines: list[str] = []
    family = ""
    for sample in counters.samples():
        if not sample.name.startswith(prefix):
            continue
        name = _prometheus_name(sample)
        if name != family:
            family = name
            lines += _family(name, sample.description, "gauge" if sample.is_gauge else "counter")
        lines.append(f"{_series(name, sample.labels)} {sample.value}")
    for histogram in counters.histograms():
        if not histogram.name.startswith(prefix):
            continue
        name = _with_unit(histogram.name, histogram.unit)
        if name != family:
            family = name
            lines += _family(name, histogram.description, "histogram")
        lines += _histogram_lines(name, histogram)
    return "".join(f"{line}\n" for line in lines)


def _family(name: str, description: str, kind: str) -> list[str]:
    text = description.replace("\\", "\\\\").replace("\n", "\\n")
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _histogram_lines(name: str, histogram: HistogramSample) -> Iterator[str]:
    labels = histogram.labels
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        below += count
        yield f"{_series(f'{name}_bucket', (*labels, ('le', str(bound))))} {below}"
    below += histogram.counts[-1]
    yield f"{_series(f'{name}_bucket', (*labels, ('le', '+Inf')))} {below}"
    yield f"{_series(f'{name}_sum', labels)} {histogram.total}"
    yield f"{_series(f'{name}_count', labels)} {below}"


def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    text = ",".join(f'{key}="{_escape(value)}"' for key, value in labels)
    return f"{name}{{{text}}}" if text else name


def _prometheus_name(sample: Sample) -> str:
    name = _with_unit(sample.name, sample.unit)
    return name if sample.is_gauge else f"{name}_total"


def _with_unit(name: str, unit: str) -> str:
    name = name.replace(".", "_")
    suffix = _PROMETHEUS_UNITS.get(unit, "")
    return f"{name}_{suffix}" if suffix and not name.endswith(suffix) else name


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _handler(
    counters: CounterSet, is_ready: Callable[[], bool], pages: Mapping[str, Callable[[], str]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "otel-qtap"
        sys_version = ""
        timeout = 5  # seconds that a silent client may hold a thread

        def do_GET(self) -> None:  # noqa: N802: the name http.server calls
            path = self.path.partition("?")[0]
            if path == "/readyz":
                ready = is_ready()
                self._answer(200 if ready else 503, "ready\n" if ready else "not ready\n")
            elif path == "/healthz":
                self._answer(200, "healthy\n")
            elif path == "/pid":
                self._answer(200, f"{os.getpid()}\n")
            elif path == "/metrics":
                self._answer(200, render_metrics(counters), _METRICS_TYPE)
            elif path == "/system/metrics":
                self._answer(200, render_metrics(counters, "otel_qtap."), _METRICS_TYPE)
            elif path in pages:
                self._answer(200, pages[path](), "application/json")
            else:
                self._answer(404, f"try one of {' '.join((*_PATHS, *pages))}\n")

        def _answer(self, status: int, text: str, content_type: str = "text/plain") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{content_type}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: probes come every few seconds."""

    return Handler
