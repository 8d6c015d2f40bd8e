"""What a file names becomes destinations, or one message about why it cannot."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from configs import config_of
from exporters.test_otlp import Receiver

from otel_qtap.delivery import TapFirst
from otel_qtap.destinations import DestinationError, Destinations
from otel_qtap.stores import RequestEvent, StdoutWriter

KEYS = "access_key: {type: env, value: KEY_ID}, secret_key: {type: env, value: KEY_SECRET}"
S3 = "{type: s3, bucket: b, endpoint: '127.0.0.1:9', insecure: true, %s}"
OTEL = "{type: otel, protocol: http, endpoint: 'http://127.0.0.1:9'}"
ENVIRON = {"KEY_ID": "id", "KEY_SECRET": "secret"}


@pytest.fixture
def make(counters, monkeypatch) -> Iterator[Callable[..., Destinations]]:
    """``make(event_stores="…", object_stores="…", environ={…})``, closed afterwards."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    made: list[Destinations] = []
    stdout = io.BytesIO()
    writer = StdoutWriter(stdout, counters=counters)

    def make(
        event_stores: str = "", object_stores: str = "", *, tap: str = "", environ=ENVIRON
    ) -> Destinations:
        config = config_of(
            f"version: 2\nservices:\n  event_stores: [{event_stores}]\n"
            f"  object_stores: [{object_stores}]\ntap: {{{tap}}}\n"
        )
        destinations = Destinations(
            config, writer=writer, counters=counters, tap_first=TapFirst(), span_key=b"key",
            environ=environ,
        )  # fmt: skip
        destinations.printed = lambda: writer.flush(5) and stdout.getvalue().decode()
        made.append(destinations)
        return destinations

    yield make
    for each in made:
        each.close(0)
    writer.close(5)


def names(consumers: tuple) -> list[str]:
    return [type(consumer).__name__ for consumer in consumers]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def ends_as(before: set[str]) -> bool:
    """Return whether no other threads are left; they need a moment to end."""
    deadline_s = time.monotonic() + 5
    while threads() != before and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return threads() == before


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector."""
    server = Receiver()
    yield server
    server.shutdown()
    server.server_close()


def otel(receiver: Receiver) -> str:
    return OTEL.replace("127.0.0.1:9", receiver.endpoint)


def test_all_stores_of_a_list_are_used(make) -> None:
    """Qtap uses the first one."""
    destinations = make(f"{{type: stdout}}, {OTEL}", f"{{type: stdout}}, {S3 % KEYS}")

    assert names(destinations.object_stores) == ["StdoutStore", "S3Store", "ArtifactReporter"]
    assert names(destinations.events) == ["StdoutEventStore", "OtlpExporter"]
    assert names(destinations.connections) == ["OtlpExporter"]
    assert destinations.transactions[:3] == destinations.object_stores
    assert len(destinations.exporters) == 1


def test_stores_have_names_of_their_own(make, counters) -> None:
    """Those of the file, or else the kind and a number."""
    make(
        f"{OTEL}, {OTEL}, {{type: otel, protocol: http, id: mine}}",
        f"{S3 % KEYS}, {S3 % ('id: archive, ' + KEYS)}, {S3 % KEYS}",
    )

    found = {
        dict(sample.labels)["destination"]
        for sample in counters.samples()
        if sample.name == "otel_qtap.delivery.delivered"
    }
    assert found == {"stdout", "otlp", "otlp-1", "mine", "s3", "archive", "s3-2"}


def test_nothing_is_made_for_nothing(make) -> None:
    """No artifact record without somebody to tell, no event store that is switched off."""
    destinations = make("{type: disabled}", "{type: stdout}")

    assert names(destinations.transactions) == ["StdoutStore"]
    assert (destinations.events, destinations.connections) == ((), ())


def test_connections_are_printed_only_where_everything_is(make, caplog) -> None:
    """As in Qtap; what plugins were asked to report is printed at every level."""
    for level, expected in ((logging.INFO, []), (logging.DEBUG, ["StdoutEventStore"])):
        with caplog.at_level(level, "otel_qtap"):
            destinations = make("{type: stdout}")
        assert names(destinations.events) == ["StdoutEventStore"]
        assert names(destinations.connections) == expected


def test_printed_objects_are_not_told_to_a_collector(make) -> None:
    """They have no address to fetch them from; objects in a bucket have."""
    assert names(make(OTEL, "{type: stdout}").object_stores) == ["StdoutStore"]
    assert "ArtifactReporter" in names(make(OTEL, S3 % KEYS).object_stores)


def test_a_collector_that_wants_no_logs_gets_no_events(make) -> None:
    """Events are log records."""
    store = OTEL.replace("{", "{signals: [traces], ", 1)
    destinations = make(store)

    assert len(destinations.exporters) == 1
    assert (destinations.events, destinations.connections) == ((), ())


@pytest.mark.parametrize(("mode", "amount"), [("count", 1), ("spans", 2)])
def test_health_checks_are_sent_only_if_asked_for(
    make, make_transaction, receiver, mode, amount
) -> None:
    """Object stores get them in any case."""
    destinations = make(otel(receiver), "{type: stdout}", tap=f"health_checks: {mode}")
    for transaction in (make_transaction(), make_transaction(is_health_check=True)):
        for consumer in destinations.transactions:
            consumer.consume(transaction)
    assert destinations.flush(10)

    assert (len(receiver.spans()), len(receiver.records())) == (amount, amount)
    assert destinations.printed().count("\n") == 2


UNUSABLE = [
    ({"KEY_ID": "id"}, "access_key or secret_key is empty"),
    ({"KEY_ID": "", "KEY_SECRET": "secret"}, "access_key or secret_key is empty"),
    ({}, "names an environment variable that is not set"),
]


@pytest.mark.parametrize(("environ", "message"), UNUSABLE)
def test_keys_that_are_missing_are_an_error(make, environ, message) -> None:
    """And never a reason to look for others, which could be somebody else's."""
    before = threads()
    with pytest.raises(DestinationError, match=message) as caught:
        make("", f"{S3 % ('id: archive, ' + KEYS)}", environ=environ)

    assert "archive" in str(caught.value)
    assert "secret" not in str(caught.value).replace("secret_key", "")
    assert ends_as(before)


def test_what_was_made_before_a_failure_is_closed(make, monkeypatch) -> None:
    """Nothing is left running."""
    monkeypatch.setenv("KEY_NONE", "set while the file was checked")
    before = threads()
    broken = S3 % ("id: broken, " + KEYS.replace("KEY_SECRET", "KEY_NONE"))
    with pytest.raises(DestinationError, match="broken"):
        make("", f"{S3 % KEYS}, {broken}", environ=ENVIRON | {"KEY_NONE": ""})

    assert ends_as(before)


NEVER = [
    ("endpoint: 'http://me:pass:word@[::1:4318', protocol: http", {}),
    ("protocol: grpc", {"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}),
    ("protocol: grpc", {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}),
]


@pytest.mark.parametrize(("store", "variables"), NEVER)
def test_an_exporter_that_can_never_work_is_an_error(make, monkeypatch, store, variables) -> None:
    """With the name of the store and where to look, and without what may be secret."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DestinationError, match="event store mine cannot be used") as caught:
        make(f"{{type: otel, id: mine, {store}}}")

    assert "OTEL_EXPORTER_OTLP_*" in str(caught.value)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({"AWS_ACCESS_KEY_ID": "id", "AWS_SESSION_TOKEN": "t"}, "t"),
        ({"AWS_ACCESS_KEY_ID": "other", "AWS_SESSION_TOKEN": "t"}, ""),
        ({"AWS_SESSION_TOKEN": "t"}, ""),
    ],
)
def test_the_token_goes_with_the_keys_it_belongs_to(make, environ, token) -> None:
    """Temporary keys of the environment come with one; others must not be given it."""
    (store,) = make("", S3 % KEYS, environ=ENVIRON | environ).object_stores

    assert store.options.session_token == token


def test_events_reach_the_collector(make, make_transaction, receiver) -> None:
    """The exporter is an event store."""
    destinations = make(otel(receiver))
    (exporter,) = destinations.events
    exporter.consume_event(RequestEvent(transaction=make_transaction()))
    assert destinations.flush(10)

    (record,) = receiver.records()
    assert record.event_name == "qtap.request"


IMPORTS = """\
import io, sys
from configs import config_of
from otel_qtap.counters import CounterSet
from otel_qtap.pipeline import Pipeline, PipelineOptions
from otel_qtap.replay import RecordedFacts
import otel_qtap.cli
Pipeline(
    config_of(sys.argv[1]), RecordedFacts(), CounterSet(), io.BytesIO(),
    options=PipelineOptions(), epoch_offset_ns=0,
)
print(*sorted({name.partition('.')[0] for name in sys.modules}))
"""
COSTLY = {"boto3", "botocore", "grpc", "opentelemetry", "publicsuffixlist", "re2", "requests"}
RULE = "{type: http_capture, config: {rules: [{expr: %s, level: full}]}}"
NEEDS = [
    pytest.param("", "http.res.status >= 500", set(), id="nothing"),
    pytest.param("", "http.req.path =~ /a+/", {"re2"}, id="rule"),
    pytest.param(OTEL, "true", {"opentelemetry", "requests"}, id="http"),
    pytest.param("{type: otel}", "true", {"opentelemetry", "grpc"}, id="grpc"),
]


@pytest.mark.parametrize(("stores", "rule", "needs"), NEEDS)
def test_what_takes_long_to_import_is_imported_where_it_is_needed(stores, rule, needs) -> None:
    """The start of an agent that needs none of it is quick, and its memory small."""
    config = (
        f"services: {{object_stores: [{{type: stdout}}], event_stores: [{stores}]}}\n"
        f"stacks: {{s: {{plugins: [{RULE % json.dumps(rule)}]}}}}\ntap: {{http: {{stack: s}}}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, config],
        capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )  # fmt: skip

    assert COSTLY & set(done.stdout.split()) == needs
