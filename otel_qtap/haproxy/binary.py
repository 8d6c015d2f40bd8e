"""
What a HAProxy executable says about itself: where its functions and variables lie.

HAProxy is linked with ``--export-dynamic``, so even a stripped package names its
functions. Where it is not, as in a static program, the names are still there unless it was
stripped. Everything here is read once per executable; nothing is taken from a table of
versions.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.hash import GNUHashTable
from elftools.elf.sections import SymbolTableSection
from elftools.elf.segments import Segment

__all__ = [
    "BinaryError",
    "ForeignError",
    "HaproxyBinary",
    "is_called_directly",
    "load_bias",
    "read_binary",
]

_PAGE = os.sysconf("SC_PAGESIZE")
_MAPPING = re.compile(
    r"([0-9a-f]+)-[0-9a-f]+ \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)", re.ASCII
)
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_CODE_BYTES = 16
_CONTEXTS = (("th_ctx", "ha_thread_ctx"), ("sched", "task_per_thread"))
"""The variable of each thread and the array that it points into: since 2.5, and before."""
_SYMBOLS = (
    "process_stream", "process_chk", "stream_free", "clock_leaving_poll",
    *(name for pair in _CONTEXTS for name in pair),
)  # fmt: skip
_CALL = b"\xe8"  # x86-64: call rel32
_CALL_BYTES = 5
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
_TYPES = {1: "STT_OBJECT", 2: "STT_FUNC", 6: "STT_TLS"}
_THREAD_CONTROL_BLOCK = 16  # arm64: what stands before the first thread-local variable


class BinaryError(Exception):
    """A file that is not a HAProxy that names its functions; the text says what is missing."""


class ForeignError(BinaryError):
    """A program of another kind: exporters and controllers are called after HAProxy, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HaproxyBinary:
    """The places that identify the stream being processed; addresses as linked."""

    process_stream: int
    process_check: int
    """Address of ``process_chk``, the task of a health check; 0 where it has no name."""
    obstacle: str = ""
    """Why a thread's context cannot be found, and only probes can help; empty: it can."""
    thread_context: int = 0
    """Offset of the thread-local ``th_ctx`` (before 2.5: ``sched``) from the thread pointer."""
    contexts: int = 0
    """Address of ``ha_thread_ctx`` (``task_per_thread``), the array that it points into."""
    contexts_size: int = 0
    first_address: int
    """Address of the first page of the file, which the load bias is counted from."""
    process_stream_probe: int
    """Offset in the file at which a probe on ``process_stream`` costs least."""
    stream_free_probe: int
    """The same for ``stream_free``; 0 where it has no name."""
    leaving_poll_probe: int
    """The same for ``clock_leaving_poll``, which each thread calls before it looks at events."""
    has_cheap_probes: bool
    """Whether the kernel emulates the instructions there: else a probe costs ten times more."""


def read_binary(path: Path) -> HaproxyBinary:
    """
    Read an ELF executable (x86-64 or arm64).

    Raises ``BinaryError`` if it lacks what is needed, and ``OSError``.
    """
    try:
        with path.open("rb") as file:
            return _read(ELFFile(file))
    except (BinaryError, OSError):
        raise
    except Exception as error:  # what a broken file does to its reader is the file's fault
        raise BinaryError(f"not a readable ELF executable ({type(error).__name__})") from None


def load_bias(process_id: int, binary: HaproxyBinary) -> int:
    """
    Return what a running process adds to the addresses of its executable.

    From ``/proc/PID/maps``, by the device and inode of ``/proc/PID/exe``, so that chroot
    and containers make no difference. Raises ``OSError`` and ``BinaryError``.
    """
    place = Path(f"/proc/{process_id}")
    status = (place / "exe").stat()
    for line in (place / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
        found = _MAPPING.match(line)
        if found is None:
            continue
        start, offset, major, minor, inode = found.groups()
        device = (int(major, 16), int(minor, 16))
        if (
            int(inode) == status.st_ino
            and int(offset, 16) == 0
            and device == (os.major(status.st_dev), os.minor(status.st_dev))
        ):
            return int(start, 16) - binary.first_address
    # An overlay file system shows another device here than stat does: then by the path.
    executable = str((place / "exe").readlink())
    for line in (place / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
        found = _MAPPING.match(line)
        if found and line.endswith(f" {executable}") and int(found[2], 16) == 0:
            return int(found[1], 16) - binary.first_address
    raise BinaryError("the executable is not mapped in its own process")


def is_called_directly(path: Path, function: int) -> bool:
    """
    Whether an instruction of an x86-64 executable calls the function at an address, as linked.

    Such an instruction calls nothing else, so an address to return to says what was called.
    Takes 50 ms. Raises ``OSError``.
    """
    with path.open("rb") as file:
        elf = ELFFile(file)
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_LOAD" and segment["p_flags"] & 1:
                code, start = segment.data(), segment["p_vaddr"]
                at = code.find(_CALL)
                while at >= 0:
                    end = at + _CALL_BYTES
                    distance = int.from_bytes(code[at + 1 : end], "little", signed=True)
                    if start + end + distance == function:
                        return True
                    at = code.find(_CALL, at + 1)
    return False


def _read(elf: ELFFile) -> HaproxyBinary:
    machine = elf["e_machine"]
    if machine not in ("EM_X86_64", "EM_AARCH64"):
        raise BinaryError(f"made for {machine}, not for x86-64 or arm64")
    symbols = _symbols(elf, _SYMBOLS)
    if "process_stream" not in symbols:
        if not _mentions(elf, b"process_stream\0"):
            raise ForeignError("is another program")
        raise BinaryError("was stripped of the names of its functions")
    tls = next((s for s in elf.iter_segments() if s["p_type"] == "PT_TLS"), None)
    pointer, array, obstacle = _contexts(symbols, has_thread_locals=tls is not None)
    first = next(s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_offset"] == 0)
    probe, is_cheap = _probe_place(elf, symbols["process_stream"].value, machine)
    others = {"stream_free": 0, "clock_leaving_poll": 0}
    for name in others.keys() & symbols.keys():
        others[name], other_is_cheap = _probe_place(elf, symbols[name].value, machine)
        is_cheap = is_cheap and other_is_cheap
    return HaproxyBinary(
        process_stream=symbols["process_stream"].value,
        process_check=symbols["process_chk"].value if "process_chk" in symbols else 0,
        obstacle=obstacle,
        thread_context=_thread_offset(pointer.value, tls, machine) if tls and not obstacle else 0,
        contexts=array.value,
        contexts_size=array.size,
        first_address=first["p_vaddr"] // _PAGE * _PAGE,
        process_stream_probe=probe,
        stream_free_probe=others["stream_free"],
        leaving_poll_probe=others["clock_leaving_poll"],
        has_cheap_probes=is_cheap,
    )


@dataclass(frozen=True, slots=True)
class _Symbol:
    value: int
    size: int
    type: str


_NO_SYMBOL = _Symbol(0, 0, "")


def _contexts(
    symbols: dict[str, _Symbol], *, has_thread_locals: bool
) -> tuple[_Symbol, _Symbol, str]:
    """Return the variable of each thread, the array that it points into, and why not."""
    names = next((names for names in _CONTEXTS if symbols.keys() & set(names)), _CONTEXTS[0])
    missing = [name for name in names if name not in symbols]
    if missing:
        return _NO_SYMBOL, _NO_SYMBOL, f"it does not name {', '.join(missing)}"
    pointer, array = (symbols[name] for name in names)
    if not has_thread_locals or pointer.type != "STT_TLS":  # built without USE_THREAD
        return _NO_SYMBOL, _NO_SYMBOL, f"{names[0]} is not a thread-local variable"
    return pointer, array, ""


def _symbols(elf: ELFFile, names: tuple[str, ...]) -> dict[str, _Symbol]:
    """Return those of ``names`` that the executable defines, for others to use or for itself."""
    dynamic = elf.get_section_by_name(".dynsym")
    table = elf.get_section_by_name(".symtab")
    found: dict[str, _Symbol] = {}
    if isinstance(dynamic, SymbolTableSection):
        found = _exported(elf, dynamic, names)
    if isinstance(table, SymbolTableSection):
        found |= _internal(table, set(names) - found.keys())
    return found


def _mentions(elf: ELFFile, text: bytes) -> bool:
    """Whether the file holds a text: HAProxy has the name itself, for its own debugging."""
    elf.stream.seek(0)
    return text in elf.stream.read()


def _exported(
    elf: ELFFile, dynamic: SymbolTableSection, names: Iterable[str]
) -> dict[str, _Symbol]:
    table = elf.get_section_by_name(".gnu.hash")
    if table is not None:
        hashes = GNUHashTable(elf, table["sh_offset"], dynamic)
        found = [(name, hashes.get_symbol(name)) for name in names]
    else:
        found = [(name, next(iter(dynamic.get_symbol_by_name(name) or ()), None)) for name in names]
    return {
        name: _Symbol(symbol["st_value"], symbol["st_size"], symbol["st_info"]["type"])
        for name, symbol in found
        if symbol is not None and symbol["st_shndx"] != "SHN_UNDEF"
    }


def _internal(table: SymbolTableSection, names: Iterable[str]) -> dict[str, _Symbol]:
    """
    Return what a table that is meant for debuggers says; it has no index to look names up in.

    A name that two functions of different files share says nothing.
    """
    strings = table.stringtable.data()
    wanted = {at: name for name in names for at in _places_of(name, strings)}
    found: dict[str, list[_Symbol]] = {}
    for name_at, info, _, section, value, size in _SYMBOL.iter_unpack(table.data()):
        if name_at in wanted and section:
            symbol = _Symbol(value, size, _TYPES.get(info & 0xF, ""))
            found.setdefault(wanted[name_at], []).append(symbol)
    return {name: symbols[0] for name, symbols in found.items() if len(symbols) == 1}


def _places_of(name: str, strings: bytes) -> Iterator[int]:
    """Yield where a name stands, perhaps as the end of a longer one: linkers share the bytes."""
    end = name.encode() + b"\0"
    at = strings.find(end)
    while at >= 0:
        yield at
        at = strings.find(end, at + 1)


def _thread_offset(value: int, tls: Segment, machine: str) -> int:
    """
    Return where a thread-local variable of the main executable lies.

    The ABI's variant II (x86-64: below the thread pointer) and variant I (arm64: above);
    Drepper, "ELF Handling For Thread-Local Storage", section 3.
    """
    size, align, address = (int(tls[name]) for name in ("p_memsz", "p_align", "p_vaddr"))
    align = max(align, 1)
    if machine == "EM_AARCH64":
        return _round_up(_THREAD_CONTROL_BLOCK, align) + value
    first_block = -address & (align - 1)
    return value - (_round_up(size - first_block, align) + first_block)


def _round_up(value: int, align: int) -> int:
    return (value + align - 1) // align * align


def _probe_place(elf: ELFFile, address: int, machine: str) -> tuple[int, bool]:
    """
    Return where in the file to put a probe on a function, and whether it is cheap there.

    The kernel emulates a ``push`` or a ``nop`` (2 to 3 us for a hit in a virtual machine)
    but must single-step ``endbr64`` and most others (over 20 us). Behind ``endbr64`` the
    arguments still are in their registers and the return address is on top of the stack.
    """
    segment = next(
        s
        for s in elf.iter_segments()
        if s["p_type"] == "PT_LOAD" and s["p_vaddr"] <= address < s["p_vaddr"] + s["p_filesz"]
    )
    offset = address - segment["p_vaddr"] + segment["p_offset"]
    elf.stream.seek(offset)
    code = elf.stream.read(_CODE_BYTES)
    if machine != "EM_X86_64":
        return offset, True
    if code.startswith(_ENDBR64) and _is_emulated(code[4:]):
        return offset + 4, True
    return offset, _is_emulated(code)


def _is_emulated(code: bytes) -> bool:
    """Whether the kernel emulates the first instruction (arch/x86/kernel/uprobes.c)."""
    first = code[1] if code[0] == 0x41 else code[0]  # REX.B: push r8 to r15
    return 0x50 <= first <= 0x57 or code[0] in (0x90, 0xE8, 0xE9, 0xEB)
