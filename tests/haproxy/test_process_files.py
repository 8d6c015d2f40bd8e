"""Files are those that the process sees, and never lead out of its root."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from haproxy.processes import FakeProcess, now_ticks

from otel_qtap.haproxy.process_files import ProcessFiles


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


@pytest.fixture
def files(proc):
    return ProcessFiles(proc)


def test_a_process_is_known_by_what_proc_says(proc, files) -> None:
    """Its name may hold brackets and spaces."""
    FakeProcess(proc, 7, "-f", "a b", environment="A=1\0B=2=3\0C\0", own_pid=3, started=123)

    assert files.arguments(7) == ("haproxy", "-f", "a b")
    assert files.environment(7) == {"A": "1", "B": "2=3"}
    assert files.start_ticks(7) == 123
    assert files.own_pid(7) == 3


def test_this_process_is_what_the_machine_says_it_is() -> None:
    """Against the real ``/proc``."""
    files = ProcessFiles()
    pid = os.getpid()

    assert files.own_pid(pid) == pid
    assert files.shares_pids(pid, os.getppid())
    assert 0 < time.time() - files.started_s(pid) < 3600
    assert files.start_ticks(pid) <= now_ticks()
    assert files.read(pid, __file__, 100_000).data == Path(__file__).read_bytes()
    assert "test_process_files.py" in (files.directory(pid, str(Path(__file__).parent)) or [])


def test_paths_begin_at_the_root_or_the_working_directory(proc, files) -> None:
    """As the process itself would open them."""
    process = FakeProcess(proc, 7)
    process.write("etc/a", "absolute")
    process.write("b", "relative")

    assert files.read(7, "/etc/a", 100).data == b"absolute"
    assert files.read(7, "b", 100).data == b"relative"
    assert files.read(7, "./etc/a", 100).data == b"absolute"
    assert files.directory(7, "/etc") == ["a"]
    assert files.directory(7, "b") is None


def test_links_stay_inside(proc, files, tmp_path) -> None:
    """An absolute link of a container means its own root; ``..`` ends there."""
    (tmp_path / "secret").write_text("of the agent")
    process = FakeProcess(proc, 7)
    process.write("secret", "of the container")
    (process.root / "absolute").symlink_to("/secret")
    (process.root / "outside").symlink_to(tmp_path / "secret")
    (process.root / "upwards").symlink_to("../secret")

    assert files.read(7, "/absolute", 100).data == b"of the container"
    assert files.read(7, "/upwards", 100).data == b"of the container"
    assert files.read(7, "/../../secret", 100).data == b"of the container"
    for path in ("/outside", "../secret", "upwards", "absolute"):
        with pytest.raises(OSError):  # noqa: PT011 - missing, or refused as leading outside
            files.read(7, path, 100)


def test_only_regular_files_of_a_bounded_size_are_read(proc, files) -> None:
    """A pipe would wait for a writer that never comes."""
    process = FakeProcess(proc, 7)
    process.write("large", "x" * 101)
    os.mkfifo(process.root / "pipe")
    for path in ("/large", "/pipe", "/", "/missing"):
        with pytest.raises(OSError):  # noqa: PT011 - each has its own
            files.read(7, path, 100)


def test_a_process_in_an_empty_root_has_the_files_of_its_parent(proc, files) -> None:
    """HAProxy with ``chroot``: its master is not in there; nor is an init."""
    FakeProcess(proc, 1, namespace=2).write("etc/a", "of another container")
    FakeProcess(proc, 6).write("etc/a", "of the master")
    FakeProcess(proc, 7, parent=6)
    FakeProcess(proc, 8, parent=1, namespace=3)

    assert files.read(7, "/etc/a", 100).data == b"of the master"
    with pytest.raises(FileNotFoundError):
        files.read(8, "/etc/a", 100)


def test_without_a_master_init_has_them(proc, files) -> None:
    """A daemon of the host itself."""
    FakeProcess(proc, 1).write("etc/a", "of the host")
    FakeProcess(proc, 7, parent=1)

    assert files.read(7, "/etc/a", 100).data == b"of the host"


def test_a_socket_is_reached_however_long_its_path_is(proc, files) -> None:
    """A path in ``sockaddr_un`` has 107 bytes; those of containers are longer."""
    process = FakeProcess(proc, 7)
    directory = process.root / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        at = os.open(directory, os.O_PATH)
        listener.bind(f"/proc/self/fd/{at}/s")
        listener.listen()
        with files.socket_path(7, f"/{'d' * 100}/{'e' * 100}/s") as path:
            client.connect(path)
        os.close(at)
        listener.accept()[0].close()


def test_a_process_that_is_gone_is_an_error(files) -> None:
    """Whoever asks has to expect it."""
    for question in (files.arguments, files.start_ticks, files.own_pid, files.started_s):
        with pytest.raises(FileNotFoundError):
            question(4_000_000)


def test_no_descriptor_is_left_open(proc, files) -> None:
    """Failures included."""
    FakeProcess(proc, 7).write("a", "x")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for path in ("/a", "/missing", "a", "/"):
        for call in (lambda path: files.read(7, path, 10), lambda path: files.directory(7, path)):
            try:
                call(path)
            except OSError:
                continue

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_descriptor_is_known_by_where_it_leads() -> None:
    """Sockets are seen in other ways, and what goes nowhere need not be."""
    reading, writing = os.pipe()
    one, other = socket.socketpair()
    with one, other, Path("/dev/null").open("rb") as null:
        found = [
            ProcessFiles().is_written_to(os.getpid(), each)
            for each in (writing, one.fileno(), null.fileno(), 9999)
        ]
    os.close(reading)
    os.close(writing)

    assert found == [True, False, False, False]
