"""The agent's side of loading: every way in which a machine can refuse is one message."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from otel_qtap.receiver import bcc, loader
from otel_qtap.receiver.btf import BtfError, KernelTypes
from otel_qtap.receiver.loader import choose_rung, kernel_release, load
from otel_qtap.receiver.programs import LOG_HOOK, Hook, LoadRequest, MachineError, Rung

REQUEST = LoadRequest(
    source="int on_send() {}",
    flags=("-DX=1",),
    include_directory="/bpf",
    hooks=(Hook("on_send", "sock_send_length"), Hook("on_enter", "syscalls:sys_enter_read")),
    maps=("records",),
    probes=("on_process_stream",),
    idle_hooks=(Hook("on_log_write", "syscalls:sys_enter_writev"),),
)
MESSAGE = {
    "source": REQUEST.source,
    "flags": ["-DX=1"],
    "include_directory": "/bpf",
    "hooks": [["on_send", "sock_send_length"], ["on_enter", "syscalls:sys_enter_read"]],
    "maps": ["records"],
    "probes": ["on_process_stream"],
    "idle": ["on_log_write"],
}
"""What the loader process is sent."""

ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"


@pytest.fixture
def machine(monkeypatch) -> Callable[..., None]:
    """Makes this machine look like another one; by default like one that is good."""

    def make(
        *,
        platform: str = "linux",
        architecture: str = "x86_64",
        release: str = "6.18.0-1-amd64",
        capabilities: str = ALL_CAPABILITIES,
        user: int = 0,
        types: object = None,
    ) -> None:
        class Kernel:
            @staticmethod
            def of_running_kernel() -> object:
                if isinstance(types, Exception):
                    raise types
                return types

        monkeypatch.setattr("sys.platform", platform)
        monkeypatch.setattr("platform.machine", lambda: architecture)
        monkeypatch.setattr("platform.release", lambda: release)
        monkeypatch.setattr("os.geteuid", lambda: user)
        monkeypatch.setattr(loader, "KernelTypes", Kernel)
        monkeypatch.setattr(loader, "load_request", lambda *_: REQUEST)
        status = io.StringIO(f"Name:\tx\n{capabilities}")
        monkeypatch.setattr(loader.Path, "read_text", lambda _self: status.read())

    return make


_RELEASES = [
    ("6.18.0-1-amd64", (6, 18)),
    ("5.10.0", (5, 10)),
    ("6.1.0-rc7+", (6, 1)),
    ("5.15.153.1-microsoft-standard-WSL2", (5, 15)),
    ("unknown", (0, 0)),
]


@pytest.mark.parametrize(("text", "expected"), _RELEASES)
def test_a_release_is_read_from_its_beginning(text, expected) -> None:
    """Whatever the distribution puts behind it."""
    assert kernel_release(text) == expected


@pytest.mark.parametrize(
    ("wanted", "kernel", "chosen"),
    [
        (None, (6, 18), Rung.SOCKETS),
        (None, (6, 3), Rung.SOCKETS),
        (None, (6, 2), Rung.SYSCALLS),
        (None, (5, 10), Rung.SYSCALLS),
        (Rung.SYSCALLS, (6, 18), Rung.SYSCALLS),
        (Rung.SOCKETS, (6, 3), Rung.SOCKETS),
    ],
)
def test_the_best_rung_is_chosen_unless_one_is_wanted(wanted, kernel, chosen) -> None:
    """By what the kernel carries."""
    assert choose_rung(wanted, kernel) is chosen


def test_a_rung_that_the_kernel_does_not_carry_is_refused() -> None:
    """With the release it needs, the one there is, and the way out."""
    with pytest.raises(
        MachineError, match=r"--rung=sockets needs Linux 6\.3 or later, this is 6\.2; leave"
    ):
        choose_rung(Rung.SOCKETS, (6, 2))


_BAD_MACHINES = [
    pytest.param(
        {"platform": "darwin"}, "captured with eBPF, which darwin has not", id="not-linux"
    ),
    pytest.param(
        {"architecture": "riscv64"}, "only x86-64 and arm64 .* this is riscv64", id="architecture"
    ),
    pytest.param(
        {"release": "5.4.0-1"}, r"Linux 5\.10 or later is needed .* this is 5\.4", id="old-kernel"
    ),
    pytest.param(
        {"capabilities": "CapEff:\t0000000000000000\n", "user": 1000},
        "needs root: run with sudo, or .*--privileged",
        id="no-root",
    ),
    pytest.param(
        {"capabilities": "CapEff:\t00000000a80425fb\n", "user": 0},
        "needs the capabilities CAP_BPF and CAP_PERFMON",
        id="root-in-a-container",
    ),
    pytest.param(
        {"capabilities": f"CapEff:\t{1 << 39:016x}\n"}, "CAP_BPF and CAP_PERFMON", id="one-of-two"
    ),
    pytest.param(
        {"types": BtfError("cannot read /sys/kernel/btf/vmlinux")},
        "cannot read /sys/kernel/btf/vmlinux",
        id="no-btf",
    ),
]


@pytest.mark.parametrize(("facts", "message"), _BAD_MACHINES)
def test_a_machine_that_cannot_is_told_why(machine, monkeypatch, facts, message) -> None:
    """Before any process is started."""
    machine(**facts)
    monkeypatch.setattr(loader, "_run_loader", lambda _: pytest.fail("started the loader"))

    with pytest.raises(MachineError, match=message):
        load(None, 1 << 20)


@pytest.mark.parametrize(
    "capabilities",
    [ALL_CAPABILITIES, f"CapEff:\t{1 << 21:016x}\n", f"CapEff:\t{1 << 38 | 1 << 39:016x}\n"],
    ids=["all", "sys-admin", "bpf-and-perfmon"],
)
def test_enough_capabilities_are_enough(machine, monkeypatch, capabilities) -> None:
    """Whoever the user is."""
    machine(capabilities=capabilities, user=1000)
    names = ["map:records", "program:on_send", "attachment:sock_send_length"]
    monkeypatch.setattr(loader, "_run_loader", lambda _: (names, [50, 51, 52]))

    loaded = load(None, 1 << 20)

    assert loaded.rung is Rung.SOCKETS
    assert (loaded.maps, loaded.programs) == ({"records": 50}, {"on_send": 51})
    assert loaded.attachments == {"sock_send_length": 52}


def test_what_was_loaded_is_released_at_once() -> None:
    """All descriptors; a second time does no harm."""
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    loaded = loader.LoadedPrograms(
        Rung.SOCKETS, {"a": descriptors[0]}, {"b": descriptors[1]}, {"c": descriptors[2]}
    )
    loaded.close()
    loaded.close()

    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


# The conversation ----------------------------------------------------------------------


class FakeLoader:
    """The other end of the socket, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(5)

        def run() -> None:
            with theirs:
                serve(theirs)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def close(self) -> None:
        self.ours.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def converse() -> Iterator[Callable[..., Any]]:
    fakes: list[FakeLoader] = []

    def start(
        serve: Callable[[socket.socket], None],
        message: dict[str, Any] = MESSAGE,
        programs: tuple[int, ...] = (),
    ) -> tuple[list[str], list[int]]:
        fakes.append(FakeLoader(serve))
        return loader._converse(fakes[-1].ours, message, programs)

    yield start
    for fake in fakes:
        fake.close()


def _take(channel: socket.socket) -> dict[str, Any]:
    request: dict[str, Any] = bcc.receive_message(channel)
    return request


def test_the_descriptors_come_with_their_names(converse) -> None:
    """More of them than fit in one message; the loader waits until they are there."""
    seen: list[Any] = []
    is_done = threading.Event()
    names = [f"map:{n}" for n in range(100)]

    def serve(channel: socket.socket) -> None:
        seen.append(_take(channel))
        bcc.send_message(channel, {"names": names})
        with Path("/dev/null").open("rb") as null:
            for start in (0, 64):
                count = len(names[start : start + 64])
                socket.send_fds(channel, [b"\0"], [null.fileno()] * count)
            seen.append(channel.recv(1))
            is_done.set()

    told, descriptors = converse(serve)

    assert told == names
    assert len(set(descriptors)) == 100
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    for descriptor in descriptors:
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == Path("/dev/null")
        os.close(descriptor)
    assert is_done.wait(5)
    assert seen == [MESSAGE, b"\0"]


def test_all_that_is_to_be_loaded_is_sent(machine, monkeypatch) -> None:
    """In the words of the loader process; the probes with the rest."""
    machine()
    sent: list[dict[str, Any]] = []

    def run(message: dict[str, Any]) -> tuple[list[str], list[int]]:
        sent.append(json.loads(json.dumps(message)))
        return [], []

    monkeypatch.setattr(loader, "_run_loader", run)
    load(None, 1 << 20)

    assert sent == [MESSAGE]


def test_programs_go_along_to_be_attached(converse) -> None:
    """One for each place; what keeps them attached comes back."""
    seen: list[Any] = []

    def serve(channel: socket.socket) -> None:
        seen.append(_take(channel))
        _, received, _, _ = socket.recv_fds(channel, 1, 2)
        seen.append([Path(f"/proc/self/fd/{each}").readlink() for each in received])
        bcc.send_message(channel, {"names": ["attachment:a"]})
        socket.send_fds(channel, [b"\0"], received[:1])
        for each in received:
            os.close(each)
        channel.recv(1)

    with Path("/dev/null").open("rb") as null:
        names, descriptors = converse(serve, {"attach": ["place"]}, (null.fileno(), null.fileno()))

    assert names == ["attachment:a"]
    assert seen == [{"attach": ["place"]}, [Path("/dev/null")] * 2]
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_hook_is_told_with_its_program(monkeypatch) -> None:
    """By its tracepoint; what keeps it attached comes back by that name."""
    asked: list[Any] = []

    def run(message: dict[str, Any], programs: list[int]) -> tuple[list[str], list[int]]:
        asked.append((message, programs))
        return ["attachment:syscalls:sys_enter_writev"], [50]

    monkeypatch.setattr(loader, "_run_loader", run)

    assert loader.attach_hook(LOG_HOOK, 10) == {"syscalls:sys_enter_writev": 50}
    assert asked == [({"tracepoint": "syscalls:sys_enter_writev"}, [10])]


_REFUSALS = [
    pytest.param(bcc.MISSING_BCC, "", "^the BPF .* not installed: apt-get install", id="no-bcc"),
    pytest.param(
        "Failed to load BPF program b'on_send': Operation not permitted",
        "",
        "refuses eBPF .*--privileged.*lockdown.*seccomp",
        id="eperm",
    ),
    pytest.param("Need super-user privileges to run", "", "run as root", id="super-user"),
    pytest.param("bpf: Function not implemented", "", "CONFIG_BPF_SYSCALL is off", id="no-bpf"),
    pytest.param(
        "Failed to compile BPF module <text>",
        "\n".join(f"line {n}" for n in range(40)),
        "could not be loaded: Failed to compile.*\n.*line 39$",
        id="compiler",
    ),
    pytest.param("cannot attach to x", "", "could not be loaded: cannot attach to x$", id="bare"),
]


@pytest.mark.parametrize(("error", "detail", "message"), _REFUSALS)
def test_what_the_loader_could_not_do_is_explained(converse, error, detail, message) -> None:
    """By cause and way out; of a compiler's output its end."""

    def serve(channel: socket.socket) -> None:
        _take(channel)
        bcc.send_message(channel, {"error": error, "detail": detail})

    with pytest.raises(MachineError, match=rf"(?s){message}") as caught:
        converse(serve)
    assert "line 20" not in str(caught.value)


@pytest.mark.parametrize("program", ["exit 1", "sleep 30"], ids=["dies", "hangs"])
def test_a_loader_that_does_not_answer_is_one_message(monkeypatch, program) -> None:
    """And it does not stay behind."""
    popen, started = loader.subprocess.Popen, []

    def start(_arguments: list[str], **options: Any) -> Any:
        started.append(popen(["/bin/sh", "-c", f"exec {program}"], **options))
        return started[0]

    monkeypatch.setattr(loader.subprocess, "Popen", start)
    monkeypatch.setattr(loader, "_LOAD_TIMEOUT_S", 0.3)

    with pytest.raises(MachineError, match="the eBPF loader did not answer"):
        loader._run_loader(MESSAGE)
    assert started[0].returncode is not None


# The loader process ----------------------------------------------------------------------


def test_bcc_is_found_where_distributions_put_it(monkeypatch, tmp_path) -> None:
    """Whatever interpreter runs the agent; a package of that name without BPF is not it."""
    impostor = ModuleType("bcc")
    monkeypatch.setitem(bcc.sys.modules, "bcc", impostor)
    (tmp_path / "bcc.py").write_text("BPF = 'the real one'\n")
    monkeypatch.setattr(bcc, "BCC_DIRECTORIES", (str(tmp_path),))

    assert bcc.import_bcc().BPF == "the real one"


def test_a_machine_without_bcc_is_told_how_to_get_it(monkeypatch, tmp_path) -> None:
    """The command for Debian, Ubuntu and Fedora."""
    monkeypatch.setitem(bcc.sys.modules, "bcc", ModuleType("bcc"))
    monkeypatch.setattr(bcc, "BCC_DIRECTORIES", (str(tmp_path),))

    with pytest.raises(ImportError, match="apt-get install python3-bpfcc"):
        bcc.import_bcc()


class FakeBpf:
    """What the loader uses of bcc."""

    RAW_TRACEPOINT, TRACEPOINT, KPROBE = "raw", "ordinary", "probe"
    refused = ""
    refused_program = ""
    made: list[FakeBpf]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.loaded: list[tuple[str, str]] = []
        self.raw_tracepoint_fds: dict[bytes, int] = {}
        self.tracepoint_fds: dict[bytes, int] = {}
        type(self).made.append(self)

    def __getitem__(self, name: str) -> Any:
        return type("Map", (), {"map_fd": 10})()

    def load_func(self, name: str, kind: str) -> Any:
        if name == self.refused_program:
            raise OSError(f"Failed to load {name}")
        self.loaded.append((name, kind))
        return type("Program", (), {"fd": 20 + len(self.loaded)})()

    def attach_raw_tracepoint(self, *, tp: str, fn_name: str) -> None:
        self._attach(self.raw_tracepoint_fds, tp, fn_name)

    def attach_tracepoint(self, *, tp: str, fn_name: str) -> None:
        self._attach(self.tracepoint_fds, tp, fn_name)

    def _attach(self, table: dict[bytes, int], tracepoint: str, function: str) -> None:
        if tracepoint == self.refused:
            raise OSError(f"no {function}")
        table[tracepoint.encode()] = 30


@pytest.fixture
def fake_bpf(monkeypatch) -> type[FakeBpf]:
    FakeBpf.made = []
    module = ModuleType("bcc")
    module.BPF = FakeBpf  # type: ignore[attr-defined]
    monkeypatch.setattr(bcc, "import_bcc", lambda: module)
    monkeypatch.setattr(FakeBpf, "module", module, raising=False)
    monkeypatch.setattr(bcc, "_see_tracing_files", lambda: None)
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "")
    return FakeBpf


def test_the_loader_attaches_what_it_is_asked_to(fake_bpf) -> None:
    """Raw tracepoints by name alone, others by category; with the headers that we bring."""
    names, descriptors = bcc._load(MESSAGE)

    assert names == [
        "map:records",
        "program:on_send",
        "attachment:sock_send_length",
        "program:on_enter",
        "attachment:syscalls:sys_enter_read",
        "program:on_process_stream",
        "program:on_log_write",
    ]
    assert descriptors == [10, 21, 30, 22, 30, 23, 24]
    assert fake_bpf.made[0].loaded == [
        ("on_send", "raw"), ("on_enter", "ordinary"), ("on_process_stream", "probe"),
        ("on_log_write", "ordinary"),
    ]  # fmt: skip
    assert fake_bpf.made[0].options["cflags"] == ["-DX=1"]
    assert os.environ["BCC_KERNEL_SOURCE"] == "/bpf"


def test_a_tracepoint_that_is_not_there_is_named(fake_bpf, monkeypatch) -> None:
    """A kernel can be built without it."""
    monkeypatch.setattr(fake_bpf, "refused", "syscalls:sys_enter_read")

    with pytest.raises(RuntimeError, match="cannot attach to the tracepoint syscalls:sys_enter_re"):
        bcc._load(MESSAGE)


@pytest.mark.parametrize("program", ["on_process_stream", "on_log_write"])
def test_a_kernel_that_refuses_a_spare_program_goes_without(fake_bpf, monkeypatch, program) -> None:
    """They add to the capture, which itself does not need them."""
    monkeypatch.setattr(fake_bpf, "refused_program", program)

    names, descriptors = bcc._load(MESSAGE)

    assert len(names) == len(descriptors) == 6
    assert not any(program in name for name in names)


class Attaching:
    """``bcc.lib`` as far as hooks on demand need it."""

    def __init__(self, answer: int = 40) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._answer = answer

    def bpf_attach_tracepoint(self, *arguments: Any) -> int:
        self.asked.append(arguments)
        return self._answer


@pytest.mark.parametrize("answer", [40, -1], ids=["attached", "refused"])
def test_a_hook_is_attached_by_its_tracepoint(fake_bpf, answer) -> None:
    """With the program that came for it; where that is refused, the tracepoint is named."""
    ours, theirs = socket.socketpair()
    lib = fake_bpf.module.lib = Attaching(answer)
    with ours, theirs, Path("/dev/null").open("rb") as null:
        socket.send_fds(ours, [b"\0"], [null.fileno()])
        if answer < 0:
            with pytest.raises(OSError, match="cannot attach to the tracepoint syscalls:sys_ent"):
                bcc._attach_tracepoint(theirs, LOG_HOOK.tracepoint)
        else:
            told = bcc._attach_tracepoint(theirs, LOG_HOOK.tracepoint)
            assert told == (["attachment:syscalls:sys_enter_writev"], [40])
    ((program, *place),) = lib.asked
    assert place == [b"syscalls", b"sys_enter_writev"]
    assert Path(f"/proc/self/fd/{program}").readlink() == Path("/dev/null")
    os.close(program)


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="tells no types")
@pytest.mark.parametrize("rung", list(Rung))
def test_this_kernel_has_all_that_is_asked_for(rung) -> None:
    """Every offset is found; no privilege is needed for that."""
    request = loader.load_request(rung, KernelTypes.of_running_kernel(), 1 << 20)
    assert request.hooks
