"""
The agent's side of loading: check the machine, run the loader process, keep what it sends.

Everything that can be wrong with a machine ends here as one ``MachineError``
that says what is missing and what to do.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_qtap.receiver.bcc import receive_message, send_message
from otel_qtap.receiver.btf import BtfError, KernelTypes
from otel_qtap.receiver.programs import Hook, LoadRequest, MachineError, Rung, load_request

__all__ = [
    "LoadedPrograms",
    "attach_hook",
    "choose_rung",
    "kernel_release",
    "load",
]

_LOAD_TIMEOUT_S = 60
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


@dataclass(slots=True)
class LoadedPrograms:
    """Open descriptors of what runs in the kernel; closing the attachments ends it."""

    rung: Rung
    maps: dict[str, int]
    programs: dict[str, int]
    attachments: dict[str, int]

    def close(self) -> None:
        """Detach and release everything."""
        for descriptors in (self.attachments, self.programs, self.maps):
            for descriptor in descriptors.values():
                os.close(descriptor)
            descriptors.clear()


def kernel_release(release: str | None = None) -> tuple[int, int]:
    """Return (major, minor) of the running kernel, or of the given release string."""
    found = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def choose_rung(wanted: Rung | None, kernel: tuple[int, int]) -> Rung:
    """Return the best rung for this kernel, or the wanted one if the kernel carries it."""
    rungs = [rung for rung in Rung if kernel >= rung.oldest_kernel]
    if wanted is not None and wanted not in rungs:
        needs = ".".join(map(str, wanted.oldest_kernel))
        raise MachineError(
            f"--rung={wanted.value} needs Linux {needs} or later, this is "
            f"{kernel[0]}.{kernel[1]}; leave the option out to let the agent choose"
        )
    if not rungs:
        raise MachineError(
            f"Linux 5.10 or later is needed to capture traffic, this is {kernel[0]}.{kernel[1]}"
        )
    return wanted or rungs[0]


def load(rung: Rung | None, ring_bytes: int) -> LoadedPrograms:
    """
    Compile, load and attach the programs; returns once they see traffic.

    Raises ``MachineError``.
    """
    if not sys.platform.startswith("linux"):
        raise MachineError(f"traffic is captured with eBPF, which {sys.platform} has not")
    if platform.machine() not in ("x86_64", "aarch64"):
        raise MachineError(
            f"only x86-64 and arm64 machines are supported, this is {platform.machine()}"
        )
    chosen = choose_rung(rung, kernel_release())
    _check_privileges()
    try:
        request = load_request(chosen, KernelTypes.of_running_kernel(), ring_bytes)
    except BtfError as error:
        raise MachineError(str(error)) from None
    names, descriptors = _run_loader(_load_message(request))
    loaded = LoadedPrograms(chosen, {}, {}, {})
    kinds = {"map": loaded.maps, "program": loaded.programs, "attachment": loaded.attachments}
    for name, descriptor in zip(names, descriptors, strict=True):
        kind, _, rest = name.partition(":")
        kinds[kind][rest] = descriptor
    return loaded


def _check_privileges() -> None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    has_all = held >> _CAP_SYS_ADMIN & 1 or (held >> _CAP_BPF & 1 and held >> _CAP_PERFMON & 1)
    if not has_all:
        who = "root" if os.geteuid() != 0 else "the capabilities CAP_BPF and CAP_PERFMON"
        raise MachineError(
            f"loading eBPF programs needs {who}: run with sudo, or start the container with "
            "--privileged (or --cap-add SYS_ADMIN)"
        )


def attach_hook(hook: Hook, program: int) -> dict[str, int]:
    """
    Attach a loaded program to its tracepoint, which must be an ordinary one.

    Returns the descriptor that keeps it attached, by name. Raises ``MachineError``.
    """
    names, descriptors = _run_loader({"tracepoint": hook.tracepoint}, [program])
    return {
        name.partition(":")[2]: descriptor
        for name, descriptor in zip(names, descriptors, strict=True)
    }


def _load_message(request: LoadRequest) -> dict[str, Any]:
    return {
        "source": request.source,
        "flags": request.flags,
        "include_directory": request.include_directory,
        "hooks": [[hook.function, hook.tracepoint] for hook in request.hooks],
        "maps": request.maps,
        "probes": request.probes,
        "idle": [hook.function for hook in request.idle_hooks],
    }


def _run_loader(
    message: dict[str, Any], programs: Sequence[int] = ()
) -> tuple[list[str], list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_LOAD_TIMEOUT_S)
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "otel_qtap.receiver.bcc", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            return _converse(ours, message, programs)
        except (TimeoutError, EOFError, ConnectionError):
            raise MachineError(
                "the eBPF loader did not answer; try again with --log-level=debug, and report it "
                f"with the kernel release ({platform.release()})"
            ) from None
        finally:
            ours.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _converse(
    channel: socket.socket, message: dict[str, Any], programs: Sequence[int]
) -> tuple[list[str], list[int]]:
    send_message(channel, message)
    if programs:
        socket.send_fds(channel, [b"\0"], list(programs))
    answer = receive_message(channel)
    if "error" in answer:
        raise MachineError(_explain(answer["error"], answer["detail"]))
    names: list[str] = answer["names"]
    descriptors: list[int] = []
    while len(descriptors) < len(names):
        data, received, _, _ = socket.recv_fds(channel, 1, 64)
        if not data:
            raise EOFError
        descriptors += received
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    channel.sendall(b"\0")
    return names, descriptors


def _explain(error: str, detail: str) -> str:
    """Turn what bcc said into a message that names the cause and the way out."""
    text = f"{error}\n{detail}"
    if "python3-bpfcc" in error:
        return error
    if "super-user" in text or os.strerror(errno.EPERM) in text:
        return (
            "the kernel refuses eBPF programs (operation not permitted): run as root; in a "
            "container use --privileged; check that kernel lockdown is not in confidentiality mode "
            "and that no seccomp profile forbids bpf(2)"
        )
    if os.strerror(errno.ENOSYS) in text:
        return "this kernel was built without eBPF (CONFIG_BPF_SYSCALL is off)"
    last_lines = "\n".join(detail.strip().splitlines()[-12:])
    return f"the eBPF programs could not be loaded: {error}" + (
        f"\n{last_lines}" if last_lines else ""
    )
