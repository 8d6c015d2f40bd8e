"""Files that tests change one thing of."""

from __future__ import annotations

__all__ = ["GUIDE", "STACKS", "VALID"]

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
