"""What the tap drains goes into a file, for ``replay.py``."""

from __future__ import annotations

import time

from otel_qtap.config.model import Config
from otel_qtap.connection.model import Process
from otel_qtap.counters import CounterSet
from otel_qtap.events import DataEvent, LostEvent, OpenEvent, ProcessEvent, Role
from otel_qtap.haproxy import NameTables
from otel_qtap.haproxy.layout import Layout
from otel_qtap.haproxy.streams import StreamMarks
from otel_qtap.receiver.recording import AddressName, RecordingWriter
from otel_qtap.receiver.wire import WireError, decode
from otel_qtap.tap import AgentOptions, Tap

__all__ = ["Recorder"]


class Recorder(Tap):
    """Writes what the receiver emits to a file, with the facts that a replay needs."""

    def __init__(
        self, config: Config, options: AgentOptions, counters: CounterSet, writer: RecordingWriter
    ) -> None:
        """Attach to the kernel; raises ``MachineError`` when this machine cannot."""
        super().__init__(config, options, counters)
        self._writer = writer
        self._known: set[int] = set()
        self._named: set[tuple[int, str]] = set()
        self._tables: dict[int, NameTables] = {}
        self._looks = 0
        self.exclude_filtered_processes(self._excludes)
        self._streams = StreamMarks(lambda _event: None, counters)
        self.watch_haproxy(self._streams, self._learn_layout)

    def run(self, duration_s: float) -> str:
        """Record until told to stop; returns why it ended. Raises ``RecordingError``."""
        until_s = time.monotonic() + duration_s
        self.loop(self._take, until_s)
        reason = "stopped"
        if self._writer.is_full:
            reason = "the size limit was reached"
        elif not self._is_stopping:
            reason = "the duration was over"
        self._writer.close(reason)
        self.close()
        return reason

    def _excludes(self, process: Process) -> bool:
        return self.config.tap.filters.excludes(process.executable)

    def after_drain(self) -> None:
        """Note what has become known of HAProxy's names, where it stands among the records."""
        if self.names.looks == self._looks:
            return
        self._looks = self.names.looks
        for process_id, tables in self.names.all_tables().items():
            if self._tables.get(process_id) != tables:
                self._tables[process_id] = tables
                self._writer.write_names(process_id, tables)

    def housekeep(self, now_s: float) -> None:
        """Also decide about HAProxy processes that say little."""
        super().housekeep(now_s)
        self._streams.tick(self.seen_ns)

    def on_loss(self, event: LostEvent) -> None:
        """Keep the news of a loss in the recording."""
        self._writer.write_loss(event)

    def _take(self, record: memoryview) -> None:
        try:
            event = decode(record)
        except WireError:
            self._undecodable.value += 1
            return
        if self._streams.is_needed or not isinstance(event, DataEvent):
            self._streams.consume(event)  # a recording needs right marks, too
        if isinstance(event, ProcessEvent):
            self.follow(event, self._excludes)
            self._known.discard(event.process_id)
        elif isinstance(event, DataEvent | OpenEvent):
            self._learn(event)
        self._writer.write_record(record)
        if self._writer.is_full:
            self.stop()

    def _learn_layout(self, process_id: int, layout: Layout) -> None:
        self._streams.learn(process_id, layout)
        self._writer.write_layout(process_id, layout)

    def _learn(self, event: DataEvent | OpenEvent) -> None:
        pid = event.process_id
        if pid not in self._known:
            self._known.add(pid)
            process = self.processes.get(pid)
            self._writer.write_process(process, self.facts.container(process))
        if isinstance(event, OpenEvent) and event.role is Role.CLIENT:
            key = (pid, event.remote_address)
            if key not in self._named:
                self._named.add(key)
                name = self.facts.name_of(*key)
                if name:
                    self._writer.write_name(AddressName(*key, name))
