"""Fixtures for all tests: the factories of ``tests/factories.py`` under their own names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from otel_qtap.config import Config, load_config
from otel_qtap.counters import CounterSet

_CONFIG = """\
version: 2
services:
  object_stores: [{{type: stdout}}]
stacks:
  s:
    plugins:
      - type: http_capture
        config: {{level: {level}, format: {format}}}
tap:
  direction: {direction}
  ignore_loopback: {loopback}
  http: {{stack: s}}
"""


def _load_factories() -> ModuleType:
    # By path: test folders are no packages, and in importlib mode not on sys.path either.
    path = Path(__file__).with_name("factories.py")
    spec = importlib.util.spec_from_file_location("otel_qtap_test_factories", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_factories = _load_factories()


@pytest.fixture(scope="session")
def factories() -> ModuleType:
    """All factories and constants of ``tests/factories.py``."""
    return _factories


@pytest.fixture(scope="session")
def make_transaction():
    """``make_transaction(direction=…, status=…, …) -> Transaction``."""
    return _factories.make_transaction


@pytest.fixture(scope="session")
def make_request():
    """``make_request("GET", "/", headers=…, body=…) -> Request``."""
    return _factories.make_request


@pytest.fixture(scope="session")
def make_response():
    """``make_response(200, headers=…, body=…) -> Response``."""
    return _factories.make_response


@pytest.fixture(scope="session")
def make_body():
    """``make_body(b"…", size=…) -> Body``."""
    return _factories.make_body


@pytest.fixture(scope="session")
def make_timings():
    """``make_timings(start_ns=…, duration_ns=…, …) -> Timings``."""
    return _factories.make_timings


@pytest.fixture(scope="session")
def make_process():
    """``make_process(pid=…, …) -> Process``."""
    return _factories.make_process


@pytest.fixture(scope="session")
def make_container():
    """``make_container(name=…, …) -> Container``."""
    return _factories.make_container


@pytest.fixture
def counters() -> CounterSet:
    """A fresh set of counters."""
    return CounterSet()


@pytest.fixture
def write_config(tmp_path) -> Callable[..., Path]:
    """``write_config(level=…, format=…, direction=…, loopback=…, more="…")``: a Qtap file."""

    def write(*, more: str = "", **changes: str) -> Path:
        values = {"level": "full", "format": "text", "direction": "all", "loopback": "false"}
        path: Path = tmp_path / "qtap.yaml"
        path.write_text(_CONFIG.format(**(values | changes)) + more)
        return path

    return write


@pytest.fixture
def configure(write_config) -> Callable[..., Config]:
    """The same, loaded."""

    def make(**changes: str) -> Config:
        return load_config(write_config(**changes)).config

    return make
