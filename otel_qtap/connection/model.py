"""Who talks to whom: processes, containers, ends of a connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Container", "Peer", "Process"]


class Peer(NamedTuple):
    """One end of a TCP connection."""

    address: str
    port: int

    def authority(self, name: str = "") -> str:
        """Return ``host:port``; with ``name`` in place of the address when it is given."""
        host = name or self.address
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The container that a process runs in."""

    id: str
    """64 hex digits, or what the runtime uses."""
    name: str = ""
    image: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    """(IP address, network name) of each of its networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process on this host; identified by ``pid`` and ``start_time_ns`` together."""

    pid: int
    start_time_ns: int = 0
    """Nanoseconds since the Unix epoch; 0 if it was gone before it could be asked."""
    executable: str = ""
    """Path of the program inside its own root directory; empty when unknown."""
    arguments: tuple[str, ...] = field(default=(), repr=False)
    """The command line. Not shown by ``repr``: it may hold credentials."""
    user_id: int = -1
    user: str = ""
    container_id: str = ""
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Only the variables that name the service (``OTEL_SERVICE_NAME``, …), nothing else."""

    @property
    def name(self) -> str:
        """File name of the program: ``haproxy``; ``unknown`` when it is not known."""
        return self.executable.rpartition("/")[2] or "unknown"
