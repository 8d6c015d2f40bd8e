"""What the README shows works as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otel_qtap.config import Severity, check
from otel_qtap.config.model import HttpCapturePlugin

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition(":")[0])
def test_every_configuration_is_a_good_one(block) -> None:
    """Rules included; warnings are only about what a part of a file leaves out."""
    report = check(block.encode(), "README.md", unset=Severity.WARNING)

    assert report.config is not None, report.render()
    for problem in report.problems:
        assert problem.path in ("tap", "tap.http.stack") or "not set" in problem.text


def test_the_configurations_are_there() -> None:
    """The test above has something to look at: stores, and rules."""
    reports = [check(block.encode(), "README.md", unset=Severity.WARNING) for block in BLOCKS]
    configs = [report.config for report in reports]
    plugins = [plugin for c in configs for stack in c.stacks.values() for plugin in stack.plugins]

    assert any(config.object_stores() for config in configs)
    assert any(isinstance(plugin, HttpCapturePlugin) and plugin.config.rules for plugin in plugins)
