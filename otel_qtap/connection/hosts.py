"""
Names that an observed process itself knows for addresses: its ``/etc/hosts``.

Nothing is ever resolved over the network: that would tell others what is observed, and
make the answer depend on who asks.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

__all__ = ["HostNames"]

MAX_FILE_SIZE = 1024 * 1024
MAX_NAMES = 10_000
MAX_FILES = 64
MAX_PROCESSES = 1024
CHECK_INTERVAL = 1.0  # seconds between two looks at the modification time

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _FileVersion(NamedTuple):
    device: int
    inode: int
    modified_ns: int
    size: int


class _View(NamedTuple):
    """The names as one process had them when it was last looked at."""

    until: float
    names: dict[str, str]


class HostNames:
    """Names of addresses by the hosts file that a process sees. One thread owns it."""

    def __init__(
        self, proc: Path = Path("/proc"), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._proc = str(proc)
        self._clock = clock
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._files: OrderedDict[_FileVersion, dict[str, str]] = OrderedDict()

    def name_of(self, pid: int, address: str) -> str:
        """Return the first name of ``address`` in the hosts file of ``pid``; else empty."""
        view = self._views.get(pid)
        now = self._clock()
        if view is None or now >= view.until:
            view = _View(now + CHECK_INTERVAL, self._names_seen_by(pid, view))
            self._views[pid] = view
            self._views.move_to_end(pid)
            if len(self._views) > MAX_PROCESSES:
                self._views.popitem(last=False)
        return view.names.get(address, "")

    def _names_seen_by(self, pid: int, before: _View | None) -> dict[str, str]:
        try:
            for root in self._roots(pid):
                with suppress(OSError), _hosts_file(root) as descriptor:
                    return self._names_in(descriptor)
        except OSError:  # the process is gone: its last transactions are still to come
            return before.names if before else {}
        return {}

    def _roots(self, pid: int) -> Iterator[str]:
        """
        Yield the root directories to look below.

        A process that changed its root after it had read its hosts file, as HAProxy with
        ``chroot`` does, still has a parent or an init in the same mount namespace.
        """
        own = f"{self._proc}/{pid}"
        namespace = Path(own, "ns/mnt").readlink()
        yield own
        for relative in (_parent_of(own), "1"):
            with suppress(OSError):
                if Path(self._proc, relative, "ns/mnt").readlink() == namespace:
                    yield f"{self._proc}/{relative}"

    def _names_in(self, descriptor: int) -> dict[str, str]:
        found = os.fstat(descriptor)
        version = _FileVersion(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        names = self._files.get(version)
        if names is None:
            data = bytearray()
            while len(data) < MAX_FILE_SIZE and (part := os.read(descriptor, 65536)):
                data += part
            names = self._files[version] = _parse(bytes(data[:MAX_FILE_SIZE]))
            if len(self._files) > MAX_FILES:
                self._files.popitem(last=False)
        return names


@contextmanager
def _hosts_file(process: str) -> Iterator[int]:
    """
    Open ``etc/hosts`` below the root directory of a process.

    No link is followed on the way: below the root of a container an absolute one would
    lead into the files of this agent's own root. No device or pipe is opened for reading.
    """
    root = os.open(f"{process}/root", _DIRECTORY)
    try:
        etc = os.open("etc", _DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    finally:
        os.close(root)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if not stat.S_ISREG(os.stat("hosts", dir_fd=etc, follow_symlinks=False).st_mode):
            raise OSError("not a regular file")
        hosts = os.open("hosts", flags, dir_fd=etc)
    finally:
        os.close(etc)
    try:
        yield hosts
    finally:
        os.close(hosts)


def _parent_of(process: str) -> str:
    with Path(process, "stat").open("rb") as file:
        fields = file.read(4096).rpartition(b")")[2].split()
    return fields[1].decode("ascii", "replace") if len(fields) > 1 else "0"


def _parse(data: bytes) -> dict[str, str]:
    names: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        fields = line.partition("#")[0].split(maxsplit=2)
        if len(fields) < 2 or not _NAME.fullmatch(fields[1]):
            continue
        with suppress(ValueError):
            names.setdefault(str(ip_address(fields[0])), fields[1])
        if len(names) >= MAX_NAMES:
            break
    return names
