"""What is known about the place of an exchange, and who has to wait until it is."""

from __future__ import annotations

from otel_qtap.protocol.events import RequestHead, ResponseHead
from otel_qtap.transaction.link import LinkMethod
from otel_qtap.transaction.place import Place


def place(name: str) -> Place:
    """Return the place of a request that carries its name."""
    return Place(name, RequestHead("GET", f"/{name}", "1.1", (("traceparent", name),), 40, 0))


def test_a_place_of_its_own_keeps_nobody_waiting() -> None:
    """Most requests come from somewhere that is not captured."""
    told: list[str] = []

    place("a").when_settled(lambda: told.append("now"))

    assert told == ["now"]


def test_who_waits_goes_on_when_the_parent_is_known() -> None:
    """In the order in which they came; once."""
    one, told = place("a"), []
    one.await_parent()
    one.when_settled(lambda: told.append("first"))
    one.when_settled(lambda: told.append("second"))
    assert told == []

    one.settle(place("parent"))
    one.settle()

    assert told == ["first", "second"]


def test_it_goes_on_too_when_there_is_no_parent() -> None:
    """Its neighbour sent it on nobody's behalf, or was not captured."""
    one, told = place("a"), []
    one.await_parent()
    one.when_settled(lambda: told.append("on"))

    one.settle()

    assert told == ["on"]
    assert one.link(LinkMethod.STREAM).root_id == "a"


def test_a_chain_settles_from_its_root() -> None:
    """Each link needs to know the root; so the last of a chain waits for the first."""
    first, second, third = place("a"), place("b"), place("c")
    order: list[str] = []
    for parent, child in ((second, third), (first, second)):
        child.await_parent()
        parent.when_settled(lambda p=parent, c=child: c.settle(p))
    # Both parents seemed settled by then; now the same with one that is not.
    assert third.is_settled
    assert second.is_settled

    first, second, third = place("a"), place("b"), place("c")
    for each in (first, second, third):
        each.await_parent()
        each.when_settled(lambda e=each: order.append(e.request_id))
    second.when_settled(lambda: third.settle(second))
    first.when_settled(lambda: second.settle(first))
    assert order == []

    first.settle()

    assert order == ["a", "b", "c"]
    links = [each.link(LinkMethod.STREAM) for each in (first, second, third)]
    assert [link.parent_id for link in links] == ["a", "b", "c"]
    assert [link.root_id for link in links] == ["a", "a", "a"]


def test_a_link_leads_to_the_place_it_was_made_of() -> None:
    """With the way it was found."""
    root, parent = place("root"), place("parent")
    parent.response = ResponseHead(200, "OK", "1.1", (), 40, 0)
    parent.settle(root)

    link = parent.link(LinkMethod.CONNECTION)

    assert (link.method, link.parent_id, link.root_id) == (
        LinkMethod.CONNECTION, "parent", "root",
    )  # fmt: skip
