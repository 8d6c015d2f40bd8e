"""Facts about processes: right, small, and there when the process is gone already."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time

import pytest

from otel_qtap.connection.model import Process
from otel_qtap.connection.process import ProcessTable
from otel_qtap.events import ProcessEvent, ProcessStep

CONTAINER = "4f" * 32
HERTZ = os.sysconf("SC_CLK_TCK")
BOOT_TIME = 1_700_000_000


class FakeProc:
    """A folder that looks like ``/proc``."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "stat").write_text(f"cpu 1 2 3\nbtime {BOOT_TIME}\nprocesses 5\n")

    def start(
        self,
        pid,
        *,
        exe="/usr/sbin/haproxy",
        comm=b"haproxy",
        ticks=100,
        arguments=b"haproxy\0-f\0/etc/haproxy.cfg\0",
        environment=b"",
        user_id=0,
        cgroup="0::/\n",
        mounts="",
        root="/",
    ):
        process = self.folder / str(pid)
        process.mkdir()
        fields = b" ".join([b"S", *[b"0"] * 18, str(ticks).encode(), b"0", b"0"])
        (process / "stat").write_bytes(b"%d (%s) %s\n" % (pid, comm, fields))
        (process / "status").write_text(f"Name:\tx\nUid:\t7\t{user_id}\t8\t9\n")
        (process / "cmdline").write_bytes(arguments)
        (process / "environ").write_bytes(environment)
        (process / "cgroup").write_text(cgroup)
        (process / "mountinfo").write_text(mounts)
        (process / "exe").symlink_to(exe)
        (process / "root").symlink_to(root)

    def end(self, pid):
        (self.folder / str(pid)).rename(self.folder / f"gone-{pid}-{time.monotonic_ns()}")


@pytest.fixture
def proc(tmp_path):
    folder = tmp_path / "proc"
    folder.mkdir()
    return FakeProc(folder)


@pytest.fixture
def table(proc, counters):
    return ProcessTable(proc=proc.folder, counters=counters)


def event(step, pid, *, parent=0, executable=""):
    return ProcessEvent(1, pid, step, parent, executable)


def test_a_process_has_its_facts(proc, table) -> None:
    """Program, command line, start, effective user, container and the named variables only."""
    proc.start(
        42,
        ticks=5 * HERTZ,
        environment=b"PATH=/bin\0OTEL_SERVICE_NAME=edge\0DB_PASSWORD=s3cr3t\0QPOINT_TAGS=a:b\0",
        cgroup=f"0::/system.slice/docker-{CONTAINER}.scope\n",
    )

    process = table.get(42)

    assert process == Process(
        pid=42,
        start_time_ns=(BOOT_TIME + 5) * 1_000_000_000,
        executable="/usr/sbin/haproxy",
        arguments=("haproxy", "-f", "/etc/haproxy.cfg"),
        user_id=0,
        user=pwd.getpwuid(0).pw_name,
        container_id=CONTAINER,
        environment=(("OTEL_SERVICE_NAME", "edge"), ("QPOINT_TAGS", "a:b")),
    )


def test_the_real_proc_is_read_the_same_way(counters) -> None:
    """This test's own process, and a child of it, as the kernel describes them."""
    environment = {"OTEL_SERVICE_NAME": "child", "SECRET": "s3cr3t"}
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "an argument"],
        stdin=subprocess.PIPE,
        env=environment,
    ) as child:
        table = ProcessTable(counters=counters)
        deadline = time.monotonic() + 10
        while table.get(child.pid).environment == () and time.monotonic() < deadline:
            table.consume(event(ProcessStep.EXECUTED, child.pid))
        process = table.get(child.pid)
        child.communicate(b"\n")

    assert process.executable == os.path.realpath(sys.executable)
    assert process.arguments[-1] == "an argument"
    assert process.environment == (("OTEL_SERVICE_NAME", "child"),)
    assert process.user_id == os.geteuid()
    assert abs(process.start_time_ns - time.time_ns()) < 60 * 10**9


def test_a_known_process_is_not_read_again(proc, table) -> None:
    """The same object, whatever ``/proc`` says by now."""
    proc.start(42)
    process = table.get(42)
    proc.end(42)

    assert table.get(42) is process
    assert table.snapshot(42) is process


HOSTILE = [
    pytest.param({"comm": b") S 1 (x y\n) ("}, {}, id="comm-with-parentheses"),
    pytest.param({"comm": b"\xff\xfe"}, {}, id="comm-not-utf8"),
    pytest.param(
        {"arguments": b"a\nb\0\xff\0\0last\0"},
        {"arguments": ("a\nb", "�", "", "last")},
        id="odd-arguments",
    ),
    pytest.param({"arguments": b""}, {"arguments": ()}, id="no-arguments"),
    pytest.param({"arguments": b"x" * 10**6}, {"arguments": ("x" * 4096,)}, id="huge-arguments"),
    pytest.param({"arguments": b"x\0" * 2000}, {"arguments": ("x",) * 64}, id="many-arguments"),
    pytest.param({"exe": "/tmp/x (deleted)"}, {"executable": "/tmp/x"}, id="deleted"),  # noqa: S108  # no file is made
    pytest.param({"exe": b"/opt/\xff"}, {"executable": "/opt/�"}, id="executable-not-utf8"),
    pytest.param(
        {"exe": "/srv/jail/usr/sbin/haproxy", "root": "/srv/jail"},
        {"executable": "/usr/sbin/haproxy"},
        id="started-in-a-changed-root",
    ),
    pytest.param({"root": "/var/lib/haproxy"}, {"executable": "/usr/sbin/haproxy"}, id="chroot"),
    pytest.param({"user_id": 3999999999}, {"user": "3999999999"}, id="user-without-name"),
    pytest.param(
        {"environment": b"OTEL_SERVICE_NAME=a\0OTEL_SERVICE_NAME=b\0=\0\0X"},
        {"environment": (("OTEL_SERVICE_NAME", "a"),)},
        id="variable-twice",
    ),
    pytest.param(
        {"environment": b"OTEL_RESOURCE_ATTRIBUTES=" + b"a" * 9000},
        {"environment": ()},
        id="variable-too-long",
    ),
    pytest.param(
        {
            "mounts": f"1 2 0:3 /overlay2/{'ee' * 32}/merged /var/lib/docker/x rw - x\n"
            f"1 2 8:1 /var/lib/docker/containers/{CONTAINER}/hostname /etc/hostname rw - x\n"
        },
        {"container_id": CONTAINER},
        id="container-by-mounts",
    ),
]


@pytest.mark.parametrize(("written", "expected"), HOSTILE)
def test_what_a_process_controls_cannot_do_harm(written, expected, proc, table) -> None:
    """Odd bytes and sizes are cut or replaced; the rest stays right; all text can be encoded."""
    proc.start(42, **written)

    process = table.get(42)

    assert process.start_time_ns == BOOT_TIME * 10**9 + 100 * 10**9 // HERTZ
    for name, value in expected.items():
        assert getattr(process, name) == value
    repr(process).encode()
    "".join(process.arguments).encode()


@pytest.mark.parametrize("name", ["stat", "status", "cmdline", "environ", "cgroup", "exe", "root"])
def test_a_file_that_is_gone_costs_no_more_than_its_facts(name, proc, table) -> None:
    """A race with the end of the process, or a lack of rights."""
    proc.start(42, ticks=HERTZ)
    (proc.folder / "42" / name).unlink()

    process = table.get(42)

    assert process.pid == 42
    assert process.executable == ("" if name == "exe" else "/usr/sbin/haproxy")


def test_a_process_that_nobody_knows_has_its_id(table, counters) -> None:
    """It is counted once, however often it is asked for."""
    assert [table.get(7).name for _ in range(3)] == ["unknown"] * 3
    assert table.get(7) == Process(pid=7)
    assert counters.value("otel_qtap.process.gone") == 1


def test_a_process_gone_before_it_was_asked_has_the_path_of_its_program(table) -> None:
    """A health-check script, say: it lives for milliseconds."""
    table.consume(event(ProcessStep.EXECUTED, 42, executable="/usr/bin/curl"))

    assert table.get(42) == Process(pid=42, executable="/usr/bin/curl")


def test_a_forked_process_gone_before_it_was_asked_resembles_its_parent(proc, table) -> None:
    """A worker runs the program of its master, in the same container."""
    proc.start(42, cgroup=f"0::/docker/{CONTAINER}\n")
    table.get(42)
    table.consume(event(ProcessStep.FORKED, 43, parent=42))

    worker = table.get(43)

    assert (worker.pid, worker.start_time_ns) == (43, 0)
    assert (worker.executable, worker.container_id) == ("/usr/sbin/haproxy", CONTAINER)


def test_a_grandchild_resembles_a_program_that_nobody_has_asked_about(table) -> None:
    """A server that forks for each connection: parent and child are known from events alone."""
    table.consume(event(ProcessStep.EXECUTED, 42, executable="/usr/sbin/prefork"))
    table.consume(event(ProcessStep.FORKED, 43, parent=42))
    table.consume(event(ProcessStep.FORKED, 44, parent=43))

    assert table.get(44) == Process(pid=44, executable="/usr/sbin/prefork")


@pytest.mark.parametrize("step", [ProcessStep.EXECUTED, ProcessStep.FORKED])
def test_a_new_program_or_process_is_asked_anew(step, proc, table) -> None:
    """What was known belongs to the program or to the process before it."""
    proc.start(42, exe="/bin/sh")
    assert table.get(42).name == "sh"
    proc.end(42)
    proc.start(42, exe="/usr/sbin/haproxy")

    table.consume(event(step, 42))

    assert table.get(42).name == "haproxy"


def test_an_ended_process_is_known_for_a_while(proc, table) -> None:
    """Its last data may arrive after the news of its end."""
    proc.start(42)
    process = table.get(42)
    proc.end(42)
    table.consume(event(ProcessStep.EXITED, 42))

    assert table.get(42) is process
    table.consume(event(ProcessStep.FORKED, 42))
    assert table.get(42).executable == ""


def test_an_ended_process_gives_way_to_another_start_time(proc, table) -> None:
    """Also when the news of the new process was lost."""
    proc.start(42, ticks=100)
    process = table.get(42)
    table.consume(event(ProcessStep.EXITED, 42))
    assert table.get(42) is process  # a zombie is still the same process
    proc.end(42)
    proc.start(42, ticks=900, exe="/usr/bin/curl")

    assert table.get(42).name == "curl"


def test_an_unknown_process_gives_way_to_one_that_is_there(proc, table) -> None:
    """Its id may be taken by a process whose start nobody saw."""
    assert table.get(42).executable == ""
    proc.start(42)

    assert table.get(42).name == "haproxy"


def test_the_table_keeps_within_its_bound(proc, counters) -> None:
    """The oldest goes first and is simply read again; the loss is counted."""
    table = ProcessTable(proc=proc.folder, counters=counters, capacity=8)
    for pid in range(1, 21):
        proc.start(pid)
        table.get(pid)
        table.consume(event(ProcessStep.FORKED, 1000 + pid, parent=pid))
    assert counters.value("otel_qtap.process.evicted") == 12
    assert table.snapshot(1) is None
    assert table.get(1).name == "haproxy"

    for pid in range(13, 21):
        table.consume(event(ProcessStep.EXITED, pid))
    assert [table.snapshot(pid) is not None for pid in range(13, 21)].count(True) <= 2


def test_a_recording_fills_the_table_without_proc(tmp_path, counters) -> None:
    """A replay on another machine knows what the recorder knew, and nothing of that machine."""
    table = ProcessTable(proc=tmp_path / "nothing", counters=counters)
    recorded = Process(pid=os.getpid(), start_time_ns=5, executable="/usr/sbin/haproxy")

    table.add(recorded)

    assert table.get(os.getpid()) is recorded
    table.consume(event(ProcessStep.EXITED, os.getpid()))
    assert table.get(os.getpid()) is recorded
