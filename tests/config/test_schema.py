"""The schema that editors complete and check with says what the loader says."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml
from config.files import GUIDE, VALID

from otel_qtap.config import check
from otel_qtap.config.schema import SCHEMA_PATH, schema_text

SCHEMA = json.loads(schema_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_shipped_schema_is_that_of_the_models() -> None:
    """Otherwise: ``python -m otel_qtap.config.schema``."""
    assert json.loads(SCHEMA_PATH.read_text(encoding="utf-8")) == SCHEMA


def test_the_schema_is_one() -> None:
    """By its own schema."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


HTTP = "tap: {http: {stack: web}}\n"
ACCEPTED = [
    pytest.param(GUIDE, id="guide"),
    pytest.param(
        VALID + HTTP + "rulekit: {macros: [{name: a, expr: b == 1}], compat: qtap}\n", id="macros"
    ),
    pytest.param(
        "services:\n  event_stores:\n    - type: otel\n      service_name: 0123\n"
        "      headers: {a: b, c: {type: text, value: 1}}\n      batch: {max_delay: 1s}\n"
        "      spool: {directory: /var/spool/otel_qtap, max_bytes: 10mb}\n"
        "  object_stores: [{type: s3, bucket: b}]\n" + HTTP.replace("web", "none"),
        id="stores",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - type: http_capture\n        config:\n"
        "          level: details\n          sample_rate: 0.5\n"
        "      - type: detect_errors\n        config: {rules: [{triggerStatusCodes: [404, 5xx], "
        "triggerDuration: 500ms, continue: true}]}\n      - {type: llm, config: {any: thing}}\n"
        + HTTP,
        id="plugins",
    ),
]
REFUSED = [
    pytest.param(VALID + HTTP + "taps: {}\n", id="misspelt-key"),
    pytest.param(VALID + "tap: {direction: up}\n", id="wrong-word"),
    pytest.param("stacks: {web: {plugins: {type: http_capture}}}\n", id="mapping-for-a-list"),
    pytest.param("stacks: {web: {plugins: [{type: http_captur}]}}\n", id="misspelt-plugin"),
    pytest.param("services: {object_stores: [{type: s3}]}\n", id="missing-key"),
    pytest.param("rulekit: {macros: [{name: a, expr: ''}]}\n", id="empty-text"),
    pytest.param(
        "stacks: {web: {plugins: [{type: http_capture, config: {sample_rate: 2}}]}}\n", id="range"
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: detect_errors, config: {rules: [{trigger_duration: 1s}]}"
        "}]}}\n",
        id="not-the-key-of-the-file",
    ),
    pytest.param("tap: {ignore_loopback: maybe}\n", id="no-boolean"),
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_an_editor_accepts_what_the_loader_accepts(text) -> None:
    """As an editor reads it: numbers are numbers there."""
    assert check(text.encode(), "q.yaml").errors == 0
    assert list(VALIDATOR.iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize("text", REFUSED)
def test_an_editor_marks_what_the_loader_refuses(text) -> None:
    """Keys, words, shapes, ranges."""
    assert check(text.encode(), "q.yaml").errors > 0
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


def _properties(schema):
    for name, definition in [("Config", schema), *schema["$defs"].items()]:
        for key, value in definition.get("properties", {}).items():
            yield f"{name}.{key}", value


def test_every_key_is_explained() -> None:
    """What an editor shows beside it; ``type`` and ``config`` explain themselves."""
    silent = [
        place
        for place, value in _properties(SCHEMA)
        if "description" not in value and not place.endswith((".type", ".config"))
    ]
    assert silent == []


def test_what_has_no_effect_says_so() -> None:
    """Before it is written down."""
    properties = dict(_properties(SCHEMA))

    assert (
        "(Without effect: not active in this version.)"
        in (properties["TapConfig.redis"]["description"])
    )
    assert SCHEMA["$defs"]["InactivePlugin"]["description"].endswith("(Without effect.)")
    assert "Without effect" not in properties["TapConfig.direction"]["description"]
