"""
Attaching probes to HAProxy executables, beside the tap.

The executable is searched and the kernel takes its time, 0.1 s or more; nobody drains the ring
meanwhile if the tap waits for it. So it is done on a thread of its own, one executable at a
time, and who asked hears of it later.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from otel_qtap.haproxy.binary import HaproxyBinary, is_called_directly

__all__ = ["ProbeReceiver", "Probes"]

_Executable = tuple[int, int]
"""Device and inode."""


class ProbeReceiver(Protocol):
    """What the kernel side offers for it; ``KernelReceiver``."""

    def attach_probes(
        self, executable: Path, process_stream: int, stream_free: int, leaving_poll: int = 0
    ) -> str:
        """Attach to functions at these offsets in a file; returns why not, or nothing."""


@dataclass(frozen=True, slots=True)
class _Job:
    executable: _Executable
    binary: HaproxyBinary
    file: int
    """Descriptor: the process may end before its turn comes (``haproxy -c``)."""


class Probes:
    """Attaches to each executable once, for all processes that run it."""

    def __init__(self, receiver: ProbeReceiver) -> None:
        self._receiver = receiver
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._problems: dict[_Executable, str | None] = {}
        """Why there are no probes; empty: there are some; ``None``: that takes its time."""

    def ask(self, executable: _Executable, binary: HaproxyBinary, process_id: int) -> str | None:
        """
        See to it that there are probes on what a process runs.

        Returns nothing (``""``) if there are, why there are none, or ``None`` while they are
        being attached: ask again later.
        """
        with self._lock:
            if executable in self._problems:
                return self._problems[executable]
            if not binary.stream_free_probe:
                self._problems[executable] = "it does not name stream_free"
                return self._problems[executable]
            try:
                file = os.open(f"/proc/{process_id}/exe", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                return f"its executable: {error.strerror}"  # the next process may last longer
            self._problems[executable] = None
            self._waiting.append(_Job(executable, binary, file))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="probes", daemon=True)
                self._thread.start()
            return None

    def wait(self, deadline_s: float) -> None:
        """Wait until nothing is being attached any more, but no longer than that."""
        thread = self._thread
        if thread is not None:
            thread.join(deadline_s)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                job = self._waiting.popleft()
            try:
                problem = self._attach(job)
            except Exception as error:  # whatever it is, it must not leave HAProxy undecided
                problem = f"{type(error).__name__}: {error}"
            finally:
                os.close(job.file)
            with self._lock:
                self._problems[job.executable] = problem

    def _attach(self, job: _Job) -> str:
        binary = job.binary
        path = Path(f"/proc/{os.getpid()}/fd/{job.file}")
        leaving_poll = binary.leaving_poll_probe
        if leaving_poll and not is_called_directly(path, binary.process_stream):
            leaving_poll = 0  # no telling what an address to return to means
        return self._receiver.attach_probes(
            path, binary.process_stream_probe, binary.stream_free_probe, leaving_poll
        )
