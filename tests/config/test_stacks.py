"""What the plugins of a stack and their rules ask for."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.config.stacks import AccessLogsConfig, DetectErrorsConfig, HttpCaptureConfig


def test_a_rule_says_only_what_is_different() -> None:
    """Level, format and share are the plugin's where the rule has none."""
    config = HttpCaptureConfig.model_validate(
        {
            "level": "summary",
            "sample_rate": "0.1",
            "rules": [
                {"expr": "a == 1", "sample_rate": "1"},
                {"expr": "b == 1", "level": "none", "format": "text"},
            ],
        }
    )

    kept, dropped = config.rules
    assert (config.sample_rate, config.format) == (0.1, CaptureFormat.JSON)
    assert (config.level_of(kept), kept.sample_rate, kept.format) == (
        CaptureLevel.SUMMARY,
        1.0,
        None,
    )
    assert config.level_of(dropped) is CaptureLevel.NONE
    assert (dropped.sample_rate, dropped.format) == (None, CaptureFormat.TEXT)
    assert HttpCaptureConfig().sample_rate == 1


def test_a_rule_of_access_logs_may_leave_the_mode_alone() -> None:
    """Then the plugin's applies."""
    config = AccessLogsConfig.model_validate(
        {"mode": "none", "rules": [{"expr": "a == 1", "mode": "details"}, {"expr": "b == 1"}]}
    )

    assert [config.mode_of(rule) for rule in config.rules] == [
        CaptureLevel.HEADERS,
        CaptureLevel.NONE,
    ]


def test_rules_of_detect_errors_have_qtaps_keys() -> None:
    """In camel case, with status codes and classes, and spans of time as Go writes them."""
    config = DetectErrorsConfig.model_validate(
        {
            "rules": [
                {
                    "name": "Down",
                    "triggerStatusCodes": ["404", "5XX", "420-429"],
                    "triggerEmptyBody": "true",
                    "triggerDuration": "1m30s",
                    "triggerContains": "panic",
                    "recordReqHeaders": "true",
                    "recordReqBody": "true",
                    "recordResHeaders": "true",
                    "recordResBody": "true",
                    "onlyCategories": ["app", "other"],
                    "onlyUrls": ["/api"],
                    "excludeUrls": ["/health"],
                    "withTags": ["team:edge"],
                    "reportAsIssue": "true",
                    "continue": "true",
                }
            ]
        }
    )

    (rule,) = config.rules
    assert rule.trigger_status_codes == ("404", "5xx", "420-429")
    assert rule.trigger_duration == timedelta(seconds=90)
    assert (rule.only_categories, rule.only_urls) == (("app", "other"), ("/api",))
    assert rule.trigger_contains == ("panic",)
    assert (rule.go_on, rule.report_as_issue, rule.needs_bodies) == (True, True, True)


def test_a_rule_of_detect_errors_reports_what_it_finds_unless_told_otherwise() -> None:
    """One that is written down is there to be heard of; several texts are a list."""
    config = DetectErrorsConfig.model_validate(
        {"rules": [{"triggerContains": ["panic", "fatal"]}, {"reportAsIssue": "false"}]}
    )

    loud, silent = config.rules
    assert (loud.report_as_issue, loud.trigger_contains) == (True, ("panic", "fatal"))
    assert (silent.report_as_issue, silent.needs_bodies, silent.go_on) == (False, False, False)


@pytest.mark.parametrize("code", ["600", "99", "40x", "500-404", "404-", "x", ""])
def test_what_is_no_status_code_is_refused(code) -> None:
    """A rule about it could never be met."""
    with pytest.raises(ValidationError, match="must be status codes"):
        DetectErrorsConfig.model_validate({"rules": [{"triggerStatusCodes": [code]}]})
