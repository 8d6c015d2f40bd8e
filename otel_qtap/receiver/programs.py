"""
What the loader is asked to load: the source of ``bpf/``, its constants, its hooks.

Two rungs do the same job and emit the same records; the first that the kernel can
carry is taken, and either can be asked for by name.
"""

from __future__ import annotations

import importlib.resources
import os
import platform
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from otel_qtap.receiver.btf import KernelTypes

__all__ = [
    "LOG_HOOK",
    "PROBES",
    "Hook",
    "LoadRequest",
    "MachineError",
    "Rung",
    "bpf_directory",
    "load_request",
]

CONNECTION_ENTRIES = 65536
"""Sockets the kernel side can keep in view at once; 8 MB of kernel memory."""


PROBES = (
    "on_process_stream", "on_process_stream_return", "on_process_stream_called", "on_stream_free",
)  # fmt: skip


class MachineError(Exception):
    """This machine cannot run the agent as asked; the text says why and what to do."""


class Rung(Enum):
    """A way to see the bytes of a socket."""

    SOCKETS = "sockets"
    """``sock:sock_send_length``, ``sock:sock_recv_length``: kernel 6.3 and later."""
    SYSCALLS = "syscalls"
    """Entry and exit of each system call that moves bytes: kernel 5.10 and later."""

    @property
    def oldest_kernel(self) -> tuple[int, int]:
        """The first kernel release that has what this rung needs."""
        return (6, 3) if self is Rung.SOCKETS else (5, 10)


@dataclass(frozen=True, slots=True)
class Hook:
    """A program and the tracepoint it is attached to."""

    function: str
    tracepoint: str
    """``name`` for a raw tracepoint, ``category:name`` for an ordinary one."""

    @property
    def is_raw(self) -> bool:
        """Whether it is attached without the tracing file system."""
        return ":" not in self.tracepoint


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """All that the loader process needs to know."""

    source: str
    flags: tuple[str, ...]
    include_directory: str
    hooks: tuple[Hook, ...]
    maps: tuple[str, ...]
    probes: tuple[str, ...] = PROBES
    """Programs that are loaded, to be attached to functions of HAProxy if it comes to that."""
    idle_hooks: tuple[Hook, ...] = ()
    """Hooks that are loaded, to be attached to their tracepoints if it comes to that."""


_MAPS = (
    "records", "connections", "excluded", "settings_map", "lost", "layouts", "haproxies",
)  # fmt: skip

_COMMON_HOOKS = (
    Hook("on_state_change", "inet_sock_set_state"),
    Hook("on_destroy", "tcp_destroy_sock"),
    Hook("on_execute", "sched_process_exec"),
    Hook("on_fork", "sched_process_fork"),
    Hook("on_exit", "sched_process_exit"),
)

_DATA_CALLS = (
    "read", "readv", "recvfrom", "recvmsg", "write", "writev", "sendto", "sendmsg",
    "sendfile64", "splice",
)  # fmt: skip

_HOOKS = {
    Rung.SOCKETS: (
        *_COMMON_HOOKS,
        Hook("on_send", "sock_send_length"),
        Hook("on_receive", "sock_recv_length"),
    ),
    Rung.SYSCALLS: (
        *_COMMON_HOOKS,
        # Exits first: an entry without its exit would leave something behind.
        *(Hook("on_syscall_exit", f"syscalls:sys_exit_{call}") for call in _DATA_CALLS),
        *(
            Hook(
                "on_recvfrom_enter" if call == "recvfrom" else "on_syscall_enter",
                f"syscalls:sys_enter_{call}",
            )
            for call in _DATA_CALLS
        ),
    ),
}

LOG_HOOK = Hook("on_log_write", "syscalls:sys_enter_writev")
"""
HAProxy writes its log to stdout or stderr.

Attached on demand: the tracepoint of one system call costs every system call of the machine.
The second rung pays that price anyway and needs no hook for it.
"""

_OFFSETS = {
    "OFF_SKC_DADDR": "sock_common.skc_daddr",
    "OFF_SKC_RCV_SADDR": "sock_common.skc_rcv_saddr",
    "OFF_SKC_DPORT": "sock_common.skc_dport",
    "OFF_SKC_NUM": "sock_common.skc_num",
    "OFF_SKC_FAMILY": "sock_common.skc_family",
    "OFF_SKC_V6_DADDR": "sock_common.skc_v6_daddr",
    "OFF_SKC_V6_RCV_SADDR": "sock_common.skc_v6_rcv_saddr",
    "OFF_SK_PROTOCOL": "sock.sk_protocol",
    "OFF_SK_ERR": "sock.sk_err",
    "OFF_TASK_PID": "task_struct.pid",
    "OFF_TASK_TGID": "task_struct.tgid",
    "OFF_SKC_NET": "sock_common.skc_net",
    "OFF_NET_INUM": "net.ns.inum",
    "OFF_BPRM_FILENAME": "linux_binprm.filename",
}
# Where a thread keeps the address of its thread-local variables.
_THREAD_POINTERS = {
    "x86_64": "task_struct.thread.fsbase",
    "aarch64": "task_struct.thread.uw.tp_value",
}
_SYSCALL_OFFSETS = {
    "OFF_TASK_FILES": "task_struct.files",
    "OFF_FILES_FDT": "files_struct.fdt",
    "OFF_FDT_FD": "fdtable.fd",
    "OFF_FDT_MAX_FDS": "fdtable.max_fds",
    "OFF_FILE_INODE": "file.f_inode",
    "OFF_INODE_MODE": "inode.i_mode",
    "OFF_FILE_PRIVATE_DATA": "file.private_data",
    "OFF_SOCKET_SK": "socket.sk",
}
_START_FIELDS = {"OFF_SKC_DADDR": 4, "OFF_SKC_RCV_SADDR": 4, "OFF_SKC_DPORT": 2, "OFF_SKC_NUM": 2,
                 "OFF_SKC_FAMILY": 2}  # fmt: skip
_START_LIMIT = 64  # what fits on the stack of a BPF program with room to spare

_INCLUDE = re.compile(r'^#include "([a-z_]+\.h)"$', re.MULTILINE)


def bpf_directory() -> Path:
    """Return the folder of the C sources: beside the package in a checkout, else inside it."""
    package = Path(str(importlib.resources.files("otel_qtap")))
    checkout = package.parent / "bpf"
    return checkout if (checkout / "tap.bpf.c").is_file() else package / "bpf"


def load_request(rung: Rung, types: KernelTypes, ring_bytes: int) -> LoadRequest:
    """
    Describe what to load on the running kernel.

    ``ring_bytes`` is a power of two, at least one page. Raises ``BtfError`` if the
    kernel lacks a field.
    """
    names = _OFFSETS | (_SYSCALL_OFFSETS if rung is Rung.SYSCALLS else {})
    offsets = {name: types.offset(path) for name, path in names.items()}
    thread_pointer = _THREAD_POINTERS.get(platform.machine(), _THREAD_POINTERS["x86_64"])
    offsets["OFF_TASK_THREAD_POINTER"] = types.offset(thread_pointer)
    start_bytes = max(offsets[name] + size for name, size in _START_FIELDS.items())
    if start_bytes > _START_LIMIT:
        raise MachineError(
            f"this kernel keeps the addresses of a socket at offset {start_bytes} of struct "
            "sock_common, farther than this version reads; please report the kernel release"
        )
    constants = offsets | {
        "SOCK_START_BYTES": (start_bytes + 7) // 8 * 8,
        "RING_PAGES": ring_bytes // os.sysconf("SC_PAGESIZE"),
        "CONNECTION_ENTRIES": CONNECTION_ENTRIES,
    }
    flags = [f"-D{name}={value}" for name, value in sorted(constants.items())]
    if rung is Rung.SYSCALLS:
        flags.append("-DRUNG_SYSCALLS=1")
    directory = bpf_directory()
    return LoadRequest(
        source=_expand(directory, "tap.bpf.c"),
        flags=(*flags, "-Wno-unused-function", "-Wno-macro-redefined"),
        include_directory=str(directory),
        hooks=_HOOKS[rung],
        maps=_MAPS,
        idle_hooks=(LOG_HOOK,) if rung is Rung.SOCKETS else (),
    )


def _expand(directory: Path, name: str) -> str:
    """
    Return a source file with our own headers in place of their ``#include`` lines.

    bcc rewrites map accesses only in the text it is given, not in what that includes.
    """

    def replace(match: re.Match[str]) -> str:
        return _expand(directory, match[1])

    return _INCLUDE.sub(replace, (directory / name).read_text(encoding="utf-8"))
