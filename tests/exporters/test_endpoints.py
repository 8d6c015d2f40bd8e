"""Clients and servers as the semantic conventions see them, behind proxies too."""

from __future__ import annotations

import pytest

from otel_qtap.connection.model import Peer
from otel_qtap.exporters.endpoints import (
    client_end,
    full_url,
    original_scheme,
    server_end,
    target_end,
)
from otel_qtap.transaction.model import Direction

CLIENTS = [
    pytest.param([], ("192.0.2.7", 51234), id="peer"),
    pytest.param([("x-forwarded-for", "198.51.100.1, 10.0.0.1")], ("198.51.100.1", None), id="xff"),
    pytest.param([("x-forwarded-for", "2001:db8::1")], ("2001:db8::1", None), id="xff-ipv6"),
    pytest.param([("x-forwarded-for", "198.51.100.1:99")], ("198.51.100.1", 99), id="xff-port"),
    pytest.param([("x-forwarded-for", "unknown")], ("192.0.2.7", 51234), id="xff-unknown"),
    pytest.param([("x-forwarded-for", "")], ("192.0.2.7", 51234), id="xff-empty"),
    pytest.param(
        [("forwarded", 'for="[2001:db8::1]:4711";proto=https, for=10.0.0.1')],
        ("2001:db8::1", 4711),
        id="forwarded",
    ),
    pytest.param([("forwarded", "For=198.51.100.1")], ("198.51.100.1", None), id="forwarded-case"),
    pytest.param([("forwarded", "for=_hidden")], ("192.0.2.7", 51234), id="forwarded-hidden"),
    pytest.param(
        [("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "198.51.100.2")],
        ("198.51.100.1", None),
        id="forwarded-before-xff",
    ),
    pytest.param(
        [("forwarded", "proto=https, for=198.51.100.9"), ("x-forwarded-for", "198.51.100.2")],
        ("198.51.100.2", None),
        id="only-the-first-element",
    ),
]


@pytest.mark.parametrize(("headers", "expected"), CLIENTS)
def test_client(headers, expected, make_transaction) -> None:
    """The leftmost of the forwarding headers, else the peer; a port only with its own address."""
    transaction = make_transaction(request_headers=tuple(headers))
    assert client_end(transaction, trusts_forwarded=True) == expected
    assert client_end(transaction, trusts_forwarded=False) == ("192.0.2.7", 51234)


def test_client_of_a_proxy_protocol(make_transaction) -> None:
    """The PROXY protocol names the client unless a header goes further back."""
    known = {"proxied_source": Peer("198.51.100.5", 1234)}
    assert client_end(make_transaction(**known), trusts_forwarded=True) == ("198.51.100.5", 1234)
    forwarded = make_transaction(request_headers=(("x-forwarded-for", "198.51.100.1"),), **known)
    assert client_end(forwarded, trusts_forwarded=True) == ("198.51.100.1", None)


SERVERS = [
    pytest.param([("host", "shop.example")], ("shop.example", 80), id="host"),
    pytest.param([("Host", "shop.example:8085")], ("shop.example", 8085), id="host-port"),
    pytest.param([("host", "[2001:db8::1]:81")], ("2001:db8::1", 81), id="ipv6"),
    pytest.param([("host", "[2001:db8::1]")], ("2001:db8::1", 80), id="ipv6-no-port"),
    pytest.param([("host", "h:junk")], ("h", 80), id="no-number"),
    pytest.param([], ("172.18.0.2", 80), id="nothing"),
    pytest.param([("host", "h"), ("x-forwarded-host", "front, h")], ("front", 443), id="xfh"),
    pytest.param([("host", "h"), ("forwarded", 'host="front:1"')], ("front", 1), id="forwarded"),
]


@pytest.mark.parametrize(("headers", "expected"), SERVERS)
def test_server(headers, expected, make_transaction) -> None:
    """What the client asked for, without brackets; its port, else the usual one."""
    scheme = "https" if expected[1] == 443 else "http"
    transaction = make_transaction(request_headers=tuple(headers))
    assert server_end(transaction, scheme, trusts_forwarded=True) == expected


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        ([], "http"),
        ([("x-forwarded-proto", "HTTPS")], "https"),
        ([("x-forwarded-proto", "gopher")], "http"),
        ([("forwarded", "for=x;proto=https"), ("x-forwarded-proto", "http")], "https"),
    ],
)
def test_scheme(headers, scheme, make_transaction) -> None:
    """TLS that ended in front is told by a header; nonsense is not believed."""
    transaction = make_transaction(request_headers=tuple(headers))
    assert original_scheme(transaction, trusts_forwarded=True) == scheme
    assert original_scheme(transaction, trusts_forwarded=False) == "http"


PROXY, CURL = "/usr/sbin/haproxy", "/usr/bin/curl"

TARGETS = [
    pytest.param((PROXY, "be1"), "shop.example", "http://be1:8001", id="name"),
    pytest.param((PROXY, ""), "shop.example:8001", "http://10.0.0.9:8001", id="proxied-host"),
    pytest.param((CURL, ""), "shop.example:8001", "http://shop.example:8001", id="host"),
    pytest.param((CURL, ""), "front:8085", "http://10.0.0.9:8001", id="host-of-another-port"),
    pytest.param((CURL, ""), "front", "http://10.0.0.9:8001", id="host-of-the-usual-port"),
    pytest.param((CURL, ""), "", "http://10.0.0.9:8001", id="no-host"),
]


@pytest.mark.parametrize(("known", "host", "origin"), TARGETS)
def test_target(known, host, origin, make_transaction, factories) -> None:
    """The logical server: a known name, else a Host that can mean it, else the address."""
    program, name = known
    transaction = make_transaction(
        direction=Direction.EGRESS_INTERNAL,
        target="/a?b",
        process=factories.make_process(executable=program),
        remote=Peer("10.0.0.9", 8001),
        remote_name=name,
        request_headers=(("host", host),) if host else (),
    )
    end = target_end(transaction)
    assert f"http://{end.address}:{end.port}" == origin
    assert full_url(transaction, end) == f"{origin}/a?b"


def test_the_usual_port_is_not_shown(make_transaction, make_process) -> None:
    """``server.port`` is always there; in a URL only a port that is not the usual one."""
    transaction = make_transaction(
        direction=Direction.EGRESS_EXTERNAL,
        process=make_process(executable=CURL),
        remote=Peer("10.0.0.9", 80),
        remote_name="",
        request_headers=(("host", "shop.example"),),
    )
    end = target_end(transaction)
    assert end == ("shop.example", 80)
    assert full_url(transaction, end) == "http://shop.example/api/users"


@pytest.mark.parametrize(
    ("method", "target", "url"),
    [
        ("GET", "http://other.example/x?y", "http://other.example/x?y"),
        ("GET", "http://bob:pw@other.example/x", "http://other.example/x"),
        ("OPTIONS", "*", "http://10.0.0.9:3128"),
        ("CONNECT", "db.example:5432", "http://db.example:5432"),
    ],
)
def test_other_forms_of_target(method, target, url, make_transaction, make_process) -> None:
    """Through a forward proxy the target names the server; user-info never shows."""
    transaction = make_transaction(
        direction=Direction.EGRESS_EXTERNAL,
        method=method,
        target=target,
        process=make_process(executable=CURL),
        remote=Peer("10.0.0.9", 3128),
        remote_name="",
        request_headers=(),
    )
    assert full_url(transaction, target_end(transaction)) == url


def test_ipv6_url(make_transaction) -> None:
    """An IPv6 address has brackets in a URL and none in an attribute."""
    transaction = make_transaction(
        direction=Direction.EGRESS_EXTERNAL, remote=Peer("2001:db8::9", 8001), remote_name=""
    )
    end = target_end(transaction)
    assert end == ("2001:db8::9", 8001)
    assert full_url(transaction, end) == "http://[2001:db8::9]:8001/api/users"
