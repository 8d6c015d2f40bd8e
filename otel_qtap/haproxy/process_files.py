"""
Files as another process sees them: inside its root, from its working directory.

HAProxy reads its configuration and binds its sockets first and changes its root
afterwards, so a worker's own root is often an empty directory. Its master, or the init of
its mount namespace, still has the root that the paths were meant for.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["FileContent", "ProcessFiles"]

MAX_PROC_FILE_SIZE = 256 * 1024

_SYS_OPENAT2 = 437  # openat2(2), Linux 5.6: the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_START_TIME_FIELD = 22 - 3  # of proc(5) stat, counted from the third: the first after ")"
_NAMESPACE_PIDS = re.compile(rb"^NSpid:\s+(.+)$", re.MULTILINE)


class FileContent(NamedTuple):
    """A file that was read."""

    data: bytes
    modified_s: float
    """Seconds since the epoch."""


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class ProcessFiles:
    """
    What ``/proc`` and the root directories behind it say; every method may raise ``OSError``.

    No path leads out of the root of its process, whatever links its owner puts there: an
    absolute link in a container would otherwise lead into the files of this agent.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = str(proc)

    def arguments(self, pid: int) -> tuple[str, ...]:
        """Return the command line of a process."""
        data = self._proc_file(pid, "cmdline").removesuffix(b"\0")
        return tuple(os.fsdecode(argument) for argument in data.split(b"\0"))

    def environment(self, pid: int) -> dict[str, str]:
        """Return the environment a process was started with. It may hold secrets."""
        entries = self._proc_file(pid, "environ").split(b"\0")
        pairs = (os.fsdecode(entry).partition("=") for entry in entries)
        return {name: value for name, separator, value in pairs if separator}

    def start_ticks(self, pid: int) -> int:
        """Return when a process started; with its id this names it for good."""
        data = self._proc_file(pid, "stat")
        fields = data[data.rfind(b")") + 1 :].split()  # the name before may hold anything
        return int(fields[_START_TIME_FIELD]) if len(fields) > _START_TIME_FIELD else 0

    def started_s(self, pid: int) -> float:
        """Return when a process started, in seconds since the epoch."""
        age = time.clock_gettime(time.CLOCK_BOOTTIME)
        age -= self.start_ticks(pid) / os.sysconf("SC_CLK_TCK")
        return time.time() - age

    def own_pid(self, pid: int) -> int:
        """Return the id that a process has for itself, inside its container."""
        found = _NAMESPACE_PIDS.search(self._proc_file(pid, "status"))
        return int(found[1].split()[-1]) if found else pid

    def shares_pids(self, pid: int, other: int) -> bool:
        """Whether two processes are in the same container, as far as ids of processes go."""
        links = (Path(self._proc, str(each), "ns/pid").readlink() for each in (pid, other))
        return next(links) == next(links)

    def is_written_to(self, pid: int, descriptor: int) -> bool:
        """Whether what a process writes to a descriptor goes to a file, a pipe or a terminal."""
        try:
            target = str(Path(self._proc, str(pid), "fd", str(descriptor)).readlink())
        except OSError:  # closed
            return False
        return target != "/dev/null" and not target.startswith("socket:")

    def read(self, pid: int, path: str, limit: int) -> FileContent:
        """Return a regular file of a process; a larger one than ``limit`` raises."""
        descriptor = self._open(pid, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = bytearray()
            while len(data) <= limit and (part := os.read(descriptor, 65536)):
                data += part
        finally:
            os.close(descriptor)
        if len(data) > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return FileContent(bytes(data), found.st_mtime)

    def directory(self, pid: int, path: str) -> list[str] | None:
        """Return the names in a directory, sorted; ``None`` when ``path`` is none."""
        try:
            descriptor = self._open(pid, path, _DIRECTORY)
        except NotADirectoryError:
            return None
        try:
            return sorted(os.listdir(descriptor))  # noqa: PTH208 - a descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def socket_path(self, pid: int, path: str) -> Iterator[str]:
        """Give a path by which this process reaches a Unix socket of another one."""
        descriptor = self._open(pid, path, os.O_PATH)
        try:
            yield f"/proc/self/fd/{descriptor}"  # short enough for any sun_path, too
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------------------------------

    def _proc_file(self, pid: int, name: str) -> bytes:
        with Path(self._proc, str(pid), name).open("rb") as file:
            return file.read(MAX_PROC_FILE_SIZE)

    def _open(self, pid: int, path: str, flags: int) -> int:
        """Open ``path`` in the first root that has it."""
        reason: OSError | None = None
        for process in self._relatives(pid):
            try:
                return _open_below(process, path, flags)
            except OSError as error:
                # Where something is there, what is wrong with it says more.
                if reason is None or isinstance(reason, FileNotFoundError):
                    reason = error
        raise reason or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _relatives(self, pid: int) -> Iterator[str]:
        """Yield processes of the same mount namespace, best first."""
        own = f"{self._proc}/{pid}"
        yield own
        namespace = Path(own, "ns/mnt").readlink()
        data = self._proc_file(pid, "stat")
        parent = data[data.rfind(b")") + 1 :].split()[1].decode()
        for relative in (parent, "1"):
            try:
                if Path(self._proc, relative, "ns/mnt").readlink() == namespace:
                    yield f"{self._proc}/{relative}"
            except OSError:
                continue


def _open_below(process: str, path: str, flags: int) -> int:
    is_absolute = path.startswith("/")
    start = os.open(f"{process}/{'root' if is_absolute else 'cwd'}", _DIRECTORY)
    try:
        resolve = _RESOLVE_IN_ROOT if is_absolute else _RESOLVE_BENEATH
        return _openat2(start, path, flags, resolve | _RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(start)


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    if platform.system() != "Linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    descriptor: int = _syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
