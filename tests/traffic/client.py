"""
A client that knows exactly what it sent and what it got.

It sends a counted number of requests over a number of connections and reports on each
one: which connection, which place on it, SHA-256 of the body each way. It can leave at
any point of an exchange. ``run_client`` runs it as a process inside a ``World``; for
load that saturates HAProxy there is ``load.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # when run as a program

from traffic.backend import (
    abort,
    frame_chunks,
    payload,
    read_body,
    read_head,
)
from traffic.world import World, WorldError

__all__ = ["AbortPoint", "ClientPlan", "ClientReport", "Exchange", "run_client"]

AbortPoint = Literal["", "request_head", "request_body", "request_end", "response_body"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """What the client is to do."""

    address: str = "127.0.0.1"
    port: int = 8085
    requests: int = 1
    """In all; connections take the next one when they are free for it."""
    connections: int = 1
    method: str = ""
    """``POST`` with a body and ``GET`` without when empty."""
    target: str = "/"
    """``{n}`` becomes the number of the request, from 0."""
    host: str = "localhost:8085"
    headers: tuple[tuple[str, str], ...] = ()
    body_size: int = 0
    chunk_size: int = 0
    """Send the body in chunks of this size; 0: with a Content-Length."""
    pipeline: int = 1
    """Requests sent before the first answer is read."""
    new_connection: bool = False
    """A connection for each request."""
    abort: AbortPoint = ""
    """Leave in the middle of this part of every exchange."""
    reset: bool = False
    """Leave with an RST, not with a FIN."""
    timeout_s: float = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What became of one request."""

    number: int
    connection: int
    """Counts the connections opened."""
    index: int
    """Place of the request on its connection, from 0."""
    local_port: int
    sent_size: int
    sent_sha256: str
    outcome: str
    """``complete``, ``aborted`` (by us, as planned), or what went wrong."""
    status: int = 0
    received_size: int = 0
    received_sha256: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the response, names in lower case."""


@dataclass(frozen=True, slots=True)
class ClientReport:
    """Every exchange, by number."""

    exchanges: tuple[Exchange, ...]

    @property
    def outcomes(self) -> Counter[str]:
        """How many exchanges ended how."""
        return Counter(exchange.outcome for exchange in self.exchanges)

    @property
    def complete(self) -> list[Exchange]:
        """The exchanges that got a whole response."""
        return [exchange for exchange in self.exchanges if exchange.outcome == "complete"]


def run_client(world: World, plan: ClientPlan) -> ClientReport:
    """Run the plan inside ``world`` and return its report."""
    done = world.run(
        [sys.executable, __file__],
        stdin=json.dumps(asdict(plan)).encode(),
        timeout_s=plan.timeout_s + 5,
    )
    if done.returncode:
        raise WorldError(f"the client failed: {done.stderr.decode(errors='replace')}")
    return ClientReport(tuple(Exchange(**fields) for fields in json.loads(done.stdout)))


class _Client:
    def __init__(self, plan: ClientPlan) -> None:
        self._plan = plan
        self._numbers: Iterator[int] = iter(range(plan.requests))
        self._opened = 0
        self.exchanges: list[Exchange] = []

    async def run(self) -> None:
        async with asyncio.timeout(self._plan.timeout_s), asyncio.TaskGroup() as group:
            for _ in range(self._plan.connections):
                group.create_task(self._keep_busy())
        self.exchanges.sort(key=lambda exchange: exchange.number)

    async def _keep_busy(self) -> None:
        while batch := self._next_batch():
            connection = _Connection(self._plan, self._opened)
            self._opened += 1
            await connection.use(batch, self._next_batch)
            self.exchanges += connection.exchanges

    def _next_batch(self) -> list[int]:
        return list(itertools.islice(self._numbers, self._plan.pipeline))


class _PlannedAbort(Exception):  # noqa: N818 - nothing went wrong
    """This is where the plan says to leave."""


class _Connection:
    def __init__(self, plan: ClientPlan, ordinal: int) -> None:
        self._plan = plan
        self._ordinal = ordinal
        self._port = 0
        self._pending: deque[int] = deque()
        self.exchanges: list[Exchange] = []

    async def use(self, batch: list[int], next_batch: Callable[[], list[int]]) -> None:
        """Send ``batch``, then further ones for as long as the connection lasts."""
        plan = self._plan
        self._pending.extend(batch)
        outcome = "closed"
        writer = None
        try:
            reader, writer = await asyncio.open_connection(plan.address, plan.port, limit=2**20)
            self._port = writer.get_extra_info("sockname")[1]
            while batch:
                await self._send(writer, batch)
                while self._pending:
                    if not await self._receive(reader):
                        return
                batch = [] if plan.new_connection else next_batch()
                self._pending.extend(batch)
        except _PlannedAbort:
            outcome = "aborted"
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome = type(error).__name__
        finally:
            while self._pending:
                self._note(outcome)
            if writer is not None:
                abort(writer, with_reset=plan.reset)

    async def _send(self, writer: asyncio.StreamWriter, batch: list[int]) -> None:
        writer.writelines(map(self._request, batch))
        if self._plan.abort.startswith("request"):
            await writer.drain()
            await asyncio.sleep(0.02)  # let HAProxy read it first
            raise _PlannedAbort

    def _request(self, number: int) -> bytes:
        plan = self._plan
        body = payload(plan.body_size, number)
        framing: tuple[tuple[str, str], ...] = ()
        if plan.chunk_size:
            framing = (("Transfer-Encoding", "chunked"),)
            body = frame_chunks(body, plan.chunk_size)
        elif body:
            framing = (("Content-Length", str(len(body))),)
        method = plan.method or ("POST" if body else "GET")
        fields = (("Host", plan.host), ("User-Agent", "traffic-client"), *plan.headers, *framing)
        lines = [f"{method} {plan.target.replace('{n}', str(number))} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if plan.abort == "request_head":
            return head[: len(head) // 2]
        if plan.abort == "request_body":
            return head + body[: len(body) // 2]
        return head + body

    async def _receive(self, reader: asyncio.StreamReader) -> bool:
        """Read one response; return whether the connection can be used further."""
        while True:
            head = await read_head(reader)
            if head is None:
                raise asyncio.IncompleteReadError(b"", None)
            status = int(head[0].split(" ")[1])
            if status >= 200:
                break
        headers = head[1]
        if self._plan.abort == "response_body":
            await reader.read(1)
            raise _PlannedAbort
        body = b""
        if self._plan.method != "HEAD" and status not in (204, 304):
            is_framed = "content-length" in headers or "transfer-encoding" in headers
            body = await read_body(reader, headers) if is_framed else await reader.read()
        self._note("complete", status=status, headers=headers, body=body)
        return headers.get("connection", "").lower() != "close"

    def _note(
        self,
        outcome: str,
        *,
        status: int = 0,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Report on the oldest request that has no report yet."""
        number = self._pending.popleft()
        sent = payload(self._plan.body_size, number)
        self.exchanges.append(
            Exchange(
                number=number,
                connection=self._ordinal,
                index=len(self.exchanges),
                local_port=self._port,
                sent_size=len(sent),
                sent_sha256=hashlib.sha256(sent).hexdigest(),
                outcome=outcome,
                status=status,
                received_size=len(body),
                received_sha256=hashlib.sha256(body).hexdigest(),
                headers=headers or {},
            )
        )


def _main() -> None:
    fields = json.load(sys.stdin)
    fields["headers"] = tuple(map(tuple, fields["headers"]))
    client = _Client(ClientPlan(**fields))
    asyncio.run(client.run())
    json.dump([asdict(exchange) for exchange in client.exchanges], sys.stdout)


if __name__ == "__main__":
    _main()
