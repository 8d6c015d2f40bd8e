"""``otel-qtap validate``: the verdict, every problem, and an exit status for scripts."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from kept_logging import kept_logging

from otel_qtap import cli


@pytest.fixture(autouse=True)
def _clean(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv("QPOINT_CONFIG", raising=False)
    with kept_logging():
        yield


def validate(capfd, *arguments: str) -> tuple[int, list[str]]:
    """Return exit status and lines; nothing may be on stderr."""
    status = cli.main(["validate", *arguments])
    told = capfd.readouterr()
    assert told.err == ""
    return status, told.out.splitlines()


def test_a_good_file(capfd, write_config) -> None:
    """One line."""
    path = write_config()

    assert validate(capfd, str(path)) == (0, [f"{path}: valid"])


def test_a_wrong_file(capfd, write_config) -> None:
    """Every problem with its line, and how many there are."""
    path = write_config(level="fulll")
    path.write_text(path.read_text() + "  directoin: all\n")
    status, lines = validate(capfd, str(path))

    assert status == 1
    assert lines[-1] == f"{path}: not valid, 2 errors"
    assert lines[0].startswith(f"{path}:8: stacks.s.plugins.0.config.level: 'fulll' is not one of")
    assert "directoin" in lines[1]


def test_a_wrong_rule_is_shown_with_its_place(capfd, write_config) -> None:
    """As an agent would not start with it."""
    path = write_config()
    rules = "config: {rules: [{expr: http.res.status >= , level: full}], "
    path.write_text(path.read_text().replace("config: {", rules))
    status, lines = validate(capfd, str(path))

    assert status == 1
    assert "column 19" in lines[0]
    assert lines[2].strip() == "^"


@pytest.mark.parametrize(("strict", "status", "verdict"), [(0, 0, "valid"), (1, 1, "not valid")])
def test_warnings_count_if_told(capfd, write_config, strict, status, verdict) -> None:
    """They are shown in any case."""
    path = write_config()
    path.write_text(path.read_text().replace("plugins:", "plugins:\n      - {type: llm}", 1))

    found, lines = validate(capfd, str(path), *["--strict"] * strict)
    assert found == status
    assert "(warning)" in lines[0]
    assert lines[-1] == f"{path}: {verdict}, 1 warning"


def test_a_variable_that_is_not_set(capfd, write_config, monkeypatch) -> None:
    """An error as at the start, unless the file is said to be for another host."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    keys = "{type: env, value: NO_SUCH_KEY}"
    store = f"{{type: s3, bucket: b, access_key: {keys}, secret_key: {keys}}}"
    path = write_config()
    path.write_text(path.read_text().replace("[{type: stdout}]", f"[{store}]"))

    status, lines = validate(capfd, str(path))
    assert status == 1
    assert [line.partition(": ")[2] for line in lines] == [
        f"services.object_stores.0.{key}.value: environment variable 'NO_SUCH_KEY' is not set"
        for key in ("access_key", "secret_key")
    ] + ["not valid, 2 errors"]
    status, lines = validate(capfd, "--other-host", str(path))
    assert status == 0
    assert "the agent will not start without it" in lines[0]
    assert cli.main([f"--config={path}", "--status-listen=off"]) == 1
    assert "NO_SUCH_KEY" in capfd.readouterr().err


def test_a_file_from_a_pipe(capfd, write_config, monkeypatch) -> None:
    """``-`` is stdin, and of a file without end only the beginning is read."""
    content = write_config().read_bytes()
    for data, status, line in [
        (content, 0, "standard input: valid"),
        (b"#" * (2**20 + 5), 1, "standard input: is larger than 1048576 bytes"),
    ]:
        stdin = io.BytesIO(data)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
        found, lines = validate(capfd, "-")
        assert (found, lines[0]) == (status, line)
        assert stdin.tell() <= 2**20 + 1


def test_the_file_of_the_variable(capfd, write_config, monkeypatch) -> None:
    """``QPOINT_CONFIG`` names it, as for the agent."""
    path = write_config()
    monkeypatch.setenv("QPOINT_CONFIG", str(path))

    assert validate(capfd) == (0, [f"{path}: valid"])


def test_a_file_that_is_not_there(capfd, tmp_path) -> None:
    """Is not valid."""
    status, lines = validate(capfd, str(tmp_path / "none"))

    assert status == 1
    assert lines[0].endswith("none: no such file")


def test_no_file_is_wrong_usage(capfd) -> None:
    """Exit status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["validate"])

    assert caught.value.code == 2
    assert "the following arguments are required: FILE" in capfd.readouterr().err


def test_the_schema_accepts_what_is_valid(capfd, write_config) -> None:
    """It is what an editor checks with."""
    status, lines = validate(capfd, "--schema")
    schema = json.loads("\n".join(lines))
    good = yaml.safe_load(write_config().read_text())

    assert status == 0
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good | {"tapp": {}}, schema)


def test_no_kernel_is_needed(write_config) -> None:
    """Nor root, nor what only an agent imports."""
    script = (
        "import sys; from otel_qtap.validate_command import main; status = main(sys.argv[1:]); "
        "assert 'otel_qtap.receiver' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", script, str(write_config())]

    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
