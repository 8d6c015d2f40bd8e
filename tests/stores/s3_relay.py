"""A relay before an S3 server: it can be cut, speaks TLS where wanted, keeps what it was asked."""

from __future__ import annotations

import selectors
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from haproxy_demo.receiver import free_port

__all__ = ["Relay", "make_certificate"]


class Relay:
    """Passes bytes on to ``target`` while it is open; refuses connections while it is not."""

    def __init__(self, target: str, context: ssl.SSLContext | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._context = context
        self._listener: socket.socket | None = None
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self.heads: list[bytes] = []
        """The first bytes of each connection."""

    def open(self) -> None:
        """Accept connections from now on."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Accept no more; what is open goes on until one of its ends closes."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._target) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            with client:
                self._pass(client, server)

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        others = {client: server, server: client}
        is_first = True
        with selectors.DefaultSelector() as selector:
            for end in others:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    end = key.fileobj
                    data = end.recv(65536)
                    if not data:
                        return
                    if is_first:
                        self.heads.append(data)
                        is_first = False
                    others[end].sendall(data)
                while isinstance(client, ssl.SSLSocket) and client.pending():
                    server.sendall(client.recv(65536))


def make_certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a self-signed certificate for 127.0.0.1 and a server's context with it."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
