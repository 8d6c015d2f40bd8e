"""``tap.direction``, ``tap.ignore_loopback`` and ``tap.filters`` on real connections."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

import pytest
from kernel import peers
from kernel.agent import PYTHON, only, qtap_file
from kernel.peers import Plan

INTERNAL, EXTERNAL = "10.77.0.1", "198.51.100.7"  # RFC 1918, RFC 5737
ADDRESSES = {"loopback": "127.0.0.1", "internal": INTERNAL, "external": EXTERNAL}

# What each setting shows of three exchanges in one process, to itself: one for each address.
EXPECTED = {
    "direction: all": {"ingress": set(ADDRESSES), "egress": set(ADDRESSES)},
    "direction: ingress": {"ingress": set(ADDRESSES), "egress": set()},
    "direction: egress": {"ingress": set(), "egress": set(ADDRESSES)},
    "direction: egress-internal": {"ingress": set(), "egress": {"internal"}},
    "direction: egress-external": {"ingress": set(), "egress": {"loopback", "external"}},
    "ignore_loopback: true": {
        "ingress": {"internal", "external"},
        "egress": {"internal", "external"},
    },
}


@pytest.fixture(scope="module")
def networked(world):
    """The world, with an internal and a public address on its own loopback device."""
    for address in (INTERNAL, EXTERNAL):
        done = world.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
        assert done.returncode == 0, done.stderr
    return world


@pytest.mark.parametrize("setting", list(EXPECTED))
def test_direction_and_loopback(networked, start_agent, token, setting) -> None:
    """Only the wanted connections are shown; those to oneself come from the same address."""
    tap = f"{setting}\n{only(PYTHON)}"
    shown = {"ingress": set(), "egress": set()}
    with start_agent(qtap_file(tap=tap)) as agent:
        for place, address in ADDRESSES.items():
            plan = Plan(port=7200, host=address, path=f"{token}-{place}", exchanges=1)
            assert networked.run(peers.command(plan)).returncode == 0
        expected = EXPECTED[setting]
        amount = sum(map(len, expected.values()))
        agent.wait_until(lambda: len(agent.seen(token)) >= amount, "what is wanted")
        agent.stop()  # what was not wanted would be there by now
    for one in agent.seen(token):
        place = one.url.partition("?")[0].rpartition("-")[2]
        shown["ingress" if one.is_ingress else "egress"].add(place)
        if not one.is_ingress:
            internal = place == "internal"
            assert one.direction == ("egress-internal" if internal else "egress-external")
    assert shown == expected


STRATEGIES = {
    "exact": "{path}",
    "prefix": "{folder}/left-o",
    "suffix": "/left-out",
    "contains": "left-o",
    "regex": "left.out$",
}


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("is_running", [True, False], ids=["runs-already", "starts-later"])
def test_filters_leave_out_programs(
    world, start_agent, token, tmp_path, strategy, is_running
) -> None:
    """By the path of the executable, whether the program runs before the agent or starts later."""
    copies = {name: tmp_path / name for name in ("left-out", "left-in")}
    for copy in copies.values():
        shutil.copy(Path(sys.executable).resolve(), copy)
    pattern = STRATEGIES[strategy].format(path=copies["left-out"], folder=tmp_path)
    tested = f"{{exe: '{pattern}', strategy: {strategy}}}"
    these = f"{{exe: '{tmp_path}/left', strategy: prefix, only: [dns]}}"
    others = "{exe: /, strategy: prefix}"  # of the machine
    tap = f"filters: {{custom: [{tested}, {these}, {others}]}}"
    agent = start_agent(qtap_file(tap=tap))
    flag = tmp_path / "go"
    with contextlib.ExitStack() as stack:
        if not is_running:
            stack.enter_context(agent)
        programs = []
        for port, (name, copy) in enumerate(copies.items(), 7300):
            plan = Plan(port=port, path=f"{token}-{name}", exchanges=2, body_size=9)
            _, *arguments = peers.command(plan)
            wait = 'while [ ! -e "$0" ]; do sleep 0.02; done; exec "$@"'
            # A program that waits is one that runs already: it asks when the flag is there.
            programs.append(
                world.start(name, [str(copy), *arguments, str(flag)])
                if is_running
                else world.start(name, ["sh", "-c", wait, str(flag), str(copy), *arguments])
            )
        if is_running:
            stack.enter_context(agent)
        flag.touch()
        agent.wait_for(4, f"{token}-left-in")
        assert [program.process.wait(20) for program in programs] == [0, 0]
        agent.stop()
    names = {one.url.partition(token)[2].partition("?")[0] for one in agent.seen(token)}
    assert names == {"-left-in"}
