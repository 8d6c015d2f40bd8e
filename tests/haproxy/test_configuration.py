"""A configuration says what listens where and which server has which address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.haproxy.configuration import (
    Bind,
    ConfiguredServer,
    configuration_files,
    parse,
    split_words,
)

ENVIRONMENT = {"HOST": "10.0.0.9", "PORT": "81", "EMPTY": ""}


def servers(text: str) -> list[tuple[str, str, str, int]]:
    """Return backend, name, host and port of each server."""
    return [server[:4] for server in parse([text], ENVIRONMENT).servers]


def binds(text: str) -> list[Bind]:
    return parse([text], ENVIRONMENT).binds


def server(line: str) -> ConfiguredServer | None:
    found = parse([f"backend b\n {line}"], ENVIRONMENT).servers
    return found[0] if found else None


ARGUMENTS = [
    pytest.param("haproxy -f a.cfg", ("a.cfg",), id="one"),
    pytest.param("haproxy -W -f a -db -f /etc/b/ -S x", ("a", "/etc/b/"), id="several"),
    pytest.param("haproxy -W -db -- a b", ("a", "b"), id="after-dashes"),
    pytest.param("haproxy -sf 12 13 -x sockpair@3 -W -f a", ("a",), id="reloaded"),
    pytest.param("haproxy -f", (), id="nothing-follows"),
    pytest.param("", (), id="no-arguments"),
]


@pytest.mark.parametrize(("line", "files"), ARGUMENTS)
def test_files_are_those_of_the_command_line(line, files) -> None:
    """As HAProxy reads it, also after a reload has put more in front."""
    assert configuration_files(line.split()) == files


WORDS = [
    pytest.param("  a b\tc ", ["a", "b", "c"], id="spaces"),
    pytest.param("a b # c", ["a", "b"], id="comment"),
    pytest.param("a b#c", ["a", "b"], id="comment-within"),
    pytest.param(r"a\ b \# \\ \"", ["a b", "#", "\\", '"'], id="escapes"),
    pytest.param("'a b' \"c d\"e", ["a b", "c de"], id="quotes"),
    pytest.param("'$HOST' $HOST \"$HOST\"", ["$HOST", "$HOST", "10.0.0.9"], id="variables"),
    pytest.param('"${HOST}:${PORT}" "${NONE}"', ["10.0.0.9:81", ""], id="braces"),
    pytest.param('"${NONE-80}${EMPTY-x}" "${HOST[*]}"', ["80x", "10.0.0.9"], id="default"),
    pytest.param(r'"\$HOST \" x"', ['$HOST " x'], id="escapes-in-quotes"),
    pytest.param("''", [""], id="empty-word"),
    pytest.param('a "b', ["a", "b"], id="quote-that-does-not-end"),
    pytest.param("", [], id="empty"),
]


@pytest.mark.parametrize(("line", "words"), WORDS)
def test_lines_are_split_as_haproxy_does(line, words) -> None:
    """Manual, sections 2.2 and 2.3."""
    assert split_words(line, ENVIRONMENT) == words


ADDRESSES = [
    pytest.param("10.0.0.1:80", ("10.0.0.1", 80), id="ipv4"),
    pytest.param("ipv4@10.0.0.1:80", ("10.0.0.1", 80), id="family"),
    pytest.param("[2001:DB8:0::1]:80", ("2001:db8::1", 80), id="ipv6"),
    pytest.param("2001:db8::1:80", ("2001:db8::1", 80), id="ipv6-without-brackets"),
    pytest.param("api.Internal:80", ("api.internal", 80), id="name"),
    pytest.param("10.0.0.1", ("10.0.0.1", 0), id="port-of-the-client"),
    pytest.param("10.0.0.1:+5", ("10.0.0.1", 0), id="offset-to-the-port-of-the-client"),
    pytest.param('"$HOST:${PORT}"', ("10.0.0.9", 81), id="variables"),
]


@pytest.mark.parametrize(("address", "end"), ADDRESSES)
def test_a_server_has_an_address(address, end) -> None:
    """In each of the spellings that HAProxy takes."""
    assert servers(f"backend b\n server s {address} check") == [("b", "s", *end)]


@pytest.mark.parametrize(
    "address",
    ["unix@/run/s", "/run/s", "abns@s", "fd@3", "sockpair@3", "0.0.0.0:80", "*:80", "a!:1", "€:80"],
)
def test_a_server_without_an_address_has_no_name(address) -> None:
    """Sockets of other kinds are never seen; no address is nobody's."""
    assert servers(f"backend b\n server s {address}") == []


CHECKS = [
    pytest.param("server s 10.0.0.1:80", ("10.0.0.1", 80, 2, 3), id="defaults"),
    pytest.param("server s 10.0.0.1:80 check rise 4 fall 5", ("10.0.0.1", 80, 4, 5), id="limits"),
    pytest.param("server s 10.0.0.1:80 check port 81", ("10.0.0.1", 81, 2, 3), id="port"),
    pytest.param(
        "server s 10.0.0.1:80 check addr 10.0.0.2", ("10.0.0.2", 80, 2, 3), id="address"
    ),
    pytest.param(
        "server s 10.0.0.1:80 check addr 10.0.0.2:82", ("10.0.0.2", 82, 2, 3), id="both"
    ),
    pytest.param(
        "default-server rise 7\n default-server fall 8\n server s 10.0.0.1:80",
        ("10.0.0.1", 80, 7, 8), id="default-server",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "check"), CHECKS)
def test_a_server_may_be_checked_elsewhere(lines, check) -> None:
    """Where checks go and how many results in a row they take."""
    found = server(lines)

    assert found is not None
    assert (found.check_host, found.check_port, found.rise, found.fall) == check


def test_defaults_are_handed_down() -> None:
    """The last section called ``defaults``, or the one that ``from`` names."""
    found = parse(
        [
            """
            defaults
                default-server rise 4
            backend a
                server s 10.0.0.1:80
            defaults other from missing
                default-server fall 9
            backend b
                default-server rise 6
                server s 10.0.0.2:80
            defaults third from other
            backend c
                server s 10.0.0.3:80
            backend d from other
                server s 10.0.0.4:80
            """
        ],
        {},
    ).servers

    assert [(s.backend, s.rise, s.fall) for s in found] == [
        ("a", 4, 3), ("b", 6, 9), ("c", 2, 9), ("d", 2, 9),
    ]  # fmt: skip


BINDS = [
    pytest.param("bind :80", [("", 80)], id="all"),
    pytest.param("bind *:80 name x", [("", 80)], id="star"),
    pytest.param("bind :::80 v4v6", [("", 80)], id="ipv6-all"),
    pytest.param("bind [::]:80", [("", 80)], id="ipv6-all-in-brackets"),
    pytest.param("bind 10.0.0.1:443 ssl crt /x alpn h2", [("10.0.0.1", 443)], id="address"),
    pytest.param(
        "bind 10.0.0.1:80,:81,ipv6@[::1]:82", [("10.0.0.1", 80), ("", 81), ("::1", 82)], id="list"
    ),
    pytest.param("bind :80-82", [("", 80), ("", 81), ("", 82)], id="range"),
    pytest.param("bind :82-80", [("", 82)], id="range-backwards"),
    pytest.param("bind :65534-99999", [("", 65534), ("", 65535)], id="range-too-far"),
    pytest.param("bind quic4@:443", [("", 443)], id="quic"),
    pytest.param("bind unix@/run/x", [], id="unix"),
    pytest.param("bind /run/x mode 600", [], id="path"),
    pytest.param("bind fd@3", [], id="descriptor"),
    pytest.param("bind", [], id="nothing"),
]


@pytest.mark.parametrize(("line", "ends"), BINDS)
@pytest.mark.parametrize("section", ["frontend", "listen"])
def test_a_frontend_listens_on_ports(line, ends, section) -> None:
    """A ``listen`` section is a frontend too."""
    assert binds(f"{section} f\n {line}") == [Bind("f", *end) for end in ends]


def test_other_sections_name_nothing() -> None:
    """Peers have servers and ports as well, rings have servers: none of them serves HTTP."""
    text = "peers p\n bind :1\n server s 10.0.0.1:1\nring r\n server t 10.0.0.1:2\n"

    assert servers(text) == []
    assert binds(text) == []
    assert servers(text + "listen l\n server u 10.0.0.1:3") == [("l", "u", "10.0.0.1", 3)]


SOCKETS = [
    pytest.param("stats socket /run/a.sock mode 600 level admin", ["/run/a.sock"], id="path"),
    pytest.param("stats socket unix@run/a.sock", ["run/a.sock"], id="unix"),
    pytest.param("stats socket ipv4@127.0.0.1:9999", [], id="tcp"),
    pytest.param("stats socket :9999", [], id="tcp-port"),
    pytest.param("stats socket abns@x", [], id="abstract"),
    pytest.param("stats timeout 5s", [], id="other"),
    pytest.param('setenv DIR /run/x\nstats socket "$DIR/s"', ["/run/x/s"], id="setenv"),
    pytest.param('presetenv HOST b\nstats socket "/$HOST"', ["/10.0.0.9"], id="presetenv"),
    pytest.param('unsetenv HOST\nstats socket "/$HOST"', ["/"], id="unsetenv"),
]


@pytest.mark.parametrize(("lines", "paths"), SOCKETS)
def test_the_runtime_socket_is_found(lines, paths) -> None:
    """Only those on Unix sockets: traffic on a port would be seen as traffic."""
    assert parse([f"global\n{lines}"], ENVIRONMENT).stats_sockets == paths


def test_files_continue_each_other() -> None:
    """A second file may begin in the middle of a section, as HAProxy allows."""
    found = parse(["backend b\n", " server s 10.0.0.1:80"], {})

    assert [s.backend for s in found.servers] == ["b"]


@given(st.text(alphabet=st.sampled_from("abd'\"\\$#{}-: \n\t[]@,.0129"), max_size=200))
def test_no_file_raises(text) -> None:
    """A file may be anything; HAProxy would have refused it."""
    for opening in ("global\nstats socket ", "listen l\nbind ", "listen l\nserver s "):
        parse([opening + text], ENVIRONMENT)


def test_sizes_are_bounded() -> None:
    """A hundred ranges of all ports keep within the bound."""
    assert len(binds("listen l\n" + "bind :1-65535\n" * 100)) == 20_000


LOGS = [
    pytest.param("global\n log stdout format raw local0\ndefaults\n log global", {1}, id="global"),
    pytest.param("global\n log stdout local0", set(), id="only-its-own-messages"),
    pytest.param("frontend f\n log fd@2 local0", {2}, id="frontend"),
    pytest.param("listen l\n log stderr daemon\n log fd@1 daemon", {1, 2}, id="both"),
    pytest.param("backend b\n log /dev/log local0\n log 127.0.0.1:514 local0", set(), id="others"),
    pytest.param('global\n log "${WHERE}" local0\ndefaults\n log global', {1}, id="variable"),
    pytest.param("ring r\n log stdout local0", set(), id="other-section"),
    pytest.param("defaults\n no log\n log", set(), id="none"),
]


@pytest.mark.parametrize(("text", "descriptors"), LOGS)
def test_requests_are_logged_where_their_section_says(text, descriptors) -> None:
    """A ``log`` line of ``global`` is for those sections that say ``log global``."""
    configuration = parse([text], {"WHERE": "stdout"})

    assert configuration.log_descriptors == descriptors


def test_every_target_of_the_log_is_known() -> None:
    """Whatever it is: what matters is that requests are logged."""
    text = "global\n log ring@r local0\nfrontend f\n log global\n log 10.0.0.1:514 local0"

    assert parse([text], {}).log_targets == {"ring@r", "10.0.0.1:514"}
    assert parse(["frontend f\n bind :80"], {}).log_targets == set()
