"""``otel-qtap rule``: what a rule means, and what it matches of things captured before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kept_logging import kept_logging
from recorded import STATUSES, write_recording

from otel_qtap import cli

FIELDS = """\
{"http.req.path": "/api", "http.res.status": 503}
{"http": {"req": {"path": "/api"}, "res": {"status": 200}}}
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv("QPOINT_CONFIG", raising=False)
    with kept_logging():
        yield


@pytest.fixture
def recording(tmp_path) -> Path:
    return write_recording(tmp_path / "some.qtaprec")


@pytest.fixture
def macros(write_config) -> Path:
    more = "rulekit: {macros: [{name: is_bad, expr: http.res.status >= 500}]}\n"
    path: Path = write_config(more=more)
    return path


def rule(capfd, *arguments: object) -> tuple[int, str]:
    """Return exit status and output; nothing may be on stderr."""
    status = cli.main(["rule", *map(str, arguments)])
    told = capfd.readouterr()
    assert told.err == ""
    return status, told.out


def refused(capfd, *arguments: object) -> str:
    """Return what is told of a use that fails; the exit status must be 1."""
    assert cli.main(["rule", *map(str, arguments)]) == 1
    return str(capfd.readouterr().err)


def test_a_rule_is_explained(capfd) -> None:
    """As it was understood, with what it reads and waits for."""
    status, text = rule(capfd, 'http.res.status>=500&&http.req.path!="/health"')

    assert status == 0
    assert text.splitlines() == [
        'rule     http.res.status >= 500 && http.req.path != "/health"',
        "reads    http.req.path, http.res.status",
        "decided  once the head of the response is there",
    ]


def test_a_recording_is_tried(capfd, recording, macros) -> None:
    """Both sides of each request, with the reason; macros are those of the file."""
    status, text = rule(capfd, "is_bad()", f"--config={macros}", f"--against={recording}")

    assert status == 0
    assert text.splitlines()[-1] == f"2 of {2 * len(STATUSES)} transactions match"
    assert "match     egress-internal GET http://backend-api-1:8001/1?token=REDACTED 503" in text
    assert "http.res.status >= 500    http.res.status = 503" in text
    assert "hidden" not in text


def test_only_what_matches_is_shown_if_told(capfd, recording) -> None:
    """One line for each."""
    _, text = rule(capfd, "http.res.status == 404", f"--against={recording}", "--quiet")
    lines = text.splitlines()[4:]

    assert [line.split()[0] for line in lines] == ["match", "match", "2"]


def test_json_lines_are_tried(capfd, tmp_path) -> None:
    """Objects of fields, nested or not."""
    path = tmp_path / "fields.jsonl"
    path.write_text(FIELDS)
    _, text = rule(capfd, "http.res.status == 503", f"--against={path}")

    assert text.splitlines()[-1] == "1 of 2 transactions match"


def test_what_an_agent_printed_is_tried(capfd, tmp_path, recording, write_config) -> None:
    """The same transactions match as in the recording it was made of; files are told apart."""
    config = write_config(level="headers", format="json")
    assert cli.main(["replay", str(recording), f"--config={config}", "--log-level=error"]) == 0
    stored = tmp_path / "stored.jsonl"
    stored.write_text(capfd.readouterr().out)
    expression = 'direction == "ingress" && http.res.status >= 400'
    _, text = rule(capfd, expression, f"--against={stored}", f"--against={recording}", "--quiet")

    first, second = text.split(f"{stored}:\n")[1].split(f"\n{recording}:\n")
    assert first == second
    assert second.endswith("2 of 6 transactions match\n")


def test_the_way_to_read_rules_is_that_of_the_file(capfd, tmp_path, write_config) -> None:
    """``rulekit.compat: qtap`` changes what matches."""
    path = tmp_path / "fields.jsonl"
    path.write_text(FIELDS)
    config = write_config(more="rulekit: {compat: qtap}\n")
    counts = [
        rule(capfd, "!(http.res.status == 503)", f"--against={path}", *more)[1].splitlines()[-1]
        for more in ([], [f"--config={config}"])
    ]

    assert counts == ["1 of 2 transactions match", "1 of 2 transactions match"]
    negated, kept = (
        "match     /api 503" in rule(
            capfd, "!(http.res.status == 503)", f"--against={path}", "--quiet", *more
        )[1]
        for more in ([], [f"--config={config}"])
    )  # fmt: skip
    assert (negated, kept) == (False, True)


def test_oddities_are_told(capfd) -> None:
    """A name that no transaction has is no error: rules can be tried before."""
    status, text = rule(capfd, "http.res.statsu == 200")

    assert status == 0
    assert "warning  column 1: no transaction has a field http.res.statsu" in text


def test_a_wrong_rule_is_shown_with_its_place(capfd) -> None:
    """And ends with 1."""
    message, line, mark = refused(capfd, "http.res.status >=").splitlines()

    assert message.startswith("column ")
    assert line.strip() == "http.res.status >="
    assert mark.strip() == "^"


def test_a_wrong_file_is_told(capfd, write_config) -> None:
    """Every problem of it."""
    path = write_config(level="fulll")

    assert "did you mean 'full'?" in refused(capfd, "true", f"--config={path}")


def test_a_macro_must_be_in_the_file(capfd) -> None:
    """The message names it."""
    assert "is_bad" in refused(capfd, "is_bad()")


WRONG_FILES = [
    (None, "cannot read {path}: No such file or directory"),
    (b"text", "cannot read the recording {path}: it is not a gzip file"),
    (b'{"http.res.status": 200}\n{"http.res.status": "x"}\n', "{path}: line 2: "),
    (b"{not json", "{path}: line 1: not JSON"),
]


@pytest.mark.parametrize(("content", "message"), WRONG_FILES)
def test_what_cannot_be_tried_is_one_message(capfd, tmp_path, content, message) -> None:
    """With the file and the place."""
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    told = refused(capfd, "true", f"--against={path}")

    assert len(told.splitlines()) == 1
    assert message.format(path=path) in told


def test_a_reader_that_leaves_is_no_error(recording) -> None:
    """``otel-qtap rule … | head -1`` ends quietly."""
    command = [sys.executable, "-m", "otel_qtap.cli", "rule", "true", f"--against={recording}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
