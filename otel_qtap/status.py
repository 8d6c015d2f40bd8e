"""
The status server: ``/readyz``, ``/healthz`` and ``/metrics`` on one small HTTP port.

The paths and the port are Qtap's; the address is not, because counters of other
people's traffic do not belong on every interface.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from otel_qtap.counters import CounterSet, Sample

__all__ = ["StatusServer", "render_metrics"]

_PROMETHEUS_UNITS = {"By": "bytes", "s": "seconds"}


class StatusServer:
    """Answers in a thread of its own; stops with the agent."""

    def __init__(
        self, host: str, port: int, counters: CounterSet, is_ready: Callable[[], bool]
    ) -> None:
        """Listen on ``host:port`` (port 0: any free one); raises ``OSError`` if it cannot."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, port), _handler(counters, is_ready))
        self.port = int(self._server.server_address[1])
        Thread(target=self._server.serve_forever, name="status", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def render_metrics(counters: CounterSet) -> str:
    """Return all counters in Prometheus text format, version 0.0.4."""
    lines: list[str] = []
    family = ""
    for sample in counters.samples():
        name = _prometheus_name(sample)
        if name != family:
            family = name
            kind = "gauge" if sample.is_gauge else "counter"
            lines += [f"# HELP {name} {sample.description}", f"# TYPE {name} {kind}"]
        labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sample.labels)
        lines.append(f"{name}{{{labels}}} {sample.value}" if labels else f"{name} {sample.value}")
    return "\n".join(lines) + "\n"


def _prometheus_name(sample: Sample) -> str:
    name = sample.name.replace(".", "_")
    unit = _PROMETHEUS_UNITS.get(sample.unit, "")
    if unit and not name.endswith(unit):
        name = f"{name}_{unit}"
    return name if sample.is_gauge else f"{name}_total"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _handler(counters: CounterSet, is_ready: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
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
            elif path == "/metrics":
                self._answer(200, render_metrics(counters), "text/plain; version=0.0.4")
            else:
                self._answer(404, "try /readyz, /healthz or /metrics\n")

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
