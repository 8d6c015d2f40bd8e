"""Where to, over which protocol: options, standard variables and Qtap's forms of an endpoint."""

from __future__ import annotations

import pytest

from otel_qtap.exporters.transport import TransportOptions

URLS = [
    pytest.param("collector:4318", {}, "http://collector:4318/v1/traces", id="host-port"),
    pytest.param(
        "collector:4318", {"insecure": False}, "https://collector:4318/v1/traces", id="tls"
    ),
    pytest.param("http://c:1", {}, "http://c:1/v1/traces", id="url"),
    pytest.param("https://c/otlp/", {}, "https://c/otlp/v1/traces", id="url-with-path"),
    pytest.param("https://c/v1/traces", {}, "https://c/v1/traces", id="url-of-the-signal"),
    pytest.param("https://c/v1/logs", {}, "https://c/v1/traces", id="url-of-the-other-signal"),
    pytest.param(None, {}, None, id="environment"),
]


@pytest.mark.parametrize(("endpoint", "options", "url"), URLS)
def test_forms_of_the_http_endpoint(endpoint, options, url) -> None:
    """``host:port`` or a URL, with or without the path of a signal."""
    assert TransportOptions(endpoint=endpoint, **options).http_url("traces") == url


@pytest.mark.parametrize(
    ("environment", "protocol", "expected"),
    [
        ({}, None, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, None, "http"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "grpc", "grpc"),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            None,
            "http",
        ),
    ],
)
def test_protocol(environment, protocol, expected, monkeypatch) -> None:
    """The option, the variable of the signal, the variable of all signals, Qtap's default."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert TransportOptions(protocol=protocol).protocol_of("traces") == expected


def test_options_do_not_tell_their_headers() -> None:
    """Where options are printed, for a traceback perhaps, keys for the receiver are not."""
    options = TransportOptions(endpoint="collector:4318", headers={"api-key": "s3cr3t"})

    assert "collector:4318" in repr(options)
    assert "s3cr3t" not in repr(options)
