"""What HAProxy answers at its runtime socket, without HAProxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ANSWERS", "RuntimeServer"]

INFO = "Name: HAProxy\nVersion: 2.6.12\nPid: 77\n\n"
STATE = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight"
    " srv_iweight srv_time_since_last_change srv_check_status srv_check_result"
    " srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id"
    " srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr"
    " srv_agent_addr srv_agent_port\n"
    "3 back 1 a 127.0.1.1 2 0 1 1 0 6 3 5 6 0 0 0 Backend-A 8001 - 0 0 - - 0\n"
    "3 back 2 six ::1 2 0 1 1 1 1 0 2 0 0 0 0 - 8001 - 0 0 - - 0\n"
    "3 back 3 off 127.0.1.5 0 5 1 1 1 1 0 0 14 0 0 0 - 8009 - 0 8010 127.0.1.6 - 0\n"
    "4 other 1 unix - 2 0 1 1 1 1 0 2 0 0 0 0 - 0 - 0 0 - - 0\n\n"
)
STATISTICS = (
    "# pxname,svname,type,check_rise,check_fall,check_health,\n"
    "front,FRONTEND,0,,,,\n"
    "back,a,2,4,2,5,\n"
    "back,BACKEND,1,,,,\n\n"
)
ANSWERS: Mapping[str, str] = {
    "show info": INFO,
    "show servers state": STATE,
    "show stat": STATISTICS,
}
"""Of process 77, as HAProxy 2.6 and 2.8 print them, with fewer columns of statistics."""


class RuntimeServer:
    """Listens at a Unix socket; a command that is not in ``answers`` gets none, ever."""

    def __init__(self, path: Path, answers: Mapping[str, str]) -> None:
        self.path = str(path)
        self.commands: list[str] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(self.path)
        self._listener.listen()
        self._silent: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the path stays, as that of a process that crashed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        for each in (self._listener, *self._silent):
            each.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            command = client.recv(1000).decode().strip()
            self.commands.append(command)
            answer = self._answers.get(command)
            if answer is None:
                self._silent.append(client)
                continue
            with client, contextlib.suppress(OSError):
                client.sendall(answer.encode())
