"""A replay into a real bucket: what rules keep is stored, and everybody names it alike."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator

import pytest
from checks.s3_server import WRITER, S3Server
from configs import config_of
from exporters.test_otlp import Receiver
from recorded import write_recording

from otel_qtap.counters import CounterSet
from otel_qtap.pipeline import PipelineOptions
from otel_qtap.receiver.recording import Recording
from otel_qtap.replay import replay

CONFIG = """\
version: 2
services:
  event_stores:
    - {{type: otel, protocol: http, endpoint: 'http://{receiver}'}}
  object_stores:
    - type: s3
      endpoint: {endpoint}
      bucket: {bucket}
      insecure: true
      access_url: https://objects.example/{{{{BUCKET}}}}/{{{{DIGEST}}}}
      access_key: {{type: env, value: S3_KEY_ID}}
      secret_key: {{type: env, value: S3_KEY}}
stacks:
  s:
    plugins:
      - type: http_capture
        config:
          level: none
          format: json
          rules:
            - {{expr: http.res.status >= 500, level: full}}
            - {{expr: http.res.status == 404, level: headers, format: text}}
tap:
  http: {{stack: s}}
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


def plain(value) -> object:
    """Return an OTLP value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)


def attributes(item) -> dict[str, object]:
    return {pair.key: plain(pair.value) for pair in item.attributes}


def test_objects_of_a_replay(seaweed: S3Server, receiver, tmp_path, monkeypatch) -> None:
    """Two levels, two formats, both sides; digest, key, span, log record and event agree."""
    monkeypatch.setenv("S3_KEY_ID", WRITER[0])
    monkeypatch.setenv("S3_KEY", WRITER[1])
    bucket, counters = seaweed.make_bucket(), CounterSet()
    config = config_of(
        CONFIG.format(endpoint=seaweed.endpoint, bucket=bucket, receiver=receiver.endpoint)
    )
    recording = Recording(write_recording(tmp_path / "r", pause_ns=700_000_000))
    assert replay(recording, config, counters, io.BytesIO(), PipelineOptions())
    recording.close()
    objects = seaweed.objects(bucket)
    seaweed.remove_bucket(bucket)

    assert len(objects) == 4
    for key, content in objects.items():
        assert hashlib.sha1(content, usedforsecurity=False).hexdigest() == key
    assert b"hidden" not in b"".join(objects.values())
    stored = [json.loads(content) for content in objects.values() if content.startswith(b"{")]
    assert {record["response"]["status"] for record in stored} == {503}
    assert {base64.b64decode(record["response"]["body"]) for record in stored} == {b"hello"}
    texts = [content for content in objects.values() if b"=== HTTP Transaction ===" in content]
    assert len(texts) == 2
    assert all(b"404" in text and b"hello" not in text for text in texts)

    spans = [attributes(span) for span in receiver.spans()]
    records = {name: [] for name in ("transaction", "connection", "artifact_record")}
    for record in receiver.records():
        records[record.event_name.rpartition(".")[2]].append(record)
    for found in (spans, [attributes(record) for record in records["transaction"]]):
        assert {one["aws.s3.key"] for one in found} == set(objects)
        for one in found:
            key = one["aws.s3.key"]
            assert one["aws.s3.bucket"] == bucket
            assert one["otel_qtap.object.sha1"] == key
            assert one["otel_qtap.object.url"] == f"https://objects.example/{bucket}/{key}"
    told = [attributes(record)["event"] for record in records["artifact_record"]]
    assert {event["digest"] for event in told} == set(objects)
    assert {event["url"].rpartition("/")[2] for event in told} == set(objects)
    span_ids = {(span.trace_id, span.span_id) for span in receiver.spans()}
    assert {(r.trace_id, r.span_id) for r in records["artifact_record"]} == span_ids
    # On each connection one report after half a second and one at the end, by recorded time.
    parts = [attributes(record)["event"] for record in records["connection"]]
    assert sorted((e.get("part", 0), e["finalized"]) for e in parts) == [
        (0, False), (0, False), (1, True), (1, True),
    ]  # fmt: skip
    assert {event["meta.endpointId"] for event in parts} == {"shop", "backend-api-1"}
