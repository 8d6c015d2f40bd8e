"""The C programs of this folder, compiled once for each state of their sources."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from traffic.load import BUILD
from traffic.world import WorldError

__all__ = ["compile_program"]

HERE = Path(__file__).resolve().parent


def compile_program(name: str) -> Path:
    """Return the program made of ``name.c``; raises ``WorldError`` without a compiler."""
    source = HERE / f"{name}.c"
    sources = source.read_bytes() + (HERE / "http.h").read_bytes()
    program = BUILD / f"linking-{name}-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not program.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise WorldError("no C compiler (cc); tests/run installs one")
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".new")
        command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
        subprocess.run([*command, "-o", str(unfinished), str(source)], check=True)
        unfinished.replace(program)
    return program
