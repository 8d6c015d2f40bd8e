"""
Recordings of real HAProxy runs give the same output as ever, byte for byte.

No root and no kernel: ``make.py`` beside this file made the recordings and the outputs.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECORDINGS = sorted(HERE.glob("haproxy-*.qtaprec"))

each_recording = pytest.mark.parametrize(
    "recording", [pytest.param(path, id=path.stem) for path in RECORDINGS]
)


def replay(recording: Path, output_format: str) -> bytes:
    command = [sys.executable, "-m", "otel_qtap.cli", "replay", str(recording)]
    config = f"--config={HERE / output_format}.yaml"
    return subprocess.run([*command, config], capture_output=True, check=True).stdout


def test_both_versions_are_there() -> None:
    """A deleted golden file does not go unnoticed."""
    assert [path.stem for path in RECORDINGS] == ["haproxy-2.6", "haproxy-2.8"]


@each_recording
@pytest.mark.parametrize(("output_format", "suffix"), [("text", ".txt"), ("json", ".jsonl")])
def test_replay_prints_the_golden_output(recording, output_format, suffix) -> None:
    """Ids, times and bodies included."""
    assert replay(recording, output_format) == recording.with_suffix(suffix).read_bytes()


@each_recording
def test_golden_output_is_what_was_played(recording) -> None:
    """Read by somebody who knows the scene: nobody froze a mistake."""
    records = [
        json.loads(line) for line in recording.with_suffix(".jsonl").read_text().split("\n")[:-1]
    ]
    sides = Counter()
    endings = {}
    for record in records:
        path = record["request"]["path"]
        is_ingress = record["direction"] == "ingress"
        sides[path, is_ingress] += 1
        query = record["request"]["url"].partition("?")[2]
        endings[path, query, is_ingress] = (record["ending"], record["response"]["status"])

    for path, requests in {"/keep-alive": 4, "/pipelining": 6, "/chunked": 2, "/retry": 4}.items():
        refused = requests if path == "/retry" else 0  # by the server that is tried first
        assert (sides[path, True], sides[path, False]) == (requests, requests + refused)
        played = {v for (p, _, _), v in endings.items() if p == path}
        assert played == {("complete", 200)}
    refused = [record for record in records if record["ending"] == "connect_failed"]
    assert [record["request"]["path"] for record in refused] == ["/retry"] * 4
    assert sides["/health", False] >= 1
    assert sides["/health", True] == 0
    assert endings["/leaves", "in=body", True][0] == "client_closed"
    assert endings["/leaves", "in=wait&delay_ms=200", True][0] == "reset"
    assert endings["/breaks", "close=mid&size=4000", False] == ("server_closed", 200)
    assert endings["/breaks", "reset=1", False] == ("reset", 499)
    assert endings["/breaks", "reset=1", True] == ("complete", 502)
    for record in records:
        if record["request"]["path"] == "/chunked":
            assert record["request"]["body"] == record["response"]["body"]


@each_recording
def test_recording_tells_nothing_of_the_machine_it_was_made_on(recording) -> None:
    """No kernel name, no program but HAProxy, no path but its own; small enough to keep."""
    content = gzip.decompress(recording.read_bytes())
    assert json.loads(content.partition(b"\n")[0])["kernel"] == ""
    assert set(re.findall(rb"/(?:home|root|work|usr|opt|tmp|var|etc|srv)\b[\w/.-]*", content)) == {
        b"/tmp/haproxy-recording/haproxy"
    }
    assert recording.stat().st_size < 200_000
