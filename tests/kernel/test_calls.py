"""Every way in which a program can move bytes over a socket is followed."""

from __future__ import annotations

import pytest
from kernel import peers
from kernel.peers import Plan, body_of

PORT = 7001


def run(world, plan: Plan) -> None:
    done = world.run(peers.command(plan))
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("style", [style for style in peers.STYLES if style != "sendfile"])
def test_bytes_are_captured_once_and_in_order(world, python_agent, token, style) -> None:
    """Bodies come out whole on both sides, whichever calls sent and received them."""
    plan = Plan(port=PORT, path=token, style=style, body_size=60 if style == "bytewise" else 3000)
    run(world, plan)

    seen = python_agent.wait_for(2 * plan.exchanges, token)

    assert sum(one.is_ingress for one in seen) == plan.exchanges
    for one in seen:
        assert (one.ending, one.status, one.is_truncated) == ("complete", 200, False)
        assert one.request_body == one.response_body == body_of(one.number, plan.body_size)


def test_sendfile_is_followed_by_length(world, python_agent, token) -> None:
    """The sender's memory never had the body: its size is right, its absence told and counted."""
    before = python_agent.lost("unreadable")
    plan = Plan(port=PORT, path=token, style="sendfile", body_size=200_000)
    run(world, plan)

    seen = python_agent.wait_for(2 * plan.exchanges, token)

    for one in seen:
        assert (one.ending, one.status, one.is_truncated) == ("complete", 200, True)
        assert (one.request_size, one.response_size) == (200_000, 200_000)
        whole = body_of(one.number, plan.body_size)
        sent, received = one.response_body, one.request_body
        if not one.is_ingress:
            sent, received = received, sent
        assert (sent, received) == (b"", whole)
    python_agent.wait_until(
        lambda: python_agent.lost("unreadable") > before, "the count of what was not read"
    )
