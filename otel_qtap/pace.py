"""How much of a processor the tap takes, and when."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst

__all__ = ["Pace"]

_SHORTEST_SLEEP_S = 0.002
_LONGEST_SLEEP_S = 0.05
_BUSY_BYTES = 64 * 1024  # with more than that in the ring there is no time to sleep


class Pace:
    """
    How the tap keeps up with the ring: when to sleep, when to give way, when to hurry.

    As a rule it gives way: a batch thread (``SCHED_BATCH``, sched(7)) does not push a
    running thread aside when its timer fires, so HAProxy's slowest requests do not wait
    for it, and the ring keeps what comes meanwhile.

    On a machine whose processors are all busy its share may be too small to empty the
    ring in time. Rather than lose events it then hurries: it competes like any thread,
    with a nice value of -5 (three times the weight), until the ring is nearly empty. It
    never takes more than the one processor a thread can use, and where one is idle it
    changes nothing.

    Both compare threads of one session where the kernel shares out processors by session
    (sched(7), autogroup), so a service that is alone in its own gains little by them.
    """

    BEHIND_ABOVE = 0.03
    HURRY_ABOVE = 0.125
    RELAX_BELOW = 0.03
    HURRIED_NICE = -5

    def __init__(self, ring_bytes: int, counters: CounterSet, *, may_hurry: bool) -> None:
        self._hurry_bytes = int(ring_bytes * self.HURRY_ABOVE)
        self._relax_bytes = int(ring_bytes * self.RELAX_BELOW)
        self._behind_bytes = int(ring_bytes * self.BEHIND_ABOVE)
        self._may_hurry = may_hurry
        self.tap_first = TapFirst()
        """Holds back the workers of the destinations; the pipeline's, when there is one."""
        self._is_hurried = False
        self._normal_nice = 0
        self._sleep_s = _SHORTEST_SLEEP_S
        self._hurries = counters.counter(
            "otel_qtap.receiver.hurries", "{hurry}",
            "Times the tap raised its priority because its ring filled up",
        )  # fmt: skip

    def rest(self, pending_bytes: int, *, worked: bool) -> None:
        """Sleep as long as the ring allows; called after each round."""
        if self._may_hurry:
            if not self._is_hurried and pending_bytes > self._hurry_bytes:
                self._set_hurried(hurried=True)
            elif self._is_hurried and pending_bytes < self._relax_bytes:
                self._set_hurried(hurried=False)
        if worked:
            self._sleep_s = _SHORTEST_SLEEP_S
        else:
            self._sleep_s = min(self._sleep_s * 1.5, _LONGEST_SLEEP_S)
        self.tap_first.is_behind = pending_bytes >= self._behind_bytes
        if pending_bytes < _BUSY_BYTES:
            time.sleep(self._sleep_s)

    def give_way(self) -> None:
        """Take the tap's usual place among the threads of the machine; called by the tap."""
        with contextlib.suppress(OSError):  # a sandbox may forbid it; then without
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def _set_hurried(self, *, hurried: bool) -> None:
        thread = threading.get_native_id()  # on Linux a nice value belongs to a thread
        try:
            if hurried:
                self._normal_nice = os.getpriority(os.PRIO_PROCESS, thread)
                nice = min(self._normal_nice, self.HURRIED_NICE)
                os.setpriority(os.PRIO_PROCESS, thread, nice)  # first: it may be refused
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, thread, self._normal_nice)
                self.give_way()
        except PermissionError:  # no CAP_SYS_NICE: then without
            self._may_hurry = False
            return
        self._is_hurried = hurried
        self._hurries.value += hurried
