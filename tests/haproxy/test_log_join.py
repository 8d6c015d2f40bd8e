"""Every line finds the transaction it is about, and no other; what is missing is counted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_qtap.counters import CounterSet
from otel_qtap.haproxy import AccessLogLine, LogJoiner, ServedRequest

MS = 1_000_000
START_NS = 1_788_000_000_123_000_000
PID = 987


@dataclass(frozen=True)
class Exchange:
    """A request as the agent saw it, and the name that says which one it was."""

    name: str = "1"
    start_ns: int = START_NS
    duration_ns: int = 10 * MS
    method: str = "GET"
    target: str = "/"
    version: str = "1.1"
    status: int = 200
    client: tuple[str, int] = ("192.0.2.7", 51234)
    listener: tuple[str, int] = ("192.0.2.1", 80)
    pid: int = PID
    index: int = 0
    is_ingress: bool = True
    line: AccessLogLine | None = field(default=None, compare=False)

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns

    def served(self) -> ServedRequest | None:
        if not self.is_ingress:
            return None
        responded_ns = self.end_ns - self.duration_ns // 10 if self.status else 0
        return ServedRequest(
            self.pid, self.listener, self.client, self.method, self.target, self.status,
            self.index, self.start_ns, responded_ns, self.end_ns,
        )  # fmt: skip

    def log(self, *, zone_h: float = 0, server: str = "", **changes) -> bytes:
        """Return the line that HAProxy writes about it, the server named after it."""
        begun = datetime.fromtimestamp(self.start_ns // MS / 1000 + zone_h * 3600, UTC)
        date = f"{begun:%d/%b/%Y:%H:%M:%S}.{self.start_ns // MS % 1000:03}"
        values = {
            "client": "{}:{}".format(*self.client),
            "status": self.status or -1,
            "request": f"{self.method} {self.target} HTTP/{self.version}",
            "early": "",
            "end": '"',
        } | changes
        total = round(self.duration_ns / MS)
        return (
            f"{values['client']} [{date}] front back/{server or self.name}"
            f" 0/0/0/{total}/{values['early']}{total}"
            f" {values['status']} {values['early']}10 - - ---- 1/1/1/1/0 0/0"
            f' "{values["request"]}{values["end"]}'
        ).encode()


class World:
    """A joiner, and everything that came out of it."""

    def __init__(self, **options) -> None:
        self.counters = CounterSet()
        self.out: list[Exchange] = []
        self.joiner: LogJoiner[Exchange] = LogJoiner(
            self,
            describe=Exchange.served,
            attach=lambda exchange, line: replace(exchange, line=line),
            counters=self.counters,
            **options,
        )

    def consume(self, transaction: Exchange, /) -> None:
        self.out.append(transaction)

    def see(self, exchange: Exchange) -> None:
        self.joiner.accept(exchange)

    def write(self, exchange: Exchange, data: bytes | None = None, after_ns: int = MS // 10):
        self.joiner.accept_line(exchange.pid, exchange.end_ns + after_ns, data or exchange.log())

    def joined(self) -> dict[str, str | None]:
        """Return the name in the line of each transaction that came out, by its own name."""
        return {each.name: each.line.server if each.line else None for each in self.out}

    def lines(self) -> dict[str, int]:
        return self._counted("lines")

    def transactions(self) -> dict[str, int]:
        return self._counted("transactions")

    def _counted(self, what: str) -> dict[str, int]:
        name = f"otel_qtap.haproxy.log.{what}"
        samples = (s for s in self.counters.samples() if s.name == name and s.value)
        return {dict(sample.labels)["result"]: int(sample.value) for sample in samples}


@pytest.fixture
def world():
    return World()


def test_a_transaction_goes_on_with_its_line(world) -> None:
    """At once, when the line comes, and the line says what it says."""
    one = Exchange()
    world.see(one)
    assert world.out == []
    world.write(one)

    (joined,) = world.out
    assert joined.line is not None
    assert (joined.line.frontend, joined.line.server, joined.line.status) == ("front", "1", 200)
    assert (world.lines(), world.transactions()) == ({"joined": 1}, {"joined": 1})


def test_the_line_may_come_first(world) -> None:
    """HAProxy writes it before the connection ends that ends the transaction."""
    one = Exchange()
    world.write(one, after_ns=-MS // 2)
    world.see(one)

    assert world.joined() == {"1": "1"}
    assert (world.lines(), world.transactions()) == ({"joined": 1}, {"joined": 1})


def test_what_the_process_sent_itself_goes_by(world) -> None:
    """Egress has no line, and never waits for one."""
    world.see(Exchange(is_ingress=False))

    assert world.joined() == {"1": None}
    assert world.transactions() == {}


def test_a_process_that_does_not_log_holds_nobody_up(world) -> None:
    """Its first transaction waits once; there is nothing to miss."""
    first, second = Exchange("1"), Exchange("2", START_NS + 200 * MS)
    world.see(first)
    world.joiner.tick(first.end_ns + 99 * MS)
    assert world.out == []
    world.joiner.tick(first.end_ns + 100 * MS)
    assert world.joined() == {"1": None}
    world.see(second)

    assert world.joined() == {"1": None, "2": None}
    assert (world.lines(), world.transactions()) == ({}, {})


def test_a_transaction_of_a_listener_that_logs_waits_and_is_missed(world) -> None:
    """It goes on without a line after a tenth of a second, and is counted."""
    first, second = Exchange("1"), Exchange("2", START_NS + 50 * MS, index=1)
    world.see(first)
    world.write(first)
    world.see(second)
    world.joiner.tick(second.end_ns + 99 * MS)
    assert world.joined() == {"1": "1"}
    world.joiner.tick(second.end_ns + 100 * MS)

    assert world.joined() == {"1": "1", "2": None}
    assert world.transactions() == {"joined": 1, "without_line": 1}


def test_a_listener_without_log_does_not_wait_for_the_one_with(world) -> None:
    """One frontend of a process may log and another may not."""
    logging, silent = Exchange("1"), Exchange("2", listener=("192.0.2.1", 8404), client=("::1", 2))
    world.see(logging)
    world.write(logging)
    world.see(silent)
    world.joiner.tick(silent.end_ns + 101 * MS)
    world.see(replace(silent, name="3", index=1))

    assert world.joined() == {"1": "1", "2": None, "3": None}
    assert world.transactions() == {"joined": 1}


def test_a_line_that_comes_late_is_no_sign_of_a_loss(world) -> None:
    """Its transaction was seen; the sums stay equal, and from now on lines are expected."""
    first, second = Exchange("1"), Exchange("2", START_NS + 900 * MS, index=1)
    world.see(first)
    world.joiner.tick(first.end_ns + 100 * MS)
    world.write(first, after_ns=200 * MS)
    assert (world.lines(), world.transactions()) == ({"late": 1}, {"without_line": 1})
    world.see(second)
    world.write(second)

    assert world.joined() == {"1": None, "2": "2"}


def test_a_request_that_was_not_seen_is_told_by_its_line(world) -> None:
    """That is what the log is an oracle for."""
    one = Exchange()
    world.write(one)
    world.joiner.tick(one.end_ns + 6_000 * MS)

    assert world.lines() == {"unmatched": 1}


def test_several_log_targets_write_every_line_several_times(world) -> None:
    """The copies are told from lines about other requests, also when one of them is cut."""
    one = Exchange(target="/" + "x" * 50)
    world.see(one)
    for data in (one.log(), one.log(), one.log(request="GET /xxx", end="")):
        world.write(one, data)
    world.joiner.close()

    assert world.lines() == {"joined": 1, "duplicate": 2}
    assert world.transactions() == {"joined": 1}


def test_equal_requests_within_a_millisecond_have_equal_lines(world) -> None:
    """The second line comes before its transaction: it is no copy of the first one."""
    one = Exchange("1", duration_ns=MS // 20)
    two = replace(one, name="2", start_ns=one.end_ns + MS // 20, index=1)
    world.see(one)
    world.write(one, one.log(server="a"), after_ns=MS // 100)
    world.write(two, two.log(server="a"), after_ns=MS // 100)
    assert world.lines() == {"joined": 1}
    world.see(two)

    assert world.joined() == {"1": "a", "2": "a"}
    assert (world.lines(), world.transactions()) == ({"joined": 2}, {"joined": 2})


@pytest.mark.parametrize("late", [1, 2], ids=["next-comes-last", "next-comes-first"])
def test_copies_are_told_once_the_next_request_is_known(world, late) -> None:
    """Transactions come in any order; the copy of the second line is not the third one's."""
    one, two, three = (
        Exchange(str(n), START_NS + n * MS // 10, MS // 20, index=n) for n in range(3)
    )
    world.see(one)
    for each in (one, two, three):
        for after_ns in (MS // 200, MS // 100):
            world.write(each, each.log(server="a"), after_ns)
    assert world.lines() == {"joined": 1}
    world.see((one, two, three)[late])
    world.see((one, two, three)[3 - late])
    assert world.lines() == {"joined": 3, "duplicate": 2}
    world.joiner.close()

    assert world.transactions() == {"joined": 3}
    assert world.lines() == {"joined": 3, "duplicate": 3}


@pytest.mark.parametrize("changes", [{"early": "+"}, {"request": "GET / HTTP/2.0"}])
def test_copies_without_an_order_may_come_first(world, changes) -> None:
    """They say the same, so it does not matter which of them is taken."""
    one = Exchange()
    for _ in range(2):
        world.write(one, one.log(**changes), after_ns=-MS)
    world.see(one)

    assert world.joined() == {"1": "1"}
    assert world.lines() == {"joined": 1, "duplicate": 1}


def test_a_line_is_not_given_to_a_request_with_another_answer_behind_it(world) -> None:
    """Its own is written before the next response of the connection; this one was not seen."""
    first = Exchange("1")
    second = Exchange("2", START_NS + 20 * MS, target="/other", index=1)
    third = Exchange("3", START_NS + 31 * MS, 5 * MS, index=2)
    world.see(first)
    world.see(second)
    world.write(third)
    world.joiner.close()

    assert world.joined() == {"1": None, "2": None}
    assert world.lines() == {"unmatched": 1}


def test_a_client_may_use_one_port_for_two_listeners(world) -> None:
    """The order is that of a connection, not that of an address."""
    one = Exchange("1")
    other = Exchange("2", START_NS + MS, target="/other", listener=("192.0.2.1", 81))
    world.see(one)
    world.see(other)
    world.write(one, after_ns=3 * MS)
    world.write(other, after_ns=4 * MS)

    assert world.joined() == {"1": "1", "2": "2"}


OTHERS = [
    pytest.param({"pid": 988}, id="process"),
    pytest.param({"client": ("192.0.2.8", 51234)}, id="client"),
    pytest.param({"client": ("192.0.2.7", 51235)}, id="port"),
    pytest.param({"method": "POST"}, id="method"),
    pytest.param({"target": "/other"}, id="target"),
    pytest.param({"status": 404}, id="status"),
    pytest.param({"start_ns": START_NS + 700 * MS}, id="later"),
    pytest.param({"start_ns": START_NS + 13 * MS}, id="begun-after-the-answer"),
    pytest.param({"start_ns": START_NS - 700 * MS}, id="earlier"),
]


@pytest.mark.parametrize("difference", OTHERS)
def test_a_line_about_another_request_is_left_alone(world, difference) -> None:
    """Everything that both sides know must agree."""
    one = Exchange()
    other = replace(one, name="2", **difference)
    world.see(one)
    world.write(other)
    world.joiner.close()

    assert world.joined() == {"1": None}
    assert world.lines() == {"unmatched": 1}


AGREEING = [
    pytest.param({"client": ("2001:db8::7", 1)}, {}, id="ipv6"),
    pytest.param({"status": 0}, {"status": 400}, id="answer-nobody-got"),
    pytest.param({"status": 503}, {"status": -1}, id="no-status-in-the-line"),
    pytest.param({"target": "/a?b"}, {"request": "GET /a?b HTTP/1.1"}, id="query"),
    pytest.param({"target": '/"#'}, {"request": "GET /#22#23 HTTP/1.1"}, id="escapes"),
    pytest.param({"target": "/abcdef"}, {"request": "GET /abc", "end": ""}, id="cut"),
    pytest.param(
        {"target": "http://a/b"}, {"request": "GET http://a/b HTTP/1.1"}, id="absolute-target"
    ),
    pytest.param({"target": "*", "method": "OPTIONS"}, {}, id="asterisk"),
    pytest.param(
        {"version": "2.0"}, {"request": "GET http://example.org/ HTTP/2.0"}, id="http2-target"
    ),
    pytest.param({"status": 400}, {"request": "<BADREQ>"}, id="bad-request-that-was-seen"),
    *(pytest.param({}, {"zone_h": hours}, id=f"zone{hours:+}") for hours in (-11, -3.5, 5.75, 14)),
]


@pytest.mark.parametrize(("changes", "in_line"), AGREEING)
@pytest.mark.parametrize("line_first", [False, True], ids=["transaction-first", "line-first"])
def test_a_line_may_spell_the_same_in_another_way(world, changes, in_line, line_first) -> None:
    """Escapes, cuts, absolute targets and the wall clock of the process."""
    one = replace(Exchange(), **changes)
    steps = [lambda: world.see(one), lambda: world.write(one, one.log(**in_line))]
    for step in reversed(steps) if line_first else steps:
        step()

    assert world.joined() == {"1": "1"}


def test_a_line_of_clf_names_the_second_in_utc(world) -> None:
    """Its date is rounded down; the rest of the line decides."""
    one = Exchange(start_ns=START_NS + 800 * MS)
    date = f"{datetime.fromtimestamp(one.start_ns // 1000 // MS, UTC):%d/%b/%Y:%H:%M:%S} +0000"
    world.see(one)
    world.write(
        one,
        f'192.0.2.7 - - [{date}] "GET / HTTP/1.1" 200 10 "" "" 51234 923 "front" "back" "1"'
        ' 0 0 0 10 10 ---- 1 1 1 1 0 0 0 "" ""'.encode(),
    )

    assert world.joined() == {"1": "1"}


def test_a_line_without_request_is_no_sign_of_a_loss(world) -> None:
    """HAProxy could not read the request either, so there is no transaction to miss."""
    one = Exchange(status=400)
    world.write(one, one.log(request="<BADREQ>"))
    world.joiner.tick(one.end_ns + 6_000 * MS)

    assert world.lines() == {"no_request": 1}


def test_other_lines_are_counted_by_what_they_are(world) -> None:
    """Clients on Unix sockets are not watched; other formats are not read."""
    one = Exchange()
    world.joiner.accept_line(PID, START_NS, b"Server back/a is DOWN.\nServer back/a is UP.\n")
    world.write(one, one.log(client="unix:1"))

    assert world.lines() == {"unrecognised": 2, "unix_client": 1}


def test_several_lines_of_one_call_are_several_lines(world) -> None:
    """As a ring that forwards to a server writes them."""
    one, two = Exchange("1"), Exchange("2", client=("192.0.2.7", 2))
    world.see(one)
    world.see(two)
    world.write(two, one.log() + b"\n" + two.log() + b"\n")

    assert world.joined() == {"1": "1", "2": "2"}


def test_an_early_line_waits_for_the_end_of_a_long_answer(world) -> None:
    """With ``option logasap`` the line is written before the first byte goes to the client."""
    one = Exchange(duration_ns=600_000 * MS)
    world.joiner.accept_line(
        PID, START_NS + 5 * MS, replace(one, duration_ns=5 * MS).log(early="+")
    )
    world.joiner.tick(START_NS + 590_000 * MS)
    world.see(one)

    assert world.joined() == {"1": "1"}
    assert world.lines() == {"joined": 1}


def _early_line(exchange: Exchange) -> tuple[int, bytes]:
    """Return when "option logasap" has the line of an exchange written, and the line."""
    written_ns = exchange.end_ns - exchange.duration_ns // 10 - MS // 100
    return written_ns, exchange.log(early="+")


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("order", [1, -1], ids=["in-order", "last-first"])
def test_early_lines_of_equal_requests_are_told_apart(world, pipelined, order) -> None:
    """Each was written between the begin of the request and that of its response."""
    exchanges = []
    for number in range(8):
        start_ns = START_NS + (0 if pipelined else number * MS)
        duration_ns = (number + 1) * MS if pipelined else MS
        exchanges.append(Exchange(str(number), start_ns, duration_ns, index=number))
    for each in exchanges:
        world.joiner.accept_line(PID, *_early_line(each))
    for each in exchanges[::order]:
        world.see(each)
    world.joiner.close()

    assert world.joined() == {each.name: each.name for each in exchanges}
    assert world.lines() == {"joined": 8}


def test_an_early_line_is_not_given_to_the_request_before(world) -> None:
    """Whose own line was not written, as that of one that is silenced."""
    first, second = Exchange("1"), Exchange("2", START_NS + 11 * MS, index=1)
    world.see(first)
    world.joiner.accept_line(PID, *_early_line(second))
    world.see(second)
    world.joiner.close()

    assert world.joined() == {"1": None, "2": "2"}


def test_what_haproxy_answers_itself_it_logs_afterwards(world) -> None:
    """With ``option logasap`` too: there is no response of a server to log it with."""
    one = Exchange(status=503)
    line = one.log(early="+").replace(b"0/0/0/10/+10", b"0/0/-1/-1/+10").replace(b"----", b"SC--")
    world.see(one)
    world.write(one, line)

    assert world.joined() == {"1": "1"}


def test_a_bad_request_is_logged_before_it_is_refused(world) -> None:
    one = Exchange(status=400)
    world.joiner.accept_line(PID, START_NS + MS, one.log(request="<BADREQ>"))
    world.see(one)

    assert world.joined() == {"1": "1"}
    assert world.lines() == {"joined": 1}


def test_a_copy_is_not_given_to_a_request_without_answer(world) -> None:
    """Pipelined behind the one that the line is about, and closed without a word."""
    first = Exchange("1")
    second = Exchange("2", START_NS, 12 * MS, status=0, index=1)
    for _ in range(2):
        world.write(first)
    world.see(first)
    world.see(second)
    world.joiner.close()

    assert world.joined() == {"1": "1", "2": None}
    assert world.lines() == {"joined": 1, "duplicate": 1}


def test_a_sample_of_lines_waits_for_who_is_late(world) -> None:
    """Where not every request is logged, a line may be about one that is still to come."""
    sampled = Exchange("0")
    world.see(sampled)
    world.write(sampled)
    skipped = Exchange("1", START_NS + 10 * MS, index=1)
    world.see(skipped)
    world.joiner.tick(skipped.end_ns + 200 * MS)
    begin_ns = START_NS + 1000 * MS
    second = Exchange("2", begin_ns, MS // 10, index=2)
    third = Exchange("3", begin_ns + MS // 5, MS // 10, index=3)
    world.see(second)
    world.write(third)
    world.see(third)
    world.joiner.tick(third.end_ns + 200 * MS)

    assert world.joined() == {"0": "0", "1": None, "2": None, "3": "3"}
    assert world.transactions() == {"joined": 2, "without_line": 2}


def test_a_sampled_line_is_joined_at_once_when_the_next_request_is_known(world) -> None:
    """Or after the usual wait if there is none."""
    world.see(Exchange("0"))
    world.write(Exchange("0"))
    world.see(Exchange("1", START_NS + 10 * MS, index=1))
    world.joiner.tick(START_NS + 500 * MS)
    second = Exchange("2", START_NS + 1000 * MS, index=2)
    third = Exchange("3", START_NS + 1020 * MS, index=3)
    world.see(second)
    world.write(second)
    assert world.joined().get("2") is None
    world.see(third)
    assert world.joined()["2"] == "2"
    world.write(third)
    assert "3" not in world.joined()
    world.joiner.tick(third.end_ns + 200 * MS)

    assert world.joined() == {"0": "0", "1": None, "2": "2", "3": "3"}


def test_a_request_closed_without_a_word_is_told_apart(world) -> None:
    """
    When a server closes on a request that is not the first of its connection, HAProxy
    closes too: no answer, no line. The client is to try again.
    """
    first = Exchange("1")
    second = Exchange("2", START_NS + 20 * MS, status=0, index=1)
    world.see(first)
    world.write(first)
    world.see(second)
    world.joiner.close()

    assert world.transactions() == {"joined": 1, "closed_silently": 1}


def test_a_first_request_without_answer_or_line_is_missed(world) -> None:
    """HAProxy logs that one, whatever happens to it."""
    first = Exchange("1")
    world.see(first)
    world.write(first)
    world.see(Exchange("2", START_NS + 20 * MS, status=0, client=("192.0.2.7", 2)))
    world.joiner.close()

    assert world.transactions() == {"joined": 1, "without_line": 1}


def test_a_line_is_not_given_to_a_request_before_the_last(world) -> None:
    """The line of the first is lost, and the third was not seen: its line is left over."""
    first, second, third = (Exchange(str(n), START_NS + n * 20 * MS, index=n) for n in range(1, 4))
    world.see(first)
    world.see(second)
    world.write(second)
    world.write(third)
    world.joiner.close()

    assert world.joined() == {"1": None, "2": "2"}
    assert world.lines() == {"joined": 1, "unmatched": 1}


def test_equal_lines_at_once_over_http2_are_not_told_apart(world) -> None:
    """Two lines and then a request that fits both: neither is guessed."""
    one, two = (Exchange(name, version="2.0") for name in "12")
    world.write(one, after_ns=-MS)
    world.write(two, after_ns=-MS)
    world.see(two)
    world.joiner.close()

    assert world.joined() == {"2": None}
    assert world.lines() == {"ambiguous": 2}


def test_equal_requests_at_once_over_http2_are_not_told_apart(world) -> None:
    """Two answers and then a line that fits both: neither is guessed."""
    one, two = (Exchange(name, version="2.0") for name in "12")
    world.see(one)
    world.see(two)
    world.write(one)
    world.joiner.close()

    assert world.joined() == {"1": None, "2": None}
    assert world.lines() == {"ambiguous": 1}


def test_different_requests_at_once_over_http2_are_told_apart(world) -> None:
    """Streams of one connection with other targets do not disturb each other."""
    exchanges = [Exchange(name, target=f"/{name}", version="2.0") for name in "123"]
    for each in exchanges:
        world.write(each, after_ns=-MS)
    for each in reversed(exchanges):
        world.see(each)

    assert world.joined() == {"1": "1", "2": "2", "3": "3"}


def test_a_ring_that_forwards_is_behind(world) -> None:
    """Its lines come after the next response has begun, so their order says nothing."""
    one = Exchange("1")
    other = Exchange("2", START_NS + 300 * MS, index=1)
    equal = Exchange("3", START_NS + 320 * MS, index=2)
    world.see(one)
    world.see(other)
    world.joiner.accept_line(PID, equal.end_ns, one.log(), is_forwarded=True)
    assert world.joined() == {"1": "1"}
    world.see(equal)
    world.joiner.accept_line(PID, equal.end_ns, other.log(), is_forwarded=True)
    world.joiner.close()

    assert world.joined() == {"1": "1", "2": None, "3": None}
    assert world.lines() == {"joined": 1, "ambiguous": 1}


def test_the_joiner_keeps_within_its_bound() -> None:
    """More waiting transactions than the capacity: the oldest goes on without its line."""
    world = World(capacity=4, wait_ns=10**12)
    exchanges = [Exchange(str(n), client=("192.0.2.7", n)) for n in range(10)]
    world.see(exchanges[0])
    world.write(exchanges[0])
    for each in exchanges[1:]:
        world.see(each)
    assert len(world.out) == 10 - 4
    world.joiner.close()

    assert sorted(world.joined()) == [str(n) for n in range(10)]
    assert world.transactions() == {"joined": 1, "without_line": 9}


def test_lines_keep_within_the_bound_too() -> None:
    """More lines than the capacity: the oldest are given up, and counted."""
    world = World(capacity=4)
    for n in range(10):
        world.write(Exchange(client=("192.0.2.7", n + 1)))

    assert world.lines() == {"unmatched": 6}


# Everything at once -------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A moment at which the joiner is given something."""

    at_ns: int
    is_line: bool
    exchange: Exchange


def play_connections(
    seed: int, *, losses: float = 0, delay_ms: int = 0, copies: int = 1
) -> tuple[World, list[Step]]:
    """
    Play keep-alive connections with requests that follow each other within microseconds.

    All ask for the same and are served alike, so that only order and time tell them apart;
    a captured header, which the joiner does not look at, has the name of each. ``losses``
    is the share of lines and of transactions that never arrive; transactions arrive up to
    ``delay_ms`` after their end, lines when they are written, each ``copies`` times.
    """
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    steps = []
    for port in range(1, 4):
        now_ns = START_NS + chance.randrange(5 * MS)
        for index in range(20):
            exchange = Exchange(
                f"{port}-{index}", now_ns, chance.choice([MS // 20, MS // 2, 3 * MS]),
                client=("192.0.2.7", port), index=index,
            )  # fmt: skip
            now_ns = exchange.end_ns
            for _ in range(copies):
                now_ns += chance.randrange(1, MS // 50)
                if chance.random() >= losses:
                    steps.append(Step(now_ns, is_line=True, exchange=exchange))
            now_ns += chance.choice([1, MS // 100, 2 * MS])
            if chance.random() >= losses:
                delay_ns = chance.randrange(delay_ms * MS + 1)
                steps.append(Step(exchange.end_ns + delay_ns, is_line=False, exchange=exchange))
    world = World()
    for step in sorted(steps, key=lambda step: step.at_ns):
        world.joiner.tick(step.at_ns)
        if step.is_line:
            world.joiner.accept_line(PID, step.at_ns, equal_line(step.exchange))
        else:
            world.see(step.exchange)
    world.joiner.close()
    return world, steps


def equal_line(exchange: Exchange) -> bytes:
    """Return a line that differs from those of other requests in time and capture alone."""
    return exchange.log(server="a").replace(b' "GET', b' {%b} "GET' % exchange.name.encode())


def captured(world: World) -> dict[str, str | None]:
    """Return the captured name in the line of each transaction, by its own name."""
    return {each.name: each.line.captures[0][0] if each.line else None for each in world.out}


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 5, 80]), st.sampled_from([1, 2, 3]))
def test_equal_requests_that_follow_each_other_are_never_confused(seed, delay_ms, copies) -> None:
    """
    Three connections of sixty equal requests, many within one millisecond of the log.

    The transactions come late and in any order, and there may be several log targets.
    """
    world, _ = play_connections(seed, delay_ms=delay_ms, copies=copies)

    assert captured(world) == {each.name: each.name for each in world.out}
    assert world.transactions() == {"joined": 60}
    duplicates = {"duplicate": 60 * (copies - 1)} if copies > 1 else {}
    assert world.lines() == {"joined": 60} | duplicates


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.05, 0.5]))
def test_a_loss_does_not_shift_the_rest(seed, losses) -> None:
    """
    Lines and transactions vanish independently. The ones left pair as before, except that
    a line whose transaction is lost may find the one before it without a line: two losses
    in a row that leave one of each are, seen from here, a pair.
    """
    world, steps = play_connections(seed, losses=losses)
    seen = {step.exchange.name for step in steps if not step.is_line}
    logged = {step.exchange.name for step in steps if step.is_line}

    wrong = {name: said for name, said in captured(world).items() if said not in (name, None)}
    assert all(name not in logged and said not in seen for name, said in wrong.items())
    assert {name for name, said in captured(world).items() if said == name} >= seen & logged
    assert sum(world.transactions().values()) <= len(seen)
    counted = Counter(world.lines())
    assert sum(counted.values()) == len(logged)


def test_lines_about_clients_that_are_not_captured_are_passed_over() -> None:
    """They are no sign that something is missing."""
    world = World(wants_line=lambda pid, address: pid == PID and address != "127.0.0.1")
    world.write(Exchange(client=("127.0.0.1", 4711)))
    world.write(Exchange(pid=988))
    world.joiner.close()

    assert world.lines() == {"filtered": 2}


def test_a_line_about_what_was_passed_by_is_late(world) -> None:
    """Nobody knew that the process logs; the next transaction waits for its line."""
    one = Exchange()
    two = replace(one, name="2", start_ns=one.end_ns + 50 * MS)
    world.joiner.pass_by(one.pid, one.end_ns)
    assert not world.joiner.knows(one.pid)
    world.write(one)
    assert world.joiner.knows(one.pid)
    world.see(two)
    world.write(two)
    world.joiner.close()

    assert world.joined() == {"2": "2"}
    assert world.lines() == {"late": 1, "joined": 1}


def test_a_listener_of_a_process_that_never_logs_costs_next_to_nothing(world) -> None:
    """Its transactions are not even remembered; should a line come after all, it is late."""
    one = Exchange()
    two = replace(one, name="2", start_ns=one.end_ns + 1000 * MS)
    three = replace(one, name="3", start_ns=one.end_ns + 2000 * MS)
    world.see(one)
    world.joiner.tick(one.end_ns + 150 * MS)
    world.see(two)
    assert [each.name for each in world.out] == ["1", "2"]
    world.write(two)
    world.see(three)
    world.write(three)
    world.joiner.close()

    assert world.lines() == {"late": 2}
    assert [each.name for each in world.out] == ["1", "2", "3"]


def test_lines_about_one_request_may_be_in_two_formats(world) -> None:
    """Two targets, each with its own: the second one is a duplicate."""
    one = Exchange()
    world.see(one)
    world.write(one)
    tail = b" 0/0000000000000000/0/0/0 -/TLSv1.3/TLS_AES_256_GCM_SHA384"
    world.write(one, one.log() + tail)
    world.joiner.close()

    assert world.lines() == {"joined": 1, "duplicate": 1}
