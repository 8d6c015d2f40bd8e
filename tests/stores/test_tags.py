"""Tags: Qtap's own, and how all of them are written."""

from __future__ import annotations

import pytest

from otel_qtap.stores.tags import normalised_tags, process_tags, tags_by_key

TAGS = [
    pytest.param(["team:edge"], ["team:edge"], id="plain"),
    pytest.param([" Team : Edge Proxies "], ["team:edge-proxies"], id="case-and-spaces"),
    pytest.param(["a:b:c"], ["a:b:c"], id="first-colon-parts"),
    pytest.param(["team", "team:", ":edge", ""], [], id="half-of-one"),
    pytest.param(["-a:b", "a:b-", "a_:b", "a:(b)"], [], id="ends-not-alphanumeric"),
    pytest.param(["a:1", "b:2", "A:1"], ["a:1", "b:2"], id="each-once-in-order"),
]


@pytest.mark.parametrize(("tags", "normalised"), TAGS)
def test_normalised(tags, normalised) -> None:
    """Lower case, no spaces, both halves there."""
    assert list(normalised_tags(tags)) == normalised


def test_of_a_process(make_process, make_container) -> None:
    """Its program, where it runs, what it speaks."""
    assert process_tags(make_process(), make_container(), "Edge 1", "http1") == (
        "bin:haproxy",
        "host:edge-1",
        "protocol:http1",
        "strategy:observe",
    )


def test_of_a_process_in_a_pod(make_process, make_container) -> None:
    """The pod takes the place of the host."""
    container = make_container(labels=(("io.kubernetes.pod.name", "edge-7f"),))
    assert "pod:edge-7f" in process_tags(make_process(), container, "node", "http1")
    assert "host:node" not in process_tags(make_process(), container, "node", "http1")


def test_by_key() -> None:
    """All values of a key, in order."""
    assert tags_by_key(["a:1", "b:x:y", "a:2"]) == {"a": ["1", "2"], "b": ["x:y"]}
