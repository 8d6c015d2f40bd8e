"""What works and does not do what it seems to, and what the surroundings do not have."""

from __future__ import annotations

import pytest
from config.files import STACKS, VALID

from otel_qtap.config import Severity, check

HTTP = "tap: {http: {stack: web}}\n"


def stack(plugins):
    """Return a file with a store and these plugins, from line 4 on."""
    lines = "".join(f"      {line}\n" for line in plugins.splitlines())
    return (
        "services: {event_stores: [{type: stdout}]}\nstacks:\n  web:\n    plugins:\n"
        f"{lines}{HTTP}"
    )


def services(kind, lines):
    """Return a file with one store, which begins in line 3."""
    text = "\n      ".join(lines.splitlines())
    return f"services:\n  {kind}_stores:\n    - type: {text}\nstacks: {{web: {{}}}}\n{HTTP}"


NOT_PROVIDED = "not provided by otel_qtap"
NOT_ACTIVE = "not active in this version"
EXTENSIONS = "batch: {max_items: 1, max_delay: 500ms}\nspool: {directory: /var/spool/otel_qtap}"

INACTIVE = [
    *(
        pytest.param(
            stack(f"- type: {name}"),
            f"5: stacks.web.plugins.0.type: {name}: this plugin is {NOT_PROVIDED}; the stack runs "
            "without it",
            id=name,
        )
        for name in ("qscan", "dlp", "llm", "devtools")
    ),
    pytest.param(
        stack("- type: detect_errors\n  config: {batchPeriodMS: 500}"),
        "6: stacks.web.plugins.0.config.batchPeriodMS: issues are sent as they come",
        id="batch-period",
    ),
    pytest.param(
        services("event", "axiom\ndataset: {type: text, value: d}"),
        f"3: services.event_stores.0.type: axiom: this event store is {NOT_PROVIDED}",
        id="event-store",
    ),
    pytest.param(
        services("object", "qpoint\ntoken: {type: text, value: t}"),
        f"3: services.object_stores.0.type: qpoint: this object store is {NOT_PROVIDED}",
        id="object-store",
    ),
    pytest.param(
        services("object", "otel\notel_endpoint: otlp:4317"),
        f"3: services.object_stores.0.type: otel: this object store is {NOT_ACTIVE}; the otel "
        "event store sends headers and bodies",
        id="otel-object-store",
    ),
    pytest.param(
        services("object", "s3\nbucket: b\nevent_store: {disabled: true}"),
        "5: services.object_stores.0.event_store: every event store gets the record of an object",
        id="selector-of-an-event-store",
    ),
    pytest.param(
        "services: {qscan: {type: client}}\nstacks: {web: {}}\n" + HTTP,
        f"1: services.qscan.type: client: this service is {NOT_PROVIDED}",
        id="service",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  redis: {stack: web}\n",
        f"7: tap.redis: redis is {NOT_ACTIVE}",
        id="protocol",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  audit_logs: true\n",
        "7: tap.audit_logs: obsolete: a key of version 1 files",
        id="obsolete",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  env_tags: [{env: A, key: b}]\n",
        f"7: tap.env_tags: env_tags are {NOT_ACTIVE}",
        id="env-tags",
    ),
    pytest.param(
        VALID + HTTP + "tags: [{key: a, source: env, location: B}]\n",
        f"6: tags: tags are {NOT_ACTIVE}",
        id="tags",
    ),
    pytest.param(
        VALID + HTTP + "control: {default: allow}\n",
        f"6: control: the egress controller is {NOT_PROVIDED}, which only observes",
        id="control",
    ),
]

INEFFECTIVE = [
    pytest.param(
        stack("- type: http_capture"),
        "5: stacks.web.plugins.0: keeps nothing: its level is none, which is the default, and no "
        "rule has another one",
        id="capture-of-nothing",
    ),
    pytest.param(
        stack("- type: debug\n  config: {mode: none}"),
        "5: stacks.web.plugins.0: prints nothing: its mode is none, and no rule has another one",
        id="logs-of-nothing",
    ),
    pytest.param(
        STACKS + HTTP,
        "2: stacks.web.plugins.0: keeps transactions for no store: services names none that is "
        "written to",
        id="no-store",
    ),
    pytest.param(
        stack(
            "- type: http_capture\n  config:\n    level: summary\n    rules:\n"
            "      - {name: Errors, expr: http.res.status >= 400}"
        ),
        "9: stacks.web.plugins.0.config.rules.0: has no level, so the plugin's applies: summary",
        id="rule-without-level",
    ),
    pytest.param(
        stack(
            "- type: http_capture\n  config:\n    level: summary\n"
            "    object_store: {disabled: true}"
        ),
        "8: stacks.web.plugins.0.config.object_store: every object store gets every transaction",
        id="selector-of-an-object-store",
    ),
    pytest.param(
        "version: 1\n" + VALID + HTTP,
        "1: version: is not 2; the file is read as version 2",
        id="version",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  filters: {groups: [container]}\n",
        "7: tap.filters.groups.0: 'container' is read as 'container-runtimes'",
        id="documented-group",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  filters:\n    groups:\n      - qpiont\n",
        "9: tap.filters.groups.0: 'qpiont' is not one of container-runtimes, eks, gke, "
        "kubernetes, qpoint, so it excludes nothing; did you mean 'qpoint'?",
        id="unknown-group",
    ),
    pytest.param(
        VALID + "tap:\n  direction: all\n",
        "5: tap.http.stack: names no stack, so nothing will be captured",
        id="no-stack-named",
    ),
]


@pytest.mark.parametrize(("text", "message"), INACTIVE + INEFFECTIVE)
def test_what_has_no_effect_is_named_in_a_warning(text, message, warnings_of) -> None:
    """The file loads, and its reader knows what it does not do."""
    assert warnings_of(text) == [f"qtap.yaml:{message}"]


def test_extensions_that_wait_for_their_time_are_named(warnings_of) -> None:
    """Their keys are checked already."""
    text = services("event", f"otel\n{EXTENSIONS}")

    assert warnings_of(text) == [
        f"qtap.yaml:4: services.event_stores.0.batch: batch is {NOT_ACTIVE}",
        f"qtap.yaml:5: services.event_stores.0.spool: spool is {NOT_ACTIVE}",
    ]


def test_a_file_without_tap_has_its_warning_without_a_line(warnings_of) -> None:
    """Real Qtap would end there; we capture nothing and say so."""
    (line,) = warnings_of(VALID)
    assert line == (
        "qtap.yaml: tap: is missing: no stack is named in tap.http.stack, so nothing will be "
        "captured"
    )


ACTIVE = [
    pytest.param(
        stack("- {type: report_usage}\n- {type: http_metrics}\n- {type: logger}"), id="plain"
    ),
    pytest.param(
        stack(
            "- type: detect_errors\n  config: {rules: [{name: Down, triggerStatusCodes: ['5xx'], "
            "triggerDuration: 2s, reportAsIssue: true, continue: true}]}"
        ),
        id="detect-errors",
    ),
    pytest.param(
        stack(
            "- type: http_capture\n  config:\n    level: none\n    sample_rate: 0.5\n    rules:\n"
            "      - {expr: http.res.status >= 400, level: details, sample_rate: 1}\n"
            "- type: access_logs\n  config: {rules: [{expr: http.res.status >= 400, mode: full}]}"
        ),
        id="rules-and-sampling",
    ),
    pytest.param(services("object", "s3\nbucket: b"), id="s3"),
    pytest.param("services: {qscan: {type: disabled}}\n" + STACKS.replace("summary", "none")
                 + "tap: {http: {stack: none}, endpoints: [{domain: a.b, http: {stack: none}}]}\n",
                 id="switched-off"),
    pytest.param(
        VALID + "tap:\n  direction: egress-internal\n  ignore_loopback: true\n"
        "  audit_include_dns: true\n  health_checks: spans\n  link: passive\n"
        "  http: {stack: none}\n  endpoints:\n    - {domain: api.example.com, http: {stack: web}}\n"
        "  filters: {groups: [eks, gke], custom: [{exe: curl, only: [dns, tls]}]}\n",
        id="tap",
    ),
]  # fmt: skip


@pytest.mark.parametrize("text", ACTIVE)
def test_what_is_acted_on_brings_no_warning(text, warnings_of) -> None:
    """So that a warning means something."""
    assert [line for line in warnings_of(text) if "names no stack" not in line] == []


REFERENCES = [
    pytest.param(
        VALID + "tap:\n  http:\n    stack: wbe\n",
        "7: tap.http.stack: 'wbe' is not a stack; did you mean 'web'?",
        id="misspelt-stack",
    ),
    pytest.param(
        VALID + "tap:\n  http:\n    stack: haproxy_capture\n",
        "7: tap.http.stack: 'haproxy_capture' is not a stack; there are web",
        id="unknown-stack",
    ),
    pytest.param(
        "tap:\n  http:\n    stack: web\n",
        "3: tap.http.stack: 'web' is not a stack; there is no stack at all",
        id="no-stacks",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  endpoints:\n    - domain: a.b\n      http:\n"
        "        stack: wbe\n",
        "10: tap.endpoints.0.http.stack: 'wbe' is not a stack; did you mean 'web'?",
        id="stack-of-an-endpoint",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  endpoints:\n"
        "    - {domain: a.b, http: {stack: web}}\n    - {domain: A.B., http: {stack: none}}\n",
        "9: tap.endpoints.1.domain: is the domain of item 0 of this list already",
        id="endpoint-twice",
    ),
    pytest.param(
        "services:\n  event_stores:\n    - {type: stdout, id: a}\n    - {type: otel, id: a}\n",
        "4: services.event_stores.1.id: is the id of item 0 of this list already",
        id="id-twice",
    ),
    pytest.param(
        stack(
            "- type: http_capture\n  config:\n    level: summary\n    object_store: {id: main}"
        ),
        "8: stacks.web.plugins.0.config.object_store.id: 'main' is not the id of an object store; "
        "none has an id",
        id="unknown-object-store",
    ),
    pytest.param(
        services("object", "s3\nbucket: b\nevent_store: {id: mian}").replace(
            "services:\n", "services:\n  event_stores: [{type: stdout, id: main}]\n"
        ),
        "6: services.object_stores.0.event_store.id: 'mian' is not the id of an event store; "
        "did you mean 'main'?",
        id="misspelt-event-store",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFERENCES)
def test_a_name_that_leads_nowhere_is_an_error(text, message, errors) -> None:
    """Qtap would go on without; what was asked for would be missing later."""
    assert f"qtap.yaml:{message}" in errors(text)


# The environment ---------------------------------------------------------------------

KEYS = "access_key: {type: env, value: QTAP_KEY}\nsecret_key: {type: env, value: QTAP_SECRET}"
VARIABLES = [
    pytest.param(
        services("event", "otel\nendpoint: '{{QTAP_HOST}}:4317'"),
        {},
        "4: services.event_stores.0.endpoint: environment variable 'QTAP_HOST' is not set",
        id="endpoint",
    ),
    pytest.param(
        services("event", "otel\nheaders:\n  x-token:\n    type: env\n    value: QTAP_TOKEN"),
        {},
        "7: services.event_stores.0.headers.x-token.value: environment variable 'QTAP_TOKEN' is "
        "not set",
        id="header",
    ),
    pytest.param(
        services("event", "otel\nheaders: {x: {type: env, value: qtap_token}}"),
        {},
        "4: services.event_stores.0.headers.x.value: the environment variable is not set",
        id="header-whose-name-may-be-a-secret",
    ),
    pytest.param(
        services("object", f"s3\nbucket: b\n{KEYS}"),
        {"QTAP_KEY": "k"},
        "6: services.object_stores.0.secret_key.value: environment variable 'QTAP_SECRET' is not "
        "set",
        id="key-of-a-bucket",
    ),
    pytest.param(
        services("object", f"s3\nbucket: b\n{KEYS}"),
        {"QTAP_KEY": "", "QTAP_SECRET": "s"},
        "5: services.object_stores.0.access_key.value: the environment variable is empty",
        id="empty-key-of-a-bucket",
    ),
    pytest.param(
        f"{VALID}{HTTP}redact: {{hash_key: {{type: env, value: QTAP_HASH}}}}",
        {},
        "6: redact.hash_key.value: environment variable 'QTAP_HASH' is not set",
        id="key-of-hashes",
    ),
]


@pytest.mark.parametrize(("text", "environment", "message"), VARIABLES)
def test_an_unset_variable_of_a_store_in_use_stops_the_start(
    text, environment, message, errors, monkeypatch
) -> None:
    """Sending without what was asked for would fail later and elsewhere."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert errors(text) == [f"qtap.yaml:{message}"]


def test_a_file_for_another_machine_need_not_have_its_secrets_here() -> None:
    """Where a file is checked is not always where the agent runs; it has to be said, though."""
    text = services("object", f"s3\nbucket: b\n{KEYS}").encode()

    assert check(text, "qtap.yaml").config is None
    report = check(text, "qtap.yaml", unset=Severity.WARNING)
    assert {problem.severity for problem in report.problems} == {Severity.WARNING}
    assert report.problems[0].text == (
        "environment variable 'QTAP_KEY' is not set; the agent will not start without it"
    )


NOT_NAMES = [
    pytest.param("{type: env, value: 'Bearer abc'}", "is not the name of an environment variable, "
                 "which type env asks for", id="no-name"),
    pytest.param("{type: text, value: ''}", "is empty", id="empty-text"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "message"), NOT_NAMES)
def test_what_no_environment_can_mend_is_an_error_everywhere(source, message) -> None:
    """It is wrong wherever the file goes."""
    text = services("object", f"s3\nbucket: b\naccess_key: {source}\nsecret_key: {source}")

    report = check(text.encode(), "qtap.yaml")
    assert report.config is None
    assert [problem.text for problem in report.problems] == [message, message]


def test_an_empty_header_is_sent_as_it_is(load, monkeypatch) -> None:
    """It is odd, and allowed."""
    monkeypatch.setenv("QTAP_TOKEN", "")

    (store,) = load(
        services("event", "otel\nheaders: {x: {type: env, value: QTAP_TOKEN}}")
    ).config.event_stores()
    assert store.resolve_headers() == {"x": ""}
