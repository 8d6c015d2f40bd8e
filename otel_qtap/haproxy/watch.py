"""
Which processes of this host are HAProxy, and how each tells its streams.

The live side of linking: reads executables and ``/proc``, tells the kernel side where to
look, hears the verdicts of ``streams.py`` and takes the next way when one fails:

    fast     read from the thread's own context, no probe (``SOURCE_THREAD``)
    probe    probes on ``process_stream`` and ``stream_free`` (``SOURCE_PROBE``)
    passive  no streams: only what the traffic itself shows
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from otel_qtap.config.model import LinkMode
from otel_qtap.counters import CounterSet
from otel_qtap.events import ProcessEvent, ProcessStep
from otel_qtap.haproxy.binary import BinaryError, HaproxyBinary, load_bias, read_binary
from otel_qtap.haproxy.calibration import Verdict
from otel_qtap.haproxy.layout import Layout, StreamSource

__all__ = ["HaproxyWatch", "StreamReceiver"]

log = logging.getLogger(__name__)

_LAYOUT_NUMBERS = 512
_SNAPSHOTS = 256
_CHECK_SNAPSHOTS = 4
_CHECK_EVERY_S = 60.0


class StreamReceiver(Protocol):
    """What the kernel side offers; ``KernelReceiver``."""

    def write_layout(self, layout: Layout, snapshots: int = 0) -> None:
        """Put a layout into force."""

    def assign_layout(self, process_id: int, number: int) -> bool:
        """Say which layout a process has."""

    def attach_probes(self, executable: Path, process_stream: int, stream_free: int) -> str:
        """Attach to functions at these offsets in a file; returns why not, or nothing."""


@dataclass(slots=True)
class _Image:
    layout: Layout
    executable: tuple[int, int]
    """Device and inode."""
    processes: set[int]
    binary: HaproxyBinary
    is_verified: bool = False


class HaproxyWatch:
    """Finds HAProxy processes and keeps the kernel side informed about them."""

    def __init__(
        self,
        receiver: StreamReceiver,
        learn: Callable[[int, Layout], None],
        counters: CounterSet,
        *,
        mode: LinkMode = LinkMode.AUTO,
    ) -> None:
        """``learn`` is told of every process that has a layout: ``StreamMarks.learn``."""
        self._receiver = receiver
        self._learn = learn
        self._mode = mode
        self._binaries: dict[tuple[int, int, int], HaproxyBinary | None] = {}
        self._images: dict[int, _Image] = {}
        self._by_process: dict[int, _Image] = {}
        self._probed: dict[tuple[int, int], str] = {}
        self._next_number = 1
        self._next_check_s = 0.0
        for name, source in _METHODS.items():
            counters.gauge(
                "otel_qtap.link.processes", "{process}",
                "HAProxy processes by the way in which their streams are learned",
                partial(self._count, source), method=name,
            )  # fmt: skip

    def find(self) -> None:
        """Look at all processes that run."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                self.inspect(int(entry.name))

    def follow(self, event: ProcessEvent) -> None:
        """Learn what became of a process."""
        pid = event.process_id
        if event.step is ProcessStep.FORKED:
            # The kernel side has passed the layout on if it knew it by then; what is known
            # here of the parent may be newer than the fork (a master executes itself anew).
            if event.parent_id in self._by_process:
                self.inspect(pid)
            return
        self._forget(pid)
        if event.step is ProcessStep.EXECUTED:
            self.inspect(pid)

    def inspect(self, process_id: int) -> None:
        """Look whether a process is a HAProxy, and if so, tell the kernel side about it."""
        if self._mode is LinkMode.OFF or process_id in self._by_process:
            return
        executable = Path(f"/proc/{process_id}/exe")
        try:
            if "haproxy" not in executable.readlink().name:
                return
            status = executable.stat()
            key = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if key not in self._binaries:
                self._binaries[key] = self._read(process_id, executable)
            binary = self._binaries[key]
            if binary is None:
                return
            bias = load_bias(process_id, binary)
        except (OSError, BinaryError):
            return  # it has ended meanwhile, or is not what it seemed
        image = self._image(binary, bias, key[:2], process_id)
        if image is None:
            return
        image.processes.add(process_id)
        self._by_process[process_id] = image
        self._learn(process_id, image.layout)
        self._receiver.assign_layout(process_id, image.layout.number)

    def decide(self, layout: Layout, verdict: Verdict, reason: str) -> None:
        """Take a verdict of ``StreamMarks``."""
        image = self._images.get(layout.number)
        if image is None:
            return
        image.layout = layout
        if verdict is Verdict.VERIFIED:
            image.is_verified = True
            self._receiver.write_layout(layout)
            log.info("HAProxy %s: backend requests are linked by its streams (fast)", _names(image))
        elif verdict is Verdict.CHANGED:
            self._receiver.write_layout(layout, _SNAPSHOTS)
        else:
            self._fall_back(image, reason)

    def tick(self, now_s: float) -> None:
        """Called about once a second: takes more snapshots where they are wanted."""
        is_check = now_s >= self._next_check_s
        if is_check:
            self._next_check_s = now_s + _CHECK_EVERY_S
        for image in self._images.values():
            if image.layout.source is not StreamSource.THREAD:
                continue
            if not image.is_verified:
                self._receiver.write_layout(image.layout, _SNAPSHOTS)

    def method_of(self, process_id: int) -> str:
        """Return the way a process is linked: ``fast``, ``probe``, ``passive``."""
        image = self._by_process.get(process_id)
        source = StreamSource.NOTHING if image is None else image.layout.source
        return next(name for name, each in _METHODS.items() if each is source)

    def _count(self, source: StreamSource) -> int:
        return sum(image.layout.source is source for image in self._by_process.values())

    def _read(self, process_id: int, executable: Path) -> HaproxyBinary | None:
        try:
            return read_binary(executable)
        except BinaryError as error:
            log.warning(
                "HAProxy (PID %d) %s: its backend requests are linked only where the traffic "
                "itself leaves no doubt", process_id, error,
            )  # fmt: skip
            return None

    def _image(
        self, binary: HaproxyBinary, bias: int, executable: tuple[int, int], process_id: int
    ) -> _Image | None:
        address = binary.process_stream + bias
        for image in self._images.values():
            if image.layout.process_stream == address and image.executable == executable:
                return image
        number = self._free_number()
        if number is None:
            return None
        layout = Layout(
            number=number,
            process_stream=address,
            thread_context=binary.thread_context,
            contexts=binary.contexts + bias,
            contexts_size=binary.contexts_size,
            source=StreamSource.THREAD,
        )
        image = _Image(layout, executable, {process_id}, binary)
        self._images[number] = image
        if self._mode is LinkMode.PASSIVE:
            image.layout = replace(layout, source=StreamSource.NOTHING)
            self._receiver.write_layout(image.layout)
        elif self._mode is LinkMode.PROBE:
            self._fall_back(image, "tap.link is probe")
        else:
            self._receiver.write_layout(layout, _SNAPSHOTS)
        return image

    def _free_number(self) -> int | None:
        for _ in range(_LAYOUT_NUMBERS - 1):
            number = self._next_number
            self._next_number = number % (_LAYOUT_NUMBERS - 1) + 1
            if number not in self._images:
                return number
        return None

    def _fall_back(self, image: _Image, reason: str) -> None:
        """Go one step down: to probes, or to nothing."""
        image.is_verified = True
        image.layout = replace(image.layout, source=StreamSource.NOTHING)
        self._receiver.write_layout(image.layout)  # before probes: attaching takes a second
        problem = "tap.link is fast"
        if self._mode is not LinkMode.FAST:
            problem = self._attach(image)
        if not problem:
            image.layout = replace(image.layout, source=StreamSource.PROBE)
            self._receiver.write_layout(image.layout)
        image.layout = replace(image.layout, since_ns=time.monotonic_ns())
        for process_id in image.processes:
            self._learn(process_id, image.layout)
        if problem:
            log.warning(
                "HAProxy %s: its streams cannot be read (%s; %s): backend requests are linked "
                "only where the traffic itself leaves no doubt", _names(image), reason, problem,
            )  # fmt: skip
        else:
            log.info(
                "HAProxy %s: backend requests are linked by probes on its streams (%s)",
                _names(image), reason,
            )  # fmt: skip

    def _attach(self, image: _Image) -> str:
        """Attach probes to the executable, once for all its processes; returns why not."""
        if image.executable in self._probed:
            return self._probed[image.executable]
        problem = "it does not export stream_free"
        if image.binary.stream_free_probe:
            try:
                # Held open: the process may end before the loader gets there (`haproxy -c`).
                with Path(f"/proc/{min(image.processes)}/exe").open("rb") as file:
                    problem = self._receiver.attach_probes(
                        Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"),
                        image.binary.process_stream_probe,
                        image.binary.stream_free_probe,
                    )
            except OSError as error:
                return f"its executable: {error.strerror}"  # the next process may last longer
        self._probed[image.executable] = problem
        return problem

    def _forget(self, process_id: int) -> None:
        image = self._by_process.pop(process_id, None)
        if image is None:
            return
        image.processes.discard(process_id)
        if not image.processes:
            self._images.pop(image.layout.number, None)


_METHODS = {
    "fast": StreamSource.THREAD,
    "probe": StreamSource.PROBE,
    "passive": StreamSource.NOTHING,
}


def _names(image: _Image) -> str:
    return f"(PID {', '.join(map(str, sorted(image.processes)))})"
