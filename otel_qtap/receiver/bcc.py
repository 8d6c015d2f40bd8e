"""
The loader: a short-lived process that compiles and attaches, then hands over and goes.

bcc brings a whole compiler along (110 MB of memory); it has no business in a
privileged process that stays. So this module runs as a process of its own, sends the
descriptors of the maps, programs and attachments through a Unix socket
(``SCM_RIGHTS``) and exits; the kernel keeps what the agent holds open.

This is the only module that imports bcc. It comes from the distribution
(``python3-bpfcc``) and is found there whatever interpreter runs this; the project of
the same name on the Python package index is something else.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["BCC_DIRECTORIES", "MISSING_BCC", "main", "receive_message", "send_message"]

BCC_DIRECTORIES = ("/usr/lib/python3/dist-packages", "/usr/lib/python3/site-packages")
MISSING_BCC = (
    "the BPF Compiler Collection for Python is not installed: "
    "apt-get install python3-bpfcc (Debian, Ubuntu) or dnf install python3-bcc (Fedora)"
)
_TRACEFS = Path("/sys/kernel/tracing")
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_BATCH = 64  # descriptors in one message; the kernel allows 253


def import_bcc() -> Any:
    """Return the distribution's bcc module; raises ``ImportError`` if there is none."""
    with contextlib.suppress(ImportError):
        import bcc  # noqa: PLC0415 - only this process needs it

        if hasattr(bcc, "BPF"):
            return bcc
    sys.modules.pop("bcc", None)
    spec = importlib.machinery.PathFinder.find_spec("bcc", list(BCC_DIRECTORIES))
    if spec is None or spec.loader is None:
        raise ImportError(MISSING_BCC)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Serve one load request on the socket whose descriptor is the first argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    request = receive_message(channel)
    with tempfile.TemporaryFile() as log:
        # libbcc and clang print to the process's standard error; keep that for the message.
        os.dup2(log.fileno(), 2)
        try:
            if "tracepoint" in request:
                names, descriptors = _attach_tracepoint(channel, request["tracepoint"])
            else:
                names, descriptors = _load(request)
        except Exception as error:  # whatever goes wrong must reach the agent as text
            log.seek(0)
            detail = log.read().decode(errors="replace")
            send_message(channel, {"error": str(error), "detail": detail[-4000:]})
            return 1
        send_message(channel, {"names": names})
        for start in range(0, len(descriptors), _BATCH):
            socket.send_fds(channel, [b"\0"], descriptors[start : start + _BATCH])
        channel.recv(1)  # the agent has them
    return 0


def _load(request: dict[str, Any]) -> tuple[list[str], list[int]]:
    bcc = import_bcc()
    if any(":" in hook[1] for hook in request["hooks"]):
        _see_tracing_files()
    os.environ["BCC_KERNEL_SOURCE"] = request["include_directory"]
    module = bcc.BPF(text=request["source"], cflags=request["flags"], allow_rlimit=False)
    names: list[str] = []
    descriptors: list[int] = []
    for name in request["maps"]:
        names.append(f"map:{name}")
        descriptors.append(module[name].map_fd)
    for function, tracepoint in request["hooks"]:
        is_raw = ":" not in tracepoint
        program = module.load_func(
            function, bcc.BPF.RAW_TRACEPOINT if is_raw else bcc.BPF.TRACEPOINT
        )
        if f"program:{function}" not in names:
            names.append(f"program:{function}")
            descriptors.append(program.fd)
        try:
            if is_raw:
                module.attach_raw_tracepoint(tp=tracepoint, fn_name=function)
                descriptor = module.raw_tracepoint_fds[tracepoint.encode()]
            else:
                module.attach_tracepoint(tp=tracepoint, fn_name=function)
                descriptor = module.tracepoint_fds[tracepoint.encode()]
        except Exception as error:
            raise RuntimeError(f"cannot attach to the tracepoint {tracepoint}: {error}") from error
        names.append(f"attachment:{tracepoint}")
        descriptors.append(descriptor)
    spares = [(function, bcc.BPF.KPROBE) for function in request["probes"]]
    spares += [(function, bcc.BPF.TRACEPOINT) for function in request["idle"]]
    for function, kind in spares:
        # Capturing works without: a kernel that refuses one goes without.
        with contextlib.suppress(Exception):
            descriptors.append(module.load_func(function, kind).fd)
            names.append(f"program:{function}")
    return names, descriptors


def _attach_tracepoint(channel: socket.socket, tracepoint: str) -> tuple[list[str], list[int]]:
    """Attach a loaded program, whose descriptor follows the request, to a tracepoint."""
    bcc = import_bcc()
    _, (program,), _, _ = socket.recv_fds(channel, 1, 1)
    _see_tracing_files()
    category, _, name = tracepoint.encode().partition(b":")
    descriptor = bcc.lib.bpf_attach_tracepoint(program, category, name)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"cannot attach to the tracepoint {tracepoint}")
    return [f"attachment:{tracepoint}"], [descriptor]


def _see_tracing_files() -> None:
    """
    Make the tracing file system visible to this process alone.

    Ordinary tracepoints are looked up there; where nobody has mounted it, a mount
    namespace of our own leaves the machine as it was.
    """
    if (_TRACEFS / "events").is_dir():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS) != 0
        or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0
        or libc.mount(b"tracefs", os.fsencode(_TRACEFS), b"tracefs", 0, None) != 0
    ):
        raise OSError(
            ctypes.get_errno(),
            f"cannot mount the tracing file system on {_TRACEFS}: "
            f"{os.strerror(ctypes.get_errno())}",
        )


def send_message(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message of the talk between agent and loader: its length, then JSON."""
    data = json.dumps(message).encode()
    channel.sendall(len(data).to_bytes(4, "little") + data)


def receive_message(channel: socket.socket) -> dict[str, Any]:
    """Receive one message; raises ``EOFError`` when the other side has gone away."""
    size = int.from_bytes(_receive(channel, 4), "little")
    message: dict[str, Any] = json.loads(_receive(channel, size))
    return message


def _receive(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise EOFError("the other side has gone away")
        data += piece
    return data


if __name__ == "__main__":
    raise SystemExit(main())
