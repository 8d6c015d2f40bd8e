"""The records that join transactions with their objects."""

from __future__ import annotations

import io
import json

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.plugins.artifact_report import ArtifactReporter
from otel_qtap.plugins.http_capture import HttpCapture
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.stores.artifact import make_artifact
from otel_qtap.stores.stdout import StdoutEventStore, StdoutWriter


class Objects:
    """An object store that keeps objects as a bucket does, by key."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def consume(self, transaction) -> None:
        artifact = make_artifact(transaction)
        self.contents[artifact.digest] = artifact.content

    def access_url(self, digest: str) -> str:
        return f"https://s3.example/traffic/{digest}"


def test_event_and_object_are_joined(make_transaction, counters) -> None:
    """By digest and address to the object, by its ids to everything else."""
    objects, stream = Objects(), io.BytesIO()
    writer = StdoutWriter(stream, counters=counters)
    reporter = ArtifactReporter(urls_of=[objects.access_url], consumers=[StdoutEventStore(writer)])
    capture = HttpCapture(
        level=CaptureLevel.FULL,
        format=CaptureFormat.TEXT,
        redactor=Redactor(),
        consumers=[objects, reporter],
        counters=counters,
    )
    for number in range(3):
        capture.consume(make_transaction(request_id=f"r{number}", target=f"/{number}?token=secret"))
    assert writer.close(30)

    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert [event["requestId"] for event in events] == ["r0", "r1", "r2"]
    assert [event["digest"] for event in events] == list(objects.contents)
    for number, event in enumerate(events):
        assert event["url"] == f"https://s3.example/traffic/{event['digest']}"
        assert f"/{number}?token=REDACTED".encode() in objects.contents[event["digest"]]


def test_one_record_for_each_address(make_transaction) -> None:
    """And one where there is none: the digest still names the object."""
    taken = []

    class Sink:
        def consume_event(self, event) -> None:
            taken.append(event.record().get("url"))

    for urls_of in ([], [lambda d: f"a:{d[:0]}"], [lambda _: "a", lambda _: "b"]):
        ArtifactReporter(urls_of=urls_of, consumers=[Sink()]).consume(make_transaction())
    assert taken == [None, "a:", "a", "b"]
