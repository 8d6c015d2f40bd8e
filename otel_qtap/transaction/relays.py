"""
Connections that HAProxy passes through byte by byte: HTTP in its ``mode tcp``.

There HAProxy knows no requests, and one stream is a connection of a client with one to a
server, for as long as they last. What tells which two belong together is who got the client's
first bytes, or sent it the first answer:

    the stream         where it got them, or had tried to before they came; the connection to
                       the server was opened by the same stream
    the client's task  afterwards; it sends them on at once, and lives as long as the
                       connection: no other client has it
    the server's task  which has just got the answer from the server; the kernel side saw both

Within the two connections a request is the one with the same head, in order; where bytes are
missing, at the same place. And it counts only once its client is being answered outside of any
stream: a request that HAProxy has read itself is answered by a stream, which knows better.

A PROXY line is read by a task that exists for nothing else, so behind one it is the server's task
that tells, when it passes the first answer on. Of probes (``tap.link: probe``) only the stream is
known. Seen so in HAProxy 2.6, 2.8, 3.0 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from otel_qtap.connection.tracker import Connection
from otel_qtap.events import StreamMark, StreamState
from otel_qtap.transaction.exchange import Exchange

__all__ = ["Passage", "Relays", "pass_on"]

_KNOWN, _OTHER = StreamState.KNOWN, StreamState.OTHER
_Key = tuple[int, int, int]


class Passage:
    """A client's request that was passed on, if it is certain that it was not read meanwhile."""

    __slots__ = ("_is_certain", "_waiting", "asked", "sent")

    def __init__(self, asked: Exchange, sent: Exchange) -> None:
        self.asked, self.sent = asked, sent
        self._is_certain: bool | None = None
        self._waiting: list[Callable[[bool], None]] = []

    @property
    def is_certain(self) -> bool:
        """Whether that is decided, and so."""
        return self._is_certain is True

    def decide(self, *, is_certain: bool) -> None:
        """The client is being answered, or never will be; only the first call counts."""
        if self._is_certain is None:
            self._is_certain = is_certain
            waiting, self._waiting = self._waiting, []
            for proceed in waiting:
                proceed(is_certain)

    def when_decided(self, proceed: Callable[[bool], None]) -> None:
        """Call ``proceed`` with whether it is certain, now or as soon as it is known."""
        if self._is_certain is None:
            self._waiting.append(proceed)
        else:
            proceed(self._is_certain)


class Relayed(Protocol):
    """A connection whose requests may be passed on, or were: a ``Conversation``."""

    connection: Connection

    @property
    def in_flight(self) -> Iterable[Exchange]:
        """The requests that wait for their answer."""

    @property
    def is_whole(self) -> bool:
        """Whether every request was seen, and nothing before the first."""


T = TypeVar("T", bound=Relayed)


class Relays(Generic[T]):
    """Finds the client whose bytes go to a server."""

    def __init__(self) -> None:
        self._clients: dict[_Key, list[T]] = {}
        """Open connections, by process with stream and number, or with task."""
        self._servers: dict[int, T] = {}
        """Open connections that may be relays, of clients that are not known, by their id."""

    def join(self, client: T) -> None:
        """A client's first bytes have come."""
        key = _key_of(client.connection.process_id, client.connection.connecting)
        if key is not None:
            self._clients.setdefault(key, []).append(client)

    def leave(self, client: T) -> None:
        """What got the first bytes will be used for others."""
        key = _key_of(client.connection.process_id, client.connection.connecting)
        if key is not None and client in self._clients.get(key, ()):
            self._clients[key].remove(client)
            if not self._clients[key]:
                del self._clients[key]

    def send(self, server: T) -> None:
        """The first bytes were sent to a server outside of any stream, nobody knows for whom."""
        self._servers[server.connection.id] = server

    def forget(self, server: T) -> None:
        """A server is over, or its client is known."""
        self._servers.pop(server.connection.id, None)

    def find(self, process_id: int, connecting: StreamMark, sending: StreamMark) -> T | None:
        """Return whose bytes a server gets, by the marks of the connect and the first bytes."""
        for mark, state in ((connecting, _KNOWN), (sending, _OTHER)):
            key = _key_of(process_id, mark) if mark.state is state else None
            clients = self._clients.get(key, ()) if key is not None else ()
            if len(clients) == 1:
                return clients[0]
        return None

    def find_server(self, process_id: int, answering: StreamMark) -> T | None:
        """Return the server whose bytes a client gets, by the mark of its answer."""
        server = self._servers.get(answering.address)
        if server is None or server.connection.process_id != process_id:
            return None
        return server


def pass_on(sent: Exchange, client: Relayed, server: Relayed) -> Exchange | None:
    """Return the request of the client that was passed on as ``sent``, and make them a pair."""
    is_whole = client.is_whole and server.is_whole
    for asked in client.in_flight:
        is_same = asked.index == sent.index if is_whole else asked.position == sent.position >= 0
        if is_same and asked.passage is None and asked.request == sent.request:
            sent.passage = asked.passage = Passage(asked, sent)
            return asked
    return None


def _key_of(process_id: int, mark: StreamMark) -> _Key | None:
    if mark.state is _KNOWN:
        return process_id, mark.address, mark.serial
    if mark.state is _OTHER and mark.task:
        return process_id, mark.task, -1
    return None
