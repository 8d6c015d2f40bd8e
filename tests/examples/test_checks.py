"""Every example does what it says, on a real HAProxy; and the checks can tell if one does not."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import check as examples_check
import pytest
from check import EXAMPLES, load, names, perform
from checks.captured import levels, read_captured, share_of
from checks.stage import Finding
from kernel.conftest import reason_to_skip

from otel_qtap.config import check_file

NAMES = names()


@pytest.mark.kernel
@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_it_says(name) -> None:
    """The whole check: real HAProxy, real traffic, the real agent."""
    said: list[str] = []
    findings = list(perform(name, said.append, is_reduced=True))

    assert findings
    assert all(finding.is_so for finding in findings), "\n".join([*said, *map(str, findings)])


def test_every_example_is_complete() -> None:
    """A folder with a configuration has the one of HAProxy and a check, each with a summary."""
    folders = {path.parent.name for path in EXAMPLES.glob("*/qtap.yaml")}
    assert folders == set(NAMES) == {path.parent.name for path in EXAMPLES.glob("*/haproxy.cfg")}
    places = [load(name).PLACE for name in NAMES]
    assert places == list(range(1, len(NAMES) + 1))
    assert all(load(name).__doc__ for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_of_an_example_is_valid(name, monkeypatch) -> None:
    """Not even a warning, once the environment has what it names."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "given")
    report = check_file(EXAMPLES / name / "qtap.yaml")
    assert report.is_accepted(strict=True), report.render(strict=True)


# The checks themselves -------------------------------------------------------------------


def record(direction: str = "egress-external", *, pid: int = 7, **request) -> str:
    values = {
        "metadata": {"process_id": str(pid), "request_id": "x"},
        "request": {"method": "GET", "url": "http://api-1:8001/a?b=c"} | request,
        "response": {"status": 200},
        "transaction_time": "2026-11-21T11:07:22.840190963Z",
        "duration_ms": 3,
        "direction": direction,
    }
    return json.dumps(values)


CONTENT = [
    pytest.param({}, "summary", id="summary"),
    pytest.param({"headers": {"host": "x"}}, "headers", id="headers"),
    pytest.param({"headers": {}, "body": base64.b64encode(b"hi").decode()}, "full", id="full"),
]


@pytest.mark.parametrize(("request_", "level"), CONTENT)
def test_the_level_is_what_a_line_has(request_, level) -> None:
    """The line itself does not say."""
    (item,) = read_captured([record(**request_)])
    assert (item.level, item.server, item.path, item.side) == (level, "api-1", "/a", "egress")
    assert item.time_s == pytest.approx(1795259242.840190)


def test_other_lines_are_passed_over() -> None:
    """The agent may print events, and lines that are not finished."""
    lines = ["READY\n", '{"finalized": true}\n', record("ingress"), record()]
    captured = list(read_captured(lines))
    assert levels(captured) == "summary: 1 ingress, 1 egress"
    assert levels([]) == "nothing"
    assert share_of(captured) == {"api-1": 1.0}


@pytest.mark.parametrize("is_so", [True, False])
def test_a_broken_promise_is_a_failure(is_so, monkeypatch, capsys) -> None:
    """On the terminal with its reason, and in the exit status."""
    told = [Finding(True, "it starts"), Finding(is_so, "it flies", "0 m")]
    monkeypatch.setattr(examples_check, "perform", lambda _name, _say: iter(told))

    assert examples_check.run([NAMES[0]]) == (0 if is_so else 1)
    out = capsys.readouterr().out
    assert f"{NAMES[0]}: {'OK' if is_so else 'FAILED: it flies'} (" in out
    assert "0 m" in out


def test_an_example_that_cannot_start_is_a_failure(monkeypatch, capsys) -> None:
    """HAProxy is not installed, say."""

    def fail(_name: str, _say: object):
        raise examples_check.WorldError("haproxy is not installed")
        yield

    monkeypatch.setattr(examples_check, "perform", fail)
    assert examples_check.run(NAMES[:2]) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED: haproxy is not installed") == 2
    assert Path(EXAMPLES / "check").exists()
