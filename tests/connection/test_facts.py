"""Where the facts of this machine come from, and which one wins."""

from __future__ import annotations

from otel_qtap.connection.facts import HostFacts
from otel_qtap.connection.model import Container, Process


class Processes:
    """Knows process 7, in a container, and process 8, in none."""

    def get(self, process_id: int) -> Process:
        return Process(pid=process_id, container_id="c1" if process_id == 7 else "")


class Containers:
    """Knows one container and the name of one address; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get(self, container_id: str) -> Container:
        self.asked.append(container_id)
        return Container(id=container_id, name="web")

    def name_of_address(self, address: str) -> str:
        return "backend-api-1" if address == "172.18.0.3" else ""


class Hosts:
    """A hosts file that knows both addresses."""

    def name_of(self, process_id: int, address: str) -> str:
        return {"172.18.0.3": "from-hosts", "10.0.0.9": f"db-of-{process_id}"}.get(address, "")


def _facts() -> tuple[HostFacts, Containers]:
    containers = Containers()
    return HostFacts(Processes(), containers, Hosts()), containers


def test_a_process_and_its_container_are_looked_up() -> None:
    """By process id, then by what the process says of its container."""
    facts, _ = _facts()

    process = facts.process(7)

    assert process.pid == 7
    assert facts.container(process) == Container(id="c1", name="web")


def test_a_process_outside_of_containers_has_none() -> None:
    """And nobody is asked for one."""
    facts, containers = _facts()

    assert facts.container(facts.process(8)) is None
    assert containers.asked == []


def test_the_name_of_a_container_comes_before_the_hosts_file() -> None:
    """Which is read as the process itself would read it; an unknown address has no name."""
    facts, _ = _facts()

    assert facts.name_of(7, "172.18.0.3") == "backend-api-1"
    assert facts.name_of(7, "10.0.0.9") == "db-of-7"
    assert facts.name_of(7, "192.0.2.1") == ""
