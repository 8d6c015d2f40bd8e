#!/usr/bin/env python3
"""
A server behind HAProxy: says in JSON who answered and what was asked.

``backend_service.py PORT [ADDRESS]``, with its name in ``SERVICE_NAME``. Prints one
line once it listens. The fields are those of Qtap's HAProxy guide.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answer ``/health`` with OK, everything else with what was asked."""

    protocol_version = "HTTP/1.1"  # keep-alive, so that HAProxy reuses connections
    server_version = "backend-service"
    sys_version = ""
    wbufsize = -1  # head and body leave in one segment
    disable_nagle_algorithm = True

    service = os.environ.get("SERVICE_NAME", "unknown")

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer("text/plain", b"OK")
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

    def _port(self) -> str:
        return str(self.connection.getsockname()[1])

    def _answer_json(self, **fields: str) -> None:
        answer = {"service": self.service, "port": self._port(), **fields}
        self._answer("application/json", json.dumps(answer).encode())

    def _answer(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: HAProxy logs the requests."""


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ThreadingHTTPServer((address, port), Handler) as server:
        server.daemon_threads = True
        print(f"{Handler.service} listens on {address}:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
