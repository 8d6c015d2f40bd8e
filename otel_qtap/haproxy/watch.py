"""
Which processes of this host are HAProxy, and how each tells its streams.

The live side of linking: reads executables and ``/proc``, tells the kernel side where to
look, hears the verdicts of ``streams.py`` and takes the next way when one fails:

    fast     read from the thread's own context, no probe (``SOURCE_THREAD``)
    probe    probes on ``process_stream`` and ``stream_free`` (``SOURCE_PROBE``)
    passive  no streams: only what the traffic itself shows

What was verified may turn out wrong all the same: a snapshot taken now and then disagrees
(``streams.py``), or the linker finds marks that contradict each other. See ``doubts.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from otel_qtap.config.model import LinkMode
from otel_qtap.counters import Counter, CounterSet
from otel_qtap.events import ProcessEvent, ProcessStep
from otel_qtap.haproxy.binary import (
    BinaryError,
    ForeignError,
    HaproxyBinary,
    load_bias,
    read_binary,
)
from otel_qtap.haproxy.calibration import Verdict
from otel_qtap.haproxy.doubts import Doubt, Doubts
from otel_qtap.haproxy.layout import DEFAULT_OFFSETS, Layout, Offsets, StreamSource
from otel_qtap.haproxy.probes import ProbeReceiver, Probes

__all__ = ["HaproxyWatch", "StreamReceiver"]

log = logging.getLogger(__name__)

_LAYOUT_NUMBERS = 512
_SNAPSHOTS = 1024  # 2 KB each; what passes without one before the verdict stays unlinked
_CHECK_SNAPSHOTS = 96  # half as much again as a comparison needs
_CHECK_EVERY_S = 60.0
_ATTACH_S = 60.0
_LOOK_AGAIN_S = 5.0  # after a loss
_ENDED = 4096
_CHECKS = ("snapshot", "thread", "eligible", "answered", "two_clients")


class StreamReceiver(ProbeReceiver, Protocol):
    """What the kernel side offers; ``KernelReceiver``."""

    def write_layout(self, layout: Layout, snapshots: int = 0) -> None:
        """Put a layout into force."""

    def assign_layout(self, process_id: int, number: int) -> bool:
        """Say which layout a process has."""


@dataclass(slots=True)
class _Image:
    layout: Layout
    executable: tuple[int, int]
    """Device and inode."""
    processes: set[int]
    binary: HaproxyBinary
    is_verified: bool = False
    reason: str | None = None
    """Why it waits for probes, while these are being attached; ``None``: it does not."""
    doubts: Doubts = field(default_factory=Doubts)


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
        self._binaries: dict[tuple[int, int, int], HaproxyBinary | BinaryError] = {}
        self._images: dict[int, _Image] = {}
        self._by_process: dict[int, _Image] = {}
        self._unreadable: set[int] = set()
        """Processes of a HAProxy whose file says too little."""
        self._ended: set[int] = set()
        """Ended before anybody could look at them, and that is not told yet."""
        self._known = (self._by_process, self._unreadable, self._ended)
        self._found: dict[tuple[int, int], Offsets] = {}
        """What was verified of an executable: the first guess for its next process."""
        self._probes = Probes(receiver)
        self._told: set[tuple[tuple[int, int], str]] = set()
        """What the log says of an executable already."""
        self._next_number = 1
        self._next_check_s = 0.0
        self._look_again_s = 0.0
        """When to look at all processes again; 0: nothing was lost."""
        self._counters = counters
        for check in _CHECKS:
            self._doubts(check)
        for name, source in _METHODS.items():
            counters.gauge(
                "otel_qtap.link.processes", "{process}",
                "HAProxy processes by the way in which their streams are learned",
                partial(self._count, source), method=name,
            )  # fmt: skip

    def find(self) -> None:
        """Look at all processes that run, before the tap begins: waits for probes on them."""
        self._look_again()
        self.wait_for_probes()

    def lose(self, now_s: float) -> None:
        """Something was lost, perhaps that a process began or ended: ``tick`` will look."""
        self._look_again_s = self._look_again_s or now_s + _LOOK_AGAIN_S

    def _look_again(self) -> None:
        """Look at all processes, and let go of those that are gone."""
        if self._mode is LinkMode.OFF:
            return
        running = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        for pid in self._by_process.keys() - running:
            self._forget(pid)
        self._unreadable &= running
        for pid in running:
            self._look_at(pid)

    def follow(self, event: ProcessEvent) -> None:
        """Learn what became of a process."""
        pid = event.process_id
        if event.step is ProcessStep.FORKED:
            # The kernel side has passed the layout on if it knew it by then; what is known
            # here of the parent may be newer than the fork (a master executes itself anew).
            # Of a daemon (-D), the parent has often ended by now.
            if any(event.parent_id in known for known in self._known):
                self.inspect(pid)
            return
        self._forget(pid)
        self._ended.discard(pid)
        self._unreadable.discard(pid)
        if event.step is ProcessStep.EXECUTED:
            self.inspect(pid)

    def inspect(self, process_id: int) -> None:
        """Look whether a process is a HAProxy, and if so, tell the kernel side about it."""
        if self._mode is LinkMode.OFF or process_id in self._by_process:
            return
        if not self._look_at(process_id) and len(self._ended) < _ENDED:
            self._ended.add(process_id)

    def _look_at(self, process_id: int) -> bool:
        """Return whether the process was there to look at."""
        executable = Path(f"/proc/{process_id}/exe")
        try:
            if "haproxy" not in executable.readlink().name:
                self._forget(process_id)
                return True
            status = executable.stat()
            key = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if key not in self._binaries:
                self._binaries[key] = self._read(process_id, executable)
            binary = self._binaries[key]
            if isinstance(binary, BinaryError):
                if not isinstance(binary, ForeignError):
                    self._unreadable.add(process_id)
                return True
            bias = load_bias(process_id, binary)
        except OSError:
            return False
        except BinaryError:
            return True  # it runs something else by now
        image = self._image(binary, bias, key[:2], process_id)
        if image is None:
            return True
        if self._by_process.get(process_id) is not image:
            self._forget(process_id)
            image.processes.add(process_id)
            self._by_process[process_id] = image
            self._learn(process_id, image.layout)
        self._receiver.assign_layout(process_id, image.layout.number)
        return True

    def decide(self, layout: Layout, verdict: Verdict, reason: str) -> None:
        """Take a verdict of ``StreamMarks``."""
        image = self._images.get(layout.number)
        if image is None:
            return
        image.layout = layout
        if verdict is Verdict.VERIFIED:
            image.is_verified = True
            self._found[image.executable] = layout.offsets
            self._receiver.write_layout(layout)
            log.info("HAProxy %s: backend requests are linked by its streams (fast)", _names(image))
        elif verdict is Verdict.CHANGED:
            self._receiver.write_layout(layout, _SNAPSHOTS)
        else:
            self._fall_back(image, reason)

    def doubt(self, process_id: int, check: str, seen_ns: int, why: str = "") -> None:
        """
        Marks made in a process at ``seen_ns`` or later contradict something.

        ``check`` names what has failed. Only noted here: it comes while events are being
        passed on; ``tick`` acts on it. What comes until then counts once, and what older marks
        say does not count at all: the same cause brings many contradictions.
        """
        image = self._by_process.get(process_id)
        if (
            image is not None
            and image.is_verified
            and image.layout.source is not StreamSource.NOTHING
            and seen_ns >= image.layout.since_ns
        ):
            image.doubts.note(check, why)

    def tick(self, now_s: float) -> None:
        """
        Do what is due; called about once a second.

        Acts on doubts, finishes what waited for probes, and takes more snapshots where they
        are wanted: some every minute even of what is verified. A snapshot costs the thread
        that sends 6 us more (Linux 6.18, HAProxy 2.6), so that is half a millisecond a minute.
        """
        if self._look_again_s and now_s >= self._look_again_s:
            self._look_again_s = 0.0
            self._look_again()
        is_check = now_s >= self._next_check_s
        if is_check:
            self._next_check_s = now_s + _CHECK_EVERY_S
        for image in list(self._images.values()):
            doubt = image.doubts.take(now_s)
            if doubt is not None:
                self._act_on(doubt, image)
            if image.layout.source is not StreamSource.THREAD:
                continue
            if not image.is_verified:
                self._receiver.write_layout(image.layout, _SNAPSHOTS)
            elif is_check:
                self._receiver.write_layout(image.layout, _CHECK_SNAPSHOTS)
        self.look_after_probes()

    def wait_for_probes(self) -> None:
        """Wait until probes are attached that are wanted now."""
        self._probes.wait(_ATTACH_S)
        self.look_after_probes()

    def look_after_probes(self) -> None:
        """Go on where probes have been attached; called a few times a second."""
        for image in self._images.values():
            if image.reason is not None:
                self._ask_for_probes(image)

    def method_of(self, process_id: int) -> str:
        """Return the way a process is linked: ``fast``, ``probe``, ``passive``."""
        image = self._by_process.get(process_id)
        source = StreamSource.NOTHING if image is None else image.layout.source
        return next(name for name, each in _METHODS.items() if each is source)

    def _count(self, source: StreamSource) -> int:
        found = sum(image.layout.source is source for image in self._by_process.values())
        return found + (len(self._unreadable) if source is StreamSource.NOTHING else 0)

    def _read(self, process_id: int, executable: Path) -> HaproxyBinary | BinaryError:
        try:
            return read_binary(executable)
        except ForeignError as error:
            log.debug("PID %d is called after HAProxy, but %s", process_id, error)
            return error
        except BinaryError as error:
            log.warning(
                "HAProxy (PID %d) %s: its backend requests are linked only where the traffic "
                "itself leaves no doubt", process_id, error,
            )  # fmt: skip
            return error

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
            process_check=binary.process_check and binary.process_check + bias,
            thread_context=binary.thread_context,
            contexts=binary.contexts + bias,
            contexts_size=binary.contexts_size,
            source=StreamSource.THREAD,
            offsets=self._found.get(executable, DEFAULT_OFFSETS),
        )
        image = _Image(layout, executable, {process_id}, binary)
        self._images[number] = image
        if self._mode is LinkMode.PASSIVE:
            image.layout = replace(layout, source=StreamSource.NOTHING)
            self._receiver.write_layout(image.layout)
        elif self._mode is LinkMode.PROBE:
            self._fall_back(image, "tap.link is probe")
        elif binary.obstacle:
            self._fall_back(image, binary.obstacle)
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
        """Go one step down from reading: to probes, or to nothing."""
        image.is_verified = True
        image.reason = reason
        self._renew(image, StreamSource.NOTHING)
        if self._mode is LinkMode.FAST:
            self._give_up(image, "tap.link is fast")
        else:
            self._ask_for_probes(image)

    def _ask_for_probes(self, image: _Image) -> None:
        """Go on if it is known whether there are probes on the executable."""
        problem = self._probes.ask(image.executable, image.binary, min(image.processes))
        if problem is None:
            return
        if problem:
            self._give_up(image, problem)
            return
        self._renew(image, StreamSource.PROBE)
        if self._is_news(image, "probe"):
            log.info(
                "HAProxy %s: backend requests are linked by probes on its streams (%s)",
                _names(image), image.reason,
            )  # fmt: skip
        image.reason = None

    def _give_up(self, image: _Image, problem: str) -> None:
        """The kernel side marks nothing by now; say so."""
        if self._is_news(image, problem):
            log.warning(
                "HAProxy %s: its streams cannot be read (%s; %s): backend requests are linked "
                "only where the traffic itself leaves no doubt",
                _names(image), image.reason, problem,
            )  # fmt: skip
        image.reason = None

    def _renew(self, image: _Image, source: StreamSource, snapshots: int = 0) -> None:
        """Let the kernel side mark in this way; nothing counts that it has marked before."""
        image.layout = replace(image.layout, source=source)
        self._receiver.write_layout(image.layout, snapshots)
        image.layout = replace(image.layout, since_ns=time.monotonic_ns())
        for process_id in image.processes:
            self._learn(process_id, image.layout)

    def _act_on(self, doubt: Doubt, image: _Image) -> None:
        """Verify anew, or take the next way."""
        self._doubts(doubt.check).value += 1
        source = image.layout.source
        if not doubt.is_one_too_many:
            image.is_verified = source is not StreamSource.THREAD
            log.warning(
                "HAProxy %s: what is known of its streams contradicts itself (%s): %s",
                _names(image), doubt.what,
                "nothing is linked by it so far" if image.is_verified else "it is verified anew",
            )  # fmt: skip
            self._renew(image, source, 0 if image.is_verified else _SNAPSHOTS)
            return
        log.warning(
            "HAProxy %s: what is known of its streams contradicts itself again and again (%s; "
            "%s): the next way of linking is taken",
            _names(image), doubt.what, doubt.history,
        )  # fmt: skip
        reason = f"contradictions, {doubt.history}"
        if source is StreamSource.THREAD:
            self._fall_back(image, reason)
            return
        self._renew(image, StreamSource.NOTHING)
        image.reason = reason
        self._give_up(image, "probes do not help")

    def _doubts(self, check: str) -> Counter:
        return self._counters.counter(
            "otel_qtap.link.doubts", "{doubt}",
            "Times that the marks of a HAProxy had to be doubted, by the check that failed",
            check=check,
        )  # fmt: skip

    def _is_news(self, image: _Image, what: str) -> bool:
        """Whether the log does not say this of the executable yet."""
        news = (image.executable, what)
        is_new = news not in self._told
        self._told.add(news)
        return is_new

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
