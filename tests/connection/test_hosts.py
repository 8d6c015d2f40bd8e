"""Names of addresses come from the hosts file that the process itself sees."""

from __future__ import annotations

import os

import pytest

from otel_qtap.connection.hosts import HostNames

HOSTS = b"""\
127.0.0.1\tlocalhost
10.0.0.5   api-1.internal  api-1   # the first one
10.0.0.5   later
fd00::5    api-6
FD00:0:0::6 api-7
10.0.0.7
# 10.0.0.8 commented
10.0.0.9#x
not-an-address name
10.0.0.10 bad\x1b[31mname
10.0.0.11 \xff\xfe
"""


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(tmp_path):
    """``start(pid, hosts, parent=…, namespace=…)`` makes ``proc/PID`` with a root directory."""

    def start_process(pid, hosts=None, *, parent=0, namespace="mnt:[1]"):
        process = tmp_path / "proc" / str(pid)
        (process / "ns").mkdir(parents=True)
        (process / "ns" / "mnt").symlink_to(namespace)
        (process / "stat").write_bytes(b"%d (a) b) S %d 0 0\n" % (pid, parent))
        etc = process / "root" / "etc"
        etc.mkdir(parents=True)
        if hosts is not None:
            (etc / "hosts").write_bytes(hosts)
        return etc / "hosts"

    return start_process


@pytest.fixture
def names(tmp_path, clock):
    return HostNames(tmp_path / "proc", clock=clock)


ADDRESSES = [
    pytest.param("127.0.0.1", "localhost", id="loopback-when-listed"),
    pytest.param("::1", "", id="loopback-when-not-listed"),
    pytest.param("10.0.0.5", "api-1.internal", id="first-name-of-first-line"),
    pytest.param("fd00::5", "api-6", id="ipv6"),
    pytest.param("fd00::6", "api-7", id="ipv6-spelled-otherwise"),
    pytest.param("10.0.0.7", "", id="no-name"),
    pytest.param("10.0.0.8", "", id="comment"),
    pytest.param("10.0.0.9", "", id="comment-without-space"),
    pytest.param("10.0.0.10", "", id="control-characters"),
    pytest.param("10.0.0.11", "", id="not-text"),
    pytest.param("10.9.9.9", "", id="unknown"),
    pytest.param("", "", id="nothing"),
]


@pytest.mark.parametrize(("address", "name"), ADDRESSES)
def test_an_address_has_the_first_name_of_its_first_line(address, name, start, names) -> None:
    """As the resolver of the process would say; names that are none are left out."""
    start(42, HOSTS)

    assert names.name_of(42, address) == name


def test_each_process_has_its_own_names(start, names) -> None:
    """Containers do not share a hosts file."""
    start(42, b"10.0.0.1 a\n")
    start(43, b"10.0.0.1 b\n", namespace="mnt:[2]")

    assert (names.name_of(42, "10.0.0.1"), names.name_of(43, "10.0.0.1")) == ("a", "b")


def test_a_changed_file_is_seen_within_a_second(start, names, clock) -> None:
    """And not looked at more often than that."""
    hosts = start(42, b"10.0.0.1 old\n")
    assert names.name_of(42, "10.0.0.1") == "old"
    hosts.write_bytes(b"10.0.0.1 newer\n")

    assert names.name_of(42, "10.0.0.1") == "old"
    clock.now += 1.0
    assert names.name_of(42, "10.0.0.1") == "newer"


def test_an_unchanged_file_is_not_read_again(start, names, clock, monkeypatch) -> None:
    """Its modification time says that nothing is new."""
    start(42, b"10.0.0.1 a\n")
    names.name_of(42, "10.0.0.1")
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("was read again"))
    clock.now += 1.0

    assert names.name_of(42, "10.0.0.1") == "a"


def test_a_process_that_changed_its_root_has_the_names_of_its_parent(start, names) -> None:
    """HAProxy reads its hosts file, then goes to an empty root; its master does not."""
    start(41, b"10.0.0.1 api-1\n")
    start(42, parent=41)

    assert names.name_of(42, "10.0.0.1") == "api-1"


def test_without_such_a_parent_init_answers_in_the_same_mount_namespace(start, names) -> None:
    """A process of a container never has the names of the host."""
    start(1, b"10.0.0.1 of-the-host\n")
    start(42)
    start(43, parent=1, namespace="mnt:[2]")

    assert names.name_of(42, "10.0.0.1") == "of-the-host"
    assert names.name_of(43, "10.0.0.1") == ""


def test_a_process_that_is_gone_keeps_the_names_it_had(start, names, clock, tmp_path) -> None:
    """Its last transactions are still to be written; one that nobody knew has none."""
    start(42, b"10.0.0.1 a\n")
    names.name_of(42, "10.0.0.1")
    (tmp_path / "proc" / "42").rename(tmp_path / "gone")
    clock.now += 1.0

    assert names.name_of(42, "10.0.0.1") == "a"
    assert names.name_of(4242, "10.0.0.1") == ""


def test_links_pipes_and_devices_are_not_followed(start, names, tmp_path) -> None:
    """An absolute link in a container's root would lead into the agent's own files."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"10.0.0.1 outside\n")
    start(42).symlink_to(outside)
    os.mkfifo(start(43))
    etc = start(44).parent
    etc.rmdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").write_bytes(b"10.0.0.1 outside\n")
    etc.symlink_to(tmp_path / "etc")

    assert [names.name_of(pid, "10.0.0.1") for pid in (42, 43, 44)] == ["", "", ""]


def test_a_huge_file_is_cut(start, names) -> None:
    """Memory has a bound whatever a container writes."""
    start(42, b"".join(b"10.%d.%d.%d n\n" % (i >> 16, i >> 8 & 255, i & 255) for i in range(20000)))

    assert names.name_of(42, "10.0.0.1") == "n"
    assert names.name_of(42, "10.0.78.31") == ""


def test_the_names_of_this_process_are_those_of_this_host() -> None:
    """Against the real ``/proc`` and the real hosts file."""
    with open("/etc/hosts", encoding="utf-8") as file:  # noqa: PTH123  # as any program does it
        listed = [line.split()[:2] for line in file if line.strip() and not line.startswith("#")]
    address, name = listed[0]

    assert HostNames().name_of(os.getpid(), address) == name
