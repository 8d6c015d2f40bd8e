"""
The demo's world, for tests: HAProxy, backends and clients on ports that nobody else sees.

``examples/haproxy_demo/world.py`` is the one implementation. pytest finds the examples by
``pythonpath`` in ``pyproject.toml``; this module is the way to them for the programs among
the tests that run by themselves, such as ``recordings/make.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = str(Path(__file__).resolve().parents[2] / "examples")
if EXAMPLES not in sys.path:
    sys.path.append(EXAMPLES)

from haproxy_demo.world import (  # noqa: E402 - the path comes first
    Program,
    World,
    WorldError,
    wait_until,
)

__all__ = ["Program", "World", "WorldError", "wait_until"]
