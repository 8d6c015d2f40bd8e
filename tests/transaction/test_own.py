"""What a process asks of its own accord is known for as long as it is likely to do so again."""

from __future__ import annotations

from otel_qtap.transaction.own import OwnRequests

SECOND_NS = 1_000_000_000
FORM = 17


def test_what_was_asked_while_nobody_waited_is_the_process_own() -> None:
    """Whatever a client asks for meanwhile."""
    own = OwnRequests()
    own.note(FORM, 5 * SECOND_NS, is_alone=True)

    assert own.has(FORM, 6 * SECOND_NS, is_path_asked=False)
    assert own.has(FORM, 6 * SECOND_NS, is_path_asked=True)
    assert not own.has(FORM + 1, 6 * SECOND_NS, is_path_asked=True)


def test_what_no_waiting_client_asked_for_tells_only_of_its_path() -> None:
    """A proxy may ask for other paths than its clients."""
    own = OwnRequests()
    own.note(FORM, 5 * SECOND_NS, is_alone=False)

    assert own.has(FORM, 6 * SECOND_NS, is_path_asked=True)
    assert not own.has(FORM, 6 * SECOND_NS, is_path_asked=False)


def test_it_is_forgotten_after_a_while() -> None:
    own = OwnRequests()
    own.note(FORM, 5 * SECOND_NS, is_alone=True)

    assert not own.has(FORM, 5 * SECOND_NS + own.REMEMBERED_NS + 1, is_path_asked=True)


def test_it_is_bounded() -> None:
    """Those that were met last are known."""
    own = OwnRequests()
    for form in range(own.CAPACITY + 1):
        own.note(form, form, is_alone=False)

    assert not own.has(0, own.CAPACITY, is_path_asked=True)
    assert own.has(own.CAPACITY, own.CAPACITY, is_path_asked=True)
