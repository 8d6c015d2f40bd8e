"""
A HAProxy at work, as the kernel side would tell it: clients, servers, streams and threads.

``Proxy`` is for tests that say step by step what happens. ``random_life`` lets many clients
be served at the same time, in random order, by every kind of answer that HAProxy can give;
each request carries a number, so a wrong link shows.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import count

from conversations import IN_OTHER_TASK, Capture, Script, Timeline, ending, known

from otel_qtap.events import CloseStep, Role, StreamMark
from otel_qtap.transaction.model import Transaction

__all__ = ["Life", "Proxy", "number_of", "parent_of", "random_life", "request"]

ECONNREFUSED, ECONNRESET = 111, 104


def request(number: int, body: bytes = b"") -> bytes:
    """Return a request that says which one it is."""
    method = b"POST" if body else b"GET"
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return b"%b /%d HTTP/1.1\r\nx-number: %d\r\n%b\r\n%b" % (method, number, number, length, body)


def response(status: int, number: int = 0) -> bytes:
    """Return an answer that says to which request."""
    body = b"answer %d" % number
    head = b"HTTP/1.1 %d Some\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    return head + body


def number_of(transaction: Transaction) -> int:
    """Return the number that a request carries; -1 if it was never sent."""
    return int(transaction.request.header("x-number") or -1)


def parent_of(transaction: Transaction, others: list[Transaction]) -> Transaction | None:
    """Return the transaction that a link leads to."""
    if transaction.link is None:
        return None
    (parent,) = (o for o in others if o.request_id == transaction.link.parent_id)
    return parent


class Proxy:
    """One process, its connections, and what is made of its events."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.capture = Capture()
        self._ids = count(1)

    def client(self, **changes: object) -> Script:
        """Accept a connection."""
        return self.timeline.open(Role.SERVER, next(self._ids), **changes)

    def server(self, connecting: StreamMark, **changes: object) -> Script:
        """Open a connection to a backend."""
        changes.setdefault("connect_started_ns", self.timeline.now_ns + 500)
        return self.timeline.open(Role.CLIENT, next(self._ids), connecting=connecting, **changes)

    def refused(self, connecting: StreamMark, **changes: object) -> Script:
        """Try to open a connection to a backend that is down."""
        script = self.server(connecting, established_ns=0, **changes)
        script.step(CloseStep.CONNECT_FAILED, ECONNREFUSED)
        script.destroyed()
        return script

    def forward(
        self, data: bytes, mark: StreamMark, server: Script | None = None, status: int = 200
    ) -> Script:
        """Ask a backend, over a new connection unless there is one, and get its answer."""
        if server is None:
            server = self.server(mark)
            server.ask(data, IN_OTHER_TASK)  # sent once the connection is there, by its own task
        else:
            server.ask(data, mark)
        server.answer(response(status))
        return server

    def play(self) -> list[Transaction]:
        """Return all transactions that what happened so far has made."""
        return self.capture.take(self.timeline.take())

    def counted(self, name: str, **labels: str) -> int:
        """Return a counter of the linker."""
        return self.capture.counters.value(f"otel_qtap.link.{name}", **labels)


# A random life -----------------------------------------------------------------------------


@dataclass
class Life:
    """What happened, and the truth about it."""

    timeline: Timeline = field(default_factory=Timeline)
    attempts: dict[int, list[int]] = field(default_factory=dict)
    """Ports of the connections of each request's attempts, in order."""
    owner: dict[int, int] = field(default_factory=dict)
    """The request that a connection to a backend was opened for, by its port."""
    answered: set[int] = field(default_factory=set)


class _World:
    """What all clients share: memory of streams, connections to backends, threads."""

    def __init__(self, chance: random.Random, serials: bool) -> None:
        self.chance = chance
        self.life = Life()
        self.ids = count(1)
        self.numbers = count(0)
        self.idle: list[Script] = []
        self._free: list[tuple[int, int]] = []
        self._serial = chance.choice([100, 2**32 - 3])
        self._has_serials = serials
        self._places = count(0)

    def begin(self) -> tuple[StreamMark, tuple[int, int]]:
        """A stream begins; returns its mark, and the memory to give back."""
        self._serial = (self._serial + 1) % 2**32
        if self._free:
            place = self._free.pop()
        else:
            number = next(self._places)
            place = (0x7F00 + 0x1000 * number, 0x990000 + 0x100 * number)
        serial = self._serial if self._has_serials else 3
        return known(serial, *place), place

    def end(self, place: tuple[int, int]) -> None:
        self._free.append(place)

    def open(self, role: Role, thread: int, **changes: object) -> Script:
        number = next(self.ids)
        script = self.life.timeline.open(
            role, number, local_port=10_000 + number, **changes
        )  # fmt: skip
        script.thread_id = thread
        return script


def random_life(
    seed: int, *, clients: int = 6, requests: int = 4, threads: int = 2, serials: bool = True
) -> Life:
    """
    Return what a proxy does for so many clients with up to so many requests each.

    Without ``serials`` the numbers of streams are all the same, as when they are read in
    the wrong place.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    world = _World(chance, serials)
    running = [
        _client(world, chance.randrange(threads) + 988, chance.randrange(1, requests + 1))
        for _ in range(clients)
    ]
    while running:
        each = chance.choice(running)
        if next(each, "over") == "over":
            running.remove(each)
    return world.life


_Steps = Generator[str, None, None]


def _client(world: _World, thread: int, requests: int) -> _Steps:
    """
    One client from its first request to its end; others go on at each ``yield``.

    HAProxy makes a stream as soon as it has read a head, and that of a request that waits
    behind another as soon as that is answered: nothing can happen in between.
    """
    chance, life = world.chance, world.life
    client = world.open(Role.SERVER, thread)
    waiting: list[int] = []
    stream = None
    while requests or waiting:
        if not waiting:
            batch = min(requests, chance.choice([1, 1, 2, 3]))
            requests -= batch
            waiting = [next(world.numbers) for _ in range(batch)]
            client.ask(b"".join(map(request, waiting)))
        number = waiting.pop(0)
        mark, place = stream or world.begin()
        yield "begun"
        life.attempts[number] = []
        for is_last in _attempts(chance):
            yield from _attempt(world, client, number, mark, is_last=is_last)
        if chance.random() < 0.15:
            _give_up(chance, client, mark)
            world.end(place)
            return
        yield from _answer(chance, client, number, mark)
        life.answered.add(number)
        stream = world.begin() if waiting else None
        world.end(place)
    client.client_closes()
    client.destroyed()


def _attempts(chance: random.Random) -> list[bool]:
    """Whether each attempt is the one that is answered: none for a local answer."""
    amount = chance.choice([0, 1, 1, 1, 1, 2, 3])
    return [number == amount - 1 for number in range(amount)]


def _answer(chance: random.Random, client: Script, number: int, mark: StreamMark) -> _Steps:
    if chance.random() < 0.2:
        client.answer(b"HTTP/1.1 103 Early Hints\r\n\r\n", mark)
        yield "interim"
    answer = response(200, number)
    cut = chance.choice([0, 9, 30])
    if cut:
        client.answer(answer[:cut], mark)
        yield "answering"
    client.answer(answer[cut:], mark)


def _give_up(chance: random.Random, client: Script, mark: StreamMark) -> None:
    """The client leaves; HAProxy closes in the stream, or while it frees that."""
    client.step(CloseStep.REMOTE_CLOSED)
    client.step(CloseStep.RECEIVED_END)
    client.step(CloseStep.LOCAL_CLOSED_TOO, 0, chance.choice([mark, ending(mark.task)]))
    client.destroyed()


def _attempt(
    world: _World, client: Script, number: int, mark: StreamMark, *, is_last: bool
) -> _Steps:
    """Ask a backend: over a new connection or an idle one; in vain unless it is the last time."""
    chance, life, thread = world.chance, world.life, client.thread_id
    kind = "answers" if is_last else chance.choice(["refuses", "fails", "breaks"])
    body = chance.choice([b"", b"", b"abc", b"GET", b"OPTIONS"])
    server = None
    if world.idle and kind != "refuses" and chance.random() < 0.6:
        server = world.idle.pop(chance.randrange(len(world.idle)))
        server.thread_id = thread
    is_new = server is None
    if server is None:
        server = world.open(Role.CLIENT, thread, connecting=mark,
                            connect_started_ns=life.timeline.now_ns + 500)  # fmt: skip
        life.owner[10_000 + server.connection_id] = number
        yield "connecting"
    life.attempts[number].append(10_000 + server.connection_id)
    if kind == "refuses":
        server.step(CloseStep.CONNECT_FAILED, ECONNREFUSED)
        server.destroyed()
        return
    head = request(number, body)
    cut = len(head) - len(body)
    server.ask(head[:cut], IN_OTHER_TASK if is_new else mark)
    yield "asking"
    if body:
        server.ask(head[cut:], chance.choice([mark, IN_OTHER_TASK]))
        yield "uploading"
    if kind == "breaks":
        server.step(CloseStep.RESET, ECONNRESET)
        server.destroyed()
        return
    server.answer(response(200 if kind == "answers" else 503, number))
    yield "answered"
    if chance.random() < 0.7:
        world.idle.append(server)
    else:
        server.client_closes()
        server.destroyed()
