"""What the loader is asked to load, for either rung."""

from __future__ import annotations

import os
import re

import pytest

from otel_qtap.receiver.btf import BtfError
from otel_qtap.receiver.programs import (
    LoadRequest,
    MachineError,
    Rung,
    bpf_directory,
    load_request,
)


class Types:
    """A kernel in which every field lies at the same offset, or at one given for it."""

    def __init__(self, **offsets: int) -> None:
        self._offsets = offsets
        self.asked: set[str] = set()

    def offset(self, path: str) -> int:
        self.asked.add(path)
        return self._offsets.get(path.rpartition(".")[2], 8)


def _request(rung: Rung, ring_bytes: int = 1 << 20, **offsets: int) -> LoadRequest:
    return load_request(rung, Types(**offsets), ring_bytes)


def _constants(request: LoadRequest) -> dict[str, int]:
    return {n: int(v) for n, v in re.findall(r"-D(\w+)=(\d+)", " ".join(request.flags))}


@pytest.mark.parametrize("rung", list(Rung))
def test_the_source_stands_for_itself(rung) -> None:
    """bcc rewrites only the text it is given, so no header of ours may be left out of it."""
    source = _request(rung).source

    assert '#include "' not in source
    assert "on_transfer" in source
    assert source.count("enum protocol detect_protocol(") == 0 or "detect_protocol" in source


@pytest.mark.parametrize("rung", list(Rung))
def test_every_constant_that_the_programs_use_is_given(rung) -> None:
    """A missing one would be a compiler's message on somebody's machine."""
    request = _request(rung)
    used = set(re.findall(r"\bOFF_[A-Z0-9_]+\b", request.source))
    if rung is Rung.SOCKETS:
        # The other rung's header is in the text as well, behind an #ifdef.
        headers = (
            "sock.h", "haproxy.h", "connection.h", "data.h", "log.h", "sockets.h", "process.h",
        )  # fmt: skip
        own = "".join((bpf_directory() / name).read_text() for name in headers)
        used = set(re.findall(r"\bOFF_[A-Z0-9_]+\b", own))

    assert used <= set(_constants(request))
    assert {"SOCK_START_BYTES", "RING_PAGES", "CONNECTION_ENTRIES"} <= set(_constants(request))
    assert "OFF_TASK_THREAD_POINTER" in used


@pytest.mark.parametrize("rung", list(Rung))
def test_every_hook_has_its_program(rung) -> None:
    """By the name it has in the source, and each tracepoint once."""
    request = _request(rung)

    for hook in request.hooks:
        assert re.search(rf"^int {hook.function}\(", request.source, re.MULTILINE)
    tracepoints = [hook.tracepoint for hook in request.hooks]
    assert len(tracepoints) == len(set(tracepoints))


@pytest.mark.parametrize("rung", list(Rung))
def test_probes_are_programs_too(rung) -> None:
    """Loaded with the rest, because the compiler is gone by the time that one is wanted."""
    request = _request(rung)

    assert len(request.probes) == 4
    for function in request.probes:
        assert re.search(rf"^int {function}\(struct pt_regs ", request.source, re.MULTILINE)
        assert function not in {hook.function for hook in request.hooks}


@pytest.mark.parametrize(
    ("machine", "field"),
    [
        ("x86_64", "task_struct.thread.fsbase"),
        ("aarch64", "task_struct.thread.uw.tp_value"),
    ],
)
def test_the_thread_pointer_is_where_the_architecture_keeps_it(monkeypatch, machine, field) -> None:
    """Thread-local variables of HAProxy are found from there."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    types = Types(**{field.rpartition(".")[2]: 0x1234})

    request = load_request(Rung.SOCKETS, types, 1 << 20)

    assert _constants(request)["OFF_TASK_THREAD_POINTER"] == 0x1234
    assert field in types.asked


@pytest.mark.parametrize("rung", list(Rung))
def test_every_map_is_declared(rung) -> None:
    """Under the name that the agent asks for."""
    request = _request(rung)

    for name in request.maps:
        assert re.search(rf"^BPF_\w+\({name}\b", request.source, re.MULTILINE)


def test_the_first_rung_needs_no_tracing_file_system() -> None:
    """Two programs for data, all of them on raw tracepoints."""
    hooks = _request(Rung.SOCKETS).hooks

    assert all(hook.is_raw for hook in hooks)
    assert {h.tracepoint for h in hooks} >= {"sock_send_length", "sock_recv_length"}


def test_no_system_call_is_watched_by_the_first_rung_from_the_start() -> None:
    """The one for HAProxy's stdout is loaded to be attached when it is needed."""
    request = _request(Rung.SOCKETS)

    assert [hook.tracepoint for hook in request.idle_hooks] == ["syscalls:sys_enter_writev"]
    assert re.search(rf"^int {request.idle_hooks[0].function}\(", request.source, re.MULTILINE)
    assert not _request(Rung.SYSCALLS).idle_hooks


def test_the_second_rung_sees_entry_and_exit_of_each_call() -> None:
    """Exits are attached first: an entry without an exit would leave something behind."""
    request = _request(Rung.SYSCALLS)
    calls = [hook.tracepoint for hook in request.hooks if not hook.is_raw]
    exits = [c.removeprefix("syscalls:sys_exit_") for c in calls if "sys_exit" in c]
    entries = [c.removeprefix("syscalls:sys_enter_") for c in calls if "sys_enter" in c]

    assert sorted(exits) == sorted(entries)
    assert {"read", "write", "recvfrom", "sendto", "recvmsg", "sendmsg", "readv", "writev"} <= set(
        entries
    )
    assert calls.index(f"syscalls:sys_exit_{exits[-1]}") < calls.index(
        f"syscalls:sys_enter_{entries[0]}"
    )
    assert "-DRUNG_SYSCALLS=1" in request.flags
    assert "-DRUNG_SYSCALLS=1" not in _request(Rung.SOCKETS).flags


def test_the_first_rung_does_not_ask_for_fields_it_does_not_use() -> None:
    """A kernel that lacks one of the other rung's can still be captured."""
    types = Types()
    load_request(Rung.SOCKETS, types, 1 << 20)
    others = Types()
    load_request(Rung.SYSCALLS, others, 1 << 20)

    assert types.asked < others.asked
    assert not any(path.startswith(("file", "inode", "fdtable")) for path in types.asked)


def test_the_ring_is_counted_in_pages() -> None:
    """As the kernel's macro wants it."""
    constants = _constants(_request(Rung.SOCKETS, ring_bytes=1 << 22))
    assert constants["RING_PAGES"] == (1 << 22) // os.sysconf("SC_PAGESIZE")


def test_one_read_brings_the_addresses() -> None:
    """As many bytes as reach the last of the fields, in steps of eight."""
    places = {"skc_daddr": 0, "skc_rcv_saddr": 4, "skc_dport": 12, "skc_num": 14, "skc_family": 16}
    assert _constants(_request(Rung.SOCKETS, **places))["SOCK_START_BYTES"] == 24


def test_a_kernel_with_another_layout_is_refused() -> None:
    """Rather than read past the stack of a program."""
    with pytest.raises(MachineError, match="at offset 102 of struct sock_common"):
        _request(Rung.SOCKETS, skc_family=100)


def test_a_kernel_that_lacks_a_field_says_which() -> None:
    """The message of the type information comes through."""

    class Poor(Types):
        def offset(self, path: str) -> int:
            raise BtfError(f"this kernel has no {path}")

    with pytest.raises(BtfError, match="this kernel has no "):
        load_request(Rung.SOCKETS, Poor(), 1 << 20)


def test_rungs_know_their_oldest_kernel() -> None:
    """What the README says."""
    assert Rung("sockets").oldest_kernel == (6, 3)
    assert Rung("syscalls").oldest_kernel == (5, 10)


def test_the_stand_in_headers_are_beside_the_programs() -> None:
    """Most hosts have no kernel headers."""
    request = _request(Rung.SOCKETS)
    for name in re.findall(r"^#include <(.+)>$", request.source, re.MULTILINE):
        assert (bpf_directory() / "include" / name).is_file()
    assert request.include_directory == str(bpf_directory())
