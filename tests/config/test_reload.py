"""A file that is read again while the agent runs."""

from __future__ import annotations

import pytest
from config.files import GUIDE

from otel_qtap.config import load_config, reload_config
from otel_qtap.config.capture import CaptureLevel


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return the path of a file that loads, relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "qtap.yaml"
    path.write_text(GUIDE)
    return path.relative_to(tmp_path)


def test_a_changed_file_brings_its_new_content(file) -> None:
    """And says in one line what is different, without the values."""
    current = load_config(file)
    file.write_text(GUIDE.replace("level: full ", "level: summary").replace("all", "egress"))

    reload = reload_config(current)

    assert reload.loaded.config.highest_capture_level() is CaptureLevel.SUMMARY
    assert reload.changed == ("stacks.haproxy_capture.plugins.0.config.level", "tap.direction")
    assert reload.summary() == (
        "configuration reloaded from qtap.yaml: stacks.haproxy_capture.plugins.0.config.level, "
        "tap.direction"
    )


def test_an_unchanged_file_is_no_change(file) -> None:
    """Comments and the order of keys do not count."""
    current = load_config(file)
    file.write_text("# another comment\n" + GUIDE)

    reload = reload_config(current)

    assert (reload.loaded.config, reload.changed) == (current.config, ())
    assert reload.summary() == "configuration reloaded from qtap.yaml: nothing is different"


BROKEN = [
    pytest.param(GUIDE.replace("full", "fulll"), "'fulll' is not one of", id="wrong-value"),
    pytest.param(GUIDE + "rulekit: {macros: [", "not valid YAML", id="half-written"),
    pytest.param(None, "no such file", id="gone"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_keeps_the_old_content(text, message, file) -> None:
    """The problems are told; nothing is raised."""
    current = load_config(file)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)

    reload = reload_config(current)

    assert reload.loaded is None
    assert message in reload.problems[0].text
    assert reload.summary() == (
        "configuration not reloaded, the old one stays: qtap.yaml cannot be used"
    )


def test_the_built_in_default_has_nothing_to_reload() -> None:
    """It cannot change."""
    current = load_config(None)

    reload = reload_config(current)
    assert (reload.loaded, reload.changed, reload.problems) == (current, (), ())


CHANGES = [
    pytest.param("direction: all", "direction: egress", ["tap", "tap.direction"], id="value"),
    pytest.param("  filters:\n    groups:\n      - qpoint\n", "", ["tap.filters"], id="gone"),
    pytest.param("object_stores:\n    - type: stdout", "object_stores:\n    - type: disabled",
                 ["services", "services.object_stores"], id="another-kind"),
    pytest.param("haproxy_capture", "other", ["stacks", "tap.http"], id="renamed"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "sections"), CHANGES)
def test_who_has_to_act_can_ask_which_parts_are_different(before, after, sections, file) -> None:
    """The kernel side need not be told that a rule has changed."""
    current = load_config(file)
    file.write_text(GUIDE.replace(before, after))

    reload = reload_config(current)

    assert all(reload.touches(section) for section in sections)
    assert not reload.touches("rulekit", "tap.dir", "tags")


def test_a_long_list_of_changes_is_cut(file) -> None:
    """One line stays one line."""
    current = load_config(file)
    more = "".join(f"  stack_{number}: {{}}\n" for number in range(8))
    file.write_text(GUIDE.replace("stacks:\n", "stacks:\n" + more))

    assert reload_config(current).summary().endswith("stacks.stack_4 and 3 more")
