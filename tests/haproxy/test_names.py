"""Addresses have the names that the very process has for them, or none."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest
from haproxy.processes import FakeProcess, now_ticks
from haproxy.runtime_server import ANSWERS, RuntimeServer

from otel_qtap.haproxy import CheckedServer, HaproxyNames, NameTables, ServerName

PID = 77  # the one in ANSWERS
CONFIGURATION = """
global
    stats socket /run/s
frontend web
    bind 10.1.1.1:80
    bind :443
frontend other
    bind 10.1.1.2:80
backend api
    server one 127.0.1.1:8001 check rise 4 fall 5 port 9001
    server two API-2:8001
    server mapped 127.0.1.3
    server twice 127.0.1.4:8001
backend copy
    server twice 127.0.1.4:8001
"""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


@pytest.fixture
def names(proc, clock, counters):
    return HaproxyNames(counters, proc=proc, timeout_s=0.3, settling_s=0, clock=clock)


@pytest.fixture
def serve():
    """``serve(process, answers)`` lets a process listen at ``/run/s`` of its root."""
    servers = []

    def start(process, answers=ANSWERS):
        (process.root / "run").mkdir(exist_ok=True)
        servers.append(RuntimeServer(process.root / "run/s", answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(names, pid=PID, address="127.0.1.1", port=8001):
    """Ask, let it look, and ask again."""
    names.server_of(pid, address, port)
    names.refresh()
    return names.server_of(pid, address, port)


def failures(counters):
    samples = (s for s in counters.samples() if s.name == "otel_qtap.haproxy.names.failures")
    return {dict(sample.labels)["reason"]: sample.value for sample in samples}


def configured(proc, pid=PID, text=CONFIGURATION, **options):
    process = FakeProcess(proc, pid, "-W", "-f", "/etc/haproxy.cfg", **options)
    process.write("etc/haproxy.cfg", text)
    return process


def test_the_first_question_only_makes_it_look(proc, names) -> None:
    """The answer is there for the next one: who asks is never kept waiting."""
    configured(proc)
    assert names.server_of(PID, "127.0.1.1", 8001) is None
    names.refresh()

    assert names.server_of(PID, "127.0.1.1", 8001) == ServerName("api", "one")


CONFIGURED = [
    pytest.param("127.0.1.1", 8001, ("api", "one"), id="address"),
    pytest.param("api-2", 8001, ("api", "two"), id="host-name"),
    pytest.param("127.0.1.3", 8765, ("api", "mapped"), id="any-port"),
    pytest.param("127.0.1.4", 8001, None, id="two-names-are-none"),
    pytest.param("127.0.1.1", 8002, None, id="other-port"),
    pytest.param("127.0.1.9", 8001, None, id="other-address"),
]


@pytest.mark.parametrize(("address", "port", "name"), CONFIGURED)
def test_the_configuration_names_servers(proc, names, address, port, name) -> None:
    """What it says of addresses; nothing is looked up, nothing guessed."""
    configured(proc)

    assert ask(names, PID, address, port) == (ServerName(*name) if name else None)


FRONTENDS = [
    pytest.param(443, "", "web", id="port"),
    pytest.param(443, "10.9.9.9", "web", id="any-address"),
    pytest.param(80, "10.1.1.1", "web", id="address"),
    pytest.param(80, "10.1.1.2", "other", id="other-address"),
    pytest.param(80, "", None, id="two-names-are-none"),
    pytest.param(81, "", None, id="other-port"),
]


@pytest.mark.parametrize(("port", "address", "name"), FRONTENDS)
def test_the_configuration_names_frontends(proc, names, port, address, name) -> None:
    """By the port, and where that is not enough by the address."""
    configured(proc)
    assert names.frontend_of(PID, port, address) is None
    names.refresh()

    assert names.frontend_of(PID, port, address) == name


def test_the_running_process_knows_better(proc, names, serve) -> None:
    """Servers may have been moved, added or resolved since the configuration was read."""
    serve(configured(proc))

    assert ask(names) == ServerName("back", "a", 3, 1)
    assert names.server_of(PID, "backend-a", 8001) == ServerName("back", "a", 3, 1)
    assert names.server_of(PID, "127.0.1.3", 8001) is None
    assert names.frontend_of(PID, 443) == "web"


def test_a_given_socket_is_asked_first(proc, counters, clock, tmp_path) -> None:
    """For a configuration that names none, or one that cannot be read."""
    FakeProcess(proc, PID)
    server = RuntimeServer(tmp_path / "given", ANSWERS)
    names = HaproxyNames(counters, sockets=[server.path], proc=proc, clock=clock)

    assert ask(names) == ServerName("back", "a", 3, 1)
    server.close()


def test_checks_have_servers_too(proc, names, serve) -> None:
    """They may go to other ports, and what the process counts is known when it is asked."""
    configured(proc)
    assert names.checked_server_of(PID, "127.0.1.1", 9001) is None
    names.refresh()
    assert names.checked_server_of(PID, "127.0.1.1", 9001) == CheckedServer(
        ServerName("api", "one"), rise=4, fall=5, health=None
    )

    serve(configured(proc, 78), {**ANSWERS, "show info": "Pid: 78\n"})
    names.checked_server_of(78, "127.0.1.1", 8001)
    names.refresh()
    assert names.checked_server_of(78, "127.0.1.1", 8001) == CheckedServer(
        ServerName("back", "a", 3, 1), rise=4, fall=2, health=5
    )


def test_the_socket_of_another_process_says_nothing_about_this_one(proc, names, serve) -> None:
    """After a reload the path leads to the new worker; the old one still serves."""
    old = configured(proc)
    server = serve(old)
    ask(names)
    server.close()
    (old.root / "run/s").unlink()
    configured(proc, 78, root=old.root, text=CONFIGURATION.replace("one", "new"))
    moved = ANSWERS["show servers state"].replace(" a ", " moved ")
    serve(old, {**ANSWERS, "show info": "Pid: 78\n", "show servers state": moved})
    ask(names, 78)

    assert names.server_of(78, "127.0.1.1", 8001) == ServerName("back", "moved", 3, 1)
    assert names.server_of(PID, "127.0.1.1", 8001) == ServerName("back", "a", 3, 1)


def test_processes_of_containers_have_ids_of_their_own(proc, names, serve) -> None:
    """HAProxy says the one that it has for itself."""
    serve(configured(proc, 4711, own_pid=PID))

    assert ask(names, 4711) == ServerName("back", "a", 3, 1)


def test_the_same_id_in_another_container_is_another_process(proc, names, serve) -> None:
    """Whoever opened the socket is not in the container of the process."""
    FakeProcess(proc, os.getpid(), namespace=5)  # this test answers at the socket
    serve(configured(proc, 4711, own_pid=PID, namespace=6))

    assert ask(names, 4711) == ServerName("api", "one")


def test_a_configuration_newer_than_the_process_is_not_believed(proc, names, counters) -> None:
    """It is the next worker that reads it."""
    configured(proc, started=now_ticks() - 10_000)
    process = FakeProcess(proc, 78, "-f", "/etc/haproxy.cfg", started=now_ticks() - 10_000)
    process.write("etc/haproxy.cfg", CONFIGURATION, age_s=0)

    assert ask(names, PID) is None
    assert ask(names, 78) is None
    assert failures(counters)["configuration_changed"] == 2


def test_but_it_still_says_where_the_socket_is(proc, names, serve) -> None:
    """The process itself then says the rest."""
    process = configured(proc, started=now_ticks() - 10_000)
    serve(process)

    assert ask(names) == ServerName("back", "a", 3, 1)
    assert names.frontend_of(PID, 443) is None


def test_the_configuration_may_be_many_files(proc, names) -> None:
    """Directories are taken as HAProxy takes them; relative paths begin where it does."""
    process = FakeProcess(proc, PID, "-f", "first.cfg", "-f", "/etc/parts", "--", "last.cfg")
    process.write("first.cfg", "backend first\n")
    process.write("etc/parts/2.cfg", "backend two\n server c 127.0.1.1:3\n")
    process.write("etc/parts/1.cfg", " server a 127.0.1.1:1\n")
    process.write("etc/parts/.hidden.cfg", " server x 127.0.1.1:7\n")
    process.write("etc/parts/note.txt", " server x 127.0.1.1:8\n")
    process.write("last.cfg", " server d 127.0.1.1:4\n")

    assert ask(names, port=1) == ServerName("first", "a")
    assert names.server_of(PID, "127.0.1.1", 3) == ServerName("two", "c")
    assert names.server_of(PID, "127.0.1.1", 4) == ServerName("two", "d")
    assert ask(names, port=7) is None
    assert ask(names, port=8) is None


def test_variables_are_those_of_the_process(proc, names) -> None:
    """Containers are often configured by their environment."""
    configured(
        proc,
        text='backend b\n server s "${API}:80"\n',
        environment="API=127.0.1.1\0SECRET=hush\0",
    )

    assert ask(names, port=80) == ServerName("b", "s")
    assert "hush" not in repr(vars(names))


def test_a_worker_in_an_empty_root_has_the_names_of_its_master(proc, names, serve) -> None:
    """``chroot`` is what the configuration of most distributions says."""
    serve(configured(proc, 76))
    FakeProcess(proc, PID, "-W", "-f", "/etc/haproxy.cfg", parent=76)

    assert ask(names) == ServerName("back", "a", 3, 1)
    assert names.frontend_of(PID, 443) == "web"


def test_a_process_id_that_is_used_again_is_another_process(proc, names) -> None:
    """Its start time says so."""
    old = configured(proc, started=now_ticks() - 1)
    assert ask(names) == ServerName("api", "one")
    old.path.rename(old.path.with_name("gone"))
    configured(proc, text=CONFIGURATION.replace("one", "new"), root=old.root)
    names.refresh()

    assert names.server_of(PID, "127.0.1.1", 8001) == ServerName("api", "new")


def test_a_process_that_ended_keeps_its_names_for_a_while(proc, names, clock) -> None:
    """Its last transactions are still to come."""
    process = configured(proc)
    ask(names)
    process.path.rename(process.path.with_name("gone"))
    names.refresh()
    clock.now += 59
    names.refresh()
    assert names.server_of(PID, "127.0.1.1", 8001) == ServerName("api", "one")
    clock.now += 2
    names.refresh()

    assert names.server_of(PID, "127.0.1.1", 8001) is None


def test_a_process_nobody_knows_anything_of_costs_nothing(proc, names, counters) -> None:
    """No arguments, no socket: that is no failure."""
    FakeProcess(proc, PID)
    FakeProcess(proc, 78, "-W")

    assert ask(names) is ask(names, 78) is ask(names, 99) is None
    assert failures(counters) == {}


def test_a_process_that_was_gone_before_is_not_looked_for_all_the_time(names, clock) -> None:
    """Every transaction of it asks; one look is enough for a minute."""
    wakes = []
    names._wake.set = lambda: wakes.append(1)
    for _ in range(10):
        ask(names, 99)
    assert len(wakes) == 1
    clock.now += 61
    names.refresh()
    ask(names, 99)

    assert len(wakes) == 2


FAILURES = [
    pytest.param("configuration_unreadable", id="configuration"),
    pytest.param("socket_missing", id="missing"),
    pytest.param("socket_refused", id="refused"),
    pytest.param("socket_timeout", id="timeout"),
    pytest.param("socket_answer", id="answer"),
]


@pytest.mark.parametrize("reason", FAILURES)
def test_a_failure_is_counted_each_time_and_told_once(
    proc, names, counters, serve, caplog, reason
) -> None:
    """And the configuration still names what it names."""
    process = configured(proc)
    if reason == "configuration_unreadable":
        (process.root / "etc/haproxy.cfg").unlink()
    elif reason == "socket_refused":
        serve(process).close()
    elif reason == "socket_timeout":
        serve(process, {})
    elif reason == "socket_answer":
        serve(process, dict.fromkeys(ANSWERS, "Unknown command\n"))
    with caplog.at_level(logging.WARNING):
        name = ask(names)
        names.refresh()
        names.refresh()

    assert name == (None if reason.startswith("configuration") else ServerName("api", "one"))
    assert failures(counters) == {reason: 1 if reason.startswith("configuration") else 3}
    assert len(caplog.records) == 1


def test_a_socket_that_fails_again_is_told_again(proc, names, serve, caplog) -> None:
    """After it had worked in between."""
    process = configured(proc)
    with caplog.at_level(logging.WARNING):
        ask(names)
        server = serve(process)
        names.refresh()
        server.close()
        names.refresh()
        names.refresh()

    assert len(caplog.records) == 2


def test_the_number_of_processes_is_bounded(proc, names) -> None:
    """However many are asked about."""
    for pid in range(1, 200):
        FakeProcess(proc, pid)
        names.server_of(pid, "127.0.1.1", 80)
    names.refresh()
    process = configured(proc, 200)
    assert ask(names, 200) is None

    for pid in range(1, 65):
        path = process.path.with_name(str(pid))
        path.rename(path.with_name(f"gone-{pid}"))
    assert ask(names, 200) is None
    assert ask(names, 200) == ServerName("api", "one")  # the ended ones made room


def test_the_thread_looks_as_soon_as_it_is_asked(proc, counters) -> None:
    """A worker after a reload has names before its first request is over."""
    configured(proc)
    names = HaproxyNames(counters, proc=proc, interval_s=3600)
    names.start()
    names.follow(PID)
    deadline = time.monotonic() + 5
    while names.server_of(PID, "127.0.1.1", 8001) is None and time.monotonic() < deadline:
        time.sleep(0.005)

    assert names.server_of(PID, "127.0.1.1", 8001) == ServerName("api", "one")
    names.close()
    assert "haproxy-names" not in {thread.name for thread in threading.enumerate()}


def test_questions_are_answered_while_a_socket_hangs(proc, counters, serve) -> None:
    """Only the thread waits; the known processes keep their names."""
    configured(proc, 70)
    hanging = serve(configured(proc, 71), {})
    names = HaproxyNames(counters, proc=proc, interval_s=3600, timeout_s=2)
    names.follow(70)
    names.refresh()
    names.start()
    names.follow(71)
    deadline = time.monotonic() + 5
    while not hanging.commands and time.monotonic() < deadline:
        time.sleep(0.005)
    started = time.monotonic()
    answers = [names.server_of(70, "127.0.1.1", 8001) for _ in range(1000)]

    assert set(answers) == {ServerName("api", "one")}
    assert time.monotonic() - started < 0.5
    hanging.close()
    names.close()


def test_there_is_no_thread_before_there_is_a_haproxy(proc, counters) -> None:
    """On most machines there never is."""
    names = HaproxyNames(counters, proc=proc)
    names.start()
    assert "haproxy-names" not in {thread.name for thread in threading.enumerate()}

    names.follow(PID)
    assert "haproxy-names" in {thread.name for thread in threading.enumerate()}
    names.close()


def test_a_host_has_the_name_that_haproxy_looked_up(proc, names, serve) -> None:
    """Where its configuration has an address there is none."""
    serve(configured(proc))
    ask(names)
    tables = names.tables_of(PID)

    assert tables is not None
    assert tables.host_at("127.0.1.1", 8001) == "backend-a"
    assert tables.host_at("127.0.1.9", 8001) == ""


def test_what_is_not_known_yet_is_told_from_what_is_not_there(proc, names) -> None:
    """Somebody may want to wait for the former."""
    assert names.tables_of(PID) is None
    names.refresh()

    assert names.tables_of(PID) == NameTables()


def test_everything_known_can_be_had_at_once(proc, names) -> None:
    """And it need not be asked for again before something may have changed."""
    configured(proc)
    names.tables_of(PID)
    before = names.looks
    names.refresh()

    assert names.looks > before
    assert names.all_tables() == {PID: names.tables_of(PID)}


def test_a_process_that_has_just_started_need_not_answer_yet(
    proc, counters, clock, serve, caplog
) -> None:
    """It reads its configuration first; it is asked again soon."""
    names = HaproxyNames(counters, proc=proc, timeout_s=0.3, settling_s=60, clock=clock)
    process = configured(proc)
    with caplog.at_level(logging.WARNING):
        assert ask(names) == ServerName("api", "one")
        serve(process)
        names.refresh(only_new=True)

        assert names.server_of(PID, "127.0.1.1", 8001) == ServerName("back", "a", 3, 1)
    assert (failures(counters), caplog.records) == ({}, [])


LOGS = [
    pytest.param("log stdout local0", "pipe:[7]", True, id="pipe"),
    pytest.param("log stdout local0", "/var/log/haproxy", True, id="file"),
    pytest.param("log stdout local0", "/dev/pts/0", True, id="terminal"),
    pytest.param("log stdout local0", "socket:[7]", False, id="socket"),
    pytest.param("log stdout local0", "/dev/null", False, id="nowhere"),
    pytest.param("log stdout local0", "", False, id="closed"),
    pytest.param("log stderr local0", "pipe:[7]", False, id="other-descriptor"),
    pytest.param("log 127.0.0.1:514 local0", "pipe:[7]", False, id="datagram"),
]


@pytest.mark.parametrize(("line", "stdout", "is_seen"), LOGS)
def test_a_log_on_stdout_is_known(proc, names, line, stdout, is_seen) -> None:
    """It costs something to see one, so only where lines do go there, and not past a socket."""
    process = configured(proc, text=f"frontend web\n {line}\n")
    (process.path / "fd").mkdir()
    if stdout:
        (process.path / "fd/1").symlink_to(stdout)
    ask(names)
    tables = names.tables_of(PID)

    assert names.logs_to_descriptor is is_seen
    assert tables is not None
    assert tables.has_log


def test_a_log_is_over_with_its_process(proc, names) -> None:
    """Its names are kept for a while; its log is not."""
    process = configured(proc, text="frontend web\n log stdout local0\n")
    (process.path / "fd").mkdir()
    (process.path / "fd/1").symlink_to("pipe:[7]")
    ask(names)
    assert names.logs_to_descriptor
    process.path.rename(process.path.with_name("gone"))
    names.refresh()

    assert not names.logs_to_descriptor


def test_who_depends_on_the_names_is_told(proc, counters) -> None:
    """After each look."""
    configured(proc)
    looked = threading.Event()
    names = HaproxyNames(counters, proc=proc, interval_s=3600, on_refresh=looked.set)
    names.start()
    names.follow(PID)

    assert looked.wait(5)
    names.close()


def test_a_process_that_ends_while_it_is_looked_at_is_no_defect(names, proc, counters) -> None:
    """As who starts a daemon does; the others are looked at all the same."""
    configured(proc)
    names.server_of(PID - 1, "127.0.1.1", 8001)
    names._files.started_s = _until_it_ends(names._files.started_s)

    FakeProcess(proc, PID - 1, "-f", "/none")
    assert ask(names) is not None
    assert "defect" not in failures(counters)


def _until_it_ends(look):
    def started_s(pid: int) -> float:
        if pid != PID:
            raise FileNotFoundError
        return look(pid)

    return started_s
