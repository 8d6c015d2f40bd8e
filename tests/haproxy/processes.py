"""Processes that exist only as files: a ``/proc`` for tests, with roots of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["FakeProcess", "now_ticks"]


def now_ticks() -> int:
    """Return the present in clock ticks since the start of the machine."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


class FakeProcess:
    """``proc/PID`` with what ``ProcessFiles`` reads, and a root and working directory."""

    def __init__(
        self,
        proc: Path,
        pid: int,
        *arguments: str,
        parent: int = 0,
        namespace: int = 1,
        own_pid: int = 0,
        started: int = 0,
        root: Path | None = None,
        environment: str = "",
    ) -> None:
        self.pid = pid
        self.path = proc / str(pid)
        (self.path / "ns").mkdir(parents=True)
        (self.path / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (self.path / "ns/pid").symlink_to(f"pid:[{namespace}]")
        fields = ["S", str(parent), *["0"] * 17, str(started or now_ticks()), "0"]
        (self.path / "stat").write_text(f"{pid} (ha) proxy) {' '.join(fields)}\n")
        (self.path / "status").write_text(f"Name:\thaproxy\nNSpid:\t{pid}\t{own_pid or pid}\n")
        (self.path / "cmdline").write_text("\0".join(("haproxy", *arguments, "")))
        (self.path / "environ").write_text(environment)
        self.root = root or proc.with_name(f"root-{pid}")
        self.root.mkdir(exist_ok=True)
        (self.path / "root").symlink_to(self.root)
        (self.path / "cwd").symlink_to(self.root)

    def write(self, path: str, text: str, *, age_s: float = 60) -> Path:
        """Write a file below the root, last changed so long ago."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        changed = time.time() - age_s
        os.utime(file, (changed, changed))
        return file
