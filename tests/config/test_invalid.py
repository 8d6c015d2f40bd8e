"""A value that does not fit its place: where it is, what it is, what would fit."""

from __future__ import annotations

import pytest
from config.files import STACKS, VALID
from pydantic import ValidationError

from otel_qtap.config import ConfigError
from otel_qtap.config.invalid import describe
from otel_qtap.config.messages import dotted
from otel_qtap.config.model import Config

PLUGINS = (
    "http_capture, access_logs, debug, report_usage, http_metrics, logger, detect_errors, "
    "qscan, dlp, llm, devtools"
)


def capture(config):
    """Return a file whose one plugin has these lines as its config, from line 6 on."""
    lines = "".join(f"          {line}\n" for line in config.splitlines())
    return (
        "stacks:\n  web:\n    plugins:\n      - type: http_capture\n        config:\n"
        f"{lines}tap: {{http: {{stack: web}}}}\n"
    )


def tap(config):
    """Return a file whose ``tap`` has these lines, from line 6 on."""
    lines = "".join(f"  {line}\n" for line in config.splitlines())
    return f"{VALID}tap:\n{lines}  http: {{stack: web}}\n"


def store(kind, lines):
    """Return a file with one store: its type, which is line 3, and its other lines."""
    text = "\n      ".join(lines.splitlines())
    return f"services:\n  {kind}_stores:\n    - type: {text}\n"


CONFIG = "stacks.web.plugins.0.config"
OBJECT_STORE = "services.object_stores.0"
EVENT_STORE = "services.event_stores.0"

CHOICES = [
    pytest.param(
        capture("level: fulll"),
        f"6: {CONFIG}.level: 'fulll' is not one of none, summary, headers, full; "
        "did you mean 'full'?",
        id="level",
    ),
    pytest.param(
        capture("rules:\n  - {expr: a == 1, level: Details}"),
        f"7: {CONFIG}.rules.0.level: 'Details' is not one of none, summary, headers, full",
        id="level-of-a-rule",
    ),
    pytest.param(
        capture("format: yaml"),
        f"6: {CONFIG}.format: 'yaml' is not one of json, text",
        id="format",
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: http_captur}]}}\n",
        f"1: stacks.web.plugins.0.type: 'http_captur' is not one of {PLUGINS}; "
        "did you mean 'http_capture'?",
        id="plugin",
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: access_logs, config: {format: text}}]}}\n",
        f"1: {CONFIG}.format: 'text' is not one of console, json",
        id="format-of-access-logs",
    ),
    pytest.param(
        store("event", "otle"),
        f"3: {EVENT_STORE}.type: 'otle' is not one of disabled, stdout, otel, axiom, pulse, "
        "pulse-legacy, pulse-streaming; did you mean 'otel'?",
        id="event-store",
    ),
    pytest.param(
        store("object", "gcs"),
        f"3: {OBJECT_STORE}.type: 'gcs' is not one of disabled, stdout, s3, otel, qpoint",
        id="object-store",
    ),
    pytest.param(
        store("event", "otel\nprotocol: grcp"),
        f"4: {EVENT_STORE}.protocol: 'grcp' is not one of grpc, http, stdout; did you mean 'grpc'?",
        id="protocol",
    ),
    pytest.param(
        store("event", "otel\nsignals: [traces, spans]"),
        f"4: {EVENT_STORE}.signals.1: 'spans' is not one of traces, logs",
        id="signal",
    ),
    pytest.param(
        tap("direction: off"),
        "6: tap.direction: 'off' is not one of all, ingress, egress, egress-internal, "
        "egress-external",
        id="a-word-that-yaml-reads-as-a-boolean",
    ),
    pytest.param(
        tap("ignore_loopback: flase"),
        "6: tap.ignore_loopback: 'flase' is not one of true, false; did you mean 'false'?",
        id="boolean",
    ),
    pytest.param(
        tap("direction: [all]"),
        "6: tap.direction: must be one of all, ingress, egress, egress-internal, egress-external, "
        "is a list",
        id="list-for-a-word",
    ),
    pytest.param(
        tap("filters: {custom: [{exe: a, strategy: glob}]}"),
        "6: tap.filters.custom.0.strategy: 'glob' is not one of exact, prefix, suffix, contains, "
        "regex",
        id="strategy",
    ),
    pytest.param(
        tap("filters: {custom: [{exe: a, only: [htp]}]}"),
        "6: tap.filters.custom.0.only.0: 'htp' is not one of data, dns, tls, http; "
        "did you mean 'http'?",
        id="only",
    ),
    pytest.param(
        tap("filters: {custom: [{exe: a, only: [ ]}, {exe: b, only: [~]}]}"),
        "6: tap.filters.custom.1.only.0: is empty; must be one of data, dns, tls, http",
        id="nothing-for-a-word",
    ),
    pytest.param(
        tap("health_checks: span"),
        "6: tap.health_checks: 'span' is not one of count, spans; did you mean 'spans'?",
        id="health-checks",
    ),
    pytest.param(
        tap("link: exact"),
        "6: tap.link: 'exact' is not one of auto, fast, probe, passive, off",
        id="link",
    ),
    pytest.param(
        "rulekit: {compat: qtpa}\n",
        "1: rulekit.compat: 'qtpa' is not one of none, qtap; did you mean 'qtap'?",
        id="compat",
    ),
    pytest.param(
        "tags: [{key: a, source: k8s.labels, location: b}]\n",
        "1: tags.0.source: 'k8s.labels' is not one of env, k8s.label, k8s.annotation, "
        "container.label; did you mean 'k8s.label'?",
        id="source-of-a-tag",
    ),
    pytest.param(
        "control: {default: deny}\n",
        "1: control.default: 'deny' is not one of allow",
        id="control",
    ),
    pytest.param(
        "control: {rules: [{name: a, expr: dst.port == 1, actions: [log]}]}\n",
        "1: control.rules.0.actions.0: 'log' is not one of allow, deny",
        id="control-action",
    ),
]

KEYS = [
    pytest.param(
        tap("direktion: all"),
        "6: tap.direktion: unknown key; did you mean 'direction'?",
        id="misspelt",
    ),
    pytest.param(
        f"{VALID}tap:\n  http: {{stack: web, colour: red}}\n",
        "6: tap.http.colour: unknown key; known here: stack, display",
        id="unknown",
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: report_usage, config: {colour: red}}]}}\n",
        f"1: {CONFIG}.colour: unknown key; there is nothing to configure",
        id="where-there-is-none",
    ),
    pytest.param(
        VALID + "filters: {groups: [qpoint]}\ntap: {http: {stack: web}}\n",
        "5: filters: unknown key; it belongs under tap",
        id="one-level-too-high",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - type: http_capture\n        level: full\n",
        "5: stacks.web.plugins.0.level: unknown key; it belongs under config",
        id="beside-config",
    ),
    pytest.param(
        capture("level: full\nmacros: [{name: a, expr: b}]"),
        f"7: {CONFIG}.macros: unknown key; it belongs under rulekit",
        id="in-another-section",
    ),
    pytest.param(
        VALID + "rules: [{name: a, expr: http.res.status >= 400}]\n",
        "5: rules: unknown key; it belongs under control or stacks.*.plugins.*.config",
        id="a-part-of-a-file",
    ),
    pytest.param(
        tap("version: 2"),
        "6: tap.version: unknown key; it belongs under the top of the file",
        id="one-level-too-low",
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: detect_errors, config: {rules: "
        "[{trigerDuration: 1s}]}}]}}\n",
        f"1: {CONFIG}.rules.0.trigerDuration: unknown key; did you mean 'triggerDuration'?",
        id="camel-case",
    ),
    pytest.param(
        store("object", "s3\nbuket: b"),
        f"4: {OBJECT_STORE}.buket: unknown key; did you mean 'bucket'?",
        id="of-a-store",
    ),
]

SHAPES = [
    pytest.param(
        VALID + "tap:\n  http: web\n",
        "6: tap.http: must be a mapping, is text",
        id="text-for-a-mapping",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins: {type: http_capture}\n",
        "3: stacks.web.plugins: must be a list (items that start with '-'), is a mapping",
        id="mapping-for-a-list",
    ),
    pytest.param(
        store("event", "otel\nenvironment: {name: a}"),
        f"4: {EVENT_STORE}.environment: must be text, is a mapping",
        id="mapping-for-text",
    ),
    pytest.param(
        "stacks:\n  web:\n",
        "2: stacks.web: must be a mapping, is empty",
        id="stack-without-content",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - config: {level: full}\n",
        "4: stacks.web.plugins.0.type: is missing",
        id="plugin-without-type",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - type: debug\n      - config: {mode: full}\n",
        "5: stacks.web.plugins.1.type: is missing; if this belongs to the item above, take away "
        "its '-'",
        id="plugin-in-two-items",
    ),
    pytest.param(
        "services:\n  event_stores:\n    - id: main\n    - type: stdout\n",
        f"3: {EVENT_STORE}: has an id and no type: the '-' in front of 'type' begins a second "
        "item; write id and type as one item, with one '-'",
        id="store-in-two-items",
    ),
    pytest.param(
        "services:\n  event_stores:\n    - stdout\n",
        f"3: {EVENT_STORE}: must be a mapping, is text",
        id="store-that-is-only-a-word",
    ),
    pytest.param(
        store("object", "s3\nregion: eu-west-1"),
        f"3: {OBJECT_STORE}.bucket: is missing",
        id="bucket-missing",
    ),
    pytest.param(
        tap("filters: {custom: [{strategy: exact}]}"),
        "6: tap.filters.custom.0.exe: is missing",
        id="exe-missing",
    ),
    pytest.param(
        tap("filters: {custom: [{exe: ''}]}"),
        "6: tap.filters.custom.0.exe: must not be empty",
        id="empty-text",
    ),
    pytest.param(
        capture("rules:\n  - {name: Errors, level: full}"),
        f"7: {CONFIG}.rules.0.expr: is missing",
        id="rule-without-expr",
    ),
    pytest.param(
        store("object", "s3\nbucket: b\naccess_key: KEY\nsecret_key: {type: env, value: KEY}"),
        f"5: {OBJECT_STORE}.access_key: must be a mapping, is text; write {{type: env, value: "
        "NAME} or {type: text, value: ...}",
        id="text-for-a-value-source",
    ),
]

VALUES = [
    pytest.param(
        capture("sample_rate: 10"),
        f"6: {CONFIG}.sample_rate: must be a number from 0 (keep nothing) to 1 (keep everything)",
        id="rate",
    ),
    pytest.param(
        capture("rules:\n  - {expr: a == 1, sample_rate: 10%}"),
        f"7: {CONFIG}.rules.0.sample_rate: must be a number from 0 (keep nothing) to 1 (keep "
        "everything)",
        id="rate-of-a-rule",
    ),
    pytest.param(
        store("event", "otel\nbatch: {max_items: many, max_bytes: big, max_delay: 5}"),
        f"4: {EVENT_STORE}.batch.max_items: must be a whole number",
        id="whole-number",
    ),
    pytest.param(
        store("event", "otel\nbatch: {max_items: 1.5}"),
        f"4: {EVENT_STORE}.batch.max_items: must be a whole number",
        id="fraction",
    ),
    pytest.param(
        store("event", "otel\nbatch: {max_items: 0}"),
        f"4: {EVENT_STORE}.batch.max_items: must be at least 1",
        id="too-small",
    ),
    pytest.param(
        store("event", "otel\nspool: {directory: /var/spool/otel_qtap, max_bytes: 1tb}"),
        f"4: {EVENT_STORE}.spool.max_bytes: must be a size: a number with b, kb, mb or gb",
        id="size",
    ),
    pytest.param(
        store("event", "otel\nbatch: {max_delay: 5}"),
        f"4: {EVENT_STORE}.batch.max_delay: must be a span of time with its unit, as in 500ms, "
        "1.5s or 2m",
        id="span-of-time",
    ),
    pytest.param(
        store("object", "s3\nbucket: b\nendpoint: http://127.0.0.1:8333"),
        f"5: {OBJECT_STORE}.endpoint: must be host or host:port without a scheme; write "
        "'insecure: true' for plain HTTP",
        id="endpoint-with-scheme",
    ),
    pytest.param(
        store("object", "s3\nbucket: b\nendpoint: minio:9000/bucket"),
        f"5: {OBJECT_STORE}.endpoint: must be host or host:port, as in minio.example.com:9000",
        id="endpoint-with-path",
    ),
    pytest.param(
        store("object", "s3\nbucket: b\naccess_url: 'https://s3/{{BUCKET}}/{{DIGSET}}'"),
        f"5: {OBJECT_STORE}.access_url: has a placeholder that is not one of {{{{SCHEME}}}}, "
        "{{ENDPOINT}}, {{BUCKET}}, {{DIGEST}}",
        id="placeholder",
    ),
    pytest.param(
        store("object", "s3\nbucket: b\naccess_key: {type: env, value: KEY}"),
        f"3: {OBJECT_STORE}: access_key and secret_key come together: write both, or neither",
        id="one-key-of-two",
    ),
    pytest.param(
        tap("filters:\n  custom:\n    - exe: 'haproxy('\n      strategy: regex"),
        "8: tap.filters.custom.0: not a regular expression: missing ): haproxy(",
        id="regular-expression",
    ),
    pytest.param(
        tap("endpoints: [{domain: '*.example.com', http: {stack: none}}]"),
        "6: tap.endpoints.0.domain: must be one host name: there are no wildcards, each name is "
        "an item",
        id="wildcard",
    ),
    pytest.param(
        tap("endpoints: [{domain: 'https://example.com', http: {stack: none}}]"),
        "6: tap.endpoints.0.domain: must be a host name alone, without scheme, port and path",
        id="url-for-a-domain",
    ),
    pytest.param(
        tap("endpoints: [{domain: '-example', http: {stack: none}}]"),
        "6: tap.endpoints.0.domain: must be a host name, as in api.example.com",
        id="no-host-name",
    ),
    pytest.param(
        "rulekit:\n  macros:\n    - {name: a, expr: b == 1}\n    - {name: a, expr: c == 1}\n",
        "2: rulekit.macros: two macros have the name 'a'",
        id="macro-named-twice",
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: detect_errors, config: {rules: "
        "[{triggerStatusCodes: [404, 6xx]}]}}]}}\n",
        f"1: {CONFIG}.rules.0.triggerStatusCodes: must be status codes: 404, 5xx for all from 500 "
        "on, or 500-504",
        id="status-codes",
    ),
]


@pytest.mark.parametrize(("text", "message"), CHOICES + KEYS + SHAPES + VALUES)
def test_an_error_names_line_place_value_and_way_out(text, message, errors) -> None:
    """One line for the reader, ready to act on."""
    assert f"qtap.yaml:{message}" in errors(text)


def _paths(data: object) -> list[str]:
    try:
        Config.model_validate(data)
    except ValidationError as error:
        return [dotted(describe(details, Config)[0]) for details in error.errors()]
    return []


def test_a_path_names_keys_of_the_file_only() -> None:
    """The member of a union that pydantic chose by ``type`` is no key, even if one is called so."""
    assert _paths(
        {"services": {"event_stores": [{"type": "otel", "otel": "x", "tls": {"enabled": "q"}}]}}
    ) == ["services.event_stores.0.tls.enabled", "services.event_stores.0.otel"]
    assert _paths(
        {"stacks": {"http_capture": {"plugins": [{"type": "http_capture", "x": 1}]}}}
    ) == ["stacks.http_capture.plugins.0.x"]
    assert _paths({"services": {"qscan": {"type": "client", "client": "x"}}}) == [
        "services.qscan.client"
    ]


SECRET = "s3cr3t/Value+with=signs"  # noqa: S105  # it is what the test looks for
SECRETS = [
    pytest.param(f"headers: {{a: {{type: env, value: '{SECRET}'}}}}", id="as-variable-name"),
    pytest.param("headers: {a: {type: env, value: s3cr3t}}", id="that-could-be-a-variable"),
    pytest.param("endpoint: '{{s3cr3t}}'", id="in-braces"),
    pytest.param(f"headers: {{a: {{type: '{SECRET}', value: x}}}}", id="in-the-wrong-key"),
    pytest.param(f"headers: {{a: {{type: text, vaule: '{SECRET}'}}}}", id="beside-a-typo"),
    pytest.param(f"headers: ['{SECRET}']", id="list"),
    pytest.param(f"headers: '{SECRET}'", id="text"),
    pytest.param(f"headers: {{a: {{type: text, value: ['{SECRET}']}}}}", id="nested"),
    pytest.param(f"endpoint: ['{SECRET}']", id="endpoint"),
    pytest.param(f"token: '{SECRET}'", id="unknown-key"),
    pytest.param(f"batch: {{max_items: '{SECRET}'}}", id="number"),
    pytest.param(f"batch: {{max_delay: '{SECRET}'}}", id="span-of-time"),
    pytest.param(f"headers: {{a: *{SECRET.replace('/', '').replace('+', '')[:10]}}}", id="alias"),
    pytest.param(f"headers: {{a: !{SECRET} x}}", id="tag"),
    pytest.param(f'headers: {{a: "{SECRET}}}', id="unclosed-quote"),
]


@pytest.mark.parametrize("line", SECRETS)
def test_no_message_shows_a_secret(line, load) -> None:
    """Wherever the secret was put by mistake, and through every attribute of the error."""
    with pytest.raises(ConfigError) as caught:
        load(f"services:\n  event_stores:\n    - type: otel\n      {line}\n")

    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {caught.value.args}"
    assert "s3cr3t" not in shown
    assert caught.value.__cause__ is None


def test_no_message_shows_the_keys_of_a_bucket(load) -> None:
    """Nor what stands where a key was expected."""
    for key in ("s3cr3t", "{type: txt, value: s3cr3t}", "{type: env, value: s3cr3t}"):
        with pytest.raises(ConfigError) as caught:
            load(
                "services: {object_stores: [{type: s3, bucket: b, access_url: 's3cr3t{{X}}',\n"
                f"  endpoint: 'http://s3cr3t', access_key: {key}, secret_key: {key}}}]}}\n"
            )
        assert "s3cr3t" not in repr(caught.value) + str(caught.value)


def test_a_secret_is_not_in_the_repr_of_a_config(load) -> None:
    """Header values, keys and endpoints stay out of logs that print a config."""
    loaded = load(
        "services:\n  event_stores:\n    - type: otel\n      endpoint: http://u:s3cr3t@otlp\n"
        "      headers: {a: s3cr3t, b: {type: text, value: s3cr3t}}\n"
        "  object_stores:\n    - {type: s3, bucket: b, access_key: {type: text, value: s3cr3t},\n"
        "       secret_key: {type: text, value: s3cr3t}}\n" + STACKS
    )

    assert "s3cr3t" not in repr(loaded)
    (store,) = loaded.config.event_stores()
    assert store.resolve_headers() == {"a": "s3cr3t", "b": "s3cr3t"}
    (bucket,) = loaded.config.object_stores()
    assert bucket.resolve_keys() == ("s3cr3t", "s3cr3t")
