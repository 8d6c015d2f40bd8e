"""Objects in a real bucket, and the truth about those that did not get there."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from checks.s3_server import READER, WRITER, S3Server
from stores.s3_relay import Relay, make_certificate

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.counters import CounterSet
from otel_qtap.stores.json_record import render_json
from otel_qtap.stores.s3 import S3Options, S3Store
from otel_qtap.stores.text import render_text

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def _no_credentials_of_this_machine(monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def make_store(counters) -> Iterator[Callable[..., S3Store]]:
    """``make_store(endpoint, bucket, keys=…, …) -> S3Store``, closed afterwards."""
    stores: list[S3Store] = []

    def make(
        endpoint: str, bucket: str, keys: tuple[str, str] = WRITER, *, queue_bytes=10**7, **changes
    ) -> S3Store:
        options = {
            "insecure": True,
            "access_key": keys[0],
            "secret_key": keys[1],
            "connect_timeout_s": 2.0,
        }
        stores.append(
            S3Store(
                S3Options(bucket=bucket, endpoint=endpoint, **(options | changes)),
                counters=counters,
                max_queue_bytes=queue_bytes,
                max_delay_s=0.01,
            )
        )
        return stores[-1]

    yield make
    for store in stores:
        store.close(0)


@pytest.fixture
def relay(seaweed: S3Server) -> Iterator[Relay]:
    """A way to SeaweedFS that is cut until it is opened."""
    relay = Relay(seaweed.endpoint)
    yield relay
    relay.close()


def key_of(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def failed(counters: CounterSet, reason: str) -> int:
    return counters.value("otel_qtap.store.failed", destination="s3", reason=reason)


def test_objects_byte_for_byte(seaweed, make_store, make_transaction, counters) -> None:
    """The content in its format under its SHA-1, with the media type Qtap gives it."""
    bucket = seaweed.make_bucket()
    store = make_store(seaweed.endpoint, bucket)
    body = bytes(range(256)) * 1000
    as_json = make_transaction(request_body=body, response_body="Zoë".encode())
    as_text = make_transaction(format=CaptureFormat.TEXT, target="/Zoë".encode().decode("latin-1"))
    for transaction in (as_json, as_text):
        store.consume(transaction)
    assert store.flush(WAIT_S)

    contents = {
        render_json(as_json).encode(): "application/json",
        render_text(as_text).encode(): "text/plain",
    }
    assert seaweed.objects(bucket) == {key_of(c): c for c in contents}
    for content, content_type in contents.items():
        key = key_of(content)
        answer = seaweed.client.head_object(Bucket=bucket, Key=key)
        assert answer["ContentType"] == content_type
        assert "ContentEncoding" not in answer
    assert counters.value("otel_qtap.store.stored", destination="s3") == 2
    assert counters.value("otel_qtap.store.stored_bytes", destination="s3") == sum(
        map(len, contents)
    )


def test_every_transaction_has_its_object(seaweed, make_store, make_transaction, counters) -> None:
    """Several connections at once lose and mix up nothing; close waits for the last one."""
    bucket = seaweed.make_bucket()
    store = make_store(seaweed.endpoint, bucket)
    ids = [f"request{number:03}" for number in range(150)]
    for request_id in ids:
        store.consume(make_transaction(request_id=request_id, level=CaptureLevel.SUMMARY))
    assert store.close(WAIT_S)

    objects = seaweed.objects(bucket)
    stored = [json.loads(content)["metadata"]["request_id"] for content in objects.values()]
    assert sorted(stored) == ids
    assert [key_of(content) for content in objects.values()] == list(objects)
    assert counters.value("otel_qtap.delivery.delivered", destination="s3") == 150


REFUSALS = [
    pytest.param((WRITER[0], "wrong-secret"), "", "auth", "SignatureDoesNotMatch", id="secret"),
    pytest.param(("nobody", WRITER[1]), "", "auth", "InvalidAccessKeyId", id="user"),
    pytest.param(READER, "", "auth", "AccessDenied", id="may-not-write"),
    pytest.param(WRITER, "no-such-bucket", "bucket_missing", "no bucket 'no-such", id="bucket"),
]


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "large"])
@pytest.mark.parametrize(("keys", "bucket", "reason", "text"), REFUSALS)
def test_a_refusal_is_counted_and_told_once(
    keys, bucket, reason, text, size, seaweed, make_store, make_transaction, counters, caplog
) -> None:
    """With its reason, and without the credentials."""
    caplog.set_level(logging.DEBUG, "otel_qtap")
    bucket = bucket or seaweed.make_bucket()
    store = make_store(seaweed.endpoint, bucket, keys)
    for _ in range(3):
        store.consume(make_transaction(response_body=bytes(size)))
        assert not store.flush(WAIT_S)

    assert failed(counters, reason) == counters.total("otel_qtap.store.failed") == 3
    assert counters.value("otel_qtap.delivery.dropped", destination="s3", reason="failed") == 3
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("s3: delivery fails (")
    assert text in message
    assert keys[0] not in caplog.text
    assert keys[1] not in caplog.text


def test_each_change_is_told_once(
    relay, seaweed, make_store, make_transaction, counters, caplog
) -> None:
    """The endpoint is away, then lacks the bucket, then has it: three lines, none in between."""
    bucket = "made-later"
    store = make_store(relay.endpoint, bucket)

    def store_two(*, arrive: bool) -> None:
        for _ in range(2):
            store.consume(make_transaction())
            assert store.flush(WAIT_S) is arrive

    store_two(arrive=False)
    relay.open()
    store_two(arrive=False)
    seaweed.make_bucket(bucket)
    store_two(arrive=True)

    place = relay.endpoint
    begins, changes, ends = [record.getMessage() for record in caplog.records]
    assert begins.startswith(f"s3: delivery fails ({place} does not answer (Endpoint")
    assert changes == (
        f"s3: delivery still fails, now because there is no bucket 'made-later' at {place}"
    )
    assert ends == "s3: delivery works again"
    assert (failed(counters, "endpoint_down"), failed(counters, "bucket_missing")) == (2, 2)
    assert counters.value("otel_qtap.store.stored", destination="s3") == 2


def test_what_was_wrong_before_is_over(
    relay, seaweed, make_store, make_transaction, caplog
) -> None:
    """Another failure after a success begins anew."""
    bucket = seaweed.make_bucket()
    store = make_store(relay.endpoint, bucket)

    def store_one() -> bool:
        store.consume(make_transaction())
        return store.flush(WAIT_S)

    assert not store_one()
    relay.open()
    assert store_one()
    seaweed.remove_bucket(bucket)
    assert not store_one()

    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "s3: delivery fails",
        "s3: delivery works again",
        "s3: delivery fails",
    ]


def test_the_bucket_is_in_the_path_of_a_custom_endpoint(
    relay, seaweed, make_store, make_transaction
) -> None:
    """``bucket.host`` would need a DNS entry that hardly anybody has."""
    relay.open()
    bucket = seaweed.make_bucket()
    store = make_store(relay.endpoint, bucket)
    store.consume(make_transaction())
    assert store.flush(WAIT_S)

    (key,) = seaweed.objects(bucket)
    head = relay.heads[0].decode()
    assert head.startswith(f"PUT /{bucket}/{key} HTTP/1.1\r\n")
    assert f"host: {relay.endpoint}\r\n" in head.lower()
    assert WRITER[1] not in head


@pytest.mark.parametrize(("size", "asks"), [(1000, False), (1_000_000, True)])
def test_small_objects_take_one_round_trip(
    size, asks, relay, seaweed, make_store, make_transaction
) -> None:
    """Large ones ask first, so that a refusal reaches us before the connection breaks."""
    relay.open()
    bucket = seaweed.make_bucket()
    store = make_store(relay.endpoint, bucket)
    transaction = make_transaction(response_body=bytes(size))
    store.consume(transaction)
    assert store.flush(WAIT_S)

    assert (b"\r\nExpect: 100-continue\r\n" in relay.heads[0]) is asks
    assert list(seaweed.objects(bucket).values()) == [render_json(transaction).encode()]


def test_tls_with_a_ca_of_ones_own(
    seaweed, make_store, make_transaction, counters, tmp_path
) -> None:
    """With its certificate the body arrives as it is, framing left out; without, nothing does."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, context = make_certificate(tmp_path)
    relay = Relay(seaweed.endpoint, context)
    relay.open()
    bucket = seaweed.make_bucket()
    trusting = make_store(relay.endpoint, bucket, insecure=False, ca_file=str(certificate))
    transaction = make_transaction(response_body=b"content")
    trusting.consume(transaction)
    assert trusting.flush(WAIT_S)
    (key,) = seaweed.objects(bucket)
    answer = seaweed.client.get_object(Bucket=bucket, Key=key)
    assert answer["Body"].read() == render_json(transaction).encode()
    assert "ContentEncoding" not in answer

    doubting = make_store(relay.endpoint, bucket, insecure=False)
    doubting.consume(transaction)
    assert not doubting.flush(WAIT_S)
    assert failed(counters, "endpoint_down") == 1
    relay.close()


def test_without_keys_the_usual_sources_are_asked(
    seaweed, make_store, make_transaction, counters, monkeypatch
) -> None:
    """Those of the environment, for one; where there are none, that is told."""
    bucket = seaweed.make_bucket()
    lacking = make_store(seaweed.endpoint, bucket, ("", ""))
    lacking.consume(make_transaction())
    assert not lacking.flush(WAIT_S)
    assert failed(counters, "auth") == 1

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", WRITER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRITER[1])
    store = make_store(seaweed.endpoint, bucket, ("", ""))
    store.consume(make_transaction())
    assert store.flush(WAIT_S)
    assert len(seaweed.objects(bucket)) == 1


ENDPOINTS = [
    # endpoint, region, insecure, where requests go
    pytest.param("minio:9000", "us-east-1", True, "http://minio:9000", id="custom"),
    pytest.param("s3.amazonaws.com", "us-east-1", False, "https://s3.amazonaws.com", id="amazon"),
    pytest.param(
        "s3.amazonaws.com", "eu-west-1", False, "https://s3.eu-west-1.amazonaws.com",
        id="amazon-region",
    ),
    pytest.param("s3.amazonaws.com", "us-east-1", True, "http://s3.amazonaws.com", id="no-tls"),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "region", "insecure", "url"), ENDPOINTS)
def test_the_configured_endpoint_holds(
    endpoint, region, insecure, url, make_store, monkeypatch
) -> None:
    """Captured traffic does not go elsewhere because of an environment variable."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store = make_store(endpoint, "traffic", region=region, insecure=insecure)
    assert store._client._client.meta.endpoint_url == url


def test_an_endpoint_that_hangs_holds_up_neither_tap_nor_exit(
    make_store, make_transaction, counters
) -> None:
    """What does not fit is dropped and counted at once; close gives up at its deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        store = make_store(endpoint, "bucket", queue_bytes=100_000, read_timeout_s=WAIT_S)
        slowest = 0.0
        for _ in range(100):
            started = time.monotonic()
            store.consume(make_transaction(response_body=bytes(5000)))
            slowest = max(slowest, time.monotonic() - started)
        dropped = counters.value(
            "otel_qtap.delivery.dropped", destination="s3", reason="queue_full"
        )
        started = time.monotonic()
        assert not store.close(0.3)
        closing = time.monotonic() - started
    for thread in threading.enumerate():  # the reset ends what hangs
        if thread.name == "deliver-s3":
            thread.join(WAIT_S)

    assert slowest < 0.5
    assert closing < 5
    assert 80 < dropped < 100
    assert counters.total("otel_qtap.delivery.dropped") == 100
    assert counters.total("otel_qtap.store.stored") == 0


def test_an_object_that_cannot_be_made_costs_only_itself(
    seaweed, make_store, make_transaction, make_request, counters, caplog
) -> None:
    """Whatever is wrong with it, and its text is not quoted."""
    bucket = seaweed.make_bucket()
    store = make_store(seaweed.endpoint, bucket)
    broken = make_transaction(request=make_request(headers=(("hunter2",),)))
    for transaction in (make_transaction(), broken):
        store.consume(transaction)
    assert not store.flush(WAIT_S)

    assert len(seaweed.objects(bucket)) == 1
    assert failed(counters, "error") == counters.total("otel_qtap.store.failed") == 1
    assert "hunter2" not in caplog.text


ADDRESSES = [
    pytest.param({}, "http://minio:9000/traffic/abc", id="default"),
    pytest.param({"insecure": False}, "https://minio:9000/traffic/abc", id="default-tls"),
    pytest.param(
        {"access_url": "https://ui.example/{{BUCKET}}/o?d={{ DIGEST }}&e={{ENDPOINT}}"},
        "https://ui.example/traffic/o?d=abc&e=minio:9000",
        id="template",
    ),
    pytest.param({"access_url": "{{SCHEME}}:{{OTHER}}"}, "http:{{OTHER}}", id="unknown-stays"),
]


@pytest.mark.parametrize(("changes", "url"), ADDRESSES)
def test_the_address_that_events_tell(changes, url, make_store) -> None:
    """From the template, or endpoint, bucket and key."""
    assert make_store("minio:9000", "traffic", **changes).access_url("abc") == url


STYLES = [
    pytest.param("s3.amazonaws.com", "auto", None, "auto", id="amazon"),
    pytest.param(
        "s3.eu-west-1.amazonaws.com", "auto", "https://s3.eu-west-1.amazonaws.com", "auto",
        id="amazon-region",
    ),
    pytest.param("minio:9000", "auto", "https://minio:9000", "path", id="custom"),
    pytest.param("minio:9000", "virtual", "https://minio:9000", "virtual", id="custom-virtual"),
    pytest.param("s3.amazonaws.com", "path", None, "path", id="amazon-path"),
    pytest.param("[::1]:9000", "auto", "https://[::1]:9000", "path", id="ipv6"),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "addressing", "url", "style"), STYLES)
def test_where_requests_go(endpoint, addressing, url, style) -> None:
    """Amazon's endpoint follows the region; any other is taken as it stands, by path."""
    options = S3Options(bucket="traffic", endpoint=endpoint, addressing=addressing)
    assert (options.endpoint_url, options.addressing_style) == (url, style)


IMPOSSIBLE = [
    pytest.param({"endpoint": "http://minio:9000"}, "host or host:port", id="scheme"),
    pytest.param({"endpoint": "user:hunter2@minio"}, "host or host:port", id="user-info"),
    pytest.param({"endpoint": "minio/bucket"}, "host or host:port", id="path"),
    pytest.param({"access_key": "key"}, "has no secret_key", id="no-secret"),
    pytest.param({"secret_key": "hunter2"}, "has no access_key", id="no-key"),
]


@pytest.mark.parametrize(("changes", "text"), IMPOSSIBLE)
def test_what_can_never_work_stops_the_start(changes, text) -> None:
    """In words that hold no secret."""
    with pytest.raises(ValueError, match=text) as raised:
        S3Options(bucket="traffic", **changes)
    assert "hunter2" not in str(raised.value)


def test_a_profile_that_does_not_exist_stops_the_start(make_store, monkeypatch) -> None:
    """As everything else that boto3 finds wrong before the first request."""
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(ValueError, match=r"bucket 'traffic' at 'minio:9000' .*ProfileNotFound"):
        make_store("minio:9000", "traffic", ("", ""))


def test_secrets_are_not_shown() -> None:
    """By nothing that prints the options."""
    names = ("access_key", "secret_key", "session_token")
    assert "hunter2" not in repr(S3Options(bucket="traffic", **dict.fromkeys(names, "hunter2")))


BLOCKED = textwrap.dedent(
    """
    import importlib.util, socket, sys
    spec = importlib.util.spec_from_file_location("factories", sys.argv[1])
    factories = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(factories)
    from otel_qtap.counters import CounterSet
    from otel_qtap.stores.s3 import S3Options, S3Store

    silent = socket.create_server(("127.0.0.1", 0))
    options = S3Options(
        bucket="bucket", endpoint=f"127.0.0.1:{silent.getsockname()[1]}", insecure=True,
        access_key="key", secret_key="secret", read_timeout_s=600,
    )
    counters = CounterSet()
    store = S3Store(options, counters=counters)
    for _ in range(20):
        store.consume(factories.make_transaction())
    print(store.close(0.5), counters.total("otel_qtap.delivery.dropped"))
    """
)


def test_an_endpoint_that_hangs_does_not_keep_the_agent_alive(factories) -> None:
    """The process ends, with everything counted, while calls still wait for their answers."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, factories.__file__],
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("False 20\n", 0), done.stderr
