"""Container ids from ``/proc``, and what the engine knows, from a real socket."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from otel_qtap.connection.container import (
    ContainerTable,
    container_id_from_cgroup,
    container_id_from_mountinfo,
)
from otel_qtap.connection.model import Container

HAPROXY = "4f" * 32
API_1 = "a1" * 32
API_2 = "a2" * 32
GONE = "90" * 32

CGROUPS = [
    pytest.param("0::/\n", "", id="none"),
    pytest.param("", "", id="empty"),
    pytest.param("0::/user.slice/user-0.slice/session-3.scope\n", "", id="login"),
    pytest.param(f"12:cpu:/docker/{HAPROXY}\n0::/docker/{HAPROXY}\n", HAPROXY, id="docker-v1"),
    pytest.param(f"0::/system.slice/docker-{HAPROXY}.scope\n", HAPROXY, id="docker-systemd"),
    pytest.param(f"0::/../{HAPROXY}\n", HAPROXY, id="seen-from-a-private-namespace"),
    pytest.param(f"1:a:/\n2:b:/\n0::/docker/{HAPROXY}\n", HAPROXY, id="docker-v2"),
    pytest.param(
        f"0::/kubepods.slice/kubepods-pod1234.slice/cri-containerd-{HAPROXY}.scope\n",
        HAPROXY,
        id="containerd",
    ),
    pytest.param(f"0::/kubepods/burstable/pod12-34/{HAPROXY}\n", HAPROXY, id="kubepods"),
    pytest.param(f"0::/kubepods.slice/crio-{HAPROXY}.scope/container\n", HAPROXY, id="cri-o"),
    pytest.param(f"0::/machine.slice/libpod-{HAPROXY}.scope\n", HAPROXY, id="podman"),
    pytest.param(f"0::/machine.slice/libpod-conmon-{HAPROXY}.scope\n", "", id="podman-monitor"),
    pytest.param(f"0::/docker/{API_1}/docker/{HAPROXY}\n", HAPROXY, id="docker-in-docker"),
    pytest.param(f"0::/docker/{HAPROXY}/init.scope\n", HAPROXY, id="systemd-inside"),
    pytest.param(f"0::/docker/{HAPROXY}0\n", "", id="too-long"),
    pytest.param("0::/docker/4f4f4f4f4f4f\n", "", id="too-short"),
]


@pytest.mark.parametrize(("text", "container_id"), CGROUPS)
def test_the_id_is_the_last_64_hex_digits_of_the_cgroup(text, container_id) -> None:
    """Whatever runtime, driver and point of view."""
    assert container_id_from_cgroup(text) == container_id


MOUNTS = [
    pytest.param(
        f"1 2 8:1 /var/lib/docker/containers/{HAPROXY}/hosts /etc/hosts rw - ext4 /dev/a rw\n",
        HAPROXY,
        id="docker",
    ),
    pytest.param(
        f"1 2 8:1 /lib/overlay-containers/{HAPROXY}/userdata/hostname /etc/hostname rw - x\n",
        HAPROXY,
        id="podman",
    ),
    pytest.param(
        f"1 2 0:9 / /var/lib/docker/containers/{HAPROXY}/mounts/shm rw - tmpfs shm rw\n",
        "",
        id="a-mount-of-the-host",
    ),
    pytest.param("odd\n\n1 2\n", "", id="odd-lines"),
]


@pytest.mark.parametrize(("text", "container_id"), MOUNTS)
def test_only_a_containers_own_files_name_it_in_the_mounts(text, container_id) -> None:
    """The host sees mounts of all containers and is in none of them."""
    assert container_id_from_mountinfo(text) == container_id


def network(address, *aliases, ipv6=""):
    return {
        "Aliases": list(aliases) or None,
        "NetworkID": "bb" * 32,
        "Gateway": "172.18.0.1",
        "IPAddress": address,
        "IPPrefixLen": 16,
        "GlobalIPv6Address": ipv6,
        "DNSNames": None,
    }


class FakeEngine:
    """Answers like the Docker Engine API: a list without aliases, details with them."""

    def __init__(self):
        self.running = {}
        self.ended = {}
        self.requests = []
        self.oldest_version = ""
        self.garbage = None

    def run(self, container_id, name, networks, *, image="haproxy:2.9-alpine", names=()):
        self.running[container_id] = (name, names, image, networks)

    def end(self, container_id):
        self.ended[container_id] = self.running.pop(container_id)

    def answer(self, path):
        self.requests.append(path)
        if self.garbage is not None:
            return 200, self.garbage
        version, _, path = (
            path[1:].partition("/") if path.startswith("/v1") else ("", "/", path[1:])
        )
        if self.oldest_version and version and version < self.oldest_version:
            return 400, {"message": f"client version {version[1:]} is too old."}
        if path == "containers/json":
            return 200, [self._listed(container_id) for container_id in self.running]
        container_id = path.split("/")[1]
        found = self.running.get(container_id) or self.ended.get(container_id)
        if not found:
            return 404, {"message": f"No such container: {container_id}"}
        return 200, self._inspected(container_id, found)

    def _listed(self, container_id):
        name, names, image, networks = self.running[container_id]
        return {
            "Id": container_id,
            "Names": [*names, f"/{name}"],
            "Image": image,
            "ImageID": f"sha256:{'cc' * 32}",
            "Command": "docker-entrypoint.sh haproxy",
            "Created": 1763700000,
            "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8085, "Type": "tcp"}],
            "Labels": {"com.docker.compose.service": name},
            "State": "running",
            "HostConfig": {"NetworkMode": "demo_default"},
            "NetworkSettings": {
                "Networks": {k: {**v, "Aliases": None} for k, v in networks.items()}
            },
            "Mounts": [],
        }

    def _inspected(self, container_id, found):
        name, _, image, networks = found
        return {
            "Id": container_id,
            "Name": f"/{name}",
            "State": {"Status": "running", "Pid": 987},
            "Config": {"Image": image, "Labels": {"com.docker.compose.service": name}, "Env": []},
            "NetworkSettings": {"IPAddress": "", "Networks": networks},
        }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, answer = self.server.engine.answer(self.path)
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        """Keep quiet."""


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def engine():
    engine = FakeEngine()
    engine.run(HAPROXY, "haproxy-demo", {"demo": network("172.18.0.2", "haproxy", HAPROXY[:12])})
    engine.run(API_1, "backend-api-1", {"demo": network("172.18.0.3", "api", ipv6="fd00::3")})
    return engine


@pytest.fixture
def socket_path(tmp_path, engine):
    path = tmp_path / "docker.sock"
    with UnixServer(str(path), Handler) as server:
        server.engine = engine
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def table(socket_path, counters, clock):
    table = ContainerTable(socket_path, counters, clock=clock)
    yield table
    table.close()


def test_who_asks_first_gets_the_id_and_later_the_rest(table) -> None:
    """Nothing waits for the engine."""
    assert table.get(HAPROXY) == Container(id=HAPROXY)
    assert table.wait(5)

    assert table.get(HAPROXY) == Container(
        id=HAPROXY,
        name="haproxy-demo",
        image="haproxy:2.9-alpine",
        labels=(("com.docker.compose.service", "haproxy-demo"),),
        addresses=(("172.18.0.2", "demo"),),
    )


def test_an_address_has_the_name_of_its_container(table) -> None:
    """On any of its networks, also of containers that nobody asked for."""
    table.get(HAPROXY)
    table.wait(5)

    assert table.name_of_address("172.18.0.3") == "backend-api-1"
    assert table.name_of_address("fd00::3") == "backend-api-1"
    assert table.name_of_address("172.18.0.99") == ""
    assert table.aliases_of_address("172.18.0.2") == ("haproxy",)
    assert table.aliases_of_address("172.18.0.99") == ()


def test_known_containers_are_not_asked_about_again(table, engine) -> None:
    """One list and one look at each container, however many transactions there are."""
    for _ in range(100):
        table.get(HAPROXY)
        table.name_of_address("172.18.0.3")
    table.wait(5)
    for _ in range(100):
        table.get(HAPROXY)
    table.wait(5)

    assert sorted(engine.requests) == [
        f"/v1.41/containers/{HAPROXY}/json",
        f"/v1.41/containers/{API_1}/json",
        "/v1.41/containers/json",
    ]


def test_a_new_id_makes_everything_fresh(table, engine) -> None:
    """A container that started later is found, with its address."""
    table.get(HAPROXY)
    table.wait(5)
    engine.run(API_2, "backend-api-2", {"demo": network("172.18.0.4")})

    assert table.get(API_2).name == ""
    table.wait(5)
    assert table.get(API_2).name == "backend-api-2"
    assert table.name_of_address("172.18.0.4") == "backend-api-2"


def test_answers_grow_stale(table, engine, clock) -> None:
    """A restarted container keeps its id and may get another address."""
    table.get(API_1)
    table.wait(5)
    engine.run(API_1, "backend-api-1", {"demo": network("172.18.0.9", "api-again")})

    clock.now += 11
    table.name_of_address("172.18.0.9")
    table.wait(5)
    assert table.name_of_address("172.18.0.9") == "backend-api-1"
    assert table.name_of_address("172.18.0.3") == ""
    assert table.aliases_of_address("172.18.0.9") == ("api-again",)


def test_an_ended_container_is_known_and_its_address_is_free(table, engine, clock) -> None:
    """Late transactions still have its name; its address may be another's already."""
    table.get(API_1)
    table.wait(5)
    engine.end(API_1)
    engine.run(API_2, "backend-api-2", {"demo": network("172.18.0.3")})
    clock.now += 11
    table.get(API_1)
    table.wait(5)

    assert table.get(API_1).name == "backend-api-1"
    assert table.name_of_address("172.18.0.3") == "backend-api-2"


def test_a_container_that_ended_before_it_was_asked_for_is_found(table, engine) -> None:
    """The list does not have it; the engine still does."""
    engine.run(GONE, "job", {"demo": network("")}, image="job:1")
    engine.end(GONE)
    table.get(GONE)
    table.wait(5)

    assert (table.get(GONE).name, table.get(GONE).image) == ("job", "job:1")


def test_an_id_that_the_engine_does_not_know_stays_an_id(table, engine) -> None:
    """It belongs to another runtime; it is asked for once."""
    for _ in range(3):
        assert table.get(GONE) == Container(id=GONE)
        table.wait(5)

    assert engine.requests.count(f"/v1.41/containers/{GONE}/json") == 1


def test_an_address_of_two_containers_has_no_name(table, engine) -> None:
    """Two networks of equal addresses: better no name than a wrong one."""
    engine.run(API_2, "backend-api-2", {"other": network("172.18.0.3")})
    table.get(API_2)
    table.wait(5)

    assert table.name_of_address("172.18.0.3") == ""


def test_a_legacy_link_is_not_the_name(table, engine) -> None:
    """``/haproxy/db`` is how another container calls it."""
    engine.run(API_2, "db", {"bridge": network("172.17.0.2")}, names=("/haproxy/db",))
    table.get(API_2)
    table.wait(5)

    assert table.get(API_2).name == "db"


def test_an_engine_that_refuses_the_version_is_asked_without(table, engine) -> None:
    """Docker 29 knows no version below 1.44."""
    engine.oldest_version = "v1.44"
    table.get(HAPROXY)
    table.wait(5)

    assert table.get(HAPROXY).name == "haproxy-demo"
    assert engine.requests[:2] == ["/v1.41/containers/json", "/containers/json"]
    assert all(not path.startswith("/v1") for path in engine.requests[2:])


def test_without_a_socket_there_are_ids_and_silence(tmp_path, counters, caplog) -> None:
    """No Docker on a host is nothing to complain about."""
    table = ContainerTable(tmp_path / "absent.sock", counters)
    table.get(HAPROXY)
    table.wait(5)

    assert table.get(HAPROXY) == Container(id=HAPROXY)
    assert table.name_of_address("172.18.0.2") == ""
    assert counters.total("otel_qtap.container.requests_failed") == 0
    assert caplog.records == []
    table.close()


def test_a_process_outside_of_containers_asks_nobody(table, engine) -> None:
    """The empty id is no question."""
    assert table.get("") == Container(id="")
    table.wait(5)
    assert engine.requests == []


GARBAGE = [
    pytest.param(b"", id="empty"),
    pytest.param(b"not json", id="not-json"),
    pytest.param(b"{}", id="not-a-list"),
    pytest.param(b"\xff\xfe\xfa", id="not-text"),
    pytest.param(b'[{"Id": 5}, 7, null]', id="no-ids"),
    pytest.param(b"[" * 200_000, id="deep"),
    pytest.param(
        json.dumps(
            [{"Id": HAPROXY, "Names": 5, "Labels": [], "NetworkSettings": {"Networks": {"a": 1}}}]
        ).encode(),
        id="odd-types",
    ),
]


@pytest.mark.parametrize("body", GARBAGE)
def test_an_answer_without_sense_does_no_harm(body, table, engine, clock, caplog) -> None:
    """The table stays usable and learns the rest when the engine makes sense again."""
    caplog.set_level(logging.CRITICAL)
    engine.garbage = body
    table.get(HAPROXY)
    table.wait(5)
    assert table.get(HAPROXY) == Container(id=HAPROXY)

    engine.garbage = None
    clock.now += 11
    table.get(HAPROXY)
    table.wait(5)
    assert table.get(HAPROXY).name == "haproxy-demo"


def test_a_socket_that_nobody_serves_is_told_once(tmp_path, counters, caplog, clock) -> None:
    """A state change, not a line per transaction; what cannot be asked is counted."""
    (tmp_path / "docker.sock").write_bytes(b"")
    table = ContainerTable(tmp_path / "docker.sock", counters, clock=clock)
    for _ in range(3):
        table.get(HAPROXY)
        table.wait(5)
        clock.now += 11
    table.close()

    (record,) = caplog.records
    assert "cannot be asked" in record.message
    assert counters.total("otel_qtap.container.requests_failed") == 3


def test_an_engine_that_hangs_keeps_nobody_waiting(table, engine) -> None:
    """The question is open; the answer is the id."""
    release = threading.Event()
    engine.answer = lambda _: (release.wait(10), (200, []))[1]
    started = time.monotonic()
    table.get(HAPROXY)
    for _ in range(1000):
        assert table.get(HAPROXY) == Container(id=HAPROXY)
    assert time.monotonic() - started < 1.0
    release.set()
    table.wait(5)
