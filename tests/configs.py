"""Configurations for tests, from as little text as the test is about."""

from __future__ import annotations

import textwrap

from otel_qtap.config import Config, check

__all__ = ["config_of", "stack_config"]


def config_of(text: str) -> Config:
    """Return the configuration that a Qtap file of this text is; it must be a good one."""
    report = check(textwrap.dedent(text).encode(), "qtap.yaml")
    assert report.config is not None, report.render()
    return report.config


def stack_config(plugins: str, *, services: str = "", more: str = "", tap: str = "") -> Config:
    """Return one with a stack of ``plugins`` (items of a YAML list), printing on stdout."""
    services = services or "object_stores: [{type: stdout}]\nevent_stores: [{type: stdout}]"
    parts = {
        "services": services,
        "stacks:\n  s:\n    plugins": plugins,
        "tap": f"http: {{stack: s}}\n{tap}",
    }
    text = "version: 2\n" + "".join(
        f"{key}:\n{textwrap.indent(textwrap.dedent(value), '      ')}\n"
        for key, value in parts.items()
    )
    return config_of(text + textwrap.dedent(more))
