"""A text becomes data with lines, or a message about what keeps it from being YAML."""

from __future__ import annotations

from itertools import pairwise

import pytest
import yaml
from config.files import GUIDE, VALID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_qtap.config import ConfigError
from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.config.document import Document, DocumentError
from otel_qtap.config.tap import TapDirection

QUOTE = "text that starts with '!' must be quoted, as in expr: '!is_internal()'"

ERRORS = [
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
        "tap: *nowhere\n",
        "qtap.yaml:1: not valid YAML at column 6: found undefined alias",
        id="alias-of-nothing",
    ),
    pytest.param(
        VALID + "tap:\n  direction: all\n  http: {stack: web}\n  direction: egress\n",
        "qtap.yaml:8: tap.direction: is written twice; first in line 6",
        id="key-written-twice",
    ),
    pytest.param(
        VALID + "tap:\n  ? {a: b}\n  : c\n",
        "qtap.yaml:5: tap: has a key that is not text",
        id="mapping-as-key",
    ),
    pytest.param(
        "rules:\n  - expr: !is_backup_dc() && http.res.status >= 500  # quoted in the guide\n",
        "qtap.yaml:2: rules.0.expr: YAML takes a bare '!' for one of its tags; "
        "write expr: '!is_backup_dc() && http.res.status >= 500'",
        id="unquoted-not-with-and",
    ),
    pytest.param(
        VALID + "tap: {http: {stack: web}}\nrulekit:\n  macros:\n    - name: a\n"
        "      expr: !(http.req.path == '/health')\n",
        "qtap.yaml:9: rulekit.macros.0.expr: YAML takes a bare '!' for one of its tags; "
        "write expr: '!(http.req.path == ''/health'')'",
        id="unquoted-not-with-quotes-in-it",
    ),
    pytest.param(
        "rules:\n  - expr: !a() && " + "b" * 300 + "\n",
        f"qtap.yaml:2: rules.0.expr: YAML takes a bare '!' for one of its tags; {QUOTE}",
        id="unquoted-not-too-long-to-show",
    ),
    pytest.param(
        "rules:\n  - {name: a, expr: !is_backup_dc() && http.res.status >= 500}\n",
        "qtap.yaml:2: not valid YAML at column 38: expected alphabetic or numeric character, but "
        f"found '&'; {QUOTE}",
        id="unquoted-not-inside-braces",
    ),
    pytest.param(
        "rules:\n  - {name: a, expr: !is_backup_dc() }\n",
        f"qtap.yaml:2: rules.0.expr: has an unknown YAML tag; {QUOTE}",
        id="unquoted-not-alone-inside-braces",
    ),
    pytest.param(
        "tap: !secret all\n",
        f"qtap.yaml:1: tap: has an unknown YAML tag; {QUOTE}",
        id="unknown-tag",
    ),
    pytest.param(
        'rules:\n  - expr: "GET" == http.req.method\n',
        "qtap.yaml:2: not valid YAML at column 17: expected <block end>, but found '<scalar>'; "
        "what begins with a quote must be quoted as a whole, as in expr: '\"a\" == b'",
        id="only-the-beginning-quoted",
    ),
    pytest.param(
        'rules:\n  - expr: "http.req.path =~ /\\d+/"\n',
        "qtap.yaml:2: not valid YAML at column 31: found unknown escape character 'd'; "
        "backslashes need single quotes, as in expr: 'http.req.path =~ /a\\.b/'",
        id="backslash-in-double-quotes",
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
    pytest.param("a: " + "{a: " * 60 + "}" * 60, "qtap.yaml: is nested more than 50 levels deep"),
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
def test_an_error_names_the_line_and_the_way_out(text, message, errors) -> None:
    """One line for the reader, ready to act on."""
    assert message in errors(text)


def test_unquoted_expressions_do_not_hide_other_problems(errors) -> None:
    """They are read as they were meant, so that one run tells everything."""
    lines = errors("""\
        stacks:
          web:
            plugins:
              - type: http_capture
                config:
                  level: ful
                  rules:
                    - {name: a, expr: http.res.status >= 400, level: full}
                    - expr: !(http.res.status >= 500) && http.req.method == "GET"
                      level: full
        tap: {http: {stack: wbe}}
        """)

    assert [line.split(": ")[:2] for line in lines] == [
        ["qtap.yaml:6", "stacks.web.plugins.0.config.level"],
        ["qtap.yaml:9", "stacks.web.plugins.0.config.rules.1.expr"],
        ["qtap.yaml:11", "tap.http.stack"],
    ]


def test_an_unquoted_expression_is_told_beside_what_is_no_yaml_at_all(errors) -> None:
    """Both keep the file from being read."""
    first, second = errors("rules:\n  - expr: !a()\ntap: a: b\n")

    assert first.startswith("qtap.yaml:2: YAML takes a bare '!' for one of its tags; write expr:")
    assert second.startswith("qtap.yaml:3: not valid YAML at column 7: mapping values")


def test_a_tag_that_yaml_knows_is_no_unquoted_expression() -> None:
    """``!!str`` says that what follows is text."""
    assert Document.of("expr: !!str 1\n").data == {"expr": "1"}


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

    assert [problem.path for problem in loaded.warnings] == []
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


def test_a_byte_order_mark_is_no_obstacle(load) -> None:
    """Some editors write one."""
    assert load(b"\xef\xbb\xbf" + GUIDE.encode()).config.http_stack() is not None


def _damaged(cut, size, inserted):
    return GUIDE[:cut] + inserted + GUIDE[cut + size :]


DAMAGE = {
    "cut": st.integers(0, len(GUIDE)),
    "size": st.integers(0, 30),
    "inserted": st.text(
        st.sampled_from("\n\t -:#!&*|>{}[]'\"%@`\\,?<=0aTx\x00\u2028\ufeff") | st.characters(),
        max_size=20,
    ),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(**DAMAGE)
def test_no_text_does_more_than_load_or_be_refused(cut, size, inserted, load) -> None:
    """Any damage to a file ends in a config or in messages that can be printed."""
    text = _damaged(cut, size, inserted).encode("utf-8", "surrogatepass")
    try:
        shown = repr(load(text))
    except ConfigError as error:
        shown = str(error)
    assert shown.encode()


@settings(max_examples=150)
@given(**DAMAGE)
def test_both_parsers_understand_the_same(cut, size, inserted) -> None:
    """
    Whether libyaml is there makes no difference to what a file means.

    It takes some texts that the parser in Python refuses: tabs, mostly.
    """
    text = _damaged(cut, size, inserted).encode("utf-8", "replace").decode()

    def read():
        try:
            document = Document.of(text)
        except DocumentError:
            return None
        return document.data, document.findings, document._lines

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "__with_libyaml__", False)
        assert read() in (fast, None)
