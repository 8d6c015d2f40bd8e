"""
Between receiver and connections: no event of a HAProxy goes on before its marks are true.

The marks that the kernel side stamps on events are worth what the offsets behind them are
worth. While these are being verified, the events of the process wait here in their order;
with the verdict they go on, with their marks as they are, put right, or taken away. So the
first request counts like any other, and a wrong guess can never become a wrong link.

Later, a few snapshots come every minute. What they show is compared with what was verified;
once it disagrees, no mark goes on any more until ``watch.py`` has had it verified anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from otel_qtap.counters import CounterSet
from otel_qtap.events import (
    CloseEvent,
    CloseStep,
    DataEvent,
    Event,
    LogEvent,
    LostEvent,
    OpenEvent,
    ProcessEvent,
    ProcessStep,
    SnapshotEvent,
    StreamState,
)
from otel_qtap.haproxy.calibration import Calibration, Verdict
from otel_qtap.haproxy.layout import Layout, StreamSource
from otel_qtap.haproxy.marks import (
    Marked,
    is_outside_streams,
    marked_ns,
    put_right,
    seen_with,
    tells_apart,
    without_mark,
)

__all__ = ["StreamMarks"]

_WAIT_NS = 1_000_000_000  # for a verdict; then what is plausible is taken for true
_COMPARISON_NS = 30_000_000_000  # snapshots of one minute's look come within that
_NEVER_NS = 1 << 63
_WAITING_EVENTS = 20_000
_CONNECTIONS = 65_536
_CONNECTS = 1_024


class _Image:
    """A layout with the processes that have it, and what is known about it."""

    __slots__ = ("calibration", "compared_ns", "comparison", "connects", "has_marks",
                 "hold_since_ns", "is_settled", "is_trusted", "is_verified", "layout", "replaced",
                 "since_ns", "snapshot", "was_held")  # fmt: skip

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.calibration = Calibration(layout)
        self.comparison = self.calibration
        """Of what is verified with what is seen now."""
        self.compared_ns = -_COMPARISON_NS
        """When that has begun."""
        self.is_verified = layout.source is not StreamSource.THREAD
        self.is_trusted = self.is_verified
        self.has_marks = True
        """Whether its marks are worth anything; else they are taken away."""
        self.hold_since_ns = 0
        """When the first event began to wait for a verdict; 0: none waits."""
        self.was_held = False
        self.snapshot: SnapshotEvent | None = None
        self.connects: dict[int, SnapshotEvent] = {}
        """Of connections that were not told yet: taken when they were opened."""
        self.since_ns = layout.since_ns
        """Marks made before are by another layout: they were in the ring by then."""
        self.is_settled = not self.since_ns
        """Whether no such marks can come any more."""
        self.replaced: Layout | None = None
        """By which the kernel side marked until ``since_ns``, if that is not known yet."""

    @property
    def is_over(self) -> bool:
        """Whether its marks need no look, but for one that a snapshot has come for."""
        return self.is_verified and self.is_settled and self.has_marks and self.snapshot is None

    def note_connect(self, snapshot: SnapshotEvent) -> None:
        """Keep what a thread had in hand when it opened a connection, until that is told."""
        self.connects[snapshot.connection_id] = snapshot
        if len(self.connects) > _CONNECTS:
            del self.connects[next(iter(self.connects))]  # it was refused, or not wanted

    def wants_hold(self, event: Marked) -> bool:
        """
        Whether to wait for the verdict from this event on.

        The first marks wait whatever they say. If these do not lead to a verdict, there is
        no traffic but health checks; then the next that names a stream waits again.
        """
        mark = event.connecting if isinstance(event, OpenEvent) else event.stream
        if self.is_trusted or self.is_verified or mark.state is StreamState.NOT_ASKED:
            return False
        return not self.was_held or mark.state is StreamState.KNOWN


class _Waiting:
    """An event in the queue, with what is needed to judge its mark."""

    __slots__ = ("event", "image", "snapshot")

    def __init__(self, event: Marked, image: _Image | None) -> None:
        self.event = event
        self.image = image
        self.snapshot: SnapshotEvent | None = None

    def proceed(self) -> Marked:
        """Return the event as it may go on: with its mark if that is true."""
        image = self.image
        if image is None:
            return self.event
        if image.has_marks and (
            image.is_trusted or (image.calibration.knows_tasks and is_outside_streams(self.event))
        ):
            return self.event
        return without_mark(self.event)

    def put_right(self) -> None:
        """Give the event the mark that the layout of now would have given it."""
        assert self.image is not None  # noqa: S101 - for the type checker
        self.event = put_right(self.event, self.snapshot, self.image.layout)


class StreamMarks:
    """
    Passes events on to ``accept``, those of a HAProxy not before their marks are verified.

    While some wait, all do: what depends on the order of events must not see it changed.
    """

    def __init__(
        self,
        accept: Callable[[Event], None],
        counters: CounterSet,
        *,
        on_verdict: Callable[[Layout, Verdict, str], None] = lambda _layout, _verdict, _why: None,
    ) -> None:
        """``on_verdict`` gets the layout to use from now on, the verdict and its reason."""
        self._accept = accept
        self.on_verdict = on_verdict
        self.on_doubt: Callable[[int, str, int, str], None] = lambda *_: None
        """Told of a snapshot that contradicts: process, check, time and what is wrong."""
        self.on_distrust: Callable[[int, int], None] = lambda *_: None
        """Told that the marks of a process up to a time are worth nothing."""
        self.on_line: Callable[[LogEvent], None] = lambda _: None
        """Takes the lines of logs in place of ``accept``, behind what they are about."""
        self.is_needed = False
        """Whether data has to pass through here; else the caller may save it the way."""
        self._images: dict[int, _Image] = {}
        self._by_process: dict[int, _Image] = {}
        self._by_connection: dict[int, _Image] = {}
        """Clients' connections: the kernel side does not say whose end it tells."""
        self._queue: deque[_Waiting | LogEvent] = deque()
        self._held = counters.counter(
            "otel_qtap.link.events_held", "{event}",
            "Events that waited until the marks of a HAProxy were verified",
        )  # fmt: skip
        self._verdicts = {
            verdict: counters.counter(
                "otel_qtap.link.calibrations", "{calibration}",
                "Verdicts about where HAProxy keeps the stream being processed",
                verdict=verdict.value,
            )
            for verdict in Verdict
        }  # fmt: skip

    def learn(self, process_id: int, layout: Layout) -> None:
        """A process has this layout; a new one under a known number begins anew."""
        image = self._images.get(layout.number)
        if image is None or image.layout != layout:
            replaced = image
            image = self._images[layout.number] = _Image(layout)
            if replaced is not None:
                self._replace(replaced, image)
        self._by_process[process_id] = image
        self._drain()

    @property
    def is_holding(self) -> bool:
        """Whether events wait here."""
        return bool(self._queue)

    def consume(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, LostEvent):
            self._accept(event)
            return
        if isinstance(event, LogEvent):
            if self._queue:
                self._queue.append(event)
            else:
                self.on_line(event)
            return
        image = self._by_process.get(event.process_id)
        if type(event) is DataEvent and not self._queue and (image is None or image.is_over):
            self._accept(event)  # nearly all: some process always waits for its first request
        elif isinstance(event, ProcessEvent):
            self._follow(event, image)
            self._accept(event)
        elif isinstance(event, SnapshotEvent):
            if image is not None and event.is_connecting:
                if not image.is_verified:
                    image.calibration.observe_connect(event)
                    image.note_connect(event)
            elif image is not None:
                image.snapshot = event
                self.is_needed = True  # what follows must pass through here
        else:
            self._take(event, image)

    def tick(self, now_ns: int) -> None:
        """Called about once a second: whoever has waited too long gets a decision."""
        for image in list(self._images.values()):
            if image.hold_since_ns and now_ns - image.hold_since_ns > _WAIT_NS:
                self._settle_late(image)
        self._drain()

    def close(self) -> None:
        """Let everything go that waits."""
        for image in list(self._images.values()):
            self._settle_late(image)
        self._drain()

    def _replace(self, old: _Image, new: _Image) -> None:
        """Go on with another layout under the same number."""
        old.hold_since_ns = 0  # nothing more will be known about its marks
        for connection_id, owner in self._by_connection.items():
            if owner is old:
                self._by_connection[connection_id] = new
        for process_id, image in self._by_process.items():
            if image is old:
                self._by_process[process_id] = new
                self.on_distrust(process_id, new.since_ns)

    def _follow(self, event: ProcessEvent, image: _Image | None) -> None:
        if event.step is ProcessStep.FORKED:
            parent = self._by_process.get(event.parent_id)
            if parent is not None:
                self._by_process[event.process_id] = parent
        elif image is not None:
            del self._by_process[event.process_id]
            if image not in self._by_process.values():
                self._settle_late(image)
                self._images.pop(image.layout.number, None)
                self._drain()

    def _take(self, event: Marked, image: _Image | None) -> None:
        if isinstance(event, CloseEvent):
            connection_id = event.connection_id
            image = image or self._by_connection.get(connection_id)
            if event.step is CloseStep.DESTROYED:
                self._by_connection.pop(connection_id, None)
            if image is None and self.is_needed:
                event = without_mark(event)  # of whom? perhaps of one that is not verified
        elif image is not None and (isinstance(event, OpenEvent) or not image.is_over):
            self._note_owner(event.connection_id, image)
        waiting = _Waiting(event, image)
        # The mark of an opening may be much older than the event.
        if image is not None and (isinstance(event, OpenEvent) or not image.is_over):
            self._look_at(waiting, image)
            if not image.hold_since_ns and image.wants_hold(waiting.event):
                image.hold_since_ns = event.timestamp_ns
                image.was_held = True
        if self._queue or (image is not None and image.hold_since_ns):
            self._queue.append(waiting)
            self._held.value += 1
            is_late = len(self._queue) >= _WAITING_EVENTS
            for each in [i for i in self._images.values() if i.hold_since_ns]:
                if is_late or event.timestamp_ns - each.hold_since_ns > _WAIT_NS:
                    self._settle_late(each)
            self._drain()
        else:
            self._accept(waiting.proceed())

    def _look_at(self, waiting: _Waiting, image: _Image) -> None:
        """Put the mark right if need be, and hear what the calibration says to its snapshot."""
        event = waiting.event
        if isinstance(event, OpenEvent):
            waiting.snapshot = image.connects.pop(event.connection_id, None)
            self._check_age(waiting, image)
            return
        snapshot, image.snapshot = image.snapshot, None
        if (
            snapshot is not None
            and isinstance(event, DataEvent)
            and snapshot.connection_id == event.connection_id
            and snapshot.timestamp_ns == event.timestamp_ns
        ):
            waiting.snapshot = snapshot
            self._check_age(waiting, image)
            if not image.is_verified:
                image.calibration.observe(snapshot, event)
                self._judge(image, waiting)
                if image.is_trusted and image.calibration.contradiction:
                    self._withdraw_trust(image, event.timestamp_ns)
            elif image.is_settled and image.has_marks:
                self._compare(image, snapshot, event)
        else:
            self._check_age(waiting, image)

    def _withdraw_trust(self, image: _Image, seen_ns: int) -> None:
        """What was plausible, and taken for true in want of a verdict, turns out not to be."""
        image.is_trusted = False
        for process_id, each in self._by_process.items():
            if each is image:
                self.on_distrust(process_id, seen_ns)

    def _check_age(self, waiting: _Waiting, image: _Image) -> None:
        """Put a mark right that was made by another layout than that of now."""
        event, snapshot = waiting.event, waiting.snapshot
        if (
            image.replaced is not None
            and snapshot is not None
            and tells_apart(event, snapshot, image.layout, image.replaced)
        ):
            image.since_ns, image.replaced = event.timestamp_ns, None
        if marked_ns(event) < image.since_ns:
            waiting.put_right()
        elif not image.is_settled and event.timestamp_ns - image.since_ns > _WAIT_NS:
            image.is_settled = True

    def _compare(self, image: _Image, snapshot: SnapshotEvent, event: DataEvent) -> None:
        """See whether what was verified still explains what a thread does."""
        if image.layout.source is not StreamSource.THREAD:
            return
        if snapshot.timestamp_ns - image.compared_ns > _COMPARISON_NS:
            image.comparison, image.compared_ns = Calibration(image.layout), snapshot.timestamp_ns
        image.comparison.observe(snapshot, event)
        why = image.comparison.contradiction
        if why:
            image.has_marks = False
            self.on_doubt(event.process_id, "snapshot", event.timestamp_ns, why)
        self._drain()  # nothing more needs to pass through here, if it is right

    def _judge(self, image: _Image, newest: _Waiting) -> None:
        """Act on the verdict, if there is one."""
        verdict = image.calibration.verdict
        while verdict is Verdict.CHANGED:
            self._verdicts[verdict].value += 1
            self._change(image, newest)
            self.on_verdict(image.layout, verdict, "")
            verdict = image.calibration.verdict
        if verdict is Verdict.OPEN or image.is_verified:
            return
        if verdict is Verdict.VERIFIED and image.replaced is not None:
            return  # the kernel side goes by the old offsets still
        self._verdicts[verdict].value += 1
        image.is_verified = True
        image.hold_since_ns = 0
        image.has_marks = image.is_trusted = verdict is Verdict.VERIFIED
        if verdict is Verdict.REFUTED:
            image.layout = replace(image.layout, source=StreamSource.NOTHING)
        self.on_verdict(image.layout, verdict, image.calibration.reason)

    def _change(self, image: _Image, newest: _Waiting) -> None:
        """Go on with other offsets; what was seen so far is judged anew by them."""
        found = image.calibration.found
        image.replaced, image.since_ns, image.is_settled = image.layout, _NEVER_NS, False
        image.layout = replace(image.layout, offsets=found)
        image.calibration = Calibration(image.layout)
        for waiting in (*self._queue, newest):
            if isinstance(waiting, LogEvent) or waiting.image is not image:
                continue
            waiting.put_right()
            event, snapshot = waiting.event, waiting.snapshot
            if snapshot is not None and isinstance(event, DataEvent):
                image.calibration.observe(seen_with(snapshot, found), event)

    def _settle_late(self, image: _Image) -> None:
        """No verdict in time: what is plausible counts, and verification goes on."""
        if image.hold_since_ns and not image.is_verified:
            image.is_trusted = image.calibration.is_plausible
        image.hold_since_ns = 0

    def _drain(self) -> None:
        """Pass on what need not wait any longer, in order."""
        queue = self._queue
        while queue:
            waiting = queue[0]
            if isinstance(waiting, LogEvent):
                queue.popleft()
                self.on_line(waiting)
                continue
            if waiting.image is not None and waiting.image.hold_since_ns:
                break
            queue.popleft()
            self._accept(waiting.proceed())
        self.is_needed = bool(queue) or not all(i.is_over for i in self._images.values())

    def _note_owner(self, connection_id: int, image: _Image) -> None:
        owners = self._by_connection
        if connection_id not in owners and len(owners) >= _CONNECTIONS:
            del owners[next(iter(owners))]  # its end was lost, likely
        owners[connection_id] = image
