"""Long bodies are held only while somebody may want them."""

from __future__ import annotations

import io
import json

import pytest
from configs import stack_config
from conversations import EPOCH_OFFSET_NS, NoFacts, Script

from otel_qtap.counters import CounterSet
from otel_qtap.pipeline import Pipeline, PipelineOptions

KIB = 1024
RULES = """\
- type: http_capture
  config:
    level: headers
    format: json
    rules:
      - {expr: http.res.status >= 500, level: full}
      - {expr: http.req.path == "/never", level: none}
"""


class Talk:
    """One exchange, piece by piece, through a pipeline."""

    def __init__(self, plugins: str) -> None:
        self._stdout = io.BytesIO()
        self.pipeline = Pipeline(
            stack_config(plugins), NoFacts(), CounterSet(), self._stdout,
            options=PipelineOptions(id_seed=bytes(8)), epoch_offset_ns=EPOCH_OFFSET_NS,
        )  # fmt: skip
        self._script = Script()

    def ask(self, data: bytes) -> int:
        self._script.ask(data)
        return self._play()

    def answer(self, data: bytes) -> int:
        self._script.answer(data)
        return self._play()

    def _play(self) -> int:
        """Return how much is held."""
        for event in self._script.events:
            self.pipeline.accept_event(event)
        self._script.events = []
        return self.pipeline.assembler.budget.used

    def record(self) -> dict:
        self.pipeline.settle(10**12)
        assert self.pipeline.close(5)
        return json.loads(self._stdout.getvalue().splitlines()[0])


def _post(path: str, size: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {size}\r\n\r\n".encode()


def _answer(status: int, size: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {size}\r\n\r\n".encode()


def test_a_body_is_let_go_of_once_the_answer_decides() -> None:
    """An upload is held while the answer may be an error, and no longer."""
    talk = Talk(RULES)
    assert talk.ask(_post("/a", 40 * KIB) + b"q" * 40 * KIB) == 40 * KIB
    assert talk.answer(_answer(200, 40 * KIB) + b"a" * 10 * KIB) == 50 * KIB
    assert talk.answer(b"a" * 10 * KIB) == 0
    assert talk.answer(b"a" * 20 * KIB) == 0

    record = talk.record()
    assert "body" not in record["response"]
    assert record["request"]["body_size"] == record["response"]["body_size"] == 40 * KIB


def test_a_body_that_a_rule_wants_is_whole() -> None:
    """To the last byte."""
    talk = Talk(RULES)
    talk.ask(_post("/a", 40 * KIB) + b"q" * 40 * KIB)
    talk.answer(_answer(503, 40 * KIB))
    held = [talk.answer(b"a" * 10 * KIB) for _ in range(4)]
    record = talk.record()

    assert held == [50 * KIB, 60 * KIB, 70 * KIB, 0]  # then it is over
    assert "body_truncated" not in record["request"] | record["response"]
    assert len(record["response"]["body"]) > 40 * KIB


def test_a_request_that_no_rule_can_want_is_let_go_of_at_once() -> None:
    """Nothing is said of the answer yet."""
    talk = Talk(RULES.replace("http.res.status >= 500", 'http.req.path == "/wanted"'))

    assert talk.ask(_post("/never", 40 * KIB) + b"q" * 40 * KIB) == 0
    assert talk.ask(b"") == 0


@pytest.mark.parametrize("size", [100, 16 * KIB])
def test_short_bodies_are_not_worth_a_question(size) -> None:
    """They are held until the end."""
    talk = Talk(RULES)

    assert talk.ask(_post("/never", 2 * size) + b"q" * size) == size
    talk.pipeline.close(5)
