"""The ``logger`` plugin: lines for people, only where they were asked for."""

from __future__ import annotations

import logging
import threading

import pytest

from otel_qtap.plugins.logger import Logger
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.transaction.model import Direction


@pytest.fixture
def logger(counters):
    plugin = Logger(redactor=Redactor(), counters=counters)
    yield plugin
    plugin.close(5)


def test_a_line_for_each_transaction(logger, make_transaction, caplog) -> None:
    """At level debug, redacted, with the ids that find it elsewhere."""
    caplog.set_level(logging.DEBUG, "otel_qtap")
    logger.consume(make_transaction(target="/a?token=hunter2"))
    logger.consume(make_transaction(direction=Direction.EGRESS_INTERNAL, status=None))
    assert logger.flush(5)

    ids = "request d3kq1f0t8s4c73a1b2c0 on connection d3kq1f0t8s4c73a1b2bg"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", f"HTTP transaction: {line}, 12.0 ms, {ids}")
        for line in (
            "haproxy ingress GET http://localhost:8085/a?token=REDACTED 200",
            "haproxy egress-internal GET http://backend-api-1:8001/api/users -",
        )
    ]


def test_silent_unless_the_log_is_at_level_debug(
    logger, make_transaction, caplog, counters
) -> None:
    """Then it costs nothing either."""
    caplog.set_level(logging.INFO, "otel_qtap")
    logger.consume(make_transaction())
    assert logger.flush(5)
    assert caplog.records == []
    assert counters.total("otel_qtap.delivery.delivered") == 0


def test_a_line_stays_a_line(logger, make_transaction, caplog) -> None:
    """Whatever a client sends, it forges no other one."""
    caplog.set_level(logging.DEBUG, "otel_qtap")
    logger.consume(make_transaction(method="GET\n\x1b[2J", target="/\r\nFAKE"))
    assert logger.flush(5)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.isprintable()


def test_a_log_that_blocks_does_not_stop_the_tap(make_transaction, counters) -> None:
    """Lines that do not fit are dropped and counted."""
    gate = threading.Event()

    handler = logging.Handler()
    handler.emit = lambda _: gate.wait(30)
    log = logging.getLogger("otel_qtap.plugins.logger")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    plugin = Logger(redactor=Redactor(), counters=counters, max_bytes=20_000)
    try:
        for _ in range(100):
            plugin.consume(make_transaction())
        assert counters.total("otel_qtap.delivery.dropped") > 90
        assert not plugin.close(0.05)
    finally:
        gate.set()
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    assert counters.total("otel_qtap.delivery.dropped") == 100
