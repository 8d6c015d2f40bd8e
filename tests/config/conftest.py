"""A text as a file of the working directory, and what the loader says of it."""

from __future__ import annotations

import textwrap

import pytest

from otel_qtap.config import ConfigError, load_config


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
