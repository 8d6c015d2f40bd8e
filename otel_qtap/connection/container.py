"""
Which container a process runs in, and what the Docker engine says about it.

The id comes from files of ``/proc`` and is known at once. Everything else comes from
the engine, over its Unix socket and in a thread of its own: who asks gets what is known
by now and never waits.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from otel_qtap.connection.model import Container
from otel_qtap.counters import CounterSet

__all__ = ["ContainerTable", "container_id_from_cgroup", "container_id_from_mountinfo"]

API_VERSION = "/v1.41"  # Docker 20.10; newer engines that refuse it answer without a version
TIMEOUT = 2.0  # seconds for one call of the engine
MAX_ANSWER_SIZE = 16 * 1024 * 1024
MAX_CONTAINERS = 1024  # kept; and asked about in one go
MAX_LABELS = 128
MAX_TEXT = 1024  # characters of one name or label
PAUSE = 0.1  # seconds between two rounds of questions, however many ids show up
STALE_AFTER = 10.0  # seconds; a restarted container can have another address

_log = logging.getLogger(__name__)

# Shapes: docker/<id>, docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope,
# libpod-<id>.scope, kubepods/…/<id>, /../<id>. A "conmon" is the monitor, outside of it.
_CONTAINER_ID = re.compile(r"(?<!conmon-)(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_OWN_FILES = frozenset({"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})
_STATE_DIRECTORY = re.compile(r"containers/([0-9a-f]{64})/")


def container_id_from_cgroup(text: str) -> str:
    """
    Return the id in ``/proc/PID/cgroup``; empty when the process is in no container.

    The last one counts: a container inside a container names both. Nothing else of the
    path does, since it depends on runtime, cgroup driver and who is looking.
    """
    found = _CONTAINER_ID.findall(text)
    return found[-1] if found else ""


def container_id_from_mountinfo(text: str) -> str:
    """
    Return the id in ``/proc/PID/mountinfo``, where a private cgroup namespace hides it.

    Only the files that an engine mounts into every container count: a process outside
    of containers sees mounts that belong to all of them.
    """
    for line in text.splitlines():
        fields = line.split(" ", 5)  # id, parent, device, root, mount point, the rest
        if len(fields) > 5 and fields[4] in _OWN_FILES:
            found = _STATE_DIRECTORY.search(fields[3])
            if found:
                return found[1]
    return ""


@dataclass(frozen=True, slots=True)
class _Knowledge:
    """What the engine said last; replaced as a whole, so that readers need no lock."""

    containers: Mapping[str, Container]
    """Running ones, and ended or unknown ones that somebody asked for."""
    running: frozenset[str]
    aliases: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Network aliases by address, for each running container."""
    aliases_by_address: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]
    """Container name by address; empty for addresses that two containers have."""


_NOTHING = _Knowledge({}, frozenset(), {}, {}, {})


class ContainerTable:
    """
    Containers by id and by address.

    One thread, started when it is first needed, asks the engine: when a new id shows
    up, and when somebody asks and the answers are ``STALE_AFTER`` seconds old.
    """

    def __init__(
        self,
        docker_socket: Path,
        counters: CounterSet,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = _Engine(docker_socket)
        self._clock = clock
        self._known = _NOTHING
        self._wanted: set[str] = set()
        self._asked_at = float("-inf")
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # guards _wanted, _asked_at and _thread
        self._was_reachable = True
        self._failed = counters.counter(
            "otel_qtap.container.requests_failed",
            "{request}",
            "Requests to the container engine that brought no usable answer.",
        )

    def get(self, container_id: str) -> Container:
        """Return what is known of a container by now: at least its id. Never waits."""
        if not container_id:
            return Container(id="")
        container = self._known.containers.get(container_id)
        if container is None or self._clock() - self._asked_at > STALE_AFTER:
            self._ask(container_id)
        return container or Container(id=container_id)

    def name_of_address(self, address: str) -> str:
        """Return the name of the running container that has this IP address; else empty."""
        if self._clock() - self._asked_at > STALE_AFTER:
            self._ask("")
        return self._known.names.get(address, "")

    def aliases_of_address(self, address: str) -> tuple[str, ...]:
        """Return the network aliases of the container that has this IP address."""
        return self._known.aliases_by_address.get(address, ())

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is left to ask the engine; for tests and for one-shot commands."""
        return self._idle.wait(timeout)

    def close(self) -> None:
        """Stop asking. What is known stays."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join(TIMEOUT * 2)

    def _ask(self, container_id: str) -> None:
        with self._lock:
            if self._closed.is_set() or (container_id and container_id in self._wanted):
                return
            if container_id and len(self._wanted) < MAX_CONTAINERS:
                self._wanted.add(container_id)
            self._asked_at = self._clock()
            self._idle.clear()
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="otel-qtap-containers", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(PAUSE):
            self._wake.wait()
            if self._closed.is_set():
                break
            with self._lock:
                self._wake.clear()
                wanted, self._wanted = self._wanted, set()
            try:
                self._refresh(wanted)
            except Exception:  # one odd answer must not end the thread that all others wait for
                self._failed.add()
                _log.exception("the container engine gave an answer that makes no sense")
            with self._lock:
                if not self._wake.is_set():
                    self._idle.set()
        self._idle.set()

    def _refresh(self, wanted: set[str]) -> None:
        """Learn all running containers, and each wanted one that runs no more."""
        before = self._known
        try:
            listed = [entry for entry in self._engine.running() if isinstance(entry.get("Id"), str)]
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._note_failure(error)
            self._keep_ids(wanted)
            return
        self._note_success()
        containers = {entry["Id"]: _from_list(entry) for entry in listed[:MAX_CONTAINERS]}
        running = frozenset(containers)
        names = _unambiguous(containers.values())
        aliases = {
            container_id: before.aliases[container_id]
            for container_id, container in containers.items()
            if container_id in before.aliases
            and before.containers[container_id].addresses == container.addresses
        }
        for container_id in wanted - running - before.containers.keys():
            found = self._inspect(container_id)
            containers[container_id] = _from_inspect(container_id, found or {})
        for container_id, container in before.containers.items():  # data may still refer to it
            if len(containers) < MAX_CONTAINERS:
                containers.setdefault(container_id, container)
        self._known = replace(before, containers=containers, running=running, names=names)
        for container_id in running - aliases.keys():  # one request each: after the names
            found = self._inspect(container_id)
            if found is not None:
                aliases[container_id] = _aliases(found)
        self._known = replace(
            self._known,
            aliases=aliases,
            aliases_by_address={
                a: n for by_address in aliases.values() for a, n in by_address.items()
            },
        )

    def _keep_ids(self, wanted: set[str]) -> None:
        """Remember ids that cannot be resolved, so that each is asked for only now and then."""
        containers = dict(self._known.containers)
        for container_id in wanted:
            if len(containers) < MAX_CONTAINERS:
                containers.setdefault(container_id, Container(id=container_id))
        self._known = replace(self._known, containers=containers)

    def _inspect(self, container_id: str) -> dict[str, Any] | None:
        try:
            return self._engine.inspect(container_id)
        except (OSError, http.client.HTTPException, ValueError):
            self._failed.add()
            return None

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            return  # no Docker on this host: nothing to tell
        self._failed.add()
        if self._was_reachable:
            self._was_reachable = False
            _log.warning("the container engine cannot be asked for names: %s", error)

    def _note_success(self) -> None:
        if not self._was_reachable:
            self._was_reachable = True
            _log.info("the container engine can be asked for names again")


# The engine --------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


class _Engine:
    """The two questions that the Docker Engine API is asked; both only read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = API_VERSION

    def running(self) -> list[dict[str, Any]]:
        """Return the running containers as ``GET /containers/json`` has them."""
        answer = self._get("/containers/json")
        if not isinstance(answer, list):
            raise http.client.HTTPException("the list of containers is not a list")
        return [entry for entry in answer if isinstance(entry, dict)]

    def inspect(self, container_id: str) -> dict[str, Any] | None:
        """Return one container, running or not; ``None`` when the engine does not know it."""
        if not container_id.isalnum():
            return None
        answer = self._get(f"/containers/{container_id}/json")
        return answer if isinstance(answer, dict) else None

    def _get(self, path: str) -> object:
        status, body = self._request(self._version + path)
        if status == http.client.BAD_REQUEST and self._version:  # "client version … is too old"
            status, body = self._request(path)
            if status < http.client.BAD_REQUEST:
                self._version = ""
        if status == http.client.NOT_FOUND:
            return None
        if status != http.client.OK:
            raise http.client.HTTPException(f"status {status}")
        answer: object = json.loads(body)
        return answer

    def _request(self, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read(MAX_ANSWER_SIZE + 1)
        finally:
            connection.close()
        if len(body) > MAX_ANSWER_SIZE:
            raise ValueError(f"answer of more than {MAX_ANSWER_SIZE} bytes")
        return response.status, body


# Answers of the engine ---------------------------------------------------------------


def _from_list(entry: Mapping[str, Any]) -> Container:
    names = [name for name in _strings(entry.get("Names")) if name.count("/") <= 1]
    return Container(
        id=entry["Id"],
        name=names[0].lstrip("/") if names else "",
        image=_text(entry.get("Image")),
        labels=_labels(entry.get("Labels")),
        addresses=_addresses(entry),
    )


def _from_inspect(container_id: str, entry: Mapping[str, Any]) -> Container:
    config = _mapping(entry.get("Config"))
    return Container(
        id=container_id,
        name=_text(entry.get("Name")).lstrip("/"),
        image=_text(config.get("Image")),
        labels=_labels(config.get("Labels")),
        addresses=_addresses(entry),
    )


def _networks(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    settings = _mapping(entry.get("NetworkSettings"))
    for name, network in _mapping(settings.get("Networks")).items():
        yield _text(name), _mapping(network)


def _addresses(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (address, name) for name, network in _networks(entry) for address in _addresses_in(network)
    )


def _addresses_in(network: Mapping[str, Any]) -> Iterator[str]:
    for key in ("IPAddress", "GlobalIPv6Address"):
        with suppress(ValueError):  # empty in the host network and while stopped
            yield str(ip_address(_text(network.get(key))))


def _aliases(entry: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the aliases by address; the engine adds the short id to them, which is no name."""
    short_id = _text(entry.get("Id"))[:12]
    return {
        address: tuple(alias for alias in _strings(network.get("Aliases")) if alias != short_id)
        for _, network in _networks(entry)
        for address in _addresses_in(network)
    }


def _unambiguous(containers: Iterable[Container]) -> dict[str, str]:
    names: dict[str, str] = {}
    for container in containers:
        for address, _ in container.addresses:
            names[address] = container.name if address not in names else ""
    return names


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((_text(k), _text(v)) for k, v in list(_mapping(value).items())[:MAX_LABELS])


def _strings(value: object) -> list[str]:
    return (
        [_text(item) for item in value if isinstance(item, str)] if isinstance(value, list) else []
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""
