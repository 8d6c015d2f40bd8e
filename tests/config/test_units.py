"""Numbers with a unit."""

from __future__ import annotations

from datetime import timedelta

import pytest

from otel_qtap.config.units import parse_duration, parse_rate, parse_size

VALUES = [
    pytest.param(parse_size, "512", 512, id="bytes"),
    pytest.param(parse_size, "64mb", 64 * 1024 * 1024, id="megabytes"),
    pytest.param(parse_size, "1.5 KB", 1536, id="fraction-and-case"),
    pytest.param(parse_duration, "500ms", timedelta(milliseconds=500), id="milliseconds"),
    pytest.param(parse_duration, "1m30s", timedelta(seconds=90), id="two-units"),
    pytest.param(parse_duration, ".5h", timedelta(minutes=30), id="half-an-hour"),
    pytest.param(parse_duration, timedelta(hours=1), timedelta(hours=1), id="already-read"),
    pytest.param(parse_rate, "0", 0.0, id="nothing"),
    pytest.param(parse_rate, "0.01", 0.01, id="one-percent"),
    pytest.param(parse_rate, "1", 1.0, id="everything"),
]


@pytest.mark.parametrize(("parse", "text", "value"), VALUES)
def test_a_number_with_its_unit_is_read(parse, text, value) -> None:
    """Sizes as Qtap's options have them, spans of time as Go."""
    assert parse(text) == value


WRONG = [
    *(
        pytest.param(parse_size, text, "must be a size")
        for text in ("", "mb", "-1", "1tb", "1e3", "9" * 50)
    ),
    *(
        pytest.param(parse_duration, text, "must be a span of time")
        for text in ("", "500", "5 s", "s", "1d", "-1s", "1s!", "9" * 50)
    ),
    pytest.param(parse_duration, "99999999999999999h", "must be a shorter span of time"),
    *(
        pytest.param(parse_rate, text, "must be a number from 0")
        for text in ("", "10%", "1.1", "-0.1", "nan", "inf", "half")
    ),
]


@pytest.mark.parametrize(("parse", "text", "message"), WRONG)
def test_anything_else_is_refused_with_what_may_be_written(parse, text, message) -> None:
    """Nobody has to guess what a number without its unit means."""
    with pytest.raises(ValueError, match=f"^{message}"):
        parse(text)
