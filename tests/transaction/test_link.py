"""What a link says, and what it must not say."""

from __future__ import annotations

import pytest

from otel_qtap.protocol.events import Headers, RequestHead, ResponseHead
from otel_qtap.transaction.link import HeaderChanges, LinkMethod, StreamKey, trace_context
from otel_qtap.transaction.place import Place

_CHANGES = [
    pytest.param((("Host", "a"),), (("host", "a"),), HeaderChanges(), id="nothing-but-the-case"),
    pytest.param(
        (("a", "1"),), (("a", "1"), ("X-Forwarded-For", "10.0.0.1")),
        HeaderChanges(added=("x-forwarded-for",)), id="added",
    ),
    pytest.param(
        (("a", "1"), ("Connection", "close")), (("a", "1"),),
        HeaderChanges(removed=("connection",)), id="removed",
    ),
    pytest.param(
        (("Host", "example.com"),), (("host", "backend"),), HeaderChanges(changed=("host",)),
        id="changed",
    ),
    pytest.param(
        (("a", "1"), ("a", "2")), (("a", "1"),), HeaderChanges(changed=("a",)), id="one-of-two",
    ),
    pytest.param(
        (("a", "1"), ("A", "2")), (("a", "2"), ("a", "1")), HeaderChanges(changed=("a",)),
        id="their-order",
    ),
    pytest.param(
        (("a", "1"), ("b", "2")), (("b", "2"), ("a", "1")), HeaderChanges(), id="order-of-names",
    ),
    pytest.param((), (), HeaderChanges(), id="none"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "changes"), _CHANGES)
def test_what_a_proxy_did_to_the_fields(before: Headers, after: Headers, changes) -> None:
    """By name in lower case; a name that comes twice counts with all its values."""
    assert HeaderChanges.between(before, after) == changes


def test_changes_say_no_values() -> None:
    """A proxy adds credentials for its backends."""
    changes = HeaderChanges.between((), (("authorization", "Bearer secret"),))

    assert changes.added == ("authorization",)
    assert "secret" not in repr(changes)


_SECRETS: Headers = (("authorization", "Bearer secret"), ("traceparent", "00-secret-00"))


def test_a_link_shows_no_field_of_anybody() -> None:
    """Neither of the parent nor of the root; ids and the method are enough for a log."""
    parent, root = (
        Place(name, RequestHead("GET", "/", "1.1", _SECRETS, 40, 0)) for name in ("p", "r")
    )
    parent.response = ResponseHead(200, "OK", "1.1", _SECRETS, 40, 0)
    parent.settle(root)
    link = parent.link(LinkMethod.STREAM)

    assert "secret" not in repr(link)
    assert "'p'" in repr(link)
    assert "'r'" in repr(link)


@pytest.mark.parametrize(
    "name", ["traceparent", "Tracestate", "b3", "X-B3-TraceId", "x-b3-spanid", "x-b3-sampled"]
)
def test_the_fields_that_name_a_trace_are_known(name) -> None:
    """And nothing else is kept of a request because of its trace."""
    headers = (("host", "h"), (name, "1"), ("authorization", "secret"))

    assert trace_context(headers) == ((name, "1"),)
    assert trace_context(headers[::2]) == ()


def test_a_key_is_of_one_process() -> None:
    """Two of them may use the same address and the same number."""
    assert StreamKey(1, 0x7F00, 5) != StreamKey(2, 0x7F00, 5)
