"""A recording of a few exchanges, for tests of what is made of recordings."""

from __future__ import annotations

from pathlib import Path

from conversations import Timeline, encode

from otel_qtap.connection.model import Process
from otel_qtap.events import CloseStep, Role
from otel_qtap.receiver.recording import AddressName, RecordingWriter

__all__ = ["STATUSES", "write_recording"]

STATUSES = (200, 503, 404)
"""Of the requests for ``/0``, ``/1`` and ``/2`` on each side."""

_HEAD = b"GET /%d?token=hidden HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer hidden\r\n\r\n"


def write_recording(path: Path, *, pause_ns: int = 0) -> Path:
    """Record HAProxy serving and sending three requests, on a connection for each side."""
    writer = RecordingWriter(path, epoch_offset_ns=1_788_000_000 * 10**9, limit_bytes=10**9)
    writer.write_process(Process(pid=987, executable="/usr/sbin/haproxy"), None)
    writer.write_name(AddressName(987, "172.18.0.3", "backend-api-1"))
    timeline = Timeline()
    for number, role in enumerate((Role.SERVER, Role.CLIENT)):
        script = timeline.open(role, number)
        for index, status in enumerate(STATUSES):
            script.ask(_HEAD % index)
            script.answer(b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\nhello" % status)
            script.now_ns += pause_ns
        script.step(CloseStep.DESTROYED)
    for event in timeline.take():
        writer.write_record(encode(event))
    writer.close("stopped")
    return path
