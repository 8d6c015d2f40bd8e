"""A Qtap file becomes a config, or one line for each thing that is wrong with it."""

from __future__ import annotations

import os

import pytest
from config.files import GUIDE, STACKS, VALID

from otel_qtap.config import ConfigError, Severity, check, check_file, load_config
from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.config.services import StdoutStore
from otel_qtap.config.tap import TapDirection


def test_the_guides_first_file_loads_without_a_warning(load) -> None:
    """All of its keys are acted on, so there is nothing to say about it."""
    loaded = load(GUIDE)

    config = loaded.config
    (plugin,) = config.http_stack().plugins
    assert loaded.warnings == ()
    assert (loaded.source, str(loaded.path)) == ("qtap.yaml", "qtap.yaml")
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
    assert (loaded.source, loaded.path, loaded.warnings) == ("built-in default", None, ())
    assert (tap.direction, tap.ignore_loopback) == (TapDirection.EGRESS, True)
    assert (plugin.type, plugin.config.mode) == ("access_logs", CaptureLevel.FULL)
    assert len(loaded.config.event_stores()) == len(loaded.config.object_stores()) == 1


EVERYTHING = """\
version: 2
services:
  event_stores:
    - type: otel
      protocol: grcp
      headers: {x: {type: env, value: OTEL_QTAP_NOT_SET}}
  object_stores:
    - type: s3
      endpoint: https://s3.example.com
      bucket: b
rulekit:
  macros:
    - {name: is_a, expr: is_b()}
stacks:
  web:
    plugins:
      - type: http_capture
        config:
          level: ful
          rules:
            - expr: !is_a()
              level: full
      - type: llm
tap:
  direction: egres
  http: {stack: wbe}
  filters: {groups: [container]}
"""


def test_all_problems_are_told_at_once(errors) -> None:
    """Errors and warnings together, in the order of the lines, each once."""
    lines = [line for line in errors(EVERYTHING) if not line.startswith(" ")]

    assert [line.split(": ")[:2] for line in lines] == [
        ["qtap.yaml:5", "services.event_stores.0.protocol"],
        ["qtap.yaml:6", "services.event_stores.0.headers.x.value"],
        ["qtap.yaml:9", "services.object_stores.0.endpoint"],
        ["qtap.yaml:13", "rulekit.macros.0.expr"],
        ["qtap.yaml:19", "stacks.web.plugins.0.config.level"],
        ["qtap.yaml:21", "stacks.web.plugins.0.config.rules.0.expr"],
        ["qtap.yaml:23", "stacks.web.plugins.1.type"],
        ["qtap.yaml:25", "tap.direction"],
        ["qtap.yaml:26", "tap.http.stack"],
        ["qtap.yaml:27", "tap.filters.groups.0"],
    ]
    assert [line.endswith(" (warning)") for line in lines].count(True) == 2


def test_what_a_wrong_part_leaves_open_is_not_told(errors) -> None:
    """A store that cannot be read is no reason to miss stores, nor a level to miss one."""
    text = (
        "services: {object_stores: [{type: s3, buket: b}]}\n"
        "stacks: {web: {plugins: [{type: http_capture, config: {level: ful}}]}}\n"
        "tap: {http: {stack: web}}\n"
    )

    assert [line.split(": ")[1] for line in errors(text)] == [
        "services.object_stores.0.bucket",
        "services.object_stores.0.buket",
        "stacks.web.plugins.0.config.level",
    ]


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


def test_severity_says_whether_the_file_can_be_used(load) -> None:
    """Every warning of a file that loads is one."""
    loaded = load(VALID)

    assert {problem.severity for problem in loaded.warnings} == {Severity.WARNING}


# A file that is only looked at -------------------------------------------------------

ODD = VALID + "tap:\n  http: {stack: web}\n  redis: {stack: web}\n"
WRONG = STACKS + "tap:\n  direction: up\n  http: {stack: web}\n  mysql: {stack: web}\n"
STORELESS = "stacks.web.plugins.0: keeps transactions for no store"

REPORTS = [
    pytest.param(GUIDE, True, True, "q.yaml: valid", id="valid"),
    pytest.param(ODD, True, False, "q.yaml: valid, 1 warning", id="warning"),
    pytest.param(WRONG, False, False, "q.yaml: not valid, 1 error, 1 warning", id="both"),
    pytest.param("tap: [\n", False, False, "q.yaml: not valid, 1 error", id="no-yaml"),
]


@pytest.mark.parametrize(("text", "is_accepted", "is_strictly", "last"), REPORTS)
def test_a_report_sums_up(text, is_accepted, is_strictly, last) -> None:
    """The last line of what ``validate`` prints, and its exit status."""
    report = check(text.encode(), "q.yaml")

    assert report.is_accepted() is is_accepted
    assert report.is_accepted(strict=True) is is_strictly
    assert (report.config is not None) is is_accepted
    assert report.render().splitlines()[-1] == last
    assert len(report.render().splitlines()) == len(report.problems) + 1


def test_a_strict_report_calls_a_file_with_warnings_not_valid() -> None:
    """The warnings stay what they are; what they lead to is different."""
    report = check(ODD.encode(), "q.yaml")

    assert report.render(strict=True).splitlines() == [
        "q.yaml:7: tap.redis: redis is not active in this version (warning)",
        "q.yaml: not valid, 1 warning",
    ]


def test_a_report_shows_a_wrong_rule_under_its_message() -> None:
    """With the mark where it goes wrong."""
    text = "rulekit: {macros: [{name: a, expr: b ==}]}\n" + VALID + "tap: {http: {stack: web}}\n"

    first, rule, mark, last = check(text.encode(), "q.yaml").render().splitlines()
    assert first.startswith("q.yaml:1: rulekit.macros.0.expr: column 5: ")
    assert (rule, mark) == ("    b ==", "        ^")
    assert last == "q.yaml: not valid, 1 error"


def test_a_file_can_be_checked_by_its_path(tmp_path) -> None:
    """Nothing is raised, not even for a file that is not there."""
    path = tmp_path / "qtap.yaml"
    path.write_text(GUIDE)

    assert check_file(path).render() == f"{path}: valid"
    missing = check_file(tmp_path / "absent.yaml")
    assert missing.render().splitlines()[0] == f"{tmp_path}/absent.yaml: no such file"
    assert not missing.is_accepted()
