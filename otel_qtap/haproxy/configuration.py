"""
HAProxy's configuration file, as far as it names things: what listens where, which server
has which address, where the runtime socket is, whether requests are logged to stdout.

Sans-I/O. Lines are split into words as the manual says (section 2.2, 2.3). Everything
else in the file is passed over, and conditional blocks (``.if``) are taken as if all of
their branches held: what then has two names is treated as having none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Bind", "ConfiguredServer", "HaproxyConfiguration", "configuration_files", "parse"]

MAX_ITEMS = 20_000  # servers and ports; HAProxy itself is slow to load more
_DEFAULT_RISE, _DEFAULT_FALL = 2, 3  # manual, section 5.2
_SECTIONS = frozenset({
    "acme", "backend", "cache", "crt-list", "crt-store", "defaults", "fcgi-app", "frontend",
    "global", "http-errors", "listen", "log-forward", "log-profile", "mailers", "peers",
    "program", "resolvers", "ring", "traces", "userlist",
})  # fmt: skip
_LOGGING_SECTIONS = frozenset({"defaults", "frontend", "listen", "backend"})
_LOG_DESCRIPTORS = {"stdout": 1, "fd@1": 1, "stderr": 2, "fd@2": 2}
_TOKEN = re.compile(r"""\\(.)|'([^']*)'|"((?:[^"\\]|\\.)*)"|([^\s'"\\#]+)|(\s+)|(\#)""", re.DOTALL)
_IN_QUOTES = re.compile(r"\\(.)|\$\{(\w+)(?:\[\*\])?(?:-([^}]*))?\}|\$(\w+)", re.DOTALL)
_FAMILY = re.compile(r"(?:ipv4|ipv6|tcp|tcp4|tcp6|quic4|quic6|mptcp|mptcp4|mptcp6)@")
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")


class ConfiguredServer(NamedTuple):
    """A ``server`` line."""

    backend: str
    name: str
    host: str
    """An address, or a name that only HAProxy's resolver knows the address of."""
    port: int
    """0: the port that the client connected to."""
    check_host: str
    check_port: int
    rise: int
    fall: int


class Bind(NamedTuple):
    """One address and port of a ``bind`` line."""

    frontend: str
    address: str
    """Empty for all addresses."""
    port: int


@dataclass(slots=True)
class HaproxyConfiguration:
    """What one configuration names."""

    servers: list[ConfiguredServer] = field(default_factory=list)
    binds: list[Bind] = field(default_factory=list)
    stats_sockets: list[str] = field(default_factory=list)
    """Paths of Unix sockets; those on TCP ports are left out."""
    log_targets: set[str] = field(default_factory=set)
    """Where requests are logged to, in the words of the file."""

    @property
    def log_descriptors(self) -> set[int]:
        """Of stdout and stderr (1, 2), those that requests are logged to."""
        return {_LOG_DESCRIPTORS[name] for name in self.log_targets & _LOG_DESCRIPTORS.keys()}


def configuration_files(arguments: Iterable[str]) -> tuple[str, ...]:
    """Return what ``-f`` and ``--`` of HAProxy's command line name: files and directories."""
    words = iter(arguments)
    next(words, None)  # the program
    found: list[str] = []
    for word in words:
        if word == "--":
            found += words
        elif word == "-f":
            found += [path for path in [next(words, "")] if path]
    return tuple(found)


def parse(texts: Iterable[str], environment: Mapping[str, str]) -> HaproxyConfiguration:
    """Return what the files of one process name, taken together in their order."""
    reader = _Reader(dict(environment))
    for text in texts:
        for line in text.splitlines():
            reader.take(split_words(line, reader.environment))
    return reader.finish()


def split_words(line: str, environment: Mapping[str, str]) -> list[str]:
    r"""
    Split a line as HAProxy does: quotes, ``\`` escapes, ``#`` comments.

    Variables are replaced inside of double quotes only; one without a value becomes empty.
    """

    def expand(found: re.Match[str]) -> str:
        escaped, name, default, bare_name = found.groups()
        return escaped or environment.get(name or bare_name) or default or ""

    words: list[str] = []
    word: str | None = None
    for found in _TOKEN.finditer(line):
        escaped, single, double, plain, is_space, is_comment = found.groups()
        if is_space or is_comment:
            if word is not None:
                words.append(word)
            word = None
            if is_comment:
                break
        elif double is not None:
            word = (word or "") + _IN_QUOTES.sub(expand, double)
        else:
            word = (word or "") + (escaped or single or plain or "")
    if word is not None:
        words.append(word)
    return words


class _Reader:
    """Goes through the lines and keeps what the current section is."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.configuration = HaproxyConfiguration()
        self._section = ""
        self._name = ""
        self._options: dict[str, str] = {}  # of default-server, in this section
        self._defaults: dict[str, dict[str, str]] = {}  # of sections called "defaults", by name
        self._last_defaults: dict[str, str] = {}
        self._global_log_targets: set[str] = set()
        self._uses_global_logs = False

    def finish(self) -> HaproxyConfiguration:
        """Return what was found."""
        if self._uses_global_logs:
            self.configuration.log_targets |= self._global_log_targets
        return self.configuration

    def take(self, words: list[str]) -> None:
        if not words:
            return
        keyword = words[0]
        if keyword in _SECTIONS and (len(words) > 1 or keyword in {"global", "defaults"}):
            self._begin(keyword, words[1:])
        elif self._section == "global":
            self._take_global(words)
        elif keyword == "log" and self._section in _LOGGING_SECTIONS:
            self._take_log(words)
        elif keyword == "default-server":
            self._options |= _options(words[1:])
        elif keyword == "bind" and self._section in {"frontend", "listen"}:
            for address in words[1:2]:
                self._take_bind(address)
        elif keyword == "server" and self._section in {"backend", "listen"}:
            self._take_server(words[1:])

    def _begin(self, section: str, words: list[str]) -> None:
        self._section = section
        self._name = words[0] if words else ""
        parent = words[words.index("from") + 1] if "from" in words[:-1] else ""
        inherited = self._defaults.get(parent) if parent else self._last_defaults
        if section == "defaults":  # takes nothing over from the one before it
            inherited = self._defaults.get(parent)
        self._options = dict(inherited or {})
        if section == "defaults":
            self._last_defaults = self._options
            if self._name:
                self._defaults[self._name] = self._options

    def _take_global(self, words: list[str]) -> None:
        if words[:2] == ["stats", "socket"] and len(words) > 2:
            path = words[2].removeprefix("unix@")
            if path.startswith(("/", "./", "../")) or path != words[2]:
                self.configuration.stats_sockets.append(path)
        elif words[0] == "log":
            self._global_log_targets |= set(words[1:2])
        elif words[0] == "setenv" and len(words) > 2:
            self.environment[words[1]] = words[2]
        elif words[0] == "presetenv" and len(words) > 2:
            self.environment.setdefault(words[1], words[2])
        elif words[0] == "unsetenv":
            for name in words[1:]:
                self.environment.pop(name, None)

    def _take_log(self, words: list[str]) -> None:
        if words[1:2] == ["global"]:
            self._uses_global_logs = True
        else:
            self.configuration.log_targets |= set(words[1:2])

    def _take_bind(self, addresses: str) -> None:
        for address in addresses.split(","):
            host, first, last = _host_and_ports(address)
            for port in range(first, last + 1):
                if port and len(self.configuration.binds) < MAX_ITEMS:
                    self.configuration.binds.append(Bind(self._name, host, port))

    def _take_server(self, words: list[str]) -> None:
        if len(words) < 2 or len(self.configuration.servers) >= MAX_ITEMS:
            return
        host, port, _ = _host_and_ports(words[1])
        if not host:
            return
        options = self._options | _options(words[2:])
        check_host, check_port, _ = _host_and_ports(options.get("addr", ""))
        self.configuration.servers.append(
            ConfiguredServer(
                self._name,
                words[0],
                host,
                port,
                check_host or host,
                _number(options.get("port", "")) or check_port or port,
                _number(options.get("rise", "")) or _DEFAULT_RISE,
                _number(options.get("fall", "")) or _DEFAULT_FALL,
            )
        )


def _options(words: list[str]) -> dict[str, str]:
    """Return those options of a server that say something about its health checks."""
    return {
        name: value for name, value in pairwise(words) if name in {"addr", "port", "rise", "fall"}
    }


def _host_and_ports(text: str) -> tuple[str, int, int]:
    """
    Return host, first and last port of an address as ``bind`` and ``server`` have them.

    Host and ports are empty and 0 where the text says none, or none that TCP could have.
    """
    text = _FAMILY.sub("", text)
    if "@" in text or "/" in text:  # unix@, abns@, fd@, sockpair@, a path
        return "", 0, 0
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        ports = rest.removeprefix(":")
    elif ":" in text:
        host, _, ports = text.rpartition(":")
    else:
        host, ports = text, ""
    first, _, last = ports.partition("-")
    if first.startswith(("+", "-")) or not ports:  # an offset to the client's port; or none
        first = last = "0"
    low = _number(first)
    return _plain_host(host), low, min(max(low, _number(last)), 65535)


def _plain_host(host: str) -> str:
    if host in {"*", ""}:
        return ""
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() if _HOST_NAME.fullmatch(host) else ""
    return "" if address.is_unspecified else str(address)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= 5 else 0
