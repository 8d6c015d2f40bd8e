"""A Qtap file becomes a config, or one line for each thing that is wrong with it."""

from __future__ import annotations

import os
import textwrap
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_qtap.config import ConfigError, Severity, load_config
from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.config.model import StdoutStore, TapDirection

GUIDE = """\
version: 2
services:
  event_stores:
    - type: stdout
  object_stores:
    - type: stdout
stacks:
  haproxy_capture:
    plugins:
      - type: http_capture
        config:
          level: full      # everything
          format: text
tap:
  direction: all
  ignore_loopback: false
  audit_include_dns: false
  http:
    stack: haproxy_capture
  filters:
    groups:
      - qpoint
"""

STACKS = """\
stacks:
  web: {plugins: [{type: http_capture, config: {level: summary}}]}
"""
VALID = f"""\
services:
  event_stores: [{{type: stdout}}]
{STACKS}"""
"""Lines 1 to 4 of files whose fifth line on is what a test is about."""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a text as the file ``qtap.yaml`` of the working directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(text):
        path = tmp_path / "qtap.yaml"
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return load_config(path.relative_to(tmp_path))

    return load_text


@pytest.fixture
def errors(load):
    """Return the lines of the ``ConfigError`` that a text provokes."""

    def lines_of(text):
        with pytest.raises(ConfigError) as caught:
            load(text)
        return str(caught.value).splitlines()

    return lines_of


@pytest.fixture
def warnings_of(load):
    """Return the warnings of a text that loads, as lines."""
    return lambda text: [str(problem) for problem in load(text).warnings]


def test_the_guides_first_file_loads_without_a_warning(load) -> None:
    """All of its keys are acted on, so there is nothing to say about it."""
    loaded = load(GUIDE)

    config = loaded.config
    (plugin,) = config.http_stack().plugins
    assert loaded.warnings == ()
    assert loaded.source == "qtap.yaml"
    assert (plugin.config.level, plugin.config.format) == (CaptureLevel.FULL, CaptureFormat.TEXT)
    assert (config.tap.direction, config.tap.ignore_loopback) == (TapDirection.ALL, False)
    assert [type(store) for store in config.event_stores()] == [StdoutStore]
    assert [type(store) for store in config.object_stores()] == [StdoutStore]
    assert config.highest_capture_level() is CaptureLevel.FULL
    assert not config.tap.filters.excludes("/usr/local/sbin/haproxy")


def test_without_a_file_the_built_in_default_prints_egress_traffic() -> None:
    """Like Qtap: to standard output, egress only, without loopback."""
    loaded = load_config(None)

    tap = loaded.config.tap
    (plugin,) = loaded.config.http_stack().plugins
    assert (loaded.source, loaded.warnings) == ("built-in default", ())
    assert (tap.direction, tap.ignore_loopback) == (TapDirection.EGRESS, True)
    assert (plugin.type, plugin.config.mode) == ("access_logs", CaptureLevel.FULL)
    assert len(loaded.config.event_stores()) == len(loaded.config.object_stores()) == 1


ERRORS = [
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - type: http_capture\n        config:\n"
        "          level: fulll\ntap: {http: {stack: web}}\n",
        "qtap.yaml:6: stacks.web.plugins.0.config.level: 'fulll' is not one of none, summary, "
        "headers, full; did you mean 'full'?",
        id="misspelt-level",
    ),
    pytest.param(
        "stacks: {web: {plugins: [{type: http_captur}]}}\ntap: {http: {stack: web}}\n",
        "qtap.yaml:1: stacks.web.plugins.0.type: 'http_captur' is not one of http_capture, "
        "access_logs, debug, report_usage, http_metrics, logger, detect_errors, qscan, dlp, llm, "
        "devtools; did you mean 'http_capture'?",
        id="misspelt-plugin",
    ),
    pytest.param(
        VALID + "tap:\n  direktion: all\n  http: {stack: web}\n",
        "qtap.yaml:6: tap.direktion: unknown key; did you mean 'direction'?",
        id="misspelt-key",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web, colour: red}\n",
        "qtap.yaml:6: tap.http.colour: unknown key; known here: stack, display",
        id="unknown-key",
    ),
    pytest.param(
        VALID + "tap:\n  direction: off\n  http: {stack: web}\n",
        "qtap.yaml:6: tap.direction: 'off' is not one of all, ingress, egress, egress-internal, "
        "egress-external",
        id="a-word-that-yaml-reads-as-a-boolean",
    ),
    pytest.param(
        VALID + "tap:\n  ignore_loopback: flase\n  http: {stack: web}\n",
        "qtap.yaml:6: tap.ignore_loopback: 'flase' is not one of true, false; "
        "did you mean 'false'?",
        id="not-a-boolean",
    ),
    pytest.param(
        VALID + "tap:\n  http:\n    stack: wbe\n",
        "qtap.yaml:7: tap.http.stack: 'wbe' is not a stack; did you mean 'web'?",
        id="misspelt-stack",
    ),
    pytest.param(
        VALID + "tap:\n  http:\n    stack: haproxy_capture\n",
        "qtap.yaml:7: tap.http.stack: 'haproxy_capture' is not a stack; there are web",
        id="unknown-stack",
    ),
    pytest.param(
        "tap:\n  http:\n    stack: web\n",
        "qtap.yaml:3: tap.http.stack: 'web' is not a stack; there is no stack at all",
        id="no-stacks",
    ),
    pytest.param(
        VALID + "tap:\n  http: web\n",
        "qtap.yaml:6: tap.http: must be a mapping, is text",
        id="text-for-a-mapping",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins: {type: http_capture}\ntap: {http: {stack: web}}\n",
        "qtap.yaml:3: stacks.web.plugins: must be a list (items that start with '-'), is a mapping",
        id="mapping-for-a-list",
    ),
    pytest.param(
        "stacks:\n  web:\ntap: {http: {stack: web}}\n",
        "qtap.yaml:2: stacks.web: must be a mapping, is empty",
        id="stack-without-content",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - config: {level: full}\ntap: {http: {stack: web}}\n",
        "qtap.yaml:4: stacks.web.plugins.0.type: is missing",
        id="plugin-without-type",
    ),
    pytest.param(
        "services:\n  event_stores:\n    - id: main\n    - type: stdout\n" + STACKS,
        "qtap.yaml:3: services.event_stores.0: has an id and no type: the '-' in front of 'type' "
        "begins a second item; write id and type as one item, with one '-'",
        id="store-in-two-items",
    ),
    pytest.param(
        "services:\n  event_stores:\n    - stdout\n",
        "qtap.yaml:3: services.event_stores.0: must be a mapping, is text",
        id="store-that-is-only-a-word",
    ),
    pytest.param(
        "services:\n  object_stores:\n    - type: s3\n      region: eu-west-1\n",
        "qtap.yaml:3: services.object_stores.0.bucket: is missing",
        id="missing-key",
    ),
    pytest.param(
        "services:\n  object_stores:\n    - type: s3\n      bucket: b\n"
        "      access_key: {type: env, value: KEY}\n",
        "qtap.yaml:3: services.object_stores.0: access_key and secret_key come together: "
        "write both, or neither",
        id="one-key-of-two",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  filters:\n    custom:\n"
        "      - exe: 'haproxy('\n        strategy: regex\n",
        "qtap.yaml:9: tap.filters.custom.0: not a regular expression: "
        "missing ), unterminated subpattern at column 8",
        id="bad-regular-expression",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  filters:\n    custom:\n      - exe: ''\n",
        "qtap.yaml:9: tap.filters.custom.0.exe: must not be empty",
        id="empty-text",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\nrulekit:\n  macros:\n"
        "    - {name: a, expr: x}\n    - {name: a, expr: y}\n",
        "qtap.yaml:8: rulekit.macros: two macros have the name 'a'",
        id="macro-named-twice",
    ),
    pytest.param(
        VALID + "tap:\n  direction: all\n  http: {stack: web}\n  direction: egress\n",
        "qtap.yaml:8: tap.direction: is written twice; first in line 6",
        id="key-written-twice",
    ),
    pytest.param("", "qtap.yaml: is empty", id="empty-file"),
    pytest.param("# nothing\n", "qtap.yaml: is empty", id="only-comments"),
    pytest.param(
        "- tap\n",
        "qtap.yaml:1: must be a mapping of keys such as services, stacks and tap",
        id="list-at-the-top",
    ),
    pytest.param(
        "tap: {}\n---\ntap: {}\n",
        "qtap.yaml:2: not valid YAML at column 1: expected a single document in the "
        "stream but found another document",
        id="two-documents",
    ),
    pytest.param(
        "a: 1\nrules:\n  - expr: !is_backup_dc() && http.res.status >= 500\n",
        "qtap.yaml:3: not valid YAML at column 28: expected alphabetic or numeric character, but "
        "found '&'; text that starts with '!' must be quoted, as in expr: '!is_internal()'",
        id="unquoted-not-with-and",
    ),
    pytest.param(
        VALID + "tap: {http: {stack: web}}\nrulekit:\n  macros:\n    - name: a\n"
        "      expr: !is_health_check()\n",
        "qtap.yaml:9: rulekit.macros.0.expr: has an unknown YAML tag; text that starts with '!' "
        "must be quoted, as in expr: '!is_internal()'",
        id="unquoted-not-alone",
    ),
    pytest.param(
        "tap:\n\tdirection: all\n",
        "qtap.yaml:2: not valid YAML at column 1: found character that cannot start any token; "
        "indent with spaces, not with tabs",
        id="tab",
    ),
    pytest.param(
        "services:\n  endpoint: a: b\n",
        "qtap.yaml:2: not valid YAML at column 14: mapping values are not allowed here; "
        "a value that contains ': ' must be quoted",
        id="colon-in-a-value",
    ),
    pytest.param(b"tap:\n  a: \xff\n", "qtap.yaml:2: is not UTF-8 text: byte 0xff", id="not-utf8"),
    pytest.param(
        "tap:\n  a: '\x00'\n",
        "qtap.yaml:2: has a control character that YAML does not allow",
        id="control-character",
    ),
    pytest.param(
        'tap:\n  a: "\\UFFFFFFFF"\n',
        "qtap.yaml: not valid YAML: an escape names no character",
        id="escape-beyond-unicode",
    ),
    pytest.param(
        'tap:\n  direction: "\\ud800"\n',
        "qtap.yaml:2: tap.direction: has an escape that names half a character",
        id="escape-of-a-surrogate",
    ),
    pytest.param("[" * 5000, "qtap.yaml: is nested more than 50 levels deep", id="deep"),
    pytest.param("tap: &a\n  x: *a\n", "qtap.yaml: is nested more than 50 levels deep", id="loop"),
    pytest.param(
        "a: &a [1,2,3,4,5,6,7,8,9]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefg")),
        "qtap.yaml: unfolds to more than 100000 values",
        id="alias-bomb",
    ),
    pytest.param(b"#" * (1 << 20) + b"#", "qtap.yaml: is larger than 1048576 bytes", id="large"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_an_error_names_line_place_value_and_way_out(text, message, errors) -> None:
    """One line for the reader, ready to act on."""
    assert message in errors(text)


WARNINGS = [
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - type: report_usage\ntap: {http: {stack: web}}\n",
        "qtap.yaml:4: stacks.web.plugins.0.type: report_usage: this plugin is not active in this "
        "version; the stack runs without it",
        id="plugin",
    ),
    pytest.param(
        "stacks:\n  web:\n    plugins:\n      - type: http_capture\n        config:\n"
        "          rules:\n            - {name: Errors, expr: http.res.status >= 400, "
        "level: details}\ntap: {http: {stack: web}}\n",
        "qtap.yaml:6: stacks.web.plugins.0.config.rules: rules of http_capture are read but not "
        "evaluated in this version; the plugin's level applies",
        id="rules",
    ),
    pytest.param(
        VALID + "tap: {http: {stack: web}}\nrulekit:\n  macros:\n    - {name: a, expr: b}\n",
        "qtap.yaml:7: rulekit.macros: macros are read but not evaluated in this version",
        id="macros",
    ),
    pytest.param(
        "services:\n  object_stores:\n    - type: s3\n      bucket: b\n"
        "      access_key: {type: env, value: NOT_SET}\n"
        "      secret_key: {type: env, value: NOT_SET}\n"
        "stacks: {web: {}}\ntap: {http: {stack: web}}\n",
        "qtap.yaml:3: services.object_stores.0.type: s3: this object store is not active in this "
        "version",
        id="object-store",
    ),
    pytest.param(
        "services:\n  event_stores:\n    - {type: axiom, dataset: {type: text, value: d}}\n"
        "stacks: {web: {}}\ntap: {http: {stack: web}}\n",
        "qtap.yaml:3: services.event_stores.0.type: axiom: this event store is not active in this "
        "version",
        id="event-store",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  redis: {stack: web}\n",
        "qtap.yaml:7: tap.redis: redis is not active in this version",
        id="section",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  audit_logs: true\n",
        "qtap.yaml:7: tap.audit_logs: obsolete: a key of version 1 files",
        id="obsolete",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  filters: {groups: [container]}\n",
        "qtap.yaml:7: tap.filters.groups.0: 'container' is read as 'container-runtimes'",
        id="documented-group",
    ),
    pytest.param(
        VALID + "tap:\n  http: {stack: web}\n  filters:\n    groups:\n      - qpiont\n",
        "qtap.yaml:9: tap.filters.groups.0: 'qpiont' is not one of container-runtimes, eks, gke, "
        "kubernetes, qpoint, so it excludes nothing; did you mean 'qpoint'?",
        id="unknown-group",
    ),
    pytest.param(
        "version: 1\n" + VALID + "tap: {http: {stack: web}}\n",
        "qtap.yaml:1: version: is not 2; the file is read as version 2",
        id="version",
    ),
    pytest.param(
        VALID,
        "qtap.yaml: tap: is missing: no stack is named in tap.http.stack, so nothing will be "
        "captured",
        id="no-tap",
    ),
    pytest.param(
        VALID + "tap:\n  direction: all\n",
        "qtap.yaml:5: tap.http.stack: names no stack, so nothing will be captured",
        id="no-stack-named",
    ),
]


@pytest.mark.parametrize(("text", "message"), WARNINGS)
def test_what_has_no_effect_is_named_in_a_warning(text, message, warnings_of) -> None:
    """The file loads, and its reader knows what it does not do."""
    assert warnings_of(text) == [message]


def test_all_problems_are_told_at_once(errors) -> None:
    """Errors and warnings together, in the order of the lines, each once."""
    lines = errors("""\
        version: 2
        services:
          event_stores:
            - type: otel
              protocol: grcp
              headers: {x: {type: env, value: OTEL_QTAP_NOT_SET}}
          object_stores:
            - type: s3
              bucket: b
        stacks:
          web:
            plugins:
              - type: http_capture
                config: {level: ful, format: yaml}
              - type: report_usage
        tap:
          direction: egres
          http: {stack: wbe}
          filters: {groups: [container]}
        """)

    assert [line.split(": ")[:2] for line in lines] == [
        ["qtap.yaml:5", "services.event_stores.0.protocol"],
        ["qtap.yaml:6", "services.event_stores.0.headers.x.value"],
        ["qtap.yaml:8", "services.object_stores.0.type"],
        ["qtap.yaml:14", "stacks.web.plugins.0.config.level"],
        ["qtap.yaml:14", "stacks.web.plugins.0.config.format"],
        ["qtap.yaml:15", "stacks.web.plugins.1.type"],
        ["qtap.yaml:17", "tap.direction"],
        ["qtap.yaml:18", "tap.http.stack"],
        ["qtap.yaml:19", "tap.filters.groups.0"],
    ]
    assert [line.endswith(" (warning)") for line in lines].count(True) == 3


def test_an_unset_variable_of_a_store_in_use_is_an_error(errors, monkeypatch) -> None:
    """Sending without the header that was asked for would fail later and elsewhere."""
    monkeypatch.delenv("OTLP_TOKEN", raising=False)
    monkeypatch.delenv("OTLP_HOST", raising=False)

    lines = errors(
        "services:\n  event_stores:\n    - type: otel\n      endpoint: '{{OTLP_HOST}}:4317'\n"
        "      headers:\n        x-token:\n          type: env\n          value: OTLP_TOKEN\n"
        + STACKS
        + "tap: {http: {stack: web}}\n"
    )

    store = "services.event_stores.0"
    assert lines == [
        f"qtap.yaml:4: {store}.endpoint: environment variable 'OTLP_HOST' is not set",
        f"qtap.yaml:8: {store}.headers.x-token.value: environment variable 'OTLP_TOKEN' is not set",
    ]


SECRET = "s3cr3t/Value+with=signs"  # noqa: S105  # it is what the test looks for
SECRETS = [
    pytest.param(f"headers: {{a: {{type: env, value: '{SECRET}'}}}}", id="as-variable-name"),
    pytest.param(f"headers: {{a: {{type: '{SECRET}', value: x}}}}", id="in-the-wrong-key"),
    pytest.param(f"headers: {{a: {{type: text, vaule: '{SECRET}'}}}}", id="beside-a-typo"),
    pytest.param(f"headers: ['{SECRET}']", id="list"),
    pytest.param(f"headers: '{SECRET}'", id="text"),
    pytest.param(f"headers: {{a: {{type: text, value: ['{SECRET}']}}}}", id="nested"),
    pytest.param(f"endpoint: ['{SECRET}']", id="endpoint"),
    pytest.param(f"token: '{SECRET}'", id="unknown-key"),
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


def test_a_secret_is_not_in_the_repr_of_a_config(load) -> None:
    """Header values and endpoints stay out of logs that print a config."""
    loaded = load(
        "services:\n  event_stores:\n    - type: otel\n      endpoint: http://u:s3cr3t@otlp\n"
        "      headers: {a: s3cr3t, b: {type: text, value: s3cr3t}}\n"
    )

    assert "s3cr3t" not in repr(loaded)
    (store,) = loaded.config.event_stores()
    assert store.resolve_headers() == {"a": "s3cr3t", "b": "s3cr3t"}


def test_a_missing_file_a_directory_and_an_unreadable_file_say_so(tmp_path) -> None:
    """The line starts with the path as it was given."""
    with pytest.raises(ConfigError) as missing:
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError) as directory:
        load_config(tmp_path)

    assert str(missing.value) == f"{tmp_path}/absent.yaml: no such file"
    assert str(directory.value) == f"{tmp_path}: cannot be read: Is a directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="must take and give back the rights of root")
def test_a_file_without_read_permission_says_so(tmp_path) -> None:
    """As somebody else than root."""
    path = tmp_path / "qtap.yaml"
    path.write_text("tap: {}\n")
    path.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"cannot be read: Permission denied$"):
            load_config(path)
    finally:
        os.seteuid(0)


def test_scalars_are_read_as_they_stand_in_the_file(load) -> None:
    """A secret of digits keeps its leading zero; words of YAML stay words."""
    loaded = load(
        "services:\n  event_stores:\n    - {type: otel, service_name: 0123, environment: yes,\n"
        "       headers: {a: 0x1F, b: 1_000}}\n"
        "stacks: {on: {plugins: []}}\ntap: {ignore_loopback: yes, http: {stack: on}}\n"
    )

    (store,) = loaded.config.event_stores()
    assert (store.service_name, store.environment) == ("0123", "yes")
    assert store.resolve_headers() == {"a": "0x1F", "b": "1_000"}
    assert loaded.config.tap.ignore_loopback is True
    assert loaded.config.http_stack() is not None


def test_keys_without_a_value_count_as_not_written(load) -> None:
    """A section whose lines are all commented out brings its defaults."""
    loaded = load(VALID + "tap:\n  direction:\n  filters:\n  redis:\n  http: {stack: web}\n")

    assert loaded.warnings == ()
    assert loaded.config.tap.direction is TapDirection.ALL


def test_anchors_and_merge_keys_work_and_keep_their_lines(load, errors) -> None:
    """YAML's own means against repetition; an own key wins over a merged one."""
    text = """\
        stacks:
          a:
            plugins:
              - type: http_capture
                config: &common
                  level: summary
                  format: json
          b:
            plugins:
              - type: http_capture
                config:
                  <<: *common
                  level: LEVEL
        tap: {http: {stack: b}}
        """

    (plugin,) = load(text.replace("LEVEL", "full")).config.http_stack().plugins
    assert (plugin.config.level, plugin.config.format) == (CaptureLevel.FULL, CaptureFormat.JSON)
    (line,) = errors(text.replace("LEVEL", "most"))
    assert line.startswith("qtap.yaml:13: stacks.b.plugins.0.config.level: 'most' is not")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    cut=st.integers(0, len(GUIDE)),
    size=st.integers(0, 30),
    inserted=st.text(
        st.sampled_from("\n\t -:#!&*|>{}[]'\"%@`\\,?<=0aTx\x00\u2028\ufeff") | st.characters(),
        max_size=20,
    ),
)
def test_no_text_does_more_than_load_or_be_refused(cut, size, inserted, load) -> None:
    """Any damage to a file ends in a config or in messages that can be printed."""
    text = (GUIDE[:cut] + inserted + GUIDE[cut + size :]).encode("utf-8", "surrogatepass")
    try:
        shown = repr(load(text))
    except ConfigError as error:
        shown = str(error)
    assert shown.encode()


def test_a_byte_order_mark_is_no_obstacle(load) -> None:
    """Some editors write one."""
    assert load(b"\xef\xbb\xbf" + GUIDE.encode()).config.http_stack() is not None


def test_severity_says_whether_the_file_can_be_used(load) -> None:
    """Every warning of a file that loads is one."""
    loaded = load(VALID)

    assert {problem.severity for problem in loaded.warnings} == {Severity.WARNING}
