"""
What proves that a request to a backend was sent for a client's request, or leaves it open.

Each of these looks at one pair; who else is in question is asked of the ``Group``.
"""

from __future__ import annotations

from otel_qtap.transaction.evidence import carries
from otel_qtap.transaction.parties import Party

__all__ = [
    "FIRST_ERROR",
    "is_answered_alike",
    "is_rare",
    "is_telling",
    "is_twin",
    "known_caller_of",
    "twin_of",
]

_TELLING_BYTES = 32
FIRST_ERROR = 400
"""Status from which on an answer says nothing about where it came from."""


def known_caller_of(sent: Party) -> Party | None:
    """
    Return the client's request that has an identity of this one, as no other has.

    Or the one that was in flight for the client whom the PROXY line of ``sent`` names. All
    attempts that a proxy makes for a request have its identity.
    """
    if sent.caller is None and not sent.identities:
        return None
    found = set() if sent.caller is None else {sent.caller}
    for value in sent.identities:
        asked = _known_by(value, sent)
        if asked is not None:
            found.add(asked)
    return found.pop() if len(found) == 1 else None


def twin_of(sent: Party) -> Party | None:
    """Return the client's request that is the same, if neither side has had another like it."""
    asked = _known_by(sent.line, sent)
    if asked is None or not is_twin(sent, asked) or not carries(sent.head, asked.head):
        return None
    return asked


def is_twin(sent: Party, asked: Party) -> bool:
    """Whether there is still no other request like these on either side."""
    history = sent.group.history
    return history.sent.only(sent.line) is sent and history.asked.only(sent.line) is asked


def _known_by(value: int, sent: Party) -> Party | None:
    asked = sent.group.history.asked.only(value)
    if asked is None or asked.group is not sent.group or not asked.was_there_for(sent):
        return None
    return asked if not asked.end_ns or asked.end_ns >= sent.start_ns else None


def is_answered_alike(sent: Party, asked: Party) -> bool:
    """Whether a client can have been answered what this backend had answered."""
    return (
        _is_evidence(sent, asked)
        and asked.key == sent.key
        and asked.status == sent.status
        and asked.may_have_got(sent)
    )


def is_rare(sent: Party, asked: Party) -> bool:
    """Whether both were answered the same, and nobody else ever was."""
    history = sent.group.history
    return (
        _is_evidence(sent, asked)
        and sent.key is not None
        and sent.key[0] >= _TELLING_BYTES
        and history.served.only(sent.key) is asked
        and history.fetched.only(sent.key) is sent
    )


def is_telling(sent: Party, asked: Party) -> bool:
    """Whether equal answers, though others are like them, were passed on nevertheless."""
    return (
        _is_evidence(sent, asked) and sent.status == asked.status and carries(sent.head, asked.head)
    )


def _is_evidence(sent: Party, asked: Party) -> bool:
    """
    Whether equal answers say anything.

    What the process asks of its own accord does not: a client may be answered out of what it
    keeps. Errors do not: proxies make up the same ones by themselves, and throw away what backends
    answer to try again. And what was sent before it was the turn of a pipelined request can
    only be that request where all bytes are passed on as they come (HAProxy's mode tcp).
    """
    if max(sent.status, asked.status) >= FIRST_ERROR:
        return False
    is_path_asked = sent.path == asked.path
    if sent.group.history.own.has(sent.form, sent.start_ns, is_path_asked=is_path_asked):
        return False
    return asked.eligible_ns <= sent.start_ns or asked.head == sent.head
