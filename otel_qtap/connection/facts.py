"""Everything a transaction says about its process beyond the bytes it moved."""

from __future__ import annotations

from typing import Protocol

from otel_qtap.connection.container import ContainerTable
from otel_qtap.connection.hosts import HostNames
from otel_qtap.connection.model import Container, Process
from otel_qtap.connection.process import ProcessTable

__all__ = ["Facts", "HostFacts"]


class Facts(Protocol):
    """Answers at once, from memory or from a file under ``/proc``; never raises."""

    def process(self, process_id: int) -> Process:
        """Return what is known of a process."""

    def container(self, process: Process) -> Container | None:
        """Return the container that a process runs in, ``None`` if in none."""

    def name_of(self, process_id: int, address: str) -> str:
        """Return the name that a process, or its container engine, has for an address."""


class HostFacts:
    """The facts of this machine: ``/proc``, hosts files, the container engine."""

    def __init__(
        self, processes: ProcessTable, containers: ContainerTable, hosts: HostNames
    ) -> None:
        self.processes = processes
        self.containers = containers
        self._hosts = hosts
        self.process = processes.get
        """Return what is known of a process; bound once, because every transaction asks."""

    def container(self, process: Process) -> Container | None:
        """Return the container of a process, complete once its engine has answered."""
        return self.containers.get(process.container_id) if process.container_id else None

    def name_of(self, process_id: int, address: str) -> str:
        """
        Return a name for the remote end of a connection.

        A container's name comes first, because that is what the guide's reader expects
        to see; then what the process itself would read in its hosts file.
        """
        return self.containers.name_of_address(address) or self._hosts.name_of(process_id, address)
