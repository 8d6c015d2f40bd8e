"""
HAProxy of Debian's newer releases, unpacked into a directory and run there by chroot.

    python tests/linking/fetch_haproxy.py trixie sid

asks this machine's own Debian archive, under the name of that suite, for the package with
the libraries it needs, checked by apt as any package is; nothing is installed. They end up
in ``/var/tmp/haproxy-releases/SUITE`` (``HAPROXY_RELEASES`` says another place), and
``fetched`` finds them there. The programs it returns are scripts that enter the directory,
so HAProxy's own files have to be in there too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["FetchError", "fetch", "fetched", "root_of"]

RELEASES = Path(os.environ.get("HAPROXY_RELEASES", "/var/tmp/haproxy-releases"))  # noqa: S108
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAM = "usr/sbin/haproxy"


class FetchError(Exception):
    """The package is not to be had; the text says why."""


def fetch(suite: str) -> Path:
    """Unpack HAProxy of ``suite`` unless it is there, and return the program to start it by."""
    place = RELEASES / suite
    program = place / "haproxy"
    if not program.exists():
        root = place / "root"
        shutil.rmtree(root, ignore_errors=True)  # of an attempt that was interrupted
        _unpack(_download(suite, place), root)
        program.write_text(f'#!/bin/sh\nexec chroot {root} /{PROGRAM} "$@"\n')
        program.chmod(0o755)
    return program


def fetched() -> dict[str, Path]:
    """Return the programs that were fetched before, by version (``3.0.11``)."""
    found = {}
    for program in sorted(RELEASES.glob("*/haproxy")):
        done = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
        if version := re.search(r"version (\d+\.\d+\.\d+)", done.stdout):
            found[version[1]] = program
    return found


def root_of(program: Path) -> Path | None:
    """Return the directory that a fetched program runs in; ``None`` for any other program."""
    root = program.with_name("root")
    return root if RELEASES in program.parents and root.is_dir() else None


def _download(suite: str, place: Path) -> list[Path]:
    state, cache = place / "apt" / "state", place / "apt" / "cache"
    for directory in (state / "lists" / "partial", cache / "archives" / "partial"):
        directory.mkdir(parents=True, exist_ok=True)
    status = state / "status"
    status.write_text("")  # nothing is installed there, so everything needed is downloaded
    sources = place / "apt" / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {_archive()} {suite} main\n")
    apt = [
        "apt-get", "--quiet=2",
        f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=/dev/null",
        f"-oDir::State={state}", f"-oDir::State::Status={status}", f"-oDir::Cache={cache}",
        "-oAPT::Sandbox::User=root",
    ]  # fmt: skip
    _run([*apt, "update"])
    _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", "haproxy"])
    return sorted((cache / "archives").glob("*.deb"))


def _archive() -> str:
    """Return where this machine gets Debian from."""
    layout = "$(ORIGIN) $(LABEL) $(REPO_URI)"
    words = [line.split() for line in _run(["apt-get", "indextargets", f"--format={layout}"])]
    for origin, *label, uri in words:
        if [origin, *label] == ["Debian", "Debian"]:
            return uri
    raise FetchError("this machine's package lists name no Debian archive; try apt-get update")


def _unpack(packages: list[Path], root: Path) -> None:
    # Debian's newer libraries expect /lib and its like to be links into /usr.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        archive = root.with_name(package.name).with_suffix(".tar")
        _run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$0" >"$1"', str(package), str(archive)])
        _run(["tar", "--extract", "--keep-directory-symlink", f"--directory={root}", "--file",
              str(archive)])  # fmt: skip
        archive.unlink()
    (root / "dev").mkdir(exist_ok=True)
    _run(["mknod", "-m", "666", str(root / "dev" / "null"), "c", "1", "3"])
    _run(["ldconfig", "-r", str(root)])


def _run(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f"{' '.join(command[:2])}: {done.stderr.strip()[-500:]}")
    return done.stdout.splitlines()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(fetch(name))
