"""
What HAProxy is put through: each scenario is a configuration, a load and a way to answer.

Scenarios are data. ``run.py`` plays them before the real agent, ``score.py`` says which of
the links found are right. Every kind of ``KINDS`` is one where a linker that guesses by
time, order or thread has been seen to go wrong, or could.

Unless a scenario says otherwise: one HAProxy with its front end on port 8085, servers on
ports 9001 and 9002 that answer within 20 ms, clients that keep their connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from traffic.haproxy import HAProxySettings, Server

__all__ = ["DEAD_ADDRESSES", "FRONT", "SCENARIOS", "SERVER_PORTS", "Scenario", "reduced", "select"]

FRONT = 8085
SERVER_PORTS = (9001, 9002)
DEAD_ADDRESSES = ("127.0.9.1", "127.0.9.2")
"""Nobody listens there; connections to them go to the port number of the client."""

DEAD = tuple(Server(f"dead{n}", address, 0) for n, address in enumerate(DEAD_ADDRESSES))
"""
Servers there. Without a port of its own a server is connected to on the port that a rule has
set: that of the client, which says whose request the failed attempt was for.
"""

Value = int | str | tuple[str, ...]
Options = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing to be measured."""

    name: str
    kind: str
    """What it is about; scenarios of one kind are variations of it."""
    proxies: tuple[HAProxySettings, ...]
    """The HAProxy instances that the agent watches; ``{directory}`` is where files may be."""
    client: Options = field(default_factory=dict)
    """Options of ``load.c``, with ``_`` for ``-``; a tuple repeats the option."""
    backend: Options = field(default_factory=dict)
    """Options of ``backend.c``."""
    requests: int = 1500
    entries: tuple[int, ...] = (FRONT,)
    """Ports that the clients connect to."""
    fronts: Mapping[int, int] = field(default_factory=dict)
    """Port of a server to that of the front end whose requests it gets; see ``Topology``."""
    outside: tuple[HAProxySettings, ...] = ()
    """Instances that only translate (to TLS, to HTTP/2) and that the agent leaves alone."""
    reloads: int = 0
    least_recall: float = 0.999
    """
    Of the links that could be found, the share that an exact linker must find.

    Evidence comes with the answer, so requests that never get one may stay without.
    """
    least_recall_of_probes: float | None = None
    """The same where only the stream is known, if that makes a difference."""
    reads: str = "http1"
    """What an agent must be able to read to see anything here: ``http1``, ``http2``, ``tls``."""

    @property
    def identifies_attempts(self) -> bool:
        """Whether each request carries a nonce, so that attempts without answer are told apart."""
        return "body" in self.client


def options(given: Options) -> list[str]:
    """Return the command-line arguments for the options of ``load.c`` or ``backend.c``."""
    arguments = []
    for name, value in given.items():
        for each in value if isinstance(value, tuple) else (value,):
            arguments += [f"--{name.replace('_', '-')}", str(each)]
    return arguments


def servers(options: str = "", ports: Iterable[int] = SERVER_PORTS) -> tuple[Server, ...]:
    """Return one server for each port, all with the same ``options``."""
    return tuple(
        Server(f"s{number}", "127.0.0.1", port, options) for number, port in enumerate(ports, 1)
    )


def proxy(**changes: Any) -> HAProxySettings:
    """Return the usual HAProxy, two threads, with ``changes``."""
    usual = HAProxySettings(servers=servers(), port=FRONT, nbthread=2)
    return replace(usual, **changes)


IDENTIFIED = {"body": 40}
"""A small POST whose nonce tells attempts apart that never had an answer."""


def scenario(
    name: str,
    kind: str,
    *proxies: HAProxySettings,
    client: Options = MappingProxyType({}),
    backend: Options = MappingProxyType({}),
    **settings: Any,
) -> Scenario:
    """Return a scenario with 64 connections and delays up to 20 ms unless it says otherwise."""
    return Scenario(
        name=name,
        kind=kind,
        proxies=proxies or (proxy(),),
        client={"connections": 64, **client},
        backend={"delay_ms": 20, **backend},
        **settings,
    )


def _both(
    name: str, kind: str, *proxies: HAProxySettings, client: Options = MappingProxyType({}),
    **settings: Any,
) -> list[Scenario]:  # fmt: skip
    """Return a scenario with requests that are all alike, and one where they vary."""
    return [
        scenario(name, kind, *proxies, client=client, **settings),
        scenario(f"{name}-varied", kind, *proxies, client={**client, "varied": 1}, **settings),
    ]  # fmt: skip


def _threads_and_connections() -> list[Scenario]:
    requests = {1: 300, 8: 1000, 64: 2000, 256: 3000}
    return [
        scenario(
            f"t{threads}-c{connections}-{requested}",
            "threads and connections",
            proxy(nbthread=threads),
            client={"connections": connections, "varied": int(requested == "varied")},
            requests=requests[connections],
        )
        for threads in (1, 2, 4)
        for connections in requests
        for requested in ("same", "varied")
    ]


def _reuse() -> list[Scenario]:
    found = []
    for mode in ("never", "safe", "aggressive", "always"):
        found += _both(f"reuse-{mode}", "http-reuse", proxy(http_reuse=mode), requests=2000)
    always = proxy(nbthread=4, http_reuse="always")
    fast = {"delay_ms": 0}
    hardest = {"connections": 256}
    return [
        *found,
        scenario("reuse-always-fast", "http-reuse", always, backend=fast, requests=5000),
        scenario("t4-c256-same-reuse-always", "hardest", always, client=hardest,
                 backend={"delay_ms": 5}, requests=100_000),
        scenario("t4-c256-same-reuse-always-fast", "hardest", always, client=hardest,
                 backend=fast, requests=100_000),
    ]  # fmt: skip


def _closing() -> list[Scenario]:
    kind = "closing"
    server_close = proxy(backend_lines=("option http-server-close",))
    close = proxy(defaults_lines=("option httpclose",))
    return [
        *_both("server-close", kind, server_close),
        *_both("httpclose", kind, close),
        *_both("client-close", kind, client={"close": 1}),
        *_both("backend-close", kind, backend={"delay_ms": 20, "close": 300}),
        scenario("nodelay-close", kind, client={"close": 1}, backend={"delay_ms": 0},
                 requests=4000),
        scenario("nodelay", kind, backend={"delay_ms": 0}, requests=4000),
        scenario("http10", kind, client={"http10": 1}),
        *_both("think", kind, client={"think_ms": 30}),
    ]  # fmt: skip


def _queues() -> list[Scenario]:
    kind = "queues"
    one, four, quick = servers("maxconn 1"), servers("maxconn 4"), {"delay_ms": 3}
    prioritised = ("http-request set-priority-class rand(10)",)
    found = [
        scenario(f"queue1-t{threads}", kind, proxy(nbthread=threads, servers=one), backend=quick)
        for threads in (1, 2, 4)
    ]
    return [
        *found,
        scenario("queue2-few", kind, proxy(servers=servers("maxconn 2", SERVER_PORTS[:1])),
                 client={"connections": 8}, backend=quick),
        *_both("queue1-prio", kind, proxy(servers=one, frontend_lines=prioritised),
               backend=quick),
        scenario("queue4-hash", kind, proxy(servers=four, balance="uri"), client={"varied": 1},
                 backend=quick),
    ]  # fmt: skip


def _retries() -> list[Scenario]:
    kind = "retries"
    retries = ("retries 3", "option redispatch 1")
    to_client_port = ("http-request set-dst-port src_port",)
    again = {"backend_lines": ("retry-on 503",), "defaults_lines": retries}
    empty = ("retry-on empty-response conn-failure",)
    lossy = {"drop": 200}
    return [
        *_both("retry-503", kind, proxy(**again), client=IDENTIFIED, backend={"refuse": 200}),
        *_both("retry-drop", kind, proxy(backend_lines=empty, defaults_lines=retries),
               client=IDENTIFIED, backend=lossy),
        *_both("retry-drop-reuse-always", kind,
               proxy(backend_lines=empty, defaults_lines=retries, http_reuse="always"),
               client=IDENTIFIED, backend=lossy),
        *_both("drop", kind, client=IDENTIFIED, backend=lossy),
        *_both("retry-dead", kind,
               proxy(servers=(*servers(), DEAD[0]), defaults_lines=retries,
                     frontend_lines=to_client_port), client=IDENTIFIED),
        scenario("dead-all", kind,
                 proxy(servers=DEAD, defaults_lines=("retries 1", "option redispatch 1"),
                       frontend_lines=to_client_port), requests=500),
    ]  # fmt: skip


def _timeouts() -> list[Scenario]:
    """HAProxy has answered its client when it gives up the server."""
    kind, slow = "timeouts", {"delay_ms": 5, "slow": 200, "slow_ms": 400}
    impatient = ("timeout server 100ms",)
    again = ("retry-on response-timeout", "retries 2", "option redispatch 1")
    return [
        *_both("server-timeout", kind, proxy(defaults_lines=impatient), client=IDENTIFIED,
               backend=slow),
        *_both("retry-timeout", kind, proxy(defaults_lines=impatient, backend_lines=again),
               client=IDENTIFIED, backend=slow),
    ]  # fmt: skip


def _local_answers() -> list[Scenario]:
    kind = "answered by HAProxy"
    sometimes = "if { rand(100) lt 12 }"
    mixed = proxy(
        frontend_lines=(
            f"http-request deny deny_status 403 {sometimes}",
            f"http-request return status 200 content-type text/plain string local {sometimes}",
            f"http-request redirect location /elsewhere {sometimes}",
            f"use_backend statistics {sometimes}",
        ),
        extra_sections="backend statistics\n    stats enable\n    stats uri /\n",
    )
    cache = proxy(
        backend_lines=(
            "http-request cache-use small if { rand(100) lt 50 }",
            "http-response cache-store small",
            "http-after-response set-header x-local 1 if { res.cache_hit }",
        ),
        extra_sections="cache small\n    total-max-size 4\n    max-age 60\n",
    )
    cached: Options = {"delay_ms": 20, "header": "Cache-Control: max-age=60"}
    tarpit = proxy(
        defaults_lines=("timeout tarpit 30ms",),
        frontend_lines=("http-request tarpit deny_status 429 if { rand(100) lt 25 }",),
    )
    paths = tuple(f"/{letter}" for letter in "abcdefgh")
    return [
        *_both("mixed-local", kind, mixed),
        scenario("cache", kind, cache, backend=cached),
        scenario("cache-varied", kind, cache, client={"path": paths}, backend=cached),
        *_both("delayed-local", kind, tarpit),
    ]


def _health_checks() -> list[Scenario]:
    alike = "meth GET uri / ver HTTP/1.1 hdr host localhost hdr user-agent load"
    lines = ("option httpchk", f"http-check send {alike}")
    return [
        scenario(
            f"health-{interval}ms",
            "health checks",
            proxy(
                servers=servers(f"check inter {interval}ms"),
                defaults_lines=("timeout check 2s",),  # else a slow answer is a failed check
                backend_lines=lines,
            ),
            client={"connections": 8},
            requests=2000,
        )
        for interval in (10, 50)
    ]


def _headers() -> list[Scenario]:
    kind = "changed messages"
    rewriting = proxy(
        defaults_lines=("option forwardfor",),
        frontend_lines=(
            "http-request set-path /rewritten%[path]",
            "http-request set-header host backend.internal",
            "http-request set-header x-added %[rand(1000)]",
            "http-request del-header user-agent",
            "http-response set-status 203",
            "http-response set-header server front",
        ),
    )
    compressing = proxy(backend_lines=("compression algo gzip", "compression type text/plain"))
    unique = (
        "unique-id-format %{+X}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid",
        "unique-id-header X-Unique-ID",
    )
    trace = {"header": "traceparent: 00-%32x-%16x-01"}
    return [
        *_both("rewrite", kind, rewriting),
        scenario("compress", kind, compressing, client={"header": "Accept-Encoding: gzip"},
                 backend={"size": 600, "delay_ms": 20}),
        scenario("traceparent", kind, client=trace),
        scenario("traceparent-once", kind,
                 client={"header": "traceparent: 00-0af7651916cd43dd8448eb211c80319c-"
                                   "b7ad6b7169203331-01"}),
        scenario("xreqid", kind, client={"header": "X-Request-ID: %32x"}),
        *_both("unique-id-header", kind, proxy(frontend_lines=unique)),
    ]  # fmt: skip


def _messages() -> list[Scenario]:
    kind = "messages"
    few = {"connections": 32}
    splicing = proxy(defaults_lines=("option splice-auto",))
    splice = {"size": 200_000, "size_max": 500_000, "delay_ms": 5}
    waiting = proxy(frontend_lines=("http-request wait-for-body time 1s at-least 4000",))
    return [
        *_both("pipeline2", "pipelining", client={"pipeline": 2}),
        *_both("pipeline8", "pipelining", client={"pipeline": 8}),
        scenario("pipeline8-refill", "pipelining", client={"pipeline": 8, "refill": 1}),
        *_both("post", kind, client=IDENTIFIED),
        scenario("post-chunked", kind, client={"body": 200, "body_max": 9000, "chunk": 700}),
        scenario("post-64k", kind, client={"body": 65536, **few}, requests=800),
        scenario("post-sliced", kind, client={"body": 5000, "slice": 1500, "slice_ms": 3}),
        scenario("resp-sizes", kind, backend={"size": 20, "size_max": 100_000, "delay_ms": 20}),
        scenario("resp-chunked", kind, backend={"size": 20, "size_max": 30_000, "chunked": 800}),
        scenario("waitbody", kind, waiting,
                 client={"body": 5000, "slice": 1500, "slice_ms": 3}),
        scenario("continue-100", kind, client={"body": 3000, "expect": 1}),
        scenario("early-response", kind, client={"body": 9000, "slice": 2000, "slice_ms": 3},
                 backend={"early": 1, "delay_ms": 3}),
        scenario("splice", kind, splicing, client=few, backend=splice, requests=400),
        scenario("slowmix", kind, backend={"delay_ms": 1, "slow": 200, "slow_ms": 100}),
        *_both("abort", "client aborts", least_recall=0.8,
               client={**IDENTIFIED, "abort": 200, "abort_ms": 20}),
        scenario("abort-abortonclose", "client aborts",
                 proxy(defaults_lines=("option abortonclose",)), least_recall=0.8,
                 client={**IDENTIFIED, "abort": 200, "abort_ms": 20}),
        scenario("abort-continue", "client aborts", least_recall=0.8, client={
            "body": 3000, "expect": 1, "abort": 200, "abort_ms": 20}),
        scenario("abort-sliced", "client aborts", least_recall=0.7, client={
            "body": 6000, "slice": 1000, "slice_ms": 4, "abort": 200, "abort_ms": 30}),
    ]  # fmt: skip


def _several_proxies() -> list[Scenario]:
    second = FRONT + 1
    chain_fronts = {second: FRONT, **dict.fromkeys(SERVER_PORTS, second)}
    first_hop = proxy(servers=servers(ports=(second,)))
    with_line = proxy(servers=servers("send-proxy", (second,)))
    one = proxy(
        servers=servers(ports=(second,)),
        extra_sections=f"frontend second\n    bind 127.0.0.1:{second}\n"
        "    default_backend behind\n\nbackend behind\n    balance roundrobin\n"
        + "".join(f"    server s{port} 127.0.0.1:{port}\n" for port in SERVER_PORTS),
    )
    ports = (FRONT, FRONT + 1, FRONT + 2)
    tcp = proxy(mode="tcp")

    def tcp_dead(*behind: Server) -> HAProxySettings:
        """In mode tcp there are retries, too, until there is a connection."""
        return proxy(
            mode="tcp",
            servers=behind,
            defaults_lines=("retries 3", "option redispatch 1"),
            frontend_lines=("tcp-request content set-dst-port src_port",),
        )

    tcp_with_line = proxy(mode="tcp", port=second, bind_options="accept-proxy")
    mixed_fronts = {second: FRONT, **dict.fromkeys(SERVER_PORTS, second)}
    return [
        *_both("chain", "chains", first_hop, proxy(port=second), fronts=chain_fronts),
        *_both("chain-one-instance", "chains", one, fronts=chain_fronts),
        scenario("chain-send-proxy", "chains", with_line,
                 proxy(port=second, bind_options="accept-proxy"), fronts=chain_fronts),
        scenario("chain-tcp-first", "mode tcp",
                 proxy(mode="tcp", servers=servers(ports=(second,))), proxy(port=second),
                 fronts=mixed_fronts),
        # Behind a PROXY line only the task that passes bytes on tells whose they are.
        scenario("chain-tcp-last", "mode tcp", with_line, tcp_with_line,
                 fronts=mixed_fronts, least_recall_of_probes=0.5),
        scenario("chain-tcp-both", "mode tcp",
                 proxy(mode="tcp", servers=servers("send-proxy", (second,))), tcp_with_line,
                 fronts=mixed_fronts, least_recall_of_probes=0.5),
        *_both("tcp", "mode tcp", tcp),
        scenario("tcp-close", "mode tcp", tcp, client={"close": 1}),
        scenario("tcp-drop", "mode tcp", tcp, client=IDENTIFIED, backend={"drop": 200}),
        scenario("tcp-dead", "mode tcp", tcp_dead(*servers(), DEAD[0])),
        scenario("tcp-dead-all", "mode tcp", tcp_dead(*DEAD), requests=500),
        *_both("send-proxy", "PROXY protocol", proxy(servers=servers("send-proxy"))),
        scenario("reload", "reload", proxy(http_reuse="always"), reloads=3, requests=2500,
                 client={**IDENTIFIED, "connections": 24, "think_ms": 30}),
        *_both("processes", "several processes", *(proxy(port=port) for port in ports),
               entries=ports, client={"connections": 63}),
    ]  # fmt: skip


def _other_protocols() -> list[Scenario]:
    """HTTP/2 and TLS, made of HTTP/1 by an HAProxy in front and unmade by one behind."""
    edge, tail = FRONT - 1, FRONT + 9
    crt, insecure = "ssl crt {directory}/server.pem", "ssl verify none"

    def edged(port_options: str) -> tuple[HAProxySettings, ...]:
        return (proxy(port=edge, servers=servers(port_options, (FRONT,))),)

    def tailed(bind: str) -> tuple[HAProxySettings, ...]:
        return (proxy(port=tail, bind_options=bind),)

    h2_front, h2_back = proxy(bind_options="proto h2"), servers("proto h2", (tail,))
    tls_front, tls_back = proxy(bind_options=crt), servers(insecure, (tail,))
    at_edge: dict[str, Any] = {"entries": (edge,), "fronts": dict.fromkeys(SERVER_PORTS, FRONT)}
    both: dict[str, Any] = {"entries": (edge,), "fronts": {tail: FRONT}}
    back: dict[str, Any] = {"fronts": {tail: FRONT}}
    chain = proxy(bind_options="proto h2", servers=h2_back)
    return [
        *_both("h2c", "HTTP/2", h2_front, outside=edged("proto h2"), reads="http2", **at_edge),
        scenario("h2c-reuse", "HTTP/2", h2_front, reads="http2", **at_edge,
                 outside=(replace(edged("proto h2")[0], http_reuse="always"),)),
        scenario("h2-server", "HTTP/2", proxy(servers=h2_back), outside=tailed("proto h2"),
                 reads="http2", **back),
        scenario("h2-h2", "HTTP/2", chain, outside=(*edged("proto h2"), *tailed("proto h2")),
                 reads="http2", **both),
        scenario("tls-front", "TLS", tls_front, outside=edged(insecure), reads="tls", **at_edge),
        scenario("tls-back", "TLS", proxy(servers=tls_back), outside=tailed(crt), reads="tls",
                 **back),
        scenario("tls-both", "TLS", replace(tls_front, servers=tls_back), reads="tls",
                 outside=(*edged(insecure), *tailed(crt)), **both),
        scenario("h2-tls", "TLS", proxy(bind_options=f"{crt} alpn h2"), reads="tls",
                 outside=edged(f"{insecure} alpn h2"), **at_edge),
    ]  # fmt: skip


_GROUPS = (
    _threads_and_connections, _reuse, _closing, _queues, _retries, _timeouts, _local_answers,
    _health_checks, _headers, _messages, _several_proxies, _other_protocols,
)  # fmt: skip
SCENARIOS: Mapping[str, Scenario] = {found.name: found for group in _GROUPS for found in group()}


def select(names: Iterable[str]) -> list[Scenario]:
    """Return the scenarios of these names; ``all``, or the name of a kind, stands for many."""
    found: dict[str, Scenario] = {}
    for name in names:
        matching = [s for s in SCENARIOS.values() if name in ("all", s.name, s.kind)]
        if not matching:
            raise KeyError(name)
        found |= {s.name: s for s in matching}
    return list(found.values())


def reduced(full: Scenario, requests: int) -> Scenario:
    """Return the same with no more than ``requests`` requests, if it can be had in less time."""
    return full if full.reloads else replace(full, requests=min(full.requests, requests))
