"""
Programs that serve clients and ask backends, as the kernel side tells it: without streams.

``Relay`` is for tests that say step by step what happens. ``random_relay`` lets many clients
be served at once, in random order; which request to a backend was sent for which client is
known by the connections' ports, so requests and answers may all be alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from conversations import EPOCH_OFFSET_NS, Capture, NoFacts, Script, Timeline

from otel_qtap.connection.model import Process
from otel_qtap.connection.tracker import ConnectionTracker
from otel_qtap.events import CloseStep, Role
from otel_qtap.transaction.assembler import Assembler
from otel_qtap.transaction.identity import IdGenerator
from otel_qtap.transaction.model import Transaction

__all__ = ["Name", "Relay", "World", "ask", "name", "names_of", "random_relay", "reply"]

Name = tuple[int, int, int]
"""
Of an exchange: the port of its connection, which no other has, the time of the call that
asked, and its place among those of that call. An index would be another after a loss.
"""

CLIENT_PORTS, SERVER_PORTS = 20_000, 10_000
ERROR_PAGE = b"<html>No server is available to handle this request.</html>"


def ask(target: str = "/", *fields: str, body: bytes = b"") -> bytes:
    """Return a request."""
    lines = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", "Host: front", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply(body: bytes = b"fine", status: int = 200, *fields: str) -> bytes:
    """Return a response."""
    lines = [f"HTTP/1.1 {status} Some", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def names_of(transactions: Iterable[Transaction]) -> dict[str, Name]:
    """Return what tells each transaction from all others, by request id."""
    names: dict[str, Name] = {}
    met: Counter[tuple[int, int]] = Counter()
    for each in sorted(transactions, key=lambda t: t.index):
        end = each.remote if each.direction.is_ingress else each.local
        call = end.port, each.timings.request_start_ns
        names[each.request_id] = *call, met[call]
        met[call] += 1
    return names


class _Facts(NoFacts):
    """Facts of a machine on which every process is the same program."""

    def __init__(self, executable: str) -> None:
        self._executable = executable

    def process(self, process_id: int) -> Process:
        """Return the program."""
        return Process(pid=process_id, executable=self._executable)


@dataclass
class _Capture(Capture):
    """A tracker and an assembler for any program."""

    executable: str = "/usr/sbin/haproxy"

    def __post_init__(self) -> None:
        self.assembler = Assembler(
            self, _Facts(self.executable), self.counters, limits=self.limits,
            ids=IdGenerator(bytes(8)), epoch_offset_ns=EPOCH_OFFSET_NS,
        )  # fmt: skip
        self.tracker = ConnectionTracker(
            self.assembler.open, self.counters, on_loss=self.assembler.linker.lose
        )


class Relay:
    """One process, its connections, and what is made of its events."""

    def __init__(self, executable: str = "/usr/sbin/haproxy", **settings: Any) -> None:
        self.timeline = Timeline()
        self.capture = _Capture(executable=executable, **settings)
        self._ids = count(1)

    def client(self, thread: int = 1, **changes: Any) -> Script:
        """Accept a connection."""
        number = next(self._ids)
        changes.setdefault("remote_port", CLIENT_PORTS + number)
        script = self.timeline.open(Role.SERVER, number, **changes)
        script.thread_id = thread
        return script

    def server(self, thread: int = 1, **changes: Any) -> Script:
        """Open a connection to a backend."""
        number = next(self._ids)
        script = self.timeline.open(
            Role.CLIENT, number, local_port=SERVER_PORTS + number, **changes
        )
        script.thread_id = thread
        return script

    def play(self) -> list[Transaction]:
        """Return all transactions that what happened so far has made."""
        return self.capture.take(self.timeline.take())

    def finish(self) -> list[Transaction]:
        """Return all transactions, because nothing will follow."""
        self.play()
        self.capture.tracker.close(self.timeline.now_ns)
        self.capture.assembler.linker.close()
        return self.capture.transactions

    def links(self) -> dict[Name, tuple[str, Name]]:
        """Return the links so far: method and parent, by name."""
        names = names_of(self.play())
        return {
            names[t.request_id]: (t.link.method.value, names[t.link.parent_id])
            for t in self.capture.transactions
            if t.link is not None
        }

    def candidates(self) -> dict[Name, list[Name]]:
        """Return the candidates so far, by name."""
        names = names_of(self.play())
        return {
            names[t.request_id]: sorted(names[each.request_id] for each in t.candidates)
            for t in self.capture.transactions
            if t.candidates
        }

    def counted(self, name: str, **labels: str) -> int:
        """Return a counter of the linker."""
        return self.capture.counters.value(f"otel_qtap.link.{name}", **labels)


def name(script: Script, asked_ns: int, place: int = 0) -> Name:
    """Return the name of an exchange that a call at that time asked for."""
    base = CLIENT_PORTS if script.role is Role.SERVER else SERVER_PORTS
    return base + script.connection_id, asked_ns, place


# A random life -----------------------------------------------------------------------------


@dataclass
class World:
    """What happened, and the truth about it."""

    relay: Relay
    parents: dict[Name, Name | None] = field(default_factory=dict)
    """Of each request to a backend: the client's request it was sent for, if it was for one."""


_Steps = Generator[None, None, None]


class _Life:
    """What all clients share."""

    def __init__(self, chance: random.Random, executable: str, threads: int) -> None:
        self.chance = chance
        self.world = World(Relay(executable))
        self.threads = threads
        self.idle: list[Script] = []
        targets = [f"/{letter}" for letter in "abcdef"][: chance.randrange(1, 7)]
        self.targets = [*targets, *(f"/item/{chance.randrange(10**6)}" for _ in range(3))]
        bodies = [b"", b"fine", b"good", b"x" * 40, b"y" * 40, b"z" * 6000, b"z" * 5999 + b"!"]
        chance.shuffle(bodies)
        self.bodies = bodies[: chance.randrange(1, 8)]
        self.prefix = chance.choice(["", "", "/v1"])
        self.cached: list[bytes] = []

    def thread(self) -> int:
        return self.chance.randrange(self.threads) + 1

    def target(self) -> str:
        return self.chance.choice(self.targets)

    def answer(self) -> bytes:
        return self.chance.choice(self.bodies)


def random_relay(
    seed: int,
    *,
    executable: str = "/usr/sbin/haproxy",
    clients: int = 6,
    threads: int = 2,
    has_checks: bool = True,
) -> World:
    """Return what a proxy does for so many clients, and for itself."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    life = _Life(chance, executable, threads)
    running: list[_Steps] = [_client(life) for _ in range(clients)]
    if has_checks:
        running += [_check(life) for _ in range(chance.randrange(4))]
    while running:
        each = chance.choice(running)
        if next(each, each) is each:
            running.remove(each)
    return life.world


def _client(life: _Life) -> _Steps:
    """Ask several times over one connection, waiting for the answers or not."""
    chance, thread = life.chance, life.thread()
    client = life.world.relay.client(thread)
    for _ in range(chance.randrange(1, 4)):
        yield
        requests = []
        for _ in range(chance.choice([1, 1, 1, 2])):
            fields = ["User-Agent: curl"]
            if chance.random() < 0.2:
                fields.append(f"X-Request-ID: {chance.randrange(10**12)}")
            requests.append((life.target(), fields))
        asked_ns = client.ask(b"".join(ask(target, *fields) for target, fields in requests))
        for place, (target, fields) in enumerate(requests):
            own = name(client, asked_ns, place)
            way = chance.choice([_forward, _forward, _forward, _answer_at_once, _refuse, _leave])
            yield from way(life, client, own, target, fields)
            if way is _leave:
                return
    yield
    client.client_closes()
    client.destroyed()


def _forward(life: _Life, client: Script, own: Name, target: str, fields: list[str]) -> _Steps:
    """Ask backends until one answers; what others answered is thrown away."""
    chance = life.chance
    for _ in range(chance.choice([0, 0, 0, 1, 2])):
        yield from _attempt(life, client.thread_id, own, target, fields, reply(ERROR_PAGE, 503))
    body = life.answer()
    status = chance.choice([200, 200, 200, 404])
    yield from _attempt(life, client.thread_id, own, target, fields, reply(body, status))
    life.cached.append(body)
    given = reply(body, chance.choice([status, status, status, 203]))
    yield from _give(chance, client, given)


def _give(chance: random.Random, client: Script, answer: bytes) -> _Steps:
    if chance.random() < 0.3:
        yield
    cut = chance.choice([0, 0, 9, len(answer) - 2])
    if cut:
        client.answer(answer[:cut])
        yield
    client.answer(answer[cut:])


def _attempt(
    life: _Life, thread: int, own: Name | None, target: str, fields: list[str], answer: bytes
) -> _Steps:
    chance = life.chance
    if chance.random() < 0.5:
        yield
    reusable = [script for script in life.idle if script.thread_id == thread]
    if reusable and chance.random() < 0.7:
        server = chance.choice(reusable)
        life.idle.remove(server)
    else:
        server = life.world.relay.server(thread)
    asked_ns = server.ask(ask(life.prefix + target, *fields, "X-Forwarded-For: 192.0.2.7"))
    life.world.parents[name(server, asked_ns)] = own
    yield
    if chance.random() < 0.1 and answer.startswith(b"HTTP/1.1 503"):
        server.step(CloseStep.RESET, 104)
        server.destroyed()
        return
    if chance.random() < 0.2:
        server.answer(answer[:12])
        yield
        server.answer(answer[12:])
    else:
        server.answer(answer)
    if chance.random() < 0.7:
        life.idle.append(server)
    else:
        server.client_closes()
        server.destroyed()


def _answer_at_once(
    life: _Life,
    client: Script,
    own: Name,
    target: str,
    fields: list[str],
) -> _Steps:
    """Out of a cache."""
    client.answer(reply(life.chance.choice([b"local", *life.cached])))
    return
    yield


def _refuse(
    life: _Life,
    client: Script,
    own: Name,
    target: str,
    fields: list[str],
) -> _Steps:
    """After a while, without having asked anybody, as after waiting in vain for a server."""
    for _ in range(life.chance.randrange(1, 8)):
        yield
    client.answer(reply(ERROR_PAGE, 503))


def _leave(life: _Life, client: Script, own: Name, target: str, fields: list[str]) -> _Steps:
    """The client goes away; what was asked for it may still be answered."""
    chance = life.chance
    going = _attempt(life, client.thread_id, own, target, fields, reply(life.answer()))
    for _ in range(chance.randrange(4)):
        if next(going, going) is going:
            break
        yield
    if chance.random() < 0.5:
        client.client_closes()
    else:
        client.step(CloseStep.RESET, 104)
    yield from going
    client.destroyed()  # only then is the proxy done with the request


def _check(life: _Life) -> _Steps:
    """A health check, which looks like what clients ask."""
    for _ in range(life.chance.randrange(6)):
        yield
    body, status = life.chance.choice([(life.answer(), 200), (ERROR_PAGE, 503)])
    answer = reply(body, status)
    yield from _attempt(life, life.thread(), None, life.target(), ["User-Agent: curl"], answer)
