"""
The links that the real agent finds in real traffic, against the truth; in a reduced form.

``run.py`` plays all scenarios in full. Here each kind is played once with some hundred
requests, by the HAProxy versions of this machine in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from kernel.conftest import reason_to_skip
from linking.capture import Capture, capture, find_haproxy
from linking.evaluate import Result, evaluate, replayed
from linking.fetch_haproxy import fetched
from linking.identify import nonces_of
from linking.scenarios import SCENARIOS, Scenario, reduced
from linking.scene import Linked
from linking.score import Score, score
from linking.truth import AttemptKind
from traffic.haproxy import find_binaries

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-"),
]

DROP = 0.005
SEEDS = (1, 2)
"""Of what is dropped."""
PLAYED = {
    "t1-c8-varied": 300,
    "t4-c256-same": 1000,
    "t4-c256-same-reuse-always-fast": 1000,
    "client-close-varied": 300,
    "queue1-prio": 300,
    "retry-503": 400,
    "retry-drop-reuse-always": 400,
    "retry-dead": 300,
    "mixed-local": 400,
    "cache": 300,
    "health-10ms": 300,
    "rewrite": 300,
    "pipeline8": 400,
    "post-chunked": 200,
    "abort": 300,
    "chain-one-instance": 300,
    "tcp": 300,
    "tcp-dead": 200,
    "chain-tcp-last": 200,
    "processes": 300,
    "reload": 2500,
}
"""Scenarios, with the number of requests that is enough for each here."""

CLAIMS: dict[str, Callable[[Score, Scenario], bool]] = {
    "retry-503": lambda s, _: s.kinds[AttemptKind.DISCARDED].captured > 20,
    "retry-drop-reuse-always": lambda s, _: s.kinds[AttemptKind.UNANSWERED].captured > 20,
    "mixed-local": lambda s, _: 50 < s.answered_by_proxy < s.requests - 50,
    "cache": lambda s, _: 50 < s.answered_by_proxy < s.requests - 50,
    "health-10ms": lambda s, _: (
        s.kinds[AttemptKind.CHECK].captured > 20 and not s.answered_by_proxy
    ),
    "abort": lambda s, _: s.ingress_expected < s.requests - 10,
    "chain-one-instance": lambda s, _: s.neighbours.captured == s.requests,
}
"""What must have happened for a scenario to be about what its name says."""

FIRST_CHECKS = 40
"""
Until the first traffic has verified the marks of a new process, for a second at most, its
checks are not told as such; there may be one every 10 ms.
"""

MODES = ("probe", "passive")
"""Besides the one that the agent takes by itself."""


def played() -> Iterator[object]:
    """Each scenario with a version, in turn, and one of each kind of load with newer ones."""
    versions = list(find_binaries())
    for number, (name, requests) in enumerate(PLAYED.items() if versions else ()):
        version = versions[number % len(versions)]
        yield pytest.param((name, requests, version), id=f"{name}-{version}")
    newer = list(fetched())
    for name in ("t4-c64-same", "pipeline8", "retry-drop"):
        for version in newer:
            yield pytest.param((name, 300, version), id=f"{name}-{version}")
    if not newer:
        reason = "tests/linking/fetch_haproxy.py has not been asked for newer HAProxy versions"
        yield pytest.param(("", 0, ""), id="newer", marks=pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", params=played())
def captured(request, tmp_path_factory) -> Capture:
    """A scenario, played and recorded."""
    name, requests, version = request.param
    directory = tmp_path_factory.mktemp("linking")
    return capture(reduced(SCENARIOS[name], requests), find_haproxy()[version], directory)


@pytest.fixture(scope="module")
def result(captured) -> Result:
    """What the linker made of it."""
    return evaluate(captured)


def test_everything_is_captured_once(captured, result) -> None:
    """Every exchange that client and backend know of is there, and nothing is made of two."""
    found = result.score
    assert captured.truth.problems() == []
    assert not result.lost
    assert (found.ingress, found.egress) == (found.ingress_expected, found.egress_expected)
    assert found.ingress > 0
    assert (found.mispaired, found.duplicates) == (0, 0)
    claim = CLAIMS.get(captured.scenario.name)
    assert claim is None or claim(found, captured.scenario), found


def test_links_are_right_and_all_there(captured, result) -> None:
    """No attempt has a wrong parent, none that has one is without, failed connects included."""
    found = result.score
    assert found.is_precise, found
    assert found.recall >= captured.scenario.least_recall, found
    assert (found.unsure, found.misnumbered, found.invented_checks) == (0, 0, 0)
    assert found.untold_checks <= FIRST_CHECKS
    failed = found.kinds[AttemptKind.CONNECT_FAILED]
    assert failed.captured == captured.failed_connects
    assert found.neighbours.correct == found.neighbours.true_links, found


def test_lost_events_make_no_wrong_links(captured) -> None:
    """
    With one event in 200 lost, links are missing, but none is wrong.

    Nor is any transaction made of two, and what there is of each tells which exchange it was.
    """
    results = [evaluate(captured, drop=DROP, seed=seed) for seed in SEEDS]
    assert all(result.dropped for result in results)
    for result in results:
        found = result.score
        assert found.is_precise, found
        assert (found.mispaired, found.duplicates, found.unsure) == (0, 0, 0), found
    if captured.scenario.least_recall:
        assert sum(result.score.total.correct for result in results) > 0


@pytest.mark.parametrize(
    ("mode", "name"), [*((mode, "t4-c64-same") for mode in MODES), ("probe", "tcp")]
)
def test_every_mode_is_precise(mode, name, tmp_path) -> None:
    """However the linker gets its evidence; only the passive one may leave links out."""
    binary = next(iter(find_haproxy().values()))
    played = capture(reduced(SCENARIOS[name], 500), binary, tmp_path, mode=mode)
    found = evaluate(played).score
    assert found.is_precise, found
    assert mode == "passive" or found.recall >= played.scenario.least_recall, found


def test_the_bodies_alone_tell_the_same_as_ports_and_indexes(tmp_path: Path) -> None:
    """
    The scorer's own truth, from another side: links made of nothing but nonces are all right.

    And every one that is then changed is found to be wrong.
    """
    binary = next(iter(find_haproxy().values()))
    captured = capture(reduced(SCENARIOS["t2-c64-same"], 300), binary, tmp_path)
    transactions = replayed(captured)
    parents = {nonces_of(t)[1]: t.request_id for t in transactions if t.direction.is_ingress}
    linked = [
        Linked(t, None if t.direction.is_ingress else parents[nonces_of(t)[1]])
        for t in transactions
    ]
    right = score(linked, captured.truth, captured.topology).total

    attempts = [n for n, t in enumerate(linked) if t.link is not None]
    for n, other in pairwise(attempts[:10]):
        linked[n] = Linked(linked[n].transaction, linked[other].link.parent_id)
    spoilt = score(linked, captured.truth, captured.topology).total

    assert (right.correct, right.true_links, right.wrong) == (300, 300, 0)
    assert (spoilt.correct, spoilt.wrong) == (291, 9)
