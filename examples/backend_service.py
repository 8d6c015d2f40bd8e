#!/usr/bin/env python3
"""
A server behind HAProxy: says in JSON who answered and what was asked.

``backend_service.py PORT [ADDRESS]``, with its name in ``SERVICE_NAME``. Prints one
line once it listens. The fields are those of Qtap's HAProxy guide.

What is asked for may also say how to answer: ``/status/503`` anywhere in the path with
that status (429 and 503 with a ``Retry-After``), ``/delay/600`` 600 ms later. ``SIGUSR1``
makes it fail ``/health`` from then on, and again makes it well.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

STATUS = re.compile(r"/status/(\d{3})\b")
DELAY = re.compile(r"/delay/(\d{1,5})\b")


class Handler(BaseHTTPRequestHandler):
    """Answer ``/health`` with OK, everything else with what was asked."""

    protocol_version = "HTTP/1.1"  # keep-alive, so that HAProxy reuses connections
    server_version = "backend-service"
    sys_version = ""
    wbufsize = -1  # head and body leave in one segment
    disable_nagle_algorithm = True

    service = os.environ.get("SERVICE_NAME", "unknown")
    is_well: ClassVar = True

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer_health()
            return
        self._answer_json(
            path=self.path, message=f"Hello from {self.service} on port {self._port()}!"
        )

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        received = self.rfile.read(length).decode(errors="replace")
        self._answer_json(
            method="POST", received=received, message=f"POST received by {self.service}"
        )

    @classmethod
    def change_health(cls, *_: object) -> None:
        """Be ill when well, well when ill."""
        cls.is_well = not cls.is_well

    def _port(self) -> str:
        return str(self.connection.getsockname()[1])

    def _answer_health(self) -> None:
        if self.is_well:
            self._answer(200, "text/plain", b"OK")
        else:
            self._answer(503, "text/plain", b"ILL")

    def _answer_json(self, **fields: str) -> None:
        if delay := DELAY.search(self.path):
            time.sleep(int(delay[1]) / 1000)
        status = STATUS.search(self.path)
        answer = {"service": self.service, "port": self._port(), **fields}
        self._answer(
            int(status[1]) if status else 200, "application/json", json.dumps(answer).encode()
        )

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: HAProxy logs the requests."""


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGUSR1, Handler.change_health)
    with ThreadingHTTPServer((address, port), Handler) as server:
        server.daemon_threads = True
        print(f"{Handler.service} listens on {address}:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
