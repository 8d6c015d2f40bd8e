"""
The promise of a conversation, under random conversations and random loss.

Each request and each response carries the number of its exchange, so a wrong pair shows.
Two kinds of client: one that waits for its answer before it asks again, and one that does
not, and was seen not to before the first loss (one whose pipelining was never seen cannot
be told from one that waits, see ``conversation.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from conversations import Capture, Script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_qtap.events import DataEvent, Role
from otel_qtap.transaction.model import Ending, Transaction

_ROLES = st.sampled_from([Role.SERVER, Role.CLIENT])
_MANY = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Message:
    """The bytes of a request or a response, and how they are moved."""

    data: bytes
    calls: tuple[int, ...]
    """Shares of the message, in percent, at which a new call begins."""
    pieces: tuple[int, ...]
    """The same for events; a call begins an event anyway."""


@dataclass(frozen=True)
class Talk:
    """A request, what came back for it, and whether it came before the request was over."""

    number: int
    request: Message
    response: Message
    interim: bytes = b""


_SHARES = st.lists(st.integers(1, 99), max_size=2).map(lambda cuts: tuple(sorted(set(cuts))))


def _body(number: int, size: int) -> bytes:
    return (b"%d body of this message\r\n" % number * (size // 20 + 1))[:size]


def _framed(number: int, framing: str, size: int) -> tuple[bytes, bytes]:
    """Return the framing header and the body on the wire."""
    body = _body(number, size)
    if framing == "chunked":
        half = len(body) // 2
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[:half], body[half:]) if c)
        return b"transfer-encoding: chunked\r\n", chunks + b"0\r\n\r\n"
    if framing == "none":
        return b"", b""
    return b"content-length: %d\r\n" % len(body), body


@st.composite
def _talk(draw: st.DrawFn, number: int) -> Talk:
    method = draw(st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"UNLOCK"]))
    framing = draw(st.sampled_from(["sized", "chunked"])) if method == b"POST" else "none"
    header, body = _framed(number, framing, draw(st.sampled_from([0, 7, 90])))
    request = b"%b /%d/end HTTP/1.1\r\nx-number: %d\r\n%b\r\n%b" % (
        method, number, number, header, body,
    )  # fmt: skip
    status = draw(st.sampled_from([b"200 OK", b"200 OK", b"404 Not Found", b"204 No Content"]))
    framing = "none" if status.startswith(b"204") else draw(st.sampled_from(["sized", "chunked"]))
    # Sizes that recur, so that a body taken for one of another size may end where a
    # message begins.
    header, body = _framed(number, framing, draw(st.sampled_from([0, 20, 80, 160])))
    head = b"HTTP/1.1 %b\r\nx-number: %06d\r\n%b" % (status, number, header)
    if draw(st.booleans()):
        head += b"x: %b\r\n" % (b"y" * ((80 - len(head) - 7) % 80))  # heads of 80 bytes
    response = head + b"\r\n" + (b"" if method == b"HEAD" else body)
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n" if draw(st.integers(0, 5)) == 0 else b""
    return Talk(
        number,
        Message(request, draw(_SHARES), draw(_SHARES)),
        Message(response, draw(_SHARES), draw(_SHARES)),
        interim,
    )


@st.composite
def _talks(draw: st.DrawFn) -> list[Talk]:
    return [draw(_talk(number)) for number in range(draw(st.integers(1, 7)))]


def _parts(data: bytes, shares: tuple[int, ...]) -> list[bytes]:
    places = sorted({0, len(data), *(len(data) * share // 100 for share in shares)})
    return [data[a:b] for a, b in pairwise(places)]


class Recorder:
    """A script in the making that decides for each event whether it is seen."""

    def __init__(self, role: Role, lost: frozenset[int]) -> None:
        self.script = Script(role)
        self.damaged: set[int] = set()
        """Numbers of the exchanges that lost bytes."""
        self._lost = lost
        self._count = 0

    def send(self, *, asks: bool, message: Message, number: int) -> None:
        """Move a message in its calls and events."""
        for call in _parts(message.data, message.calls):
            self.call(asks=asks, pieces=_parts(call, message.pieces), number=number)

    def call(self, *, asks: bool, pieces: list[bytes], number: int) -> None:
        """Move one call, each event of it seen or lost."""
        marked = []
        for piece in pieces:
            is_lost = self._count in self._lost
            if is_lost:
                self.damaged.add(number)
            marked.append((piece, not is_lost))
            self._count += 1
        self.script.move(asks=asks, pieces=marked)


def _waiting(talks: list[Talk], role: Role, lost: frozenset[int]) -> Recorder:
    """A client that waits for its answer before it asks again."""
    recorder = Recorder(role, lost)
    for talk in talks:
        recorder.send(asks=True, message=talk.request, number=talk.number)
        if talk.interim:
            recorder.call(asks=False, pieces=[talk.interim], number=talk.number)
        recorder.send(asks=False, message=talk.response, number=talk.number)
    return recorder


def _impatient(talks: list[Talk], role: Role, lost: frozenset[int], order: list[int]) -> Recorder:
    """A client that sends up to three requests ahead; ``order`` says when the server answers."""
    recorder = Recorder(role, lost)
    asked = answered = 0
    moves = iter(order)
    while answered < len(talks):
        ahead = next(moves, 3) or 1
        while asked < len(talks) and asked - answered < ahead:
            recorder.send(asks=True, message=talks[asked].request, number=asked)
            asked += 1
        if talks[answered].interim:
            recorder.call(asks=False, pieces=[talks[answered].interim], number=answered)
        recorder.send(asks=False, message=talks[answered].response, number=answered)
        answered += 1
    return recorder


def _capture(recorder: Recorder) -> list[Transaction]:
    capture = Capture()
    capture.play(recorder.script)
    capture.tracker.close(recorder.script.now_ns)
    return capture.transactions


def _number(transaction: Transaction) -> int:
    return int(transaction.request.target.split("/")[1])


def _assert_true(transactions: list[Transaction]) -> None:
    """No pair is wrong, no time is out of order, no exchange is told twice."""
    for transaction in transactions:
        number = _number(transaction)
        told = transaction.request.header("x-number")
        assert told is None or int(told) == number
        if transaction.response is not None:
            answer = transaction.response.header("x-number")
            assert answer is not None
            assert int(answer) == number, f"request {number} was given response {int(answer)}"
        _assert_in_order(transaction)
    complete = [_number(t) for t in transactions if t.ending is Ending.COMPLETE]
    assert len(complete) == len(set(complete))


def _assert_in_order(transaction: Transaction) -> None:
    t = transaction.timings
    asked = [t.request_start_ns, t.request_head_ns, t.request_end_ns]
    answered = [t.request_start_ns, t.response_start_ns, t.response_head_ns, t.response_end_ns]
    for times in (asked, answered):
        happened = [time for time in times if time]
        assert happened == sorted(happened)
        assert max(happened) <= t.end_ns


_LOST = st.frozensets(st.integers(0, 40), max_size=12)


@_MANY
@given(_talks(), _ROLES, _LOST)
def test_a_client_that_waits_is_never_given_a_wrong_answer(talks, role, lost) -> None:
    """Whatever is lost; and an exchange is complete if it and the one before lost nothing."""
    recorder = _waiting(talks, role, lost)

    transactions = _capture(recorder)

    _assert_true(transactions)
    complete = {_number(t) for t in transactions if t.ending is Ending.COMPLETE}
    for talk in talks:
        if talk.number not in recorder.damaged and talk.number - 1 not in recorder.damaged:
            assert talk.number in complete


@_MANY
@given(_talks(), _ROLES, _LOST, st.lists(st.integers(1, 3), max_size=8), st.data())
def test_a_client_that_was_seen_pipelining_is_never_given_a_wrong_answer(
    talks, role, lost, order, data
) -> None:
    """Whatever is lost after its first two requests."""
    first = data.draw(_talk(0)), data.draw(_talk(1))
    talks = [*first, *(Talk(t.number + 2, t.request, t.response, t.interim) for t in talks)]
    talks = [_renumbered(talk) for talk in talks]
    seen = sum(
        len(_parts(call, talk.request.pieces))
        for talk in first
        for call in _parts(talk.request.data, talk.request.calls)
    )
    recorder = _impatient(talks, role, frozenset(seen + n for n in lost), [2, *order])

    _assert_true(_capture(recorder))


@_MANY
@given(_talks(), _ROLES, st.lists(st.integers(1, 3), max_size=8))
def test_without_loss_every_request_gives_one_complete_transaction(talks, role, order) -> None:
    """However far ahead of the answers the client asks, and however the bytes are cut."""
    for recorder in (
        _waiting(talks, role, frozenset()),
        _impatient(talks, role, frozenset(), order),
    ):
        transactions = _capture(recorder)

        _assert_true(transactions)
        assert [_number(t) for t in transactions] == [talk.number for talk in talks]
        assert {t.ending for t in transactions} == {Ending.COMPLETE}
        for transaction, talk in zip(transactions, talks, strict=True):
            assert transaction.response is not None
            assert len(transaction.response.interim_statuses) == bool(talk.interim)
            assert not transaction.request.body.is_truncated
            assert not transaction.response.body.is_truncated


@_MANY
@given(_talks(), _ROLES)
def test_how_calls_are_cut_into_events_makes_no_difference(talks, role) -> None:
    """A call handed over in several pieces is the same as one handed over whole."""
    in_pieces = _waiting(talks, role, frozenset())
    whole = _waiting(
        [
            Talk(
                t.number,
                Message(t.request.data, t.request.calls, ()),
                Message(t.response.data, t.response.calls, ()),
                t.interim,
            )
            for t in talks
        ],
        role,
        frozenset(),
    )

    assert _capture(in_pieces) == _capture(whole)


@_MANY
@given(st.data(), _ROLES)
def test_no_events_make_a_conversation_raise(data, role) -> None:
    """Bytes of any kind in any order, lost in any place."""
    script = Script(role, joined_late=data.draw(st.booleans()))
    words = st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            b"HTTP/1.1 101 x\r\n\r\n", b"HTTP/1.1 100 x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"\r\n", b"\0", b"abc", b"PROXY TCP4 1", b"0\r\n\r\n",
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"5\r\nhello\r\n",
        ]
    )  # fmt: skip
    for asks, word, seen in data.draw(
        st.lists(st.tuples(st.booleans(), words, st.integers(0, 4)), max_size=25)
    ):
        script.move(asks=asks, pieces=[(word, bool(seen))])
    for close in data.draw(st.lists(st.sampled_from(["client", "server", "end"]), max_size=3)):
        {
            "client": script.client_closes,
            "server": script.server_closes,
            "end": script.destroyed,
        }[close]()
    capture = Capture()

    capture.play(script)
    capture.tracker.close(script.now_ns)

    for transaction in capture.transactions:
        _assert_in_order(transaction)
    assert capture.assembler.budget.used == 0
    heads = sum(e.data.count(b" / HTTP/1.1\r\n") for e in script.events if type(e) is DataEvent)
    heads += sum(e.data.count(b"CONNECT ") for e in script.events if type(e) is DataEvent)
    assert len(capture.transactions) <= heads


def _renumbered(talk: Talk) -> Talk:
    """Put the number of a talk where its messages carry another."""
    old = talk.request.data.split(b"/")[1]
    new = b"%d" % talk.number

    def change(message: Message) -> Message:
        data = message.data.replace(b" /%b/end" % old, b" /%b/end" % new)
        data = data.replace(b"x-number: %b\r\n" % old, b"x-number: %b\r\n" % new)
        data = data.replace(b"x-number: %06d\r\n" % int(old), b"x-number: %06d\r\n" % talk.number)
        return Message(data, message.calls, message.pieces)

    return Talk(talk.number, change(talk.request), change(talk.response), talk.interim)
