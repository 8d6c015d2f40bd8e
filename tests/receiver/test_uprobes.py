"""Probes are put where they do no harm, and are gone again when one cannot be put."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from otel_qtap.receiver import uprobes
from otel_qtap.receiver.programs import MachineError
from otel_qtap.receiver.uprobes import ProbePlace, attach, may_probe_returns, stream_places

HAPROXY = Path("/proc/5/fd/6")


@pytest.mark.parametrize(
    ("kernel", "machine", "may"),
    [
        ((5, 10), "x86_64", True),
        ((6, 10), "x86_64", True),
        ((6, 11), "x86_64", False),
        ((7, 0), "x86_64", False),
        ((6, 18), "aarch64", True),
    ],
)
def test_a_return_is_left_alone_where_a_probe_on_it_calls_the_kernel(kernel, machine, may) -> None:
    """A seccomp filter that does not know the call would end HAProxy."""
    assert may_probe_returns(kernel, machine) is may


@pytest.mark.parametrize(
    ("may", "leaving_poll", "programs"),
    [
        (True, 3, ["on_stream_free", "on_process_stream_return", "on_process_stream"]),
        (True, 0, ["on_stream_free", "on_process_stream_return", "on_process_stream"]),
        (False, 3, ["on_stream_free", "on_process_stream_return", "on_process_stream_called"]),
        (False, 0, []),
    ],
)
def test_what_ends_a_call_is_there_before_what_begins_one(may, leaving_poll, programs) -> None:
    """On the return, or where each thread comes by afterwards; without that, nowhere."""
    places = stream_places(HAPROXY, 1, 2, leaving_poll, may_probe_returns=may)

    assert [program for program, _ in places] == programs
    assert [place.is_return for _, place in places] == [False, may, False][: len(places)]
    end = 1 if may else 3
    assert [place.offset for _, place in places] == [2, end, 1][: len(places)]


class Kernel:
    """perf_event_open(2) and ioctl(2)."""

    def __init__(self) -> None:
        self.opened: list[tuple[int, ...]] = []
        self.paths: list[bytes] = []
        self.told: list[tuple[int, int, int]] = []
        self.refuses_at = 10

    def syscall(self, _number: int, attributes: bytes, *rest: int) -> int:
        kind, size, config, period, *_, path, offset = struct.unpack("<IIQQQQQIIQQ", attributes)
        self.opened.append((kind, size, config, period, offset, *rest))
        self.paths.append(ctypes.string_at(path))
        if len(self.opened) == self.refuses_at:
            ctypes.set_errno(errno.ENOENT)
            return -1
        return os.open("/dev/null", os.O_RDONLY)

    def ioctl(self, descriptor: int, request: int, argument: int) -> int:
        self.told.append((descriptor, request, argument))
        return 0


@pytest.fixture
def kernel(monkeypatch, tmp_path) -> Kernel:
    """A kernel that takes probes."""
    fake = Kernel()
    (tmp_path / "type").write_text("9\n")
    monkeypatch.setattr(uprobes, "_PMU", tmp_path / "type")
    monkeypatch.setattr(uprobes, "_libc", fake)
    monkeypatch.setattr(fcntl, "ioctl", fake.ioctl)
    return fake


_PLACES = [
    ProbePlace("entry", Path("/opt/\udcff/haproxy"), 0x1004),
    ProbePlace("return", Path("/opt/\udcff/haproxy"), 0x1004, is_return=True),
]


def test_probes_are_attached_by_the_offset_in_the_file(kernel) -> None:
    """For all processes that run it; each with the program that came for it."""
    attached = attach(_PLACES, [50, 51])

    every_process, processor, group, close_on_exec = -1, 0, -1, 8
    rest = (0x1004, every_process, processor, group, close_on_exec)
    assert kernel.opened == [(9, 72, 0, 1, *rest), (9, 72, 1, 1, *rest)]
    assert kernel.paths == [b"/opt/\xff/haproxy"] * 2
    entry, end = attached["entry"], attached["return"]
    bpf, enable = 0x40042408, 0x2400
    assert kernel.told == [(entry, bpf, 50), (entry, enable, 0), (end, bpf, 51), (end, enable, 0)]
    for descriptor in attached.values():
        os.close(descriptor)


def test_a_probe_that_cannot_be_attached_is_named(kernel) -> None:
    """And none stays behind: half of them would tell nonsense."""
    kernel.refuses_at = 2

    with pytest.raises(MachineError, match="cannot attach to return: No such file or directory"):
        attach(_PLACES, [50, 51])

    (first, *_) = {descriptor for descriptor, _, _ in kernel.told}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)


def test_a_kernel_without_probes_is_no_reason_to_fail(kernel, tmp_path) -> None:
    """The agent goes on without."""
    (tmp_path / "type").unlink()

    with pytest.raises(MachineError, match="cannot attach to entry"):
        attach(_PLACES, [50, 51])
    assert not kernel.opened
