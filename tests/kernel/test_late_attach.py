"""Connections that are older than the agent, and messages that it joins in the middle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kernel.agent import qtap_file, wait_until
from traffic.world import World

KEPT = Path(__file__).with_name("kept.py")
CONNECTIONS = 4


class Kept:
    """A client that has begun to talk and goes on when told to."""

    def __init__(self, world: World, directory: Path, mode: str, path: str, port: int) -> None:
        self._go = directory / "go"
        command = [sys.executable, str(KEPT), mode, str(port), path, str(self._go)]
        self.program = world.start(f"kept-{mode}-{port}", [*command, str(CONNECTIONS)])
        wait_until(lambda: "begun" in self._output(), 10, "the first half of the talk")

    def go_on(self) -> None:
        """Let it say the rest, and wait until it has."""
        self._go.touch()
        wait_until(lambda: "done" in self._output(), 20, "the second half of the talk")

    def _output(self) -> str:
        self.program.require_running() if "done" not in self.program.output() else None
        return self.program.output()


def test_kept_connections_are_captured_from_their_next_message(
    world, any_haproxy, start_agent, only_haproxy, token, tmp_path, rung
) -> None:
    """Role, name of the server and executable are right, as if the agent had been there."""
    kept = Kept(world, tmp_path, "keep", token, 8086)
    with start_agent(qtap_file(tap=only_haproxy), rung=rung) as agent:
        kept.go_on()
        seen = agent.wait_for(2 * CONNECTIONS, token, process_id=any_haproxy.worker_pid)

    executable = str(Path(f"/proc/{any_haproxy.worker_pid}/exe").readlink())
    for one in seen:
        assert (one.ending, one.status, one.executable) == ("complete", 200, executable)
        assert one.request_body == one.response_body == b"second-%d" % one.number
        host = "localhost:8085" if one.is_ingress else one.url.split("/")[2]
        assert one.url == f"http://{host}{token}?echo=1&n={one.number}"
        if not one.is_ingress:
            assert host in ("backend-a:8001", "backend-b:8002")
    for is_ingress in (True, False):
        side = [one.number for one in seen if one.is_ingress == is_ingress]
        assert sorted(side) == list(range(CONNECTIONS))


@pytest.mark.parametrize("mode", ["upload", "download"])
def test_joining_in_the_middle_of_a_message(
    world, any_haproxy, start_agent, only_haproxy, token, tmp_path, mode, rung
) -> None:
    """The half that was seen is never shown as a whole; what follows on the connection is whole."""
    kept = Kept(world, tmp_path, mode, token, 8086)
    worker = any_haproxy.worker_pid
    with start_agent(qtap_file(tap=only_haproxy), rung=rung) as agent:
        kept.go_on()
        agent.wait_for(2 * CONNECTIONS, f"{token}-next", process_id=worker)
    seen = agent.seen(token, process_id=worker)

    for one in seen:
        if f"{token}-next" in one.url:
            assert (one.ending, one.status) == ("complete", 200)
            assert one.request_body == one.response_body == b"second-%d" % one.number
        else:
            assert one.ending != "complete" or one.is_truncated
