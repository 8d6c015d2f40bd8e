"""What the values of a Qtap file mean to the rest of the agent."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import (
    Config,
    FiltersConfig,
    HttpCaptureConfig,
    OtelProtocol,
    OtelStore,
    Signal,
    ValueSource,
)


def make_config(*plugins, stack="web"):
    return Config.model_validate(
        {"stacks": {"web": {"plugins": plugins}}, "tap": {"http": {"stack": stack}}}
    )


LEVELS = [
    pytest.param([], CaptureLevel.NONE, id="no-plugin"),
    pytest.param([{"type": "http_capture"}], CaptureLevel.NONE, id="default"),
    pytest.param(
        [{"type": "http_capture", "config": {"level": "details"}}],
        CaptureLevel.HEADERS,
        id="details-is-headers",
    ),
    pytest.param(
        [{"type": "http_capture", "config": {"rules": [{"expr": "x", "level": "full"}]}}],
        CaptureLevel.FULL,
        id="a-rule-may-raise-it",
    ),
    pytest.param(
        [
            {"type": "http_capture", "config": {"level": "summary"}},
            {"type": "debug", "config": {"mode": "details"}},
        ],
        CaptureLevel.HEADERS,
        id="access-logs-count",
    ),
    pytest.param([{"type": "report_usage"}], CaptureLevel.NONE, id="inactive-plugin"),
]


@pytest.mark.parametrize(("plugins", "level"), LEVELS)
def test_the_highest_level_is_what_any_plugin_or_rule_can_ask_for(plugins, level) -> None:
    """The kernel side copies no more than that."""
    assert make_config(*plugins).highest_capture_level() is level


@pytest.mark.parametrize("name", ["", "none"])
def test_no_stack_means_no_processing(name) -> None:
    """As in Qtap, ``none`` says the same as nothing."""
    config = make_config({"type": "http_capture", "config": {"level": "full"}}, stack=name)

    assert config.http_stack() is None
    assert config.highest_capture_level() is CaptureLevel.NONE


HAPROXY = "/usr/local/sbin/haproxy"
MATCHES = [
    pytest.param("exact", "/USR/local/sbin/haproxy", True, id="exact-ignores-case"),
    pytest.param("exact", "haproxy", False, id="exact-is-the-whole-path"),
    pytest.param("prefix", "/usr/local/", True, id="prefix"),
    pytest.param("prefix", "local", False, id="prefix-not-inside"),
    pytest.param("suffix", "/HAProxy", True, id="suffix"),
    pytest.param("contains", "local/S", True, id="contains"),
    pytest.param("regex", "^/usr/.*/ha[a-z]+$", True, id="regex"),
    pytest.param("regex", "sbin", True, id="regex-is-not-anchored"),
    pytest.param("regex", "HAPROXY", False, id="regex-minds-case"),
    pytest.param("regex", "(?i)HAPROXY", True, id="regex-flag"),
    pytest.param("regex", "[[]", False, id="regex-odd-class"),
]


@pytest.mark.parametrize(("strategy", "exe", "excluded"), MATCHES)
def test_a_custom_filter_excludes_by_its_strategy(strategy, exe, excluded) -> None:
    """Qtap's strategies and their case rules."""
    filters = FiltersConfig.model_validate({"custom": [{"exe": exe, "strategy": strategy}]})

    assert filters.excludes(HAPROXY) is excluded


def test_a_filter_without_strategy_looks_at_the_end_of_the_path() -> None:
    """Qtap's default."""
    filters = FiltersConfig.model_validate({"custom": [{"exe": "haproxy"}]})

    assert filters.excludes(HAPROXY)
    assert not filters.excludes("/usr/bin/haproxy-exporter")


def test_groups_are_exact_paths() -> None:
    """A group stands for its members and nothing that looks like them."""
    filters = FiltersConfig(groups=("kubernetes", "container", "qpoint", "unknown"))

    assert filters.excludes("/home/kubernetes/bin/kubelet")
    assert filters.excludes("/usr/bin/dockerd")
    assert not filters.excludes("/opt/usr/bin/dockerd")
    assert not filters.excludes("/app/aws-k8s-agent")


def test_the_first_custom_filter_that_matches_decides_before_any_group() -> None:
    """Also when it leaves out less than a later one or a group would."""
    filters = FiltersConfig.model_validate(
        {
            "groups": ["container-runtimes"],
            "custom": [
                {"exe": "dockerd", "only": ["dns"]},
                {"exe": "haproxy", "only": ["tls"]},
                {"exe": "haproxy"},
            ],
        }
    )

    assert not filters.excludes("/usr/bin/dockerd")
    assert not filters.excludes(HAPROXY)
    assert filters.excludes(HAPROXY, tls=True)


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


def test_models_are_frozen_and_refuse_unknown_keys_without_showing_values() -> None:
    """Nobody edits a config; pydantic's own error text keeps the input to itself."""
    config = HttpCaptureConfig()
    with pytest.raises(ValidationError):
        config.level = CaptureLevel.FULL
    with pytest.raises(ValidationError) as caught:
        HttpCaptureConfig.model_validate({"secret": "s3cr3t"})
    assert "s3cr3t" not in str(caught.value)
