"""
Make the golden recordings anew: ``.venv/bin/python tests/recordings/make.py`` as root.

For each HAProxy of this machine one scene is played in namespaces of its own, recorded by
``otel-qtap record``, stripped of everything but HAProxy's own events, and replayed: the
recording and both outputs are the golden files that ``test_golden.py`` compares. Make them
again when the wire format changes or an output is meant to change; read the difference.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "examples")]

from kernel.agent import RunningAgent, only, qtap_file  # noqa: E402 - the path comes first
from traffic import backend  # noqa: E402
from traffic.backend import Listener  # noqa: E402
from traffic.client import ClientPlan, run_client  # noqa: E402
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries  # noqa: E402
from traffic.world import World, wait_until  # noqa: E402

from otel_qtap.events import (  # noqa: E402
    CloseEvent,
    DataEvent,
    OpenEvent,
    SnapshotEvent,
)
from otel_qtap.receiver.wire import decode  # noqa: E402

HOSTS = {"backend-a": "127.0.1.1", "backend-b": "127.0.1.2", "backend-dead": "127.0.1.3"}
LISTENERS = (Listener("a", "127.0.1.1", 8001), Listener("b", "127.0.1.2", 8002))
FRAME = struct.Struct("<cI")
_OF_A_CONNECTION = (OpenEvent, DataEvent, CloseEvent, SnapshotEvent)

SETTINGS = HAProxySettings(
    servers=(
        Server("a", "backend-a", 8001, "check inter 400ms"),
        Server("b", "backend-b", 8002),
    ),
    defaults_lines=("retries 2", "option redispatch 1", "option httpchk GET /health"),
    frontend_lines=("use_backend flaky if { path_beg /retry }",),
    extra_sections="""\
backend flaky
    balance roundrobin
    server dead backend-dead:8003
    server b backend-b:8002
""",
)

PLANS = {
    "keep-alive": ClientPlan(requests=4, target="/keep-alive?n={n}"),
    "pipelining": ClientPlan(requests=6, pipeline=3, target="/pipelining?n={n}"),
    "chunked": ClientPlan(
        requests=2, body_size=700, chunk_size=256, target="/chunked?n={n}&echo=1&chunked=300"
    ),
    "retry": ClientPlan(requests=4, new_connection=True, target="/retry?n={n}"),
    "client leaves in a body": ClientPlan(
        body_size=2000, abort="request_body", target="/leaves?in=body"
    ),
    "client resets": ClientPlan(
        abort="request_end", reset=True, target="/leaves?in=wait&delay_ms=200"
    ),
    "backend closes": ClientPlan(target="/breaks?close=mid&size=4000"),
    "backend resets": ClientPlan(target="/breaks?reset=1"),
}


def play(version: str, original: Path, directory: Path) -> Path:
    """Play the scene before a recording agent; return its recording."""
    # A path that says nothing about this machine: it is in the recording.
    stage = Path("/tmp/haproxy-recording")  # noqa: S108 - emptied first, only root writes there
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    binary = stage / "haproxy"
    shutil.copy(original, binary)
    if (libraries := original.with_name("lib")).is_dir():
        (stage / "lib").symlink_to(libraries)
    raw = directory / f"{version}.qtaprec"
    config = qtap_file(tap=only(str(binary)))
    with World(directory / "world", HOSTS) as world:
        program = world.start("backend", backend.command(LISTENERS))
        world.wait_for_ports([8001, 8002], [program])
        with (
            RunningAgent(directory, config, command=("record", str(raw))),
            HAProxy(world, stage, SETTINGS, binary=binary) as haproxy,
        ):
            for plan in PLANS.values():
                run_client(world, plan)
            # The reset of the client is complete when its answer has come and was dropped.
            wait_until(lambda: int(haproxy.info()["CurrConns"]) <= 1, 10, "the end of the clients")
    shutil.rmtree(stage)
    return raw


def strip(raw: Path, to: Path) -> None:
    """Copy what is about HAProxy, and nothing that names this machine or its other programs."""
    content = gzip.decompress(raw.read_bytes())
    line, _, content = content.partition(b"\n")
    header = json.loads(line) | {"kernel": ""}
    frames = []
    at = 0
    while at < len(content):
        kind, size = FRAME.unpack_from(content, at)
        frames.append((kind, content[at + FRAME.size : at + FRAME.size + size]))
        at += FRAME.size + size
    processes = {
        process["pid"]
        for kind, payload in frames
        if kind == b"P"
        and (process := json.loads(payload)["process"])["executable"].endswith(
            "haproxy-recording/haproxy"
        )
    }
    connections = {
        event.connection_id
        for kind, payload in frames
        if kind == b"R"
        and isinstance(event := decode(payload), OpenEvent)
        and event.process_id in processes
    }
    kept = b"".join(
        FRAME.pack(kind, len(payload)) + payload
        for kind, payload in frames
        if is_ours(kind, payload, processes, connections)
    )
    with to.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as stream:
        stream.write(json.dumps(header).encode() + b"\n" + kept)


def is_ours(kind: bytes, payload: bytes, processes: set[int], connections: set[int]) -> bool:
    """Whether a frame is about a connection of HAProxy, or about its process."""
    if kind == b"R":
        event = decode(payload)
        return isinstance(event, _OF_A_CONNECTION) and event.connection_id in connections
    if kind == b"E":
        return True
    content = json.loads(payload)
    fact = content.get("process", content)
    return fact.get("pid", fact.get("process_id", 0)) in processes


def replay(recording: Path, output_format: str) -> bytes:
    """Return what ``otel-qtap replay`` prints."""
    config = HERE / f"{output_format}.yaml"
    command = [sys.executable, "-m", "otel_qtap.cli", "replay", str(recording)]
    done = subprocess.run(
        [*command, f"--config={config}"], capture_output=True, check=True, timeout=60
    )
    return done.stdout


def main() -> None:
    """Write all golden files."""
    for output_format in ("text", "json"):
        text = qtap_file(output=output_format)
        (HERE / f"{output_format}.yaml").write_text(text)
    for full_version, binary in find_binaries().items():
        version = full_version.rpartition(".")[0]
        target = HERE / f"haproxy-{version}.qtaprec"
        with tempfile.TemporaryDirectory() as directory:
            strip(play(version, binary, Path(directory)), target)
        target.with_suffix(".txt").write_bytes(replay(target, "text"))
        target.with_suffix(".jsonl").write_bytes(replay(target, "json"))
        print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
