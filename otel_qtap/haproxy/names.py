"""
Which backend and server an address belongs to, and which frontend a port: HAProxy's words.

Sources, best first: the runtime socket of the very process; else its configuration files,
where they are older than the process; else nothing, and others name the address. The
words are those of the Collector's haproxy receiver: a proxy has services. An address with
two names has none: nothing here is guessed.

Questions are answered from dictionaries that are replaced whole, so they take no lock and
never wait; finding out is the work of a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from otel_qtap.counters import CounterSet
from otel_qtap.haproxy.configuration import configuration_files, parse
from otel_qtap.haproxy.process_files import ProcessFiles
from otel_qtap.haproxy.runtime import Runtime, RuntimeProblem, query
from otel_qtap.haproxy.view import CheckedServer, NameTables, ProcessView, ServerName

__all__ = ["CheckedServer", "HaproxyNames", "NameTables", "ServerName"]

INTERVAL_S = 15.0
TIMEOUT_S = 2.0  # for all answers of one socket
SETTLING_S = 5.0  # until a process that just started is expected to answer
_RETRY_S = 0.5  # meanwhile
KEEP_S = 60.0  # names of a process that ended: its last transactions are still to come
MAX_PROCESSES = 64
MAX_FILES = 64
MAX_FILE_SIZE = 4 * 1024 * 1024
_SETTLING_REASONS = frozenset({"socket_missing", "socket_refused", "socket_timeout"})
_CLOCK_TICK_S = 0.02  # to which the start of a process is known

_log = logging.getLogger(__name__)


class HaproxyNames:
    """
    Names by process. Ask only about HAProxy: the first question makes it look.

    ``sockets`` are paths of runtime sockets as this agent sees them; without any the
    configuration of each process says where its socket is.
    """

    def __init__(
        self,
        counters: CounterSet,
        *,
        sockets: Iterable[str] = (),
        proc: Path = Path("/proc"),
        interval_s: float = INTERVAL_S,
        timeout_s: float = TIMEOUT_S,
        settling_s: float = SETTLING_S,
        clock: Callable[[], float] = time.monotonic,
        on_refresh: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_refresh`` is called on the thread of the names each time that it has looked."""
        self._sockets = tuple(sockets)
        self._files = ProcessFiles(proc)
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._settling_s = settling_s
        self._clock = clock
        self._on_refresh = on_refresh
        self._counters = counters
        self._views: dict[int, ProcessView] = {}
        self.looks = 0
        """How often something may have changed."""
        self._asked: set[int] = set()
        self._settling: set[int] = set()
        self._is_settling = False  # the process being looked at
        self._told: set[tuple[str, str]] = set()
        self._wake = threading.Event()
        self._is_started = self._is_closing = False
        self._thread: threading.Thread | None = None
        counters.gauge(
            "otel_qtap.haproxy.names.servers",
            "{server}",
            "Servers of HAProxy whose names are known.",
            lambda: sum(len(view.tables.servers) for view in self._views.values()),
        )

    # Questions, from any thread -------------------------------------------------------

    def tables_of(self, pid: int) -> NameTables | None:
        """Return what is known of the names in process ``pid``; ``None`` before it was looked."""
        view = self._views.get(pid)
        if view is None:
            self.follow(pid)
            return None
        return view.tables

    def all_tables(self) -> dict[int, NameTables]:
        """Return what is known of all processes that were asked about."""
        return {pid: view.tables for pid, view in self._views.items()}

    @property
    def logs_to_descriptor(self) -> bool:
        """Whether one of the processes logs requests to a stdout or stderr that is no socket."""
        return any(view.logs_to_descriptor and not view.gone_s for view in self._views.values())

    def server_of(self, pid: int, address: str, port: int) -> ServerName | None:
        """
        Return the server that process ``pid`` has at an address.

        ``address`` may also be the host name that HAProxy's configuration uses, for who
        knows it: a container's name, say.
        """
        tables = self.tables_of(pid)
        return tables.server_at(address, port) if tables else None

    def checked_server_of(self, pid: int, address: str, port: int) -> CheckedServer | None:
        """Return the server whose health is checked at an address."""
        tables = self.tables_of(pid)
        return tables.checked_server_at(address, port) if tables else None

    def frontend_of(self, pid: int, local_port: int, local_address: str = "") -> str | None:
        """Return the frontend that takes connections to a port of process ``pid``."""
        tables = self.tables_of(pid)
        return tables.frontend_at(local_port, local_address) if tables else None

    def follow(self, pid: int) -> None:
        """Find out about a process that just appeared: a worker after a reload, say."""
        if pid not in self._asked and len(self._asked) < MAX_PROCESSES:
            self._asked.add(pid)
            self._wake.set()
            if self._is_started:
                self._begin()

    # The thread -----------------------------------------------------------------------

    def start(self) -> None:
        """From now on there is a thread that looks, as soon as there is something to look at."""
        self._is_started = True
        if self._asked:
            self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="haproxy-names", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop to look; what is known stays."""
        self._is_closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s * 2)

    def _run(self) -> None:
        due_s = 0.0
        while not self._is_closing:
            wait_s = due_s - self._clock()
            self._wake.wait(max(0.0, min(wait_s, _RETRY_S) if self._settling else wait_s))
            self._wake.clear()
            only_new = self._clock() < due_s
            if not only_new:
                due_s = self._clock() + self._interval_s
            try:
                self.refresh(only_new=only_new)
                self._on_refresh()
            except Exception:  # a defect of ours costs names, not the thread
                self._fail("defect", "", "an unexpected error")

    def refresh(self, *, only_new: bool = False) -> None:
        """Look at every process that was asked about, or only at those not yet known."""
        views = dict(self._views)
        for pid in sorted(self._asked | views.keys()):
            if self._is_closing:
                return
            if pid not in views or pid in self._settling or not only_new:
                view = self._look(pid, views.get(pid))
                if view is None:
                    views.pop(pid, None)
                    self._asked.discard(pid)
                else:
                    views[pid] = view
                    self._views = dict(views)  # at once: others may take their time
                    self.looks += 1
        self._views = views

    def _look(self, pid: int, before: ProcessView | None) -> ProcessView | None:
        """Return what is to be known of a process, ``None`` to forget it."""
        try:
            started = self._files.start_ticks(pid)
            age_s = time.time() - self._files.started_s(pid)
        except OSError:
            self._settling.discard(pid)
            before = before or ProcessView(0)  # so that it is not looked for at every question
            gone_s = before.gone_s or self._clock()
            is_over = self._clock() - gone_s > KEEP_S or len(self._asked) >= MAX_PROCESSES
            return None if is_over else replace(before, gone_s=gone_s)
        if before is None or before.started != started or before.gone_s:
            before = self._read_configuration(pid, started)
        self._is_settling = age_s < self._settling_s
        asked_ns = time.time_ns()
        runtime = self._ask(pid, before)
        if self._is_settling and runtime is None:
            self._settling.add(pid)
        else:
            self._settling.discard(pid)
        if runtime is None and before.runtime is not None:
            return before
        return before.with_runtime(runtime, asked_ns)

    def _read_configuration(self, pid: int, started: int) -> ProcessView:
        """Read the files of a process once: it does not read them again either."""
        texts: list[str] = []
        newest_s = 0.0
        try:
            named = configuration_files(self._files.arguments(pid))
            for path in self._all_files(pid, named):
                content = self._files.read(pid, path, MAX_FILE_SIZE)
                texts.append(content.data.decode("utf-8", "replace"))
                newest_s = max(newest_s, content.modified_s)
            has_variables = any("$" in text for text in texts)
            environment = self._files.environment(pid) if has_variables else {}
            is_trusted = newest_s <= self._files.started_s(pid) + _CLOCK_TICK_S
        except OSError as error:
            self._fail("configuration_unreadable", str(pid), error.strerror or "")
            return ProcessView(started)
        if not texts:
            return ProcessView(started)
        if not is_trusted:
            self._fail("configuration_changed", str(pid), "it is newer than the process")
        configuration = parse(texts, environment)
        logs_to_descriptor = is_trusted and any(
            self._files.is_written_to(pid, each) for each in configuration.log_descriptors
        )
        return ProcessView(started, configuration, is_trusted, logs_to_descriptor)

    def _all_files(self, pid: int, named: Iterable[str]) -> list[str]:
        """Return the files, those of a directory as HAProxy takes them (manual, 2.1)."""
        found: list[str] = []
        for path in named:
            names = self._files.directory(pid, path)
            if names is None:
                found.append(path)
            else:
                chosen = (name for name in names if name.endswith(".cfg") and name[0] != ".")
                found += [f"{path.rstrip('/')}/{name}" for name in chosen]
        return found[:MAX_FILES]

    # The runtime socket ---------------------------------------------------------------

    def _ask(self, pid: int, view: ProcessView) -> Runtime | None:
        """Return what the process says through one of its sockets."""
        for path in self._sockets:
            runtime = self._query(pid, path, path)
            if runtime is not None:
                return runtime
        for path in view.configuration.stats_sockets if view.configuration else ():
            try:
                with self._files.socket_path(pid, path) as reachable:
                    runtime = self._query(pid, path, reachable)
            except OSError as error:
                self._fail("socket_missing", path, error.strerror or "")
                continue
            if runtime is not None:
                return runtime
        return None

    def _query(self, pid: int, path: str, reachable: str) -> Runtime | None:
        try:
            runtime = query(reachable, self._timeout_s)
        except RuntimeProblem as problem:
            self._fail(problem.reason, path, "")
            return None
        self._told = {(reason, about) for reason, about in self._told if about != path}
        return runtime if self._is_of(pid, runtime) else None

    def _is_of(self, pid: int, runtime: Runtime) -> bool:
        """Whether it was process ``pid`` that answered: an old worker's socket is the new one's."""
        try:
            if runtime.process_id != self._files.own_pid(pid):
                return False
            return not runtime.listener_id or self._files.shares_pids(pid, runtime.listener_id)
        except OSError:
            return True  # the process that opened the socket has ended

    def _fail(self, reason: str, about: str, detail: str) -> None:
        """Count a failure; say it once until it works again."""
        if self._is_settling and reason in _SETTLING_REASONS:
            return  # it is not there yet
        self._counters.counter(
            "otel_qtap.haproxy.names.failures",
            "{failure}",
            "What kept the agent from learning HAProxy's names, by reason.",
            reason=reason,
        ).add()
        if (reason, about) not in self._told and len(self._told) < MAX_PROCESSES * 4:
            self._told.add((reason, about))
            _log.warning("names of HAProxy: %s %s %s", reason.replace("_", " "), about, detail)
