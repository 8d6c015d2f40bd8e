"""What the parts of a Qtap file mean to the rest of the agent."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from otel_qtap.config.capture import CaptureLevel
from otel_qtap.config.model import Config, HttpCaptureConfig, S3Store, StdoutStore
from otel_qtap.rules import RuleError


def make_config(*plugins, stack="web", **tap):
    return Config.model_validate(
        {"stacks": {"web": {"plugins": plugins}}, "tap": {"http": {"stack": stack}, **tap}}
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
    pytest.param([{"type": "report_usage"}], CaptureLevel.SUMMARY, id="heads-are-enough"),
    pytest.param([{"type": "detect_errors"}], CaptureLevel.NONE, id="no-rules"),
    pytest.param(
        [{"type": "detect_errors", "config": {"rules": [{"triggerStatusCodes": ["5xx"]}]}}],
        CaptureLevel.HEADERS,
        id="rules-about-heads",
    ),
    pytest.param(
        [{"type": "detect_errors", "config": {"rules": [{"triggerContains": "panic"}]}}],
        CaptureLevel.FULL,
        id="rules-about-content",
    ),
    pytest.param([{"type": "llm"}], CaptureLevel.NONE, id="inactive-plugin"),
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
    assert list(config.stacks_in_use()) == []


def test_an_endpoint_has_its_own_stack() -> None:
    """By its exact name, whatever the case; what it asks for counts for the kernel side too."""
    plugin = {"type": "http_capture", "config": {"level": "full"}}
    endpoints = [
        {"domain": "API.example.com", "http": {"stack": "web"}},
        {"domain": "quiet.example.com", "http": {"stack": "none"}},
        {"domain": "as-usual.example.com"},
    ]
    config = make_config(plugin, stack="none", endpoints=endpoints)
    usual = make_config(plugin, endpoints=endpoints)

    web = config.stacks["web"]
    assert config.stack_for("api.example.com.") is web
    assert config.stack_for("example.com") is None
    assert usual.stack_for("quiet.example.com") is None
    assert usual.stack_for("as-usual.example.com") is usual.stack_for("other") is not None
    assert list(config.stacks_in_use()) == [("web", web)]
    assert config.highest_capture_level() is CaptureLevel.FULL


def test_stores_in_use_are_those_that_are_written_to() -> None:
    """The others are in the file and nowhere else."""
    config = Config.model_validate(
        {
            "services": {
                "event_stores": [{"type": "disabled"}, {"type": "axiom"}, {"type": "stdout"}],
                "object_stores": [
                    {"type": "qpoint"},
                    {"type": "otel"},
                    {"type": "s3", "bucket": "b"},
                    {"type": "stdout"},
                ],
            }
        }
    )

    assert [type(store) for store in config.event_stores()] == [StdoutStore]
    assert [type(store) for store in config.object_stores()] == [S3Store, StdoutStore]


def test_rules_are_compiled_with_the_macros_of_the_file() -> None:
    """And as ``rulekit.compat`` says."""

    def fields(compat, expression):
        rulekit = {"compat": compat, "macros": [{"name": "is_a", "expr": "http.res.status >= 400"}]}
        config = Config.model_validate({"rulekit": rulekit})
        return config.rule_compiler().compile(expression).fields

    assert fields("none", "is_a()") == {"http.res.status"}
    mixed = "is_a() && http.req.path == '/' || is_a()"
    assert fields("qtap", mixed) == {"http.res.status", "http.req.path"}
    with pytest.raises(RuleError):
        fields("none", mixed)


def test_models_are_frozen_and_refuse_unknown_keys_without_showing_values() -> None:
    """Nobody edits a config; pydantic's own error text keeps the input to itself."""
    config = HttpCaptureConfig()
    with pytest.raises(ValidationError):
        config.level = CaptureLevel.FULL
    with pytest.raises(ValidationError) as caught:
        HttpCaptureConfig.model_validate({"secret": "s3cr3t"})
    assert "s3cr3t" not in str(caught.value)
