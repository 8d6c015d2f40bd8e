"""
Probes do no harm: HAProxy under a seccomp filter that does not know what probes may bring.

A probe on the return of a function makes the process execute a system call of its own on
some kernels (x86-64, Linux 6.11); a filter from before that ends the process then. Services
and containers have such filters.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from kernel.agent import RunningAgent, qtap_file
from traffic.client import ClientPlan, run_client
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries

from otel_qtap.receiver.recording import Recording
from otel_qtap.replay import recorded_transactions
from otel_qtap.transaction.link import LinkMethod

_SERVERS = (Server("a", "backend-a", 8001, "check inter 100ms"),)
_LAUNCHER = """\
#!{python}
import ctypes, os, struct, sys

# Everything is allowed up to rseq (334) and from pidfd_send_signal (424) to 450: what there was
# when Linux 6.5 was new. uretprobe is 335, uprobe is 336. The process is ended by anything else.
LOAD, AT_LEAST, RETURN = 0x20, 0x35, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
program = [
    (LOAD, 0, 0, 0),  # the number of the call
    (AT_LEAST, 0, 3, 335),
    (AT_LEAST, 0, 1, 424),
    (AT_LEAST, 0, 1, 451),
    (RETURN, 0, 0, KILL),
    (RETURN, 0, 0, ALLOW),
]
code = b"".join(struct.pack("<HBBI", *each) for each in program)
keep = ctypes.create_string_buffer(code)
filter = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(keep))
libc = ctypes.CDLL(None, use_errno=True)
NO_NEW_PRIVILEGES, SET_SECCOMP, MODE_FILTER = 38, 22, 2
if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SET_SECCOMP, MODE_FILTER, filter):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv({haproxy!r}, [{haproxy!r}, *sys.argv[1:]])
"""


def _filtered(directory: Path, haproxy: Path) -> Path:
    """Return a program that starts HAProxy under the filter."""
    launcher = directory / "haproxy"
    launcher.write_text(_LAUNCHER.format(python=sys.executable, haproxy=str(haproxy)))
    launcher.chmod(0o755)
    return launcher


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
@pytest.mark.parametrize("version", list(find_binaries()))
def test_a_filter_that_knows_no_probes_does_not_end_haproxy(
    world, binaries, only_haproxy, tmp_path, version
) -> None:
    """It serves as before, under load as well, and all of it is linked."""
    recording = tmp_path / "all.qtaprec"
    config = qtap_file(tap=f"{only_haproxy}\nlink: probe")
    settings = HAProxySettings(
        servers=_SERVERS, port=8261, nbthread=2, http_reuse="always",
        defaults_lines=("option httpchk GET /health",),
    )  # fmt: skip
    plan = ClientPlan(requests=400, connections=8, port=8261, target="/filtered?n={n}")
    launcher = _filtered(tmp_path, binaries[version])
    with HAProxy(world, tmp_path / "run", settings, binary=launcher) as haproxy:
        pid = haproxy.worker_pid
        assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
        with RunningAgent(tmp_path, config, command=("record", str(recording))) as agent:
            done = run_client(world, plan)
            time.sleep(0.5)  # some health checks
            assert haproxy.worker_pid == pid
        assert "linked by probes" in agent.errors()

    assert done.outcomes == {"complete": 400}
    transactions = list(recorded_transactions(Recording(recording)))
    by_id = {t.request_id: t for t in transactions}
    sent = [t for t in transactions if not t.direction.is_ingress and t.path == "/filtered"]
    assert len(sent) == 400
    for transaction in sent:
        assert transaction.link is not None
        assert transaction.link.method is LinkMethod.STREAM
        assert by_id[transaction.link.parent_id].query == transaction.query
