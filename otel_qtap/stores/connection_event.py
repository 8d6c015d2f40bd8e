"""Connection events: what a connection has moved so far, and who is at its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from otel_qtap.connection.model import Container, Peer, Process
from otel_qtap.stores.json_record import rfc3339
from otel_qtap.stores.qtap_fields import known, process_facts
from otel_qtap.transaction.model import Direction
from otel_qtap.transaction.readable import readable_text

__all__ = ["ConnectionEvent", "System"]

Record = dict[str, Any]

_HELD_BYTES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The agent that reports, as Connection events name it."""

    hostname: str
    instance: str
    """Another one each time the agent starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEvent:
    """A connection as it stands; several tell its life, the last of them is ``finalized``."""

    event_type: ClassVar[str] = "connection"

    connection_id: str
    endpoint_id: str
    part: int
    """Number of this report on the connection, from 0."""
    is_finalized: bool
    """Nothing more will be said about it."""
    timestamp_ns: int
    created_ns: int
    closed_ns: int = 0
    """0 while it is open, and when its end was not seen."""
    direction: Direction
    l7_protocol: str
    """``http1``, ``http2``, …, ``other``."""
    local: Peer
    remote: Peer
    process: Process
    container: Container | None
    bytes_sent: int
    bytes_received: int
    system: System
    tags: Mapping[str, Sequence[str]]

    @property
    def held_bytes(self) -> int:
        """What it holds in memory, estimated."""
        return _HELD_BYTES

    def record(self) -> Record:
        """Return the Connection event."""
        here = {
            "address": _address(self.local),
            "hostname": self.system.hostname,
            **_process(self.process, self.container),
        }
        there = {"address": _address(self.remote)}
        is_ingress = self.direction.is_ingress
        return {
            "meta": {"connectionId": self.connection_id, "endpointId": self.endpoint_id},
            **known(tags={key: list(values) for key, values in self.tags.items()}),
            "finalized": self.is_finalized,
            **known(part=self.part),
            "direction": self.direction.value,
            "socketProtocol": "tcp",
            "l7Protocol": self.l7_protocol,
            "system": {
                "hostname": self.system.hostname,
                "agent": "tap",
                "agentInstance": self.system.instance,
            },
            "source": there if is_ingress else here,
            "destination": here if is_ingress else there,
            "bytesReceived": self.bytes_received,
            "bytesSent": self.bytes_sent,
            "timestamp": rfc3339(self.timestamp_ns),
            "createdAt": rfc3339(self.created_ns),
            **known(closedAt=rfc3339(self.closed_ns) if self.closed_ns else ""),
        }

    def describe(self) -> str:
        """Return ``haproxy ingress 192.0.2.7:51234 (http1)``."""
        name = readable_text(self.process.name)
        return f"{name} {self.direction.value} {self.remote.authority()} ({self.l7_protocol})"


def _address(peer: Peer) -> Record:
    family = "ipv6" if ":" in peer.address else "ipv4"
    return {"family": family, "ip": peer.address, "port": peer.port}


def _process(process: Process, container: Container | None) -> Record:
    record: Record = known(exe=readable_text(process.executable), user=readable_text(process.user))
    if process.user_id >= 0:
        record["userId"] = process.user_id
    if container is not None:
        facts = process_facts(process, container)
        pod = known(name=facts.get("pod_name"), namespace=facts.get("pod_namespace"))
        record["container"] = {
            "id": container.id[:12],  # as Qtap shows it
            **known(name=facts.get("container_name"), image=facts.get("container_image"), pod=pod),
        }
    return record
