"""What the kernel side is told about the memory of a HAProxy, byte by byte."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from otel_qtap.haproxy.layout import Layout, Offsets, StreamSource
from otel_qtap.receiver import kernel
from otel_qtap.receiver.programs import bpf_directory

LAYOUT = Layout(
    number=3, process_stream=0x5555_1234_5678, thread_context=-96, contexts=0x5555_0010_0000,
    contexts_size=32768, source=StreamSource.THREAD, offsets=Offsets(40, 16, 4),
)  # fmt: skip

_PROGRAM = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int32_t s32;
%s
int main(void)
{
    struct layout layout;
    fread(&layout, sizeof(layout), 1, stdin);
    printf("%%zu %%llu %%lld %%u %%u %%u %%u %%u\\n", sizeof(layout),
           (unsigned long long)layout.process_stream, (long long)layout.thread_context,
           layout.current, layout.process, layout.serial, layout.source, layout.snapshots);
    return 0;
}
"""


@pytest.fixture(scope="module")
def read_by_kernel_side(tmp_path_factory):
    """``read(packed)``: what ``struct layout`` of ``bpf/haproxy.h`` makes of these bytes."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed to test bpf/haproxy.h: apt-get install gcc"
    header = (bpf_directory() / "haproxy.h").read_text()
    structure = re.search(r"^struct layout \{.*?^\};", header, re.DOTALL | re.MULTILINE)
    assert structure
    program = tmp_path_factory.mktemp("layout") / "layout"
    subprocess.run(
        [compiler, "-Wpadded", "-Werror", "-Wno-unused-result", "-xc", "-", "-o", str(program)],
        input=_PROGRAM % structure[0], text=True, check=True,
    )  # fmt: skip

    def read(packed: bytes) -> list[int]:
        done = subprocess.run([str(program)], input=packed, capture_output=True, check=True)
        return list(map(int, done.stdout.split()))

    return read


@pytest.mark.parametrize("source", list(StreamSource))
def test_a_layout_is_read_field_by_field(read_by_kernel_side, source) -> None:
    """The offset of the thread-local variable is negative on x86-64."""
    packed = replace(LAYOUT, source=source).pack(256)

    size, *fields = read_by_kernel_side(packed)

    assert size == len(packed) == kernel._LAYOUT_BYTES
    assert fields == [0x5555_1234_5678, -96, 40, 16, 4, source.value, 256]


def test_sources_are_those_of_the_header() -> None:
    """Both sides name the same ways."""
    header = (bpf_directory() / "haproxy.h").read_text()
    named = dict(re.findall(r"SOURCE_(\w+) = (\d+)", header))

    assert {source.name: str(source.value) for source in StreamSource} == named


def test_there_are_as_many_layouts_as_the_header_says() -> None:
    """Number 0 is that of a process without."""
    header = (bpf_directory() / "haproxy.h").read_text()

    assert f"#define LAYOUTS {kernel.LAYOUTS}\n" in header
    assert "#define NO_LAYOUT 0\n" in header


def test_no_snapshot_is_wanted_below_zero(tmp_path) -> None:
    """Two threads that both saw the last one to be taken have counted too far."""
    header = (bpf_directory() / "haproxy.h").read_text()
    parts = [
        re.search(rf"^{start}.*?^\}};?$", header, re.DOTALL | re.MULTILINE)
        for start in (r"struct layout \{", "static __always_inline int wants_snapshot")
    ]
    source = "\n".join(part[0] for part in parts if part)
    program = tmp_path / "wants"
    subprocess.run(
        ["cc", "-xc", "-", "-o", str(program)],
        input=(
            "#include <stdint.h>\n#define __always_inline inline\n"
            "typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32;\n"
            f"typedef int32_t s32; typedef uint64_t u64;\n{source}\n"
            "int main(void) { struct layout l = {.snapshots = 1};\n"
            "if (!wants_snapshot(&l)) return 1; l.snapshots--;\n"
            "if (wants_snapshot(&l)) return 2; l.snapshots--; return wants_snapshot(&l) ? 3 : 0; }"
        ),
        text=True, check=True,
    )  # fmt: skip

    assert subprocess.run([str(program)], check=False).returncode == 0
