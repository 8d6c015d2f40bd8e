"""
The promise of the passive linker, under random traffic and random loss: no link is wrong.

Requests and answers may all be alike; proxies retry, throw answers away, answer by themselves,
check backends with what clients ask; clients go away.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from relayed import World, names_of, random_relay

_SEEDS = st.integers(0, 2**32)
_MANY = settings(max_examples=300, deadline=None)


def _assert_true(world: World) -> None:
    transactions = world.relay.finish()
    names = names_of(transactions)
    for transaction in transactions:
        if transaction.link is not None:
            own = names[transaction.request_id]
            assert world.parents[own] == names[transaction.link.parent_id], own


@_MANY
@given(_SEEDS, st.integers(1, 12), st.integers(1, 3))
def test_no_link_is_wrong(seed, clients, threads) -> None:
    """Of a HAProxy."""
    _assert_true(random_relay(seed, clients=clients, threads=threads))


@_MANY
@given(_SEEDS, st.integers(1, 12))
def test_no_link_of_other_programs_is_wrong(seed, clients) -> None:
    """Whose threads say nothing."""
    _assert_true(random_relay(seed, clients=clients, threads=3, executable="/usr/sbin/nginx"))


@_MANY
@given(_SEEDS, st.integers(1, 12), st.integers(1, 3), st.sampled_from([0.005, 0.02, 0.1]))
def test_no_loss_makes_a_wrong_link(seed, clients, threads, loss) -> None:
    """Whatever records did not fit into the ring: openings, bytes or ends."""
    world = random_relay(seed, clients=clients, threads=threads)
    chance = random.Random(seed)  # noqa: S311 - no secret
    timeline = world.relay.timeline
    timeline.events = [event for event in timeline.events if chance.random() >= loss]
    _assert_true(world)
