"""
Offsets of kernel structure fields, read from the running kernel's type information.

bcc compiles without relocations, so the programs in ``bpf/`` take every offset as a
constant; this module finds them in ``/sys/kernel/btf/vmlinux`` (BTF, kernel 5.4 and
later, ``Documentation/bpf/btf.rst``). A whole kernel is read in about 0.1 s.
"""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["BTF_PATH", "BtfError", "KernelTypes"]

BTF_PATH = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")

# Kinds, and how many bytes follow the type record: fixed, or for each of its elements.
_STRUCT, _UNION = 4, 5
_TRAILING_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}  # INT, ARRAY, VAR, DECL_TAG
_TRAILING_EACH = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # …, ENUM, FUNC_PROTO, …
_TRANSPARENT = {8, 9, 10, 11, 18}  # TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG

_BROKEN = (struct.error, IndexError, ValueError, RecursionError)  # what wrong places lead to
_BROKEN_MESSAGE = "the type information of the kernel is broken"


class BtfError(Exception):
    """The kernel's type information is missing, broken, or lacks what was asked for."""


class KernelTypes:
    """The structures of a kernel and where their fields lie."""

    def __init__(self, data: bytes) -> None:
        """
        Index ``data``, the content of a BTF file.

        Raises ``BtfError`` if it is not one.
        """
        try:
            magic, _, _, header_size, type_offset, type_size, str_offset, str_size = (
                _HEADER.unpack_from(data)
            )
        except struct.error:
            raise BtfError("the type information of the kernel is empty") from None
        if magic != _MAGIC:
            raise BtfError("the type information of the kernel has an unknown format")
        self._data = data
        self._strings = header_size + str_offset
        self._strings_end = self._strings + str_size
        self._places: list[int] = [0]  # of the type with that number; 0 is void
        self._structs: dict[bytes, int] = {}
        try:
            self._index(header_size + type_offset, header_size + type_offset + type_size)
        except _BROKEN:
            raise BtfError(_BROKEN_MESSAGE) from None

    @classmethod
    def of_running_kernel(cls, path: Path = BTF_PATH) -> KernelTypes:
        """Read the running kernel's types; raises ``BtfError`` with what to do about it."""
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise BtfError(
                f"cannot read {path} ({error.strerror}): the kernel must be built with "
                "CONFIG_DEBUG_INFO_BTF=y, as distribution kernels since 5.10 are; in a container, "
                "mount the host's /sys"
            ) from None

    def offset(self, path: str) -> int:
        """
        Return the offset in bytes of ``struct.field`` or ``struct.field.field``.

        Anonymous structures and unions on the way are looked through, as C does.
        Raises ``BtfError`` if there is no such field.
        """
        name, *fields = path.split(".")
        number = self._structs.get(name.encode())
        if number is None:
            raise BtfError(f"this kernel has no struct {name}")
        total = 0
        for field in fields:
            try:
                found = self._find(number, field.encode()) if number else None
            except _BROKEN:
                raise BtfError(_BROKEN_MESSAGE) from None
            if found is None:
                raise BtfError(f"this kernel's struct {name} has no field {'.'.join(fields)}")
            bits, number = found
            total += bits
        return total // 8

    def _index(self, place: int, end: int) -> None:
        data, places, structs = self._data, self._places, self._structs
        unpack = _TYPE.unpack_from
        while place < end:
            name, info, _ = unpack(data, place)
            kind = (info >> 24) & 0x1F
            if kind == _STRUCT and name:
                structs.setdefault(self._string(name), len(places))
            places.append(place)
            each = _TRAILING_EACH.get(kind)
            place += 12 + (each * (info & 0xFFFF) if each else _TRAILING_FIXED.get(kind, 0))

    def _string(self, offset: int) -> bytes:
        start = self._strings + offset
        return self._data[start : self._data.index(b"\0", start, self._strings_end)]

    def _find(self, number: int, field: bytes) -> tuple[int, int] | None:
        """Return (offset in bits, type number) of a field of type ``number``."""
        number = self._resolve(number)
        place = self._places[number]
        _, info, _ = _TYPE.unpack_from(self._data, place)
        if (info >> 24) & 0x1F not in (_STRUCT, _UNION):
            return None
        is_bitfield = info >> 31
        for i in range(info & 0xFFFF):
            name, kind, offset = _MEMBER.unpack_from(self._data, place + 12 + 12 * i)
            if is_bitfield:
                offset &= 0xFFFFFF
            if name:
                if self._string(name) == field:
                    return offset, kind
            elif (inner := self._find(kind, field)) is not None:
                return offset + inner[0], inner[1]
        return None

    def _resolve(self, number: int) -> int:
        for _ in self._places:  # no more steps than there are types, lest they go in a circle
            if not number:
                break
            _, info, target = _TYPE.unpack_from(self._data, self._places[number])
            if (info >> 24) & 0x1F not in _TRANSPARENT:
                return number
            number = target
        return 0
