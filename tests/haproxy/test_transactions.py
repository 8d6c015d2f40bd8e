"""What identifies a transaction in HAProxy's log."""

from __future__ import annotations

import pytest

from otel_qtap.connection.model import Peer
from otel_qtap.haproxy import served_request
from otel_qtap.haproxy.transactions import is_haproxy
from otel_qtap.transaction.model import Direction


def test_a_served_transaction_is_identified_by_what_haproxy_logs(make_transaction) -> None:
    """Process, client, request line, status, and when."""
    transaction = make_transaction(method="PUT", target="/a?b", status=201, index=3)
    served = served_request(transaction)

    assert served is not None
    assert (served.process_id, served.client) == (987, ("192.0.2.7", 51234))
    assert served.listener == ("172.18.0.2", 80)
    assert (served.method, served.target, served.status) == ("PUT", "/a?b", 201)
    assert served.request_index == 3
    assert served.request_start_ns == transaction.timings.request_start_ns
    assert served.response_start_ns == transaction.timings.response_start_ns
    assert served.end_ns == transaction.timings.end_ns


def test_without_an_answer_there_is_no_status(make_transaction) -> None:
    """HAProxy logs one all the same, at times."""
    served = served_request(make_transaction(status=None))

    assert served is not None
    assert (served.status, served.response_start_ns) == (0, 0)


def test_the_client_of_a_proxy_header_is_the_one_that_is_logged(make_transaction) -> None:
    """HAProxy sees the other load balancer only as the connection."""
    served = served_request(make_transaction(proxied_source=Peer("198.51.100.9", 7)))

    assert served is not None
    assert served.client == ("198.51.100.9", 7)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"direction": Direction.EGRESS_INTERNAL}, id="egress"),
        pytest.param({"executable": "/usr/sbin/nginx"}, id="another-program"),
    ],
)
def test_others_have_no_line(make_transaction, make_process, changes) -> None:
    """What HAProxy sends itself, and what other programs serve."""
    process = make_process(**{k: v for k, v in changes.items() if k == "executable"})
    others = {k: v for k, v in changes.items() if k != "executable"}

    assert served_request(make_transaction(process=process, **others)) is None


@pytest.mark.parametrize(
    ("executable", "is_one"),
    [
        ("/usr/sbin/haproxy", True),
        ("/opt/haproxy-3.2/sbin/haproxy-3.2", True),
        ("/opt/haproxy-tools/nginx", False),
        ("", False),
    ],
)
def test_a_haproxy_is_known_by_its_program(
    make_transaction, make_process, executable, is_one
) -> None:
    """By the file, whatever directory it is in."""
    assert is_haproxy(make_transaction(process=make_process(executable=executable))) is is_one
