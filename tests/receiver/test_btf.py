"""Offsets of kernel fields: from the running kernel, from a small made-up one, from rubbish."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.receiver.btf import BTF_PATH, BtfError, KernelTypes

INT, POINTER, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC_PROTO = 1, 2, 3, 4, 5, 6, 8, 10, 13


class Types:
    """Writes type information; numbers of types count from 1."""

    def __init__(self) -> None:
        self._strings = bytearray(b"\0")
        self._records: list[bytes] = []

    def string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text) - 1

    def add(self, kind: int, name: str = "", size: int = 0, count: int = 0, rest: bytes = b"",
            *, bitfield: bool = False) -> int:  # fmt: skip
        info = kind << 24 | count | bitfield << 31
        self._records.append(struct.pack("<III", self.string(name), info, size) + rest)
        return len(self._records)

    def struct(self, name: str, *fields: tuple[str, int, int], kind: int = STRUCT) -> int:
        rest = b"".join(struct.pack("<III", self.string(n), t, 8 * at) for n, t, at in fields)
        return self.add(kind, name, 64, len(fields), rest)

    def data(self) -> bytes:
        types = b"".join(self._records)
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self._strings)
        )
        return header + types + bytes(self._strings)


def _small_kernel() -> bytes:
    types = Types()
    number = types.add(INT, "int", 4, rest=bytes(4))
    types.add(FUNC_PROTO, "", number, 2, bytes(16))
    types.add(ENUM, "state", 4, 3, bytes(24))
    types.add(ARRAY, "", 0, rest=bytes(12))
    pointer = types.add(POINTER, "", number)
    inner = types.struct("pair", ("left", number, 0), ("right", number, 4))
    alias = types.add(TYPEDEF, "pair_t", types.add(CONST, "", inner))
    union = types.struct("", ("daddr", number, 0), ("both", inner, 0), kind=UNION)
    types.struct(
        "sock_common", ("", union, 8), ("family", number, 24), ("pairs", alias, 32),
        ("next", pointer, 48),
    )  # fmt: skip
    rest = struct.pack("<III", types.string("bit"), number, 3 << 24 | 96)
    types.add(STRUCT, "bits", 16, 1, rest, bitfield=True)
    return types.data()


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("sock_common.family", 24),
        ("sock_common.daddr", 8),
        ("sock_common.both", 8),
        ("sock_common.both.right", 12),
        ("sock_common.pairs.right", 36),
        ("pair.right", 4),
        ("bits.bit", 12),
    ],
)
def test_fields_are_found_where_they_lie(path, offset) -> None:
    """In anonymous unions, behind typedefs and qualifiers, beside bit fields."""
    assert KernelTypes(_small_kernel()).offset(path) == offset


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.here", "this kernel has no struct nothing"),
        ("sock_common.nothing", "struct sock_common has no field nothing"),
        ("sock_common.family.deeper", "has no field family.deeper"),
        ("sock_common.next.left", "has no field next.left"),
    ],
)
def test_what_is_not_there_is_named(path, message) -> None:
    """A pointer is not looked through: what it points to is elsewhere."""
    with pytest.raises(BtfError, match=message):
        KernelTypes(_small_kernel()).offset(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x9f\xeb\x01", "is empty"),
        (b"\xeb\x9f" + bytes(30), "unknown format"),
        (b"\x7fELF" + bytes(30), "unknown format"),
    ],
)
def test_what_is_no_type_information_is_refused(data, message) -> None:
    """With what is wrong with it."""
    with pytest.raises(BtfError, match=message):
        KernelTypes(data)


def _read(data: bytes) -> None:
    types = KernelTypes(data)
    for path in ("sock_common.family", "sock_common.both.right", "sock_common.pairs.right"):
        types.offset(path)


@given(st.integers(0, len(_small_kernel())))
def test_type_information_that_is_cut_is_one_error_or_none(size) -> None:
    """Wherever it is cut; what can be read without the rest may be read."""
    try:
        _read(_small_kernel()[:size])
    except BtfError:
        return


@given(st.integers(8, len(_small_kernel()) - 1), st.integers(0, 255))
def test_type_information_with_a_wrong_byte_is_one_error_or_none(place, byte) -> None:
    """No byte makes the reader fail in another way, or run forever."""
    data = bytearray(_small_kernel())
    data[place] = byte
    try:
        _read(bytes(data))
    except BtfError:
        return


@pytest.mark.skipif(not os.access(BTF_PATH, os.R_OK), reason="this kernel tells no types")
def test_the_running_kernel_is_read() -> None:
    """Fields that no kernel has moved for ten years, and one that is deep inside."""
    types = KernelTypes.of_running_kernel()

    assert types.offset("sock_common.skc_daddr") == 0
    assert types.offset("sock_common.skc_rcv_saddr") == 4
    assert types.offset("sock_common.skc_dport") == 12
    assert types.offset("sock_common.skc_family") == 16
    assert types.offset("task_struct.tgid") == types.offset("task_struct.pid") + 4
    assert types.offset("sock.sk_lock.slock") > types.offset("sock_common.skc_family")


def test_a_kernel_without_types_is_one_message(tmp_path) -> None:
    """It says what the kernel must be built with, and what a container needs."""
    with pytest.raises(BtfError, match=r"CONFIG_DEBUG_INFO_BTF=y.*mount the host's /sys"):
        KernelTypes.of_running_kernel(tmp_path / "vmlinux")
