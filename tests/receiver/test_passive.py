"""
The kernel side only looks: nothing in ``bpf/`` can change a process, a packet or a socket.

A scan of the sources, so that a helper that writes cannot come in unnoticed: what is
called is compared with a list of what may be, and not only with one of what may not.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otel_qtap.receiver.btf import KernelTypes
from otel_qtap.receiver.programs import PROBES, Rung, bpf_directory, load_request

_ALLOWED_HELPERS = {
    "bpf_get_current_pid_tgid",
    "bpf_get_current_task",
    "bpf_get_current_task_btf",
    "bpf_get_smp_processor_id",
    "bpf_ktime_get_ns",
    "bpf_probe_read_kernel",
    "bpf_probe_read_kernel_str",
    "bpf_probe_read_user",
    "bpf_task_pt_regs",
}
_NO_HELPERS = {"bpf_raw_tracepoint_args"}  # a struct

_FORBIDDEN = re.compile(
    r"bpf_(probe_write_user|override_return|send_signal\w*|skb_\w+|sk_\w+|msg_\w+|xdp_\w+|"
    r"setsockopt|redirect\w*|clone_redirect|l[34]_csum_replace|csum_\w+|store_hdr_opt|"
    r"sys_bpf|sys_close|set_retval|trace_printk|d_path|copy_from_user\w*|kfunc\w*|"
    r"timer_\w+|spin_\w+|tail_call)\b"
)
_FORBIDDEN_MACROS = re.compile(
    r"\b(kprobe|kretprobe|kfunc|kretfunc|LSM_PROBE|KFUNC_PROBE|MODIFY_RETURN|SEC)\b\s*(__|\()"
)


def _sources() -> list[Path]:
    return sorted(p for p in bpf_directory().rglob("*") if p.suffix in (".c", ".h"))


def _code(path: Path) -> str:
    """The text without comments, which may well speak of what is not done."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", _sources(), ids=lambda p: p.name)
def test_no_source_calls_a_helper_that_writes(path) -> None:
    """Nor one that waits, sends, prints or steers."""
    code = _code(path)
    called = set(re.findall(r"\b(bpf_\w+)\s*\(", code)) - _NO_HELPERS

    assert called <= _ALLOWED_HELPERS
    assert not _FORBIDDEN.search(code)
    assert not _FORBIDDEN_MACROS.search(code)


def test_the_scan_sees_the_programs() -> None:
    """A scan of nothing finds nothing: it must meet what is known to be there."""
    names = {path.name for path in _sources()}
    called = set().union(*(re.findall(r"\b(bpf_\w+)\s*\(", _code(p)) for p in _sources()))

    assert {"tap.bpf.c", "data.h", "connection.h", "haproxy.h"} <= names
    assert {"sockets.h", "syscalls.h"} <= names
    assert {"bpf_probe_read_user", "bpf_ktime_get_ns"} <= called
    assert _FORBIDDEN.search("bpf_probe_write_user(p, &v, 1)")
    assert _FORBIDDEN.search("bpf_send_signal_thread(9)")
    assert _FORBIDDEN.search("bpf_skb_store_bytes(skb, 0, 0, 0, 0)")


@pytest.mark.parametrize("rung", list(Rung))
def test_only_tracepoints_are_asked_for(rung) -> None:
    """No kprobe, no fentry, no LSM, no socket filter: those can change or refuse things."""

    class Types(KernelTypes):
        def __init__(self) -> None:
            pass

        def offset(self, path: str) -> int:  # noqa: ARG002
            return 0

    request = load_request(rung, Types(), 1 << 20)
    for hook in request.hooks + request.idle_hooks:
        if hook.is_raw:
            assert re.fullmatch(r"(inet_sock|tcp|sched_process|sock)_\w+", hook.tracepoint)
        else:
            assert re.fullmatch(r"syscalls:sys_(enter|exit)_[a-z0-9_]+", hook.tracepoint)


def test_the_loader_attaches_in_no_other_way() -> None:
    """To raw and ordinary tracepoints."""
    source = Path(__file__).parents[2] / "otel_qtap" / "receiver" / "bcc.py"
    text = source.read_text(encoding="utf-8")

    assert set(re.findall(r"\.((?:bpf_)?attach_\w+)\(", text)) == {
        "attach_raw_tracepoint",
        "attach_tracepoint",
        "bpf_attach_tracepoint",
    }
    # The kernel has one type of program for its own functions and for those of programs; these
    # are loaded here and attached by uprobes.py.
    types = {"RAW_TRACEPOINT", "TRACEPOINT", "KPROBE"}
    assert set(re.findall(r"bcc\.BPF\.([A-Z_]+)", text)) == types
    assert set(re.findall(r"bcc\.lib\.(\w+)", text)) == {"bpf_attach_tracepoint"}


def test_probes_go_to_functions_of_programs_only() -> None:
    """Through the source of events that knows no others, never to a function of the kernel."""
    source = Path(__file__).parents[2] / "otel_qtap" / "receiver" / "uprobes.py"
    text = source.read_text(encoding="utf-8")

    assert re.findall(r"/sys/[\w/]+", text) == ["/sys/bus/event_source/devices/uprobe/type"]


def test_probes_keep_to_maps_of_their_own() -> None:
    """A program on a function of HAProxy notes what it was called with, and nothing else."""
    code = _code(bpf_directory() / "haproxy.h")
    flags = re.DOTALL | re.MULTILINE
    programs = re.findall(r"^int (\w+)\(struct pt_regs \*ctx\)\n{(.*?)^}", code, flags)
    shared = re.findall(r"^static [^\n]* begin_call\([^{]*{(.*?)^}", code, flags)

    assert {name for name, _ in programs} == set(PROBES)
    assert len(shared) == 1
    for body in [*(body for _, body in programs), *shared]:
        used = set(re.findall(r"(\w+(?:\.\w+)?)\(", body))
        assert used <= {
            "if", "PT_REGS_PARM1", "PT_REGS_PARM2", "PT_REGS_SP", "PT_REGS_IP", "sizeof",
            "begin_call", "bpf_get_current_pid_tgid", "stream_key", "generations.lookup",
            "generations.update", "processing.lookup", "processing.update", "processing.delete",
            "bpf_probe_read_user", "__builtin_memcpy", "__builtin_memset",
        }  # fmt: skip


# Where the bytes that are read may go. A pointer into user memory is a number (u64) in these
# programs and has to be cast where it is used, so the name of one cannot be among these.
_TARGETS = {
    "a variable on the stack": {
        "&context", "&error", "&file", "&inode", "&limit", "&mode", "&name", "&net", "&next",
        "&number", "&pid", "&pointer", "&protocol", "&returns_to", "&segment", "&task", "&tgid",
        "&call.return_address", "call", "code", "last", "words",
    },
    "what the caller has on its stack or in a map": {
        "&out->serial", "address->bytes", "probe", "start", "&c->local_port",
    },
    "memory of a map": {
        "executed->executable", "record->context", "record->stream", "record->targets[i]",
        "scratch->payload", "text",
    },
    "a record reserved in the ring": {"payload"},
    "the parameter of the macro itself": {"&(destination)"},
}  # fmt: skip


@pytest.mark.parametrize("path", _sources(), ids=lambda p: p.name)
def test_user_memory_is_never_the_target_of_a_read(path) -> None:
    """What is read goes to the stack, into a map or into the ring."""
    code = _code(path)
    targets = set(re.findall(r"\bbpf_probe_read_\w+\s*\(\s*([^,]+),", code))
    targets |= {f"&{name}" for name in re.findall(r"\bREAD_FIELD\(\s*([^,]+),", code)}
    targets.discard("&destination")

    assert targets <= set().union(*_TARGETS.values())


def test_every_target_of_a_read_is_still_one() -> None:
    """A name that is not used any more is not left for something else to be called."""
    code = "".join(map(_code, _sources()))
    for target in set().union(*_TARGETS.values()):
        name = target.removeprefix("&")
        is_field = re.search(rf"\bREAD_FIELD\({re.escape(name)},", code)
        assert is_field or re.search(rf"bpf_probe_read_\w+\(\s*{re.escape(target)},", code), target
