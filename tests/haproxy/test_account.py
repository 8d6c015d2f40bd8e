"""Transactions of HAProxy go on with what HAProxy itself says of them; all others as they are."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from otel_qtap.connection.model import Peer
from otel_qtap.counters import CounterSet
from otel_qtap.events import LogEvent
from otel_qtap.haproxy import CheckedServer, HaproxyAccount, NameTables, ServerName
from otel_qtap.transaction.link import ProxyName
from otel_qtap.transaction.model import Direction, Ending, Transaction

MS = 1_000_000
OFFSET_NS = 1_700_000_000_000_000_000  # of the epoch, by the clock of the kernel
PID = 987
BACKEND = ("172.18.0.3", 8001)
TABLES = NameTables(
    servers={BACKEND: ServerName("back", "a", 3, 1), ("backend-b", 8001): ServerName("back", "b")},
    frontends={("", 80): "front"},
    hosts={BACKEND: "api.internal"},
)


class World:
    """An account, what it is given, and all that came out of it."""

    def __init__(self, tables: NameTables | None = TABLES, **options) -> None:
        self.tables = tables
        self.counters = CounterSet()
        self.out: list[Transaction] = []
        self.account = HaproxyAccount(
            self, self.counters, epoch_offset_ns=lambda: OFFSET_NS, names=self, **options
        )

    def tables_of(self, pid: int) -> NameTables | None:
        return self.tables if pid == PID else NameTables()

    def consume(self, transaction: Transaction) -> None:
        self.out.append(transaction)

    def write(self, transaction: Transaction, **changes) -> None:
        """HAProxy logs ``transaction`` a tenth of a millisecond after its end."""
        timings, request = transaction.timings, transaction.request
        begun = datetime.fromtimestamp(timings.request_start_ns // MS / 1000, UTC)
        date = f"{begun:%d/%b/%Y:%H:%M:%S}.{timings.request_start_ns // MS % 1000:03}"
        values = {"status": transaction.response.status, "server": "a"} | changes
        client = "{}:{}".format(*transaction.remote)
        line = (
            f"{client} [{date}] web back/{values['server']} 0/1/2/3/12 {values['status']} 10 - -"
            f' ---- 1/1/1/1/0 0/0 {{token}} "{request.method} {request.target} HTTP/1.1"\n'
        )
        written_ns = timings.end_ns + MS // 10 - OFFSET_NS
        self.account.accept_log(LogEvent(written_ns, transaction.process.pid, 1, line.encode()))

    def wait(self, transaction: Transaction, duration_ns: int) -> None:
        self.account.tick(transaction.timings.end_ns - OFFSET_NS + duration_ns)

    def checks(self, result: str, **labels: str) -> int:
        labels = {"backend": "back", "server": "a"} | labels
        return self.counters.value("otel_qtap.haproxy.health_checks", result=result, **labels)


@pytest.fixture
def served(make_transaction):
    """``served(…)``: a request that HAProxy answered."""
    return make_transaction


@pytest.fixture
def sent(make_transaction):
    """``sent(…)``: a request of HAProxy to a backend."""

    def make(remote: tuple[str, int] = BACKEND, name: str = "", **changes) -> Transaction:
        return make_transaction(
            direction=Direction.EGRESS_INTERNAL, remote=Peer(*remote), remote_name=name, **changes
        )

    return make


def test_names_are_put_to_both_sides(served, sent) -> None:
    """In the words of the Collector: a proxy has services."""
    world = World()
    for transaction in (served(), sent()):
        world.account.consume(transaction)

    assert [each.proxy_name for each in world.out] == [
        ProxyName("front", "FRONTEND"),
        ProxyName("back", "a"),
    ]


@pytest.mark.parametrize(
    ("name", "remote", "known_as"),
    [
        pytest.param("backend-api-1", BACKEND, "backend-api-1", id="hosts-file-or-container"),
        pytest.param("", BACKEND, "api.internal", id="haproxy"),
        pytest.param("", ("172.18.0.9", 8001), "", id="nobody"),
    ],
)
def test_a_backend_without_a_name_has_the_one_that_haproxy_gives_it(
    sent, name, remote, known_as
) -> None:
    """So a URL has a host that people know; the name of a server line would be none."""
    world = World()
    world.account.consume(sent(remote, name))

    (transaction,) = world.out
    assert transaction.remote_name == known_as
    assert transaction.url == f"http://{known_as or remote[0]}:8001/api/users"


def test_a_server_may_be_known_by_its_host(sent) -> None:
    """A configuration file has names, and nobody looks them up: the container's name is it."""
    world = World()
    world.account.consume(sent(("172.18.0.4", 8001), "backend-b"))

    assert world.out[0].proxy_name == ProxyName("back", "b")


def test_other_programs_have_no_names(served, make_process) -> None:
    """Nobody even asks for them."""
    world = World()
    world.account.consume(served(process=make_process(executable="/usr/sbin/nginx")))

    assert world.out[0].proxy_name is None


@pytest.mark.parametrize("has_log", [True, False], ids=["configured", "seen"])
def test_a_request_goes_on_with_its_line(served, make_timings, has_log) -> None:
    """Held for it where the process is known to log, by its configuration or by a line."""
    world = World(TABLES._replace(has_log=has_log))
    first = served()
    world.account.consume(first)
    assert world.out == ([] if has_log else [first])
    world.write(first)
    start_ns = first.timings.end_ns + 20 * MS
    second = served(timings=make_timings(start_ns=start_ns), target="/b?token=1", index=1)
    world.account.consume(second)
    assert second not in world.out
    world.write(second)

    line = world.out[-1].haproxy_log
    assert line is not None
    assert (line.frontend, line.backend, line.server) == ("web", "back", "a")
    assert (line.queue_ms, line.connect_ms, line.response_ms, line.active_ms) == (1, 2, 3, 12)
    assert (line.target, line.captures) == ("", ())  # the request is in the transaction
    assert (first.haproxy_log is not None) is has_log


def test_a_line_that_does_not_come_is_waited_for_a_moment_only(served) -> None:
    """A tenth of a second, and everybody else is told of the transaction at once."""
    arrived: list[Transaction] = []
    world = World(TABLES._replace(has_log=True))
    world.account.on_arrival = arrived.append
    transaction = served()
    world.account.consume(transaction)
    world.wait(transaction, 90 * MS)
    assert (arrived, world.out) == ([transaction], [])
    world.wait(transaction, 100 * MS)

    assert world.out == [transaction]


def test_the_end_lets_everything_go(served, sent) -> None:
    """What waited comes out, and what had not been counted is."""
    world = World(None)
    world.tables = TABLES._replace(has_log=True)
    world.account.consume(served())
    world.tables = None
    world.account.check(sent(is_health_check=True))
    world.account.close()

    assert len(world.out) == 1
    assert world.checks("passed", backend="", server="172.18.0.3:8001") == 1


def test_what_haproxy_sends_never_waits(served, sent) -> None:
    """There are no lines about it."""
    world = World(TABLES._replace(has_log=True))
    asked = sent()
    world.account.consume(served())
    world.account.consume(asked)

    assert world.out == [asked]


def test_the_frontend_is_known_from_the_line_at_least(served) -> None:
    """Where no configuration could be read."""
    world = World(NameTables())
    first, second = served(), served(index=1)
    world.write(first)
    world.account.consume(second)
    world.write(second)

    assert world.out[0].proxy_name == ProxyName("web", "FRONTEND")


RESULTS = [
    pytest.param({"status": 200}, "passed", id="200"),
    pytest.param({"status": 503}, "failed", id="503"),
    pytest.param({"status": 200, "ending": Ending.CLIENT_CLOSED}, "passed", id="answer-enough"),
    pytest.param({"status": None, "ending": Ending.CLIENT_CLOSED}, "failed", id="timeout"),
    pytest.param({"status": None, "ending": Ending.RESET}, "failed", id="reset"),
    pytest.param({"status": None, "ending": Ending.CONNECT_FAILED}, "failed", id="no-connection"),
    pytest.param({"status": None, "ending": Ending.LOST}, "", id="not-seen"),
    pytest.param({"status": None, "ending": Ending.UNFINISHED}, "", id="not-over"),
]


@pytest.mark.parametrize(("changes", "result"), RESULTS)
def test_health_checks_are_counted_and_go_on(sent, changes, result) -> None:
    """Who wants no spans of them leaves them out later; requests are not counted."""
    checked = CheckedServer(ServerName("back", "a"), 2, 3, 4)
    world = World(TABLES._replace(checked={BACKEND: checked}))
    check = sent(is_health_check=True, **{"ending": Ending.COMPLETE, **changes})
    for transaction in (check, sent(**changes)):
        world.account.consume(transaction)

    assert world.counters.total("otel_qtap.haproxy.health_checks") == bool(result)
    assert not result or world.checks(result) == 1
    assert len(world.out) == 2


def test_checks_wait_for_the_name_of_their_server(sent, make_timings) -> None:
    """A process that has just appeared; under its address it would be another server."""
    world = World(None)
    first = sent(is_health_check=True)
    later_ns = first.timings.end_ns + 1000 * MS
    world.account.consume(first)
    world.wait(first, 900 * MS)
    assert world.counters.total("otel_qtap.haproxy.health_checks") == 0
    world.tables = TABLES._replace(
        checked={BACKEND: CheckedServer(ServerName("back", "a"), 2, 3, 4)}
    )
    world.account.consume(sent(is_health_check=True, timings=make_timings(start_ns=later_ns)))
    world.wait(first, 2000 * MS)

    assert world.checks("passed") == 2


def test_checks_do_not_wait_for_ever(sent) -> None:
    """Names that cannot be learned in five seconds are done without."""
    world = World(None)
    check = sent(is_health_check=True)
    world.account.consume(check)
    world.wait(check, 5001 * MS)

    assert world.checks("passed", backend="", server="172.18.0.3:8001") == 1


def test_what_haproxy_says_puts_its_servers_right(sent) -> None:
    """About once a second."""
    down = CheckedServer(ServerName("back", "a"), 2, 3, 0)
    world = World(TABLES._replace(checked={BACKEND: down._replace(health=4)}))
    check = sent(is_health_check=True)
    world.account.consume(check)
    asked_ns = check.timings.end_ns + 500 * MS
    world.tables = TABLES._replace(checked={BACKEND: down}, asked_ns=asked_ns)
    world.wait(check, 2000 * MS)

    assert world.counters.value(
        "otel_qtap.haproxy.health_transitions", to="down", backend="back", server="a"
    ) == 1  # fmt: skip
