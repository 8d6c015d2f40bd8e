"""What is not HTTP is left alone; HTTP over other addresses and behind PROXY headers is not."""

from __future__ import annotations

import sys

import pytest
from kernel import peers
from kernel.agent import PYTHON, only, qtap_file
from kernel.peers import Plan, body_of
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server

# Says BYTES one way and the other over a connection, then speaks HTTP where it is too late.
TALK = """
import socket, sys
data = bytes.fromhex(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 7400))
client = socket.create_connection(("127.0.0.1", 7400))
server, _ = listener.accept()
for _ in range(3):
    client.sendall(data); server.recv(65536)
    server.sendall(data); client.recv(65536)
request = b"GET %s HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % sys.argv[2].encode()
client.sendall(request); server.recv(65536)
server.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n"); client.recv(65536)
"""

OTHERS = {
    "redis": b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n",
    "redis-inline": b"PING\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "smtp": b"EHLO client.example\r\n",
    "mysql": b"\x4a\x00\x00\x00\x0a8.0.33\x00",
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_protocols_are_ignored(world, python_agent, token, name) -> None:
    """Nothing is shown, nothing is followed any more, and the next HTTP connection is."""
    errors = python_agent.total("otel_qtap_assembler_parse_errors_total")
    talk = [sys.executable, "-c", TALK, OTHERS[name].hex(), f"{token}?too=late"]
    done = world.run(talk)
    assert done.returncode == 0, done.stderr.decode()
    plan = Plan(port=7401, path=token, exchanges=1)
    assert world.run(peers.command(plan)).returncode == 0

    seen = python_agent.wait_for(2, token)

    assert {one.method for one in seen} == {"POST"}
    assert python_agent.total("otel_qtap_assembler_parse_errors_total") == errors


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        pytest.param("::1", "::1", id="ipv6"),
        pytest.param("127.0.0.1", "::", id="v4-mapped"),
        pytest.param("::1", "::", id="dual-stack"),
    ],
)
def test_ipv6_and_mapped_addresses(world, python_agent, token, host, bind) -> None:
    """A server that listens on IPv6 serves both, and both are captured on both sides."""
    plan = Plan(port=7402, path=token, host=host, bind=bind)
    assert world.run(peers.command(plan)).returncode == 0

    seen = python_agent.wait_for(2 * plan.exchanges, token)

    for one in seen:
        assert (one.ending, one.status) == ("complete", 200)
        assert one.request_body == one.response_body == body_of(one.number, plan.body_size)


def test_a_mapped_client_on_loopback_is_on_loopback(world, start_agent, token) -> None:
    """``::ffff:127.0.0.1`` is 127.0.0.1, also for ``ignore_loopback``."""
    config = qtap_file(tap=f"ignore_loopback: true\n{only(PYTHON)}")
    with start_agent(config) as agent:
        for host in ("127.0.0.1", "::1"):
            plan = Plan(port=7403, path=token, host=host, bind="::")
            assert world.run(peers.command(plan)).returncode == 0
        world.run(["ip", "address", "add", "10.78.0.1/32", "dev", "lo"])
        plan = Plan(port=7404, path=f"{token}-next", host="10.78.0.1", exchanges=1)
        assert world.run(peers.command(plan)).returncode == 0
        agent.wait_for(2, f"{token}-next")
        assert len(agent.seen(token)) == 2


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_http_behind_a_proxy_header(world, any_binary, agent, token, tmp_path, option) -> None:
    """One HAProxy passes the PROXY header on to another: four transactions for each request."""
    inner = HAProxySettings(
        servers=(Server("a", "backend-a", 8001),), port=8097, bind_options="accept-proxy"
    )
    outer = HAProxySettings(servers=(Server("in", "127.0.0.1", 8097, option),), port=8098)
    with (
        HAProxy(world, tmp_path / "inner", inner, binary=any_binary) as second,
        HAProxy(world, tmp_path / "outer", outer, binary=any_binary) as first,
    ):
        plan = ClientPlan(port=8098, requests=3, target=f"{token}?echo=1&n={{n}}", body_size=500)
        assert run_client(world, plan).outcomes == {"complete": 3}
        seen = agent.wait_for(12, token)
        workers = (first.worker_pid, second.worker_pid)

    for worker in workers:
        for is_ingress in (True, False):
            side = [s for s in seen if (s.process_id, s.is_ingress) == (worker, is_ingress)]
            assert sorted(one.number for one in side) == [0, 1, 2]
    assert {(one.ending, one.status) for one in seen} == {("complete", 200)}
    assert all(one.request_body == one.response_body for one in seen)
