"""The agent's own log: lines on stderr, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time

__all__ = ["ALWAYS", "LEVELS", "set_up_logging"]

ALWAYS = 100
"""Level of the few lines that no --log-level hides."""

LEVELS = {
    "trace": logging.DEBUG, "debug": logging.DEBUG, "info": logging.INFO,
    "warn": logging.WARNING, "error": logging.ERROR,
    "dpanic": logging.CRITICAL, "panic": logging.CRITICAL, "fatal": logging.CRITICAL,
}  # fmt: skip
"""What ``--log-level`` may say."""


class _ConsoleFormatter(logging.Formatter):
    """One line, with Qtap's time layout."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = "INFO" if record.levelno == ALWAYS else record.levelname
        text = f"{stamp}.{int(record.msecs):03d} {level:<7} {record.getMessage()}"
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class _JsonFormatter(logging.Formatter):
    """One JSON object in a line; the text is under ``message``, as in Qtap."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": "info" if record.levelno == ALWAYS else record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


def set_up_logging(level: str, encoding: str) -> None:
    """Log to stderr: ``level`` is one of ``LEVELS``, ``encoding`` ``console`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if encoding == "json" else _ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("otel_qtap").setLevel(LEVELS[level])
