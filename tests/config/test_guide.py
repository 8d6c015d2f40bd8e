"""
The configurations of Qtap's HAProxy guide: each loads, and means what the guide says.

Their keys, values and expressions are the guide's; they are written here in YAML's short
form. What the guide shows as a part of a file stands where it belongs.
"""

from __future__ import annotations

import pytest

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.config.services import S3Store, StdoutStore
from otel_qtap.config.tap import TapDirection

STDOUT = "services: {event_stores: [{type: stdout}], object_stores: [{type: stdout}]}\n"
S3 = """\
services:
  event_stores:
    - type: stdout

  object_stores:
    - type: s3
      endpoint: s3.amazonaws.com
      region: us-east-1
      bucket: my-company-haproxy-traffic
      access_key:
        type: env
        value: AWS_ACCESS_KEY_ID
      secret_key:
        type: env
        value: AWS_SECRET_ACCESS_KEY
      insecure: false
"""


def guide(*, direction, config, macros=(), services=STDOUT, tap=""):
    """Return a file in the order of the guide's."""
    lines = [f"version: 2\n\n{services}"]
    if macros:
        lines.append("rulekit:\n  macros:")
        lines += [f"    - name: {name}\n      expr: {expr}" for name, expr in macros]
    lines.append("stacks:\n  capture:\n    plugins:\n      - type: http_capture\n        config:")
    lines += [f"          {line}" for line in config.splitlines()]
    lines.append(f"tap:\n  direction: {direction}\n  ignore_loopback: false\n{tap}")
    return "\n".join(lines) + "  http:\n    stack: capture\n"


def capture(level, *rules, form="json"):
    """Return the lines of a plugin's config, with ``(name, expr, level)`` for each rule."""
    lines = [f"level: {level}", f"format: {form}"] + ["rules:"] * bool(rules)
    for name, expr, rule_level in rules:
        lines += [f'  - name: "{name}"', f"    expr: {expr}", f"    level: {rule_level}"]
    return "\n".join(lines)


HEALTH = ("is_health_check", 'http.req.path == "/health"')
ERROR = ("is_error", "http.res.status >= 400")
NO, SUMMARY, HEADERS, FULL = CaptureLevel

GUIDE = [
    pytest.param(
        guide(
            direction="all      # both",
            config=capture("full      # everything", form="text"),
            tap="  audit_include_dns: false\n  filters:\n    groups:\n      - qpoint   # itself\n",
        ),
        TapDirection.ALL, FULL, [], id="step-4",
    ),
    pytest.param(
        guide(direction="egress", config=capture("summary")),
        TapDirection.EGRESS, SUMMARY, [], id="configuration-1",
    ),
    pytest.param(
        guide(
            direction="egress",
            macros=[HEALTH, ERROR],
            config=capture(
                "none",
                ("Skip healthy", "is_health_check() && http.res.status == 200", "none"),
                ("Health check failures", "is_health_check() && is_error()", "full"),
                ("Backend errors", "is_error() && !is_health_check()", "full"),
            ),
        ),
        TapDirection.EGRESS, NO, [NO, FULL, FULL], id="configuration-2",
    ),
    pytest.param(
        guide(
            direction="all",
            macros=[
                ("is_api_backend", r"http.req.path matches /^\/api\//"),
                ("is_slow", "http.res.duration_ms > 500"),
            ],
            config=capture(
                "none",
                ("API traffic", "is_api_backend()", "full"),
                ("Slow requests", "is_slow()", "headers  # Headers only"),
                ("Errors", "http.res.status >= 400", "full"),
            ),
        ),
        TapDirection.ALL, NO, [FULL, HEADERS, FULL], id="configuration-3",
    ),
    pytest.param(
        guide(
            direction="all",
            macros=[ERROR],
            services=S3,
            config=capture("none", ("Production errors", "is_error()", "full")),
        ),
        TapDirection.ALL, NO, [FULL], id="configuration-4",
    ),
    pytest.param(
        guide(
            direction="egress",
            config=capture("summary", ("All traffic", "http.res.status >= 0", "summary")),
        ),
        TapDirection.EGRESS, SUMMARY, [SUMMARY], id="use-case-2",
    ),
    pytest.param(
        guide(
            direction="all",
            macros=[
                ("is_rate_limited", "http.res.status == 429 || http.res.status == 503"),
                ("is_retry", 'http.req.headers.retry-after != ""'),
            ],
            config=capture(
                "none",
                ("Rate limited", "is_rate_limited()", "full"),
                ("Retries", "is_retry()", "headers"),
            ),
        ),
        TapDirection.ALL, NO, [FULL, HEADERS], id="use-case-3",
    ),
    pytest.param(
        guide(
            direction="egress",
            macros=[("is_backup_dc", "http.req.url matches /dc2-/")],
            config=capture(
                "none",
                ("Backup DC traffic", "is_backup_dc()", "full"),
                ("Primary DC errors", "'!is_backup_dc() && http.res.status >= 500'", "full"),
            ),
        ),
        TapDirection.EGRESS, NO, [FULL, FULL], id="use-case-4",
    ),
    pytest.param(
        guide(
            direction="all",
            config=capture("none", ("Skip health checks", 'http.req.path != "/health"', "full")),
        ),
        TapDirection.ALL, NO, [FULL], id="troubleshooting",
    ),
    pytest.param(
        guide(
            direction="all",
            config=capture("none", ("Errors only", "http.res.status >= 400", "details")),
        ),
        TapDirection.ALL, NO, [HEADERS], id="older-copy",
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _aws_credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")


@pytest.mark.parametrize(("text", "direction", "level", "levels"), GUIDE)
def test_every_configuration_of_the_guide_loads(text, direction, level, levels, load) -> None:
    """Without a warning, and with the levels of its rules in their order."""
    loaded = load(text)

    (plugin,) = loaded.config.http_stack().plugins
    assert loaded.warnings == ()
    assert loaded.config.tap.direction is direction
    assert plugin.config.level is level
    assert [plugin.config.level_of(rule) for rule in plugin.config.rules] == levels
    assert plugin.config.format in (CaptureFormat.JSON, CaptureFormat.TEXT)


def test_the_production_setup_names_its_bucket(load) -> None:
    """With both keys from the environment."""
    config = load(GUIDE[4].values[0]).config

    (events,), (bucket,) = config.event_stores(), config.object_stores()
    assert isinstance(events, StdoutStore)
    assert isinstance(bucket, S3Store)
    assert (bucket.bucket, bucket.insecure) == ("my-company-haproxy-traffic", False)
    assert bucket.resolve_keys() == ("k", "s")


def test_the_guides_way_to_silence_health_checks_silences_everything(load) -> None:
    """Its filter leaves HAProxy out, rules or not; that is told."""
    tap = "  filters:\n    custom:\n      - exe: /usr/local/sbin/haproxy\n        strategy: exact\n"
    rule = ("Skip health checks", 'http.req.path != "/health"', "full")

    loaded = load(guide(direction="all", tap=tap, config=capture("none", rule)))

    (warning,) = loaded.warnings
    assert warning.path == "tap.filters.custom.0"
    assert warning.text.startswith("excludes /usr/local/sbin/haproxy, so no rule sees any")


def test_the_unquoted_rule_of_the_older_copy_is_explained(errors) -> None:
    """It is not YAML; the message has the line as it must be."""
    rule = ("Primary DC errors", "!is_backup_dc() && http.res.status >= 500", "full")
    macros = [("is_backup_dc", "http.req.url matches /dc2-/")]

    (line,) = errors(guide(direction="egress", macros=macros, config=capture("none", rule)))
    assert line.endswith("write expr: '!is_backup_dc() && http.res.status >= 500'")
