"""What the stores of a Qtap file ask for."""

from __future__ import annotations

import pytest

from otel_qtap.config.section import ValueSource
from otel_qtap.config.services import OtelProtocol, OtelStore, S3Store, Signal


def test_an_otel_store_has_qtaps_defaults_and_our_signals() -> None:
    """Nothing but the type is needed."""
    store = OtelStore(type="otel")

    assert store.protocol is OtelProtocol.GRPC
    assert store.signals == (Signal.TRACES, Signal.LOGS)
    assert (store.endpoint, store.resolve_headers()) == ("", {})


def test_endpoint_and_headers_come_from_the_environment() -> None:
    """``{{NAME}}`` in the endpoint, value sources in the headers."""
    store = OtelStore.model_validate(
        {
            "type": "otel",
            "endpoint": "https://{{HOST}}:4318",
            "headers": {"x-token": {"type": "env", "value": "TOKEN"}, "x-team": "edge"},
        }
    )
    environ = {"HOST": "otlp.example", "TOKEN": "t"}

    assert store.endpoint_variables() == ("HOST",)
    assert store.resolve_endpoint(environ) == "https://otlp.example:4318"
    assert store.resolve_headers(environ) == {"x-token": "t", "x-team": "edge"}
    assert store.resolve_headers({}) == {"x-team": "edge"}
    assert ValueSource(type="text", value="v").resolve({}) == "v"


def test_an_s3_store_has_qtaps_defaults() -> None:
    """Amazon's own, by TLS, with the credentials that are lying around."""
    store = S3Store(type="s3", bucket="b")

    assert (store.endpoint, store.region) == ("s3.amazonaws.com", "us-east-1")
    assert (store.insecure, store.access_url, store.resolve_keys()) == (False, "", None)


KEYS = [
    pytest.param({"KEY": "k", "SECRET": "s"}, ("k", "s"), id="both"),
    pytest.param({"KEY": "k"}, None, id="one"),
    pytest.param({"KEY": "k", "SECRET": ""}, None, id="empty"),
]


@pytest.mark.parametrize(("environ", "keys"), KEYS)
def test_the_keys_of_a_bucket_are_both_there_or_none_is_used(environ, keys) -> None:
    """Half a pair of credentials signs nothing."""
    store = S3Store.model_validate(
        {
            "type": "s3",
            "bucket": "b",
            "access_key": {"type": "env", "value": "KEY"},
            "secret_key": {"type": "env", "value": "SECRET"},
        }
    )

    assert store.resolve_keys(environ) == keys


def test_the_url_of_an_object_is_made_of_known_parts() -> None:
    """What is in double braces; anything else stays as it is."""
    url = "{{SCHEME}}://{{ENDPOINT}}/{{ BUCKET }}/{{DIGEST}}?x={y}"

    assert S3Store(type="s3", bucket="b", access_url=url).access_url == url
