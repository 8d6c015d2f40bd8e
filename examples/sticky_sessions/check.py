"""
Sticky sessions: a client always gets the same server.

The guide's first use case: ``balance source`` makes the client's address decide. Each
client of this check asks for a path of its own, because a backend request does not say
for whom it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from checks.stage import Backend, Finding, Request, Stage

PLACE = 5
BACKENDS = (
    Backend("backend-api-1", "127.0.1.1", 8001),
    Backend("backend-api-2", "127.0.1.2", 8002),
)


def check(stage: Stage) -> Iterator[Finding]:
    stage.start(BACKENDS)
    clients = {f"/client/{number}": f"127.0.2.{number}" for number in range(1, 13)}
    times = stage.amount(10, 4)
    requests = [
        Request(path=path, address=address) for path, address in clients.items()
    ] * times  # in turns, so that nothing but the address is left to decide
    stage.send(f"{len(clients)} clients, {times} requests each, in turns", requests)
    captured = stage.finish(len(requests))

    servers = {path: {i.server for i in captured if i.path == path} for path in clients}
    for path, address in clients.items():
        stage.note(f"{address:<12} -> {', '.join(sorted(servers[path])) or 'nobody'}")
    yield Finding(
        len(captured) == len(requests),
        "every request is captured, as a summary",
        f"{len(captured)} of {len(requests)}",
    )
    yield Finding(all(len(found) == 1 for found in servers.values()), "one client, one server")
    used = set().union(*servers.values())
    yield Finding(
        len(used) == 2, "the clients are spread over both servers", ", ".join(sorted(used))
    )
