"""
The scorer itself: links that are right are counted as right, and planted errors are found.

A scorer that misses a planted error is worthless, and one that invents one is a nuisance,
so both are tested: on scenes where everything is known, one thing is spoilt at a time.
"""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linking.identify import Original, Topology, key_of, nonces_of, originals
from linking.scenarios import SCENARIOS, reduced, select
from linking.scene import FRONT, SERVER, TOPOLOGY, Scene
from linking.score import Score, score
from linking.truth import AttemptKind, Truth, nonce_of

from otel_qtap.connection.model import Peer
from otel_qtap.transaction.link import ProxyHop
from otel_qtap.transaction.model import Body, Transaction


def play(plan) -> Scene:
    """A scene with a request for each (client port, attempts, with body) of ``plan``."""
    scene = Scene()
    for number, (port, attempts, with_body) in enumerate(plan):
        scene.request(port, attempts=attempts, with_body=with_body or attempts > 1,
                      server_port=30001 + number % 3)  # fmt: skip
    return scene


def scored(scene: Scene, *, is_whole: bool) -> Score:
    """The score of a scene; unless ``is_whole`` as of a replay that lacks events."""
    if is_whole:
        return score(scene.captured, scene.truth(), TOPOLOGY)
    everything = [linked.transaction for linked in scene.captured]
    for linked in list(scene.captured):
        scene.alter(linked.request_id, index=0)
    return scored_beside(scene, everything)


def scored_beside(scene: Scene, everything: list[Transaction]) -> Score:
    """The score of a scene, where ``everything`` is what the replay of all events gives."""
    known = originals([linked.transaction for linked in scene.captured], everything)

    def original(linked) -> Original:
        return known.get(key_of(linked)) or Original(None, nonces_of(linked))

    return score(scene.captured, scene.truth(), TOPOLOGY, original=original)


plans = st.lists(
    st.tuples(st.integers(20001, 20004), st.integers(0, 3), st.booleans()), min_size=1, max_size=30
)


@pytest.fixture
def scene() -> Scene:
    """Six requests over two connections; the third is answered by HAProxy, the last retried."""
    return play([(20001, 1, False), (20002, 1, False), (20001, 0, False), (20002, 1, True),
                 (20001, 1, False), (20002, 3, True)])  # fmt: skip


@given(plans, st.booleans())
def test_right_links_are_right(plan, is_whole) -> None:
    """Whatever was asked, and however often it was tried again."""
    scene = play(plan)
    found = scored(scene, is_whole=is_whole)

    attempts = sum(attempts for _, attempts, _ in plan)
    total = found.total
    assert scene.truth().problems() == []
    assert (total.true_links, total.correct, total.wrong) == (attempts, attempts, 0)
    assert (total.missed, total.false_positives, found.unsure, found.missing) == (0, 0, 0, 0)
    assert (found.precision, found.recall, found.is_precise) == (1.0, 1.0, True)
    assert (found.misnumbered, found.invented_checks, found.untold_checks) == (0, 0, 0)
    assert found.answered_by_proxy == sum(attempts == 0 for _, attempts, _ in plan)
    assert found.unidentified == found.mispaired == found.duplicates == 0


@given(plans, st.randoms(use_true_random=False), st.booleans())
def test_every_planted_error_is_found(plan, random, is_whole) -> None:
    """However many answers are changed, each is counted once, as what it is."""
    scene = play(plan)
    owners = {t.request_id: t.link.parent_id for t in scene.captured if t.link is not None}
    expected = {"correct": 0, "wrong": 0, "missed": 0, "false_positives": 0}
    for attempt in scene.attempts:
        right = owners[f"egress-{attempt.number}"]
        answered = [r for r in scene.requests if f"ingress-{r.number}" != right]
        choice = random.choice(["right", "none", "other", "invented"])
        if choice == "other" and answered:
            other = random.choice(answered)
            scene.relink(attempt.number, f"ingress-{other.number}")
            expected["wrong" if other.response_nonce else "false_positives"] += 1
        elif choice == "invented":
            scene.relink(attempt.number, "nobody")
            expected["wrong"] += 1
        elif choice == "none":
            scene.relink(attempt.number, None)
            expected["missed"] += 1
        else:
            expected["correct"] += 1

    found = scored(scene, is_whole=is_whole)

    total = found.total
    assert {name: getattr(total, name) for name in expected} == expected
    assert total.true_links == len(scene.attempts)
    given_links = len(scene.attempts) - expected["missed"]
    assert found.precision == (expected["correct"] / given_links if given_links else 1.0)
    assert found.is_precise == (not expected["wrong"] and not expected["false_positives"])
    assert found.unsure == 0


def test_attempts_are_told_apart_by_what_they_came_to(scene) -> None:
    """Only the last of three attempts answered the client; the others were thrown away."""
    found = score(scene.captured, scene.truth(), TOPOLOGY)

    assert {kind: tally.correct for kind, tally in found.kinds.items()} == {
        AttemptKind.ANSWERED: 5,
        AttemptKind.DISCARDED: 2,
    }
    assert found.methods == {"stream": 7}


def test_a_link_between_attempts_of_one_request_is_no_parent(scene) -> None:
    """A parent is a SERVER transaction: an attempt cannot be one, even the right request's."""
    scene.relink(6, "egress-5")
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.total.wrong, found.total.correct) == (1, 6)


@pytest.mark.parametrize(("number", "count"), [(4, 1), (6, 1), (6, 3), (0, 1)])
def test_attempts_are_counted_in_their_order(scene, number, count) -> None:
    """The first is 0, whatever became of it; a request is counted wrong once."""
    parent = scene.attempt_of(number).link.parent_id
    scene.relink(number, parent, resend_count=count)
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.misnumbered, found.total.correct) == (1, 7)


def test_a_request_has_as_many_attempts_as_it_says(scene) -> None:
    """It may be over before the last of them is, so it counts them by itself."""
    scene.alter("ingress-1", hop=ProxyHop(attempts=1, overhead_ns=0))
    scene.alter("ingress-3", hop=ProxyHop(attempts=0, overhead_ns=0))
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.miscounted, found.misnumbered) == (1, 0)


def test_health_checks_are_to_be_told_as_such(scene) -> None:
    """And nothing else is."""
    scene.check()
    scene.relink(7, None, is_health_check=False)
    scene.relink(3, "ingress-4", is_health_check=True)
    found = score(scene.captured, scene.truth(has_checks=True), TOPOLOGY)
    assert (found.invented_checks, found.untold_checks, found.is_precise) == (1, 1, True)


def test_a_health_check_has_no_parent(scene) -> None:
    """A link of one is a false positive, even to a request that was under way."""
    scene.check()
    scene.check()
    found = score(scene.captured, scene.truth(has_checks=True), TOPOLOGY)
    assert found.kinds[AttemptKind.CHECK].captured == 2
    assert found.is_precise

    scene.relink(8, "ingress-5")
    found = score(scene.captured, scene.truth(has_checks=True), TOPOLOGY)
    assert (found.kinds[AttemptKind.CHECK].false_positives, found.is_precise) == (1, False)


def test_what_belongs_to_nobody_is_no_health_check_unless_there_are_any(scene) -> None:
    """Where no checks are made, an attempt that nothing names can only be counted."""
    scene.check()
    scene.relink(7, "ingress-5")
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.kinds[AttemptKind.UNKNOWN].captured, found.unsure, found.is_precise) == (
        1,
        1,
        True,
    )


def test_a_parent_that_was_not_captured_cannot_be_found(scene) -> None:
    """That counts neither for nor against; but to name another instead is wrong."""
    scene.lose("ingress-0")
    scene.relink(0, None)
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.total.true_links, found.total.missed, found.recall) == (6, 0, 1.0)
    assert (found.ingress, found.ingress_expected, found.missing) == (5, 6, 1)

    scene.relink(0, "ingress-1")
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.total.wrong, found.recall) == (1, 1.0)


def test_an_attempt_that_was_not_captured_is_missing(scene) -> None:
    """Completeness counts what no link can tell."""
    scene.lose("egress-1")
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert (found.egress, found.egress_expected, found.missing) == (6, 7, 1)
    assert (found.total.true_links, found.recall) == (6, 1.0)


@pytest.mark.parametrize("has_nonces", [True, False])
def test_after_a_loss_transactions_are_known_by_the_replay_of_all_events(scene, has_nonces) -> None:
    """Their numbers are shifted then, and bodies may be among what was lost."""
    everything = [linked.transaction for linked in scene.captured]
    scene.lose("ingress-0")
    scene.lose("egress-0")
    for linked in list(scene.captured):
        changes = {"index": max(0, linked.index - 1)}
        if not has_nonces:
            changes["request"] = replace(linked.request, body=Body())
            changes["response"] = None
        scene.alter(linked.request_id, **changes)

    found = scored_beside(scene, everything)

    assert (found.total.correct, found.total.true_links) == (6, 6)
    assert found.unidentified == found.mispaired == found.duplicates == found.unsure == 0


def test_a_server_may_answer_before_the_call_that_asks_it_returns(scene) -> None:
    """By its time such a request is the next one; what it is, its event says."""
    asked, after = scene.attempts[0], scene.attempts[2]
    assert asked.port == after.port
    begun_ns = asked.answered_ns + 1
    scene.alter("egress-0", timings=replace(scene.captured[0].timings, request_start_ns=begun_ns))
    everything = [linked.transaction for linked in scene.captured]
    scene.alter("egress-0", response=None)

    found = scored_beside(scene, everything)

    assert (found.total.correct, found.total.wrong, found.duplicates) == (7, 0, 0)


def test_pipelined_requests_of_one_event_are_told_apart_by_their_order(scene) -> None:
    """They begin at the same moment; the numbers that they get are not those they have."""
    for number in (1, 3):
        timings = next(t for t in scene.captured if t.request_id == "ingress-1").timings
        scene.alter(f"ingress-{number}", timings=timings)
    everything = [linked.transaction for linked in scene.captured]
    for number in (1, 3):
        linked = next(t for t in scene.captured if t.request_id == f"ingress-{number}")
        scene.alter(f"ingress-{number}", index=linked.index + 5, response=None)

    found = scored_beside(scene, everything)

    assert (found.total.correct, found.total.true_links, found.unidentified) == (7, 7, 0)


def test_what_nothing_names_is_not_judged(scene) -> None:
    """Neither its event nor a nonce: no verdict on links to it or from it."""
    everything = [linked.transaction for linked in scene.captured]
    for request_id in ("ingress-1", "egress-3"):
        old = next(t for t in scene.captured if t.request_id == request_id)
        later = replace(old.timings, request_start_ns=old.timings.request_start_ns + 1)
        scene.alter(request_id, response=None, timings=later)

    found = scored_beside(scene, everything)

    assert (found.unidentified, found.unsure) == (2, 2)
    assert (found.total.correct, found.total.wrong, found.total.true_links) == (5, 0, 5)


def test_a_recording_that_lacks_events_itself_is_judged_by_nonces_alone(scene) -> None:
    """What has none stays without a name: here what HAProxy answered, and nothing else."""
    found = score(
        scene.captured, scene.truth(), TOPOLOGY, original=lambda t: Original(None, nonces_of(t))
    )
    assert (found.total.correct, found.total.true_links, found.unidentified) == (7, 7, 1)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_transaction_of_two_exchanges_is_noticed(scene, is_whole) -> None:
    """The answer of one exchange behind the request of another is a fault of the capture."""
    everything = [linked.transaction for linked in scene.captured]
    scene.alter("egress-1", response=scene.attempt_of(2).response)
    found = (
        score(scene.captured, scene.truth(), TOPOLOGY)
        if is_whole
        else scored_beside(scene, everything)
    )
    assert (found.mispaired, found.unidentified) == (1, 1)


def test_an_exchange_that_was_captured_twice_is_noticed(scene) -> None:
    """Two transactions of one exchange are one too many."""
    scene.captured.append(scene.attempt_of(2))
    assert score(scene.captured, scene.truth(), TOPOLOGY).duplicates == 1


def test_a_port_that_is_used_again_is_another_connection(scene) -> None:
    """The time decides whose the request is."""
    later_ns = scene.requests[-1].done_ns + 2 * 10**9
    before = len(scene.requests)
    scene._now_ns = later_ns
    scene._counts.clear()
    scene.request(20001, server_port=30001)
    scene.requests[before] = replace(scene.requests[before], connection=77, opened_ns=later_ns)
    scene.attempts[-1] = replace(scene.attempts[-1], connection=78, opened_ns=later_ns)

    found = score(scene.captured, scene.truth(), TOPOLOGY)

    assert (found.total.correct, found.total.true_links, found.unidentified) == (8, 8, 0)


def test_a_failed_connect_is_known_by_the_port_it_went_to(scene) -> None:
    """That is the client's port, so the time tells which of its requests it was for."""
    attempt = scene.attempt_of(2)
    scene.captured.append(type(attempt)(
        replace(attempt.transaction, request_id="failed", response=None,
                local=Peer("127.0.0.1", 40000), remote=Peer("127.0.9.1", 20002)),
        "ingress-3",
    ))  # fmt: skip
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert found.kinds[AttemptKind.CONNECT_FAILED].correct == 1

    scene.captured[-1] = type(attempt)(scene.captured[-1].transaction, "ingress-1")
    found = score(scene.captured, scene.truth(), TOPOLOGY)
    assert found.kinds[AttemptKind.CONNECT_FAILED].wrong == 1


HOP = 8086
CHAIN = Topology(
    entries=frozenset({FRONT}), server_ports=frozenset({SERVER}), fronts={HOP: FRONT, SERVER: HOP}
)


@pytest.fixture
def chain() -> Scene:
    """Two requests by way of two proxies, of which the second is on port 8086."""
    scene = play([(20001, 1, True), (20002, 1, True)])
    for number in (0, 1):
        ingress = next(t for t in scene.captured if t.request_id == f"ingress-{number}")
        egress = scene.attempt_of(number)
        ends = Peer("127.0.0.1", 35000 + number), Peer("127.0.0.1", HOP)
        first = replace(egress.transaction, request_id=f"first-{number}", local=ends[0],
                        remote=ends[1])  # fmt: skip
        second = replace(ingress.transaction, request_id=f"second-{number}", local=ends[1],
                         remote=ends[0])  # fmt: skip
        scene.captured.append(type(egress)(first, f"ingress-{number}"))
        scene.captured.append(type(egress)(second, f"first-{number}"))
        scene.relink(number, f"second-{number}")
    return scene


def test_a_chain_has_links_at_each_proxy_and_between_them(chain) -> None:
    """Each attempt belongs to the request at its own proxy, each hop to the one before."""
    found = score(chain.captured, chain.truth(), CHAIN)

    assert (found.total.correct, found.total.true_links, found.is_precise) == (4, 4, True)
    assert (found.neighbours.correct, found.neighbours.true_links) == (2, 2)
    assert (found.ingress, found.ingress_expected, found.egress, found.egress_expected) == (
        4, 4, 4, 4,
    )  # fmt: skip


def test_the_right_request_at_the_wrong_proxy_is_wrong(chain) -> None:
    """The second proxy's attempt is no child of the first one's request."""
    chain.relink(0, "ingress-0")
    found = score(chain.captured, chain.truth(), CHAIN)
    assert (found.total.wrong, found.total.correct) == (1, 3)


def test_links_between_proxies_are_judged_too(chain) -> None:
    """Swapped, missing, or where there is no proxy before."""
    by_id = {t.request_id: n for n, t in enumerate(chain.captured)}

    def relink(request_id: str, parent_id: str | None) -> None:
        place = by_id[request_id]
        chain.captured[place] = type(chain.captured[place])(
            chain.captured[place].transaction, parent_id
        )

    relink("second-0", "first-1")
    relink("second-1", None)
    relink("ingress-0", "first-0")
    found = score(chain.captured, chain.truth(), CHAIN).neighbours
    assert (found.wrong, found.missed, found.false_positives, found.correct) == (1, 1, 1, 0)


@pytest.mark.parametrize("is_same_connection", [True, False])
def test_a_hop_that_was_not_identified_is_judged_by_its_connection(
    chain, is_same_connection
) -> None:
    """On the same connection nobody can tell; on another one it cannot be the parent."""
    first = next(t for t in chain.captured if t.request_id == "first-0")
    changes = {} if is_same_connection else {"local": Peer("127.0.0.1", 35099)}
    chain.alter(
        "first-0",
        request=replace(first.request, body=Body()),
        response=replace(first.response, body=Body()),
        **changes,
    )
    found = score(chain.captured, chain.truth(), CHAIN)
    assert found.neighbours.wrong == (not is_same_connection)
    assert found.unsure == 1 + is_same_connection  # its own link, too


# Notes --------------------------------------------------------------------------------


def test_notes_are_read_as_the_programs_write_them(tmp_path) -> None:
    """Tabs between fields, a hyphen for nothing, and a compressed body looked into."""
    body = gzip.compress(b"Nr:00000000000000ff" + b"x" * 500)
    client, backend = tmp_path / "client", tmp_path / "backend"
    client.write_text(
        "20001\t3\t0\t8085\t10\t20\t90\t00000000000000aa\t00000000000000bb\t200\tcomplete\t0\n"
        f"20001\t3\t1\t8085\t10\t95\t99\t-\tgz:{body.hex()}\t200\tcomplete\t0\n"
        "20002\t4\t0\t8085\t10\t20\t50\t-\t-\t0\taborted\t0\n"
    )
    backend.write_text(
        "9001\t30001\t1\t0\t15\t40\t60\t00000000000000aa\t00000000000000bb\t200\tanswered\n"
        "9001\t30001\t1\t1\t15\t96\t97\t-\t00000000000000ff\t200\tanswered\n"
        "9001\t30001\t1\t2\t15\t98\t98\t-\t-\t0\tdropped\n"
    )
    truth = Truth.read(client, backend)

    first, second, third = truth.requests
    assert (first.request_nonce, first.response_nonce) == ("00000000000000aa", "00000000000000bb")
    assert (second.response_nonce, second.index) == ("00000000000000ff", 1)
    assert (third.outcome, third.response_nonce, third.front_port) == ("aborted", "", 8085)
    assert [truth.kind_of(attempt) for attempt in truth.attempts] == [
        AttemptKind.ANSWERED, AttemptKind.ANSWERED, AttemptKind.UNKNOWN,
    ]  # fmt: skip
    assert truth.problems() == []


def test_an_answer_out_of_the_cache_is_not_the_backends(scene) -> None:
    """It repeats a nonce, yet the attempt belongs to the request that asked for it."""
    original = scene.requests[0]
    request = scene.request(20002, attempts=0)
    scene.requests[-1] = replace(
        request, response_nonce=original.response_nonce, is_from_cache=True
    )
    scene.alter(f"ingress-{request.number}", response=scene.attempt_of(0).response)
    truth = scene.truth()

    assert truth.problems() == []
    found = score(scene.captured, truth, TOPOLOGY)
    assert (found.answered_by_proxy, found.total.correct, found.mispaired) == (2, 7, 0)


def cross(scene: Scene) -> None:
    """Have two clients get each other's answer."""
    first, second = scene.requests[3], scene.requests[5]
    scene.requests[3] = replace(first, response_nonce=second.response_nonce)
    scene.requests[5] = replace(second, response_nonce=first.response_nonce)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(
            lambda s: s.requests.__setitem__(
                1, replace(s.requests[1], response_nonce=s.requests[0].response_nonce)
            ),
            "2 times among received answers",
            id="received-twice",
        ),
        pytest.param(
            lambda s: s.attempts.__setitem__(
                1, replace(s.attempts[1], response_nonce=s.attempts[0].response_nonce)
            ),
            "2 times among answers",
            id="given-twice",
        ),
        pytest.param(lambda s: s.attempts.pop(0), "never given", id="never-given"),
        pytest.param(
            lambda s: s.attempts.__setitem__(0, replace(s.attempts[0], request_nonce="f" * 16)),
            "never sent",
            id="never-sent",
        ),
        pytest.param(cross, "went to another request", id="crossed"),
    ],
)
def test_notes_that_contradict_each_other_are_told(scene, spoil, problem) -> None:
    """A harness that is wrong about the truth must not judge a linker."""
    spoil(scene)
    assert any(problem in text for text in scene.truth().problems()), scene.truth().problems()


@pytest.mark.parametrize(
    ("body", "side", "nonce"),
    [
        pytest.param(b"Nq:0123456789abcdef and more", "q", "0123456789abcdef", id="request"),
        pytest.param(b"Nq:0123456789abcdef", "r", "", id="of-the-other-side"),
        pytest.param(b"Nr:0123", "r", "", id="cut"),
        pytest.param(gzip.compress(b"Nr:0123456789abcdef")[:12], "r", "", id="cut-gzip"),
        pytest.param(b"\x1f\x8b but no gzip at all", "r", "", id="no-gzip"),
        pytest.param(b"", "r", "", id="empty"),
    ],
)
def test_a_nonce_stands_at_the_start_of_a_body(body, side, nonce) -> None:
    """Nothing else is taken for one."""
    assert nonce_of(body, side) == nonce


# Scenarios ----------------------------------------------------------------------------


def test_scenarios_cover_what_they_are_to_cover() -> None:
    """Every combination of threads, connections and requests, and the hardest case in full."""
    names = {f"t{t}-c{c}-{r}" for t in (1, 2, 4) for c in (1, 8, 64, 256)
             for r in ("same", "varied")}  # fmt: skip
    assert names <= SCENARIOS.keys()
    hardest = SCENARIOS["t4-c256-same-reuse-always"]
    (proxy,) = hardest.proxies
    assert (hardest.requests, hardest.client["connections"]) == (100_000, 256)
    assert (proxy.nbthread, proxy.http_reuse) == (4, "always")
    assert {mode.http_reuse for s in SCENARIOS.values() for mode in s.proxies} == {
        "never", "safe", "aggressive", "always",
    }  # fmt: skip


def test_attempts_that_nobody_answers_can_be_told_apart() -> None:
    """Where answers are refused, dropped or cut off, requests carry a nonce of their own."""
    for scenario in SCENARIOS.values():
        is_lossy = {"refuse", "drop"} & scenario.backend.keys() or "abort" in scenario.client
        assert scenario.identifies_attempts or not is_lossy, scenario.name


def test_scenarios_are_selected_by_name_and_kind() -> None:
    """And a name that nobody knows is an error, not nothing."""
    assert [s.name for s in select(["xreqid", "t1-c1-same", "xreqid"])] == ["xreqid", "t1-c1-same"]
    assert {s.kind for s in select(["reload"])} == {"reload"}
    assert len(select(["all"])) == len(SCENARIOS)
    with pytest.raises(KeyError):
        select(["t3-c1-same"])
    assert reduced(SCENARIOS["xreqid"], 100).requests == 100
