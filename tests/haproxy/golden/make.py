"""
Make the golden log lines anew: ``.venv/bin/python tests/haproxy/golden/make.py`` as root.

Every HAProxy of this machine serves the requests of ``CASES`` in namespaces of its own and
logs them to a syslog server. ``haproxy-X.Y.jsonl`` gets each line as it was sent, next to
what the client knows of the request. Read the difference after making them again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from haproxy import log_receiver  # noqa: E402 - the path comes first
from traffic import backend  # noqa: E402
from traffic.backend import Listener  # noqa: E402
from traffic.haproxy import find_binaries  # noqa: E402
from traffic.world import Program, World, wait_until  # noqa: E402

LISTENERS = (Listener("a", "127.0.1.1", 8001), Listener("a6", "::1", 8001))
HEADERS = ("local", "rfc3164", "rfc5424", "priority", "short", "timed", "iso", "raw")
HEADER_PORTS = {name: 8200 + number for number, name in enumerate(HEADERS)}
LOG_PORT = 5514
TCP_LOG_PORT = 6514

CONFIG = """\
global
    stats socket {directory}/stats.sock level admin
    log-send-hostname proxy.example
    tune.ssl.default-dh-param 2048
ring to-tcp
    format rfc3164
    maxlen 1200
    size 32768
    timeout connect 5s
    timeout server 10s
    server log 127.0.0.1:6514 log-proto octet-count
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 300ms
    timeout http-request 300ms
    retries 1
    log 127.0.0.1:5514 format local local0
    option httplog
cache small
    total-max-size 1
    max-age 60
frontend plain
    bind 127.0.0.1:8085
    bind [::1]:8085
    bind {directory}/client.sock
    bind 127.0.0.1:8086 accept-proxy
    option http-ignore-probes
    monitor-uri /monitor
    use_backend dead if {{ path_beg /dead }}
    use_backend redispatch if {{ path_beg /redispatch }}
    use_backend empty if {{ path_beg /empty }}
    use_backend over-ipv6 if {{ path_beg /over-ipv6 }}
    use_backend cached if {{ path_beg /cached }}
    use_backend queued if {{ path_beg /queued }}
    http-request deny if {{ path_beg /deny }}
    http-request return status 204 if {{ path_beg /return }}
    http-request redirect location /there if {{ path_beg /redirect }}
    stats enable
    stats uri /stats
    default_backend back
frontend both-captures
    bind 127.0.0.1:8087
    capture cookie SID len 40
    capture request header Host len 32
    capture request header User-Agent len 40
    capture response header X-Backend len 8
    default_backend back
frontend request-captures
    bind 127.0.0.1:8088
    capture request header User-Agent len 40
    default_backend back
frontend clf
    bind 127.0.0.1:8089
    option httplog clf
    default_backend back
frontend clf-captures
    bind 127.0.0.1:8090
    option httplog clf
    capture cookie SID len 40
    capture request header Host len 32
    capture response header X-Backend len 8
    default_backend back
frontend tls
    bind 127.0.0.1:8443 ssl crt {directory}/pair.pem alpn h2,http/1.1
    option httpslog
    default_backend back
frontend tls-plain-format
    bind 127.0.0.1:8444 ssl crt {directory}/pair.pem
    default_backend back
frontend clear-http2
    bind 127.0.0.1:8091 proto h2
    default_backend back
frontend early
    bind 127.0.0.1:8092
    option logasap
    default_backend back
frontend early-clf
    bind 127.0.0.1:8093
    option logasap
    option httplog clf
    default_backend back
frontend custom
    bind 127.0.0.1:8094
    log-format "%ci:%cp [%tr] %ft %b/%s %ST %{{+Q}}r"
    default_backend back
frontend extended
    bind 127.0.0.1:8095
    log-format "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %CC %CS %tsc \
%ac/%fc/%bc/%sc/%rc %sq/%bq %hr %hs %{{+Q}}r %[src] more"
    default_backend back
frontend tcp
    bind 127.0.0.1:8097
    mode tcp
    option tcplog
    default_backend tcp-back
frontend short-line
    bind 127.0.0.1:8098
    no log
    log 127.0.0.1:5514 len 300 format raw local0
    default_backend back
frontend long-line
    bind 127.0.0.1:8101
    no log
    log 127.0.0.1:5514 len 8000 format raw local0
    default_backend back
frontend over-tcp
    bind 127.0.0.1:8099
    no log
    log ring@to-tcp local0
    default_backend back
frontend over-unix
    bind 127.0.0.1:8100
    no log
    log {directory}/log.sock local0
    default_backend back
{header_frontends}
backend back
    http-response set-header X-Through yes
    server a 127.0.1.1:8001
backend over-ipv6
    server six [::1]:8001
backend dead
    server gone 127.0.1.9:8009
backend redispatch
    balance roundrobin
    retries 2
    option redispatch 1
    server gone 127.0.1.9:8009
    server a 127.0.1.1:8001
backend empty
backend cached
    http-request cache-use small
    http-response set-header Cache-Control max-age=60
    http-response cache-store small
    server a 127.0.1.1:8001
backend queued
    timeout queue 100ms
    server a 127.0.1.1:8001 maxconn 1
backend tcp-back
    mode tcp
    server a 127.0.1.1:8001
defaults without-option
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
    log 127.0.0.1:5514 format local local0
frontend default-format from without-option
    bind 127.0.0.1:8096
    default_backend back
"""

HEADER_FRONTEND = """\
frontend header-{name}
    bind 127.0.0.1:{port}
    no log
    log 127.0.0.1:5514 format {name} local0
    default_backend back
"""

CLIENT = r"""
import socket, sys, time
address, port, pause, leave = sys.argv[1:5]
client = socket.socket(socket.AF_UNIX if "/" in address else
                       socket.AF_INET6 if ":" in address else socket.AF_INET)
client.connect(address if "/" in address else (address, int(port)))
print(0 if "/" in address else client.getsockname()[1], flush=True)
for piece in sys.stdin.buffer.read().split(b"<pause>"):
    client.sendall(piece)
    time.sleep(float(pause))
if not int(leave):
    client.settimeout(3)
    while client.recv(65536):
        pass
client.close()
"""


@dataclass(frozen=True)
class Case:
    """One connection with one request, and what its line must say."""

    name: str
    port: int
    data: str
    """What is sent; ``<pause>`` waits 50 ms. ``curl``: its arguments instead."""
    expected: dict[str, Any] | None
    """``None`` for a line that is no HTTP line of a known format."""
    address: str = "127.0.0.1"
    leave: bool = False
    """Close after the last byte has been sent."""
    curl: tuple[str, ...] = field(default=())


def get(target: str, *fields: str, method: str = "GET") -> str:
    """Return a request that asks HAProxy to close afterwards."""
    lines = [f"{method} {target} HTTP/1.1", "Host: example.org", "Connection: close", *fields]
    return "\r\n".join([*lines, "", ""])


def served(target: str, frontend: str = "plain", **changes: Any) -> dict[str, Any]:
    """Return what the line of an answered request says."""
    return {
        "method": "GET", "target": target, "version": "1.1", "status": 200,
        "frontend": frontend, "backend": "back", "server": "a", "handler": "",
        "termination_state": "----", "is_tls": False, "is_early": False, "is_cut": False,
        "retries": 0, "is_redispatched": False, "captures": [], "format": "httplog",
    } | changes  # fmt: skip


def refused(target: str, state: str, status: int, **changes: Any) -> dict[str, Any]:
    """Return what the line of a request says that no server answered."""
    nobody = {"server": "", "handler": "NOSRV", "backend": "plain"}
    return served(target, status=status, termination_state=state, **(nobody | changes))


def except_for(names: str, expected: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not the same in all versions."""
    return {name: value for name, value in expected.items() if name not in names.split()}


NO_REQUEST = {"method": "", "version": ""}
LONG = "/long?" + "x" * 1500

CASES = [
    Case("get", 8085, get("/users?n=1"), served("/users?n=1")),
    Case("post", 8085, get("/echo?echo=1", "Content-Length: 4", method="POST") + "body",
         served("/echo?echo=1", method="POST")),
    Case("head", 8085, get("/x", method="HEAD"), served("/x", method="HEAD")),
    Case("status", 8085, get("/x?status=404"), served("/x?status=404", status=404)),
    Case("slow head", 8085, "GET /slow HTTP/1.1\r\n<pause>" + get("")[len("GET  HTTP/1.1\r\n"):],
         served("/slow")),
    Case("slow server", 8085, get("/x?delay_ms=120"), served("/x?delay_ms=120")),
    Case("escaped", 8085, get('/a"b|{d}\\e'), served('/a"b|{d}\\e')),
    Case("http 1.0", 8085, "GET /old HTTP/1.0\r\n\r\n", served("/old", version="1.0")),
    Case("absolute target", 8085, get("http://example.org/absolute"),
         served("http://example.org/absolute")),
    Case("options *", 8085, get("*", method="OPTIONS"), served("*", method="OPTIONS")),
    Case("cut by the default length", 8085, get(LONG), served(LONG, is_cut=True, version="")),
    Case("cut by len", 8098, get("/short?" + "y" * 400),
         served("/short?" + "y" * 400, "short-line", is_cut=True, version="")),
    Case("cut by logurilen", 8101, get(LONG),
         served(LONG, "long-line", is_cut=True, version="")),
    Case("ipv6 client", 8085, get("/x"), served("/x"), address="::1"),
    Case("ipv6 server", 8085, get("/over-ipv6"),
         served("/over-ipv6", backend="over-ipv6", server="six")),
    Case("unix client", 0, get("/x"), served("/x", client_address="unix", client_port=3),
         address="client.sock"),
    Case("proxy protocol", 8086,
         "PROXY TCP4 192.0.2.7 192.0.2.1 51234 80\r\n" + get("/x"),
         served("/x", client_address="192.0.2.7", client_port=51234)),
    Case("proxy protocol ipv6", 8086,
         "PROXY TCP6 2001:db8::7 2001:db8::1 51234 80\r\n" + get("/x"),
         served("/x", client_address="2001:db8::7", client_port=51234)),
    Case("denied", 8085, get("/deny"), refused("/deny", "PR--", 403)),
    Case("returned", 8085, get("/return"), refused("/return", "LR--", 204)),
    Case("redirected", 8085, get("/redirect"), refused("/redirect", "LR--", 302)),
    Case("statistics", 8085, get("/stats"),
         served("/stats", termination_state="LR--", backend="plain", server="", handler="STATS")),
    Case("no server", 8085, get("/empty"), refused("/empty", "SC--", 503, backend="empty")),
    Case("dead server", 8085, get("/dead"),
         served("/dead", status=503, backend="dead", server="gone", termination_state="SC--",
                retries=1)),
    Case("server closes", 8085, get("/x?close=before"),
         served("/x?close=before", status=502, termination_state="SH--")),
    Case("server closes in the body", 8085, get("/x?close=mid&size=4000"),
         served("/x?close=mid&size=4000", termination_state="SD--")),
    Case("server times out", 8085, get("/x?delay_ms=600"),
         served("/x?delay_ms=600", status=504, termination_state="sH--")),
    Case("client leaves in the answer", 8085, get("/x?delay_ms=200"),
         served("/x?delay_ms=200"), leave=True),
    Case("client leaves in the body", 8085,
         get("/body", "Content-Length: 100", method="POST") + "half",
         except_for("status termination_state", served("/body", method="POST")), leave=True),
    Case("client leaves in the head", 8085, "GET /half HTTP/1.1\r\nHost: e",
         refused("", "CR--", 400, **NO_REQUEST), leave=True),
    Case("client is too slow", 8085, "GET /half HTTP/1.1\r\nHost: e",
         refused("", "cR--", 408, **NO_REQUEST)),
    Case("bad request", 8085, "G\0T / HTTP/1.1\r\n\r\n", refused("", "PR--", 400, **NO_REQUEST)),
    Case("captures of both", 8087,
         get("/x", 'User-Agent: curl/8 (a {b|c} "d" #e)', "Cookie: SID=secret; x=y"),
         served("/x", "both-captures",
                captures=[["example.org", 'curl/8 (a {b|c} "d" #e)'], ["a"]])),
    Case("cookie with spaces", 8087, get("/x", 'Cookie: SID="se cr et"'),
         served("/x", "both-captures", captures=[["example.org", ""], ["a"]])),
    Case("captures of requests", 8088, get("/x", "User-Agent: curl/8"),
         served("/x", "request-captures", captures=[["curl/8"]])),
    Case("nothing to capture", 8088, get("/x"), served("/x", "request-captures", captures=[[""]])),
    Case("clf", 8089, get("/clf?q=1"), served("/clf?q=1", "clf", format="httplog clf")),
    Case("clf, bad request", 8089, "BAD\r\n\r\n",
         refused("", "PR--", 400, frontend="clf", backend="clf", format="httplog clf",
                 **NO_REQUEST)),
    Case("clf with captures", 8090, get("/x", "Cookie: SID=secret"),
         served("/x", "clf-captures", format="httplog clf", captures=[["example.org", "a"]])),
    Case("https", 8443, "", served("/tls", "tls", is_tls=True, format="httpslog",
         tls_name="example.org", tls_version="TLSv1.2",
         tls_cipher="ECDHE-RSA-AES128-GCM-SHA256"),
         curl=("--tls-max", "1.2", "--ciphers", "ECDHE-RSA-AES128-GCM-SHA256", "--http1.1",
               "--resolve", "example.org:8443:127.0.0.1", "https://example.org:8443/tls")),
    Case("https, http/2", 8443, "",
         served("https://example.org:8443/tls2", "tls", is_tls=True, format="httpslog",
                version="2.0", tls_name="example.org", tls_version="TLSv1.3"),
         curl=("--http2", "--resolve", "example.org:8443:127.0.0.1",
               "https://example.org:8443/tls2")),
    Case("https, no name", 8443, "", served("/tls3", "tls", is_tls=True, format="httpslog",
         tls_name=""), curl=("--http1.1", "https://127.0.0.1:8443/tls3")),
    Case("https in the plain format", 8444, "", served("/tls4", "tls-plain-format", is_tls=True),
         curl=("--http1.1", "https://127.0.0.1:8444/tls4")),
    Case("http/2", 8091, "", served("http://127.0.0.1:8091/two", "clear-http2", version="2.0"),
         curl=("--http2-prior-knowledge", "http://127.0.0.1:8091/two")),
    Case("early", 8092, get("/x?size=10"), served("/x?size=10", "early", is_early=True)),
    Case("early clf", 8093, get("/x"), served("/x", "early-clf", is_early=True,
         format="httplog clf")),
    Case("custom format", 8094, get("/x"), None),
    Case("extended format", 8095, get("/x"), None),
    Case("default format", 8096, get("/x"), None),
    Case("tcp", 8097, get("/x"), None),
    Case("failed handshake", 8444, "not TLS at all\r\n\r\n", None),
    Case("over tcp", 8099, get("/x"), served("/x", "over-tcp")),
    Case("over a unix socket", 8100, get("/x"), served("/x", "over-unix")),
    *(Case(f"header {name}", port, get("/x"), served("/x", f"header-{name}"))
      for name, port in HEADER_PORTS.items()),
]  # fmt: skip
AFTERWARDS = [
    Case(
        "cached",
        8085,
        get("/cached"),
        served("/cached", backend="cached", server="", handler="CACHE", termination_state="LR--"),
    ),
]


def redispatched() -> Case:
    """A request whose first server is dead: round robin starts with it."""
    return Case("redispatched", 8085, get("/redispatch"),
                served("/redispatch", backend="redispatch", retries=1, is_redispatched=True,
                       termination_state="----"))  # fmt: skip


class Scene:
    """One HAProxy with everything around it."""

    def __init__(self, world: World, directory: Path, binary: Path) -> None:
        self._world = world
        self._directory = directory
        self._seen = 0
        make_pair(directory / "pair.pem")
        program = world.start("backend", backend.command(LISTENERS))
        self._log = world.start(
            "log", log_receiver.command(LOG_PORT, TCP_LOG_PORT, str(directory / "log.sock"))
        )
        world.wait_for_ports([8001, TCP_LOG_PORT], [program, self._log])
        config = directory / "haproxy.cfg"
        fronts = "".join(HEADER_FRONTEND.format(name=n, port=p) for n, p in HEADER_PORTS.items())
        config.write_text(CONFIG.format(directory=directory, header_frontends=fronts))
        self.haproxy: Program = world.start(
            "haproxy", [str(binary), "-db", "-f", str(config)], {"TZ": "Asia/Kathmandu"}
        )
        world.wait_for_ports([8085, 8443], [self.haproxy])

    def play(self, case: Case) -> tuple[int, list[str]]:
        """Send one request; return the client's port and what was logged."""
        port = self._curl(case) if case.curl else self._send(case)
        wait_until(lambda: len(self._lines()) > self._seen, 5, f"a line of {case.name!r}")
        lines = self._lines()[self._seen :]
        self._seen += len(lines)
        return port, lines

    def _lines(self) -> list[str]:
        notes = map(json.loads, self._log.output().splitlines())
        return [
            note["data"]
            for note in notes
            if not any(m in note["data"] for m in ("is DOWN", "no server", "started."))
        ]

    def _send(self, case: Case) -> int:
        address = case.address
        if address.endswith(".sock"):
            address = str(self._directory / address)
        pause = "0.05" if "<pause>" in case.data or case.leave else "0"
        done = self._world.run(
            [sys.executable, "-c", CLIENT, address, str(case.port), pause, str(int(case.leave))],
            stdin=case.data.encode("latin-1"),
        )
        return int(done.stdout.split()[0])

    def _curl(self, case: Case) -> int:
        done = self._world.run(
            ["curl", "-sk", "-o", "/dev/null", "-w", "%{local_port}", *case.curl]
        )
        return int(done.stdout)


def make_pair(path: Path) -> None:
    """Write a key and a certificate for TLS."""
    key = path.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=example.org",
         "-keyout", str(key), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())


def main() -> None:
    """Write all golden files."""
    for full_version, binary in find_binaries().items():
        version = full_version.rpartition(".")[0]
        rows = []
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            with World(directory / "world") as world:
                scene = Scene(world, directory, binary)
                scene.play(Case("first", 8085, get("/cached"), {}))
                for case in [*CASES, *AFTERWARDS, redispatched()]:
                    port, lines = scene.play(case)
                    known = {"client_port": port, "expected": case.expected}
                    rows += [{"case": case.name, "line": line, **known} for line in lines]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (HERE / f"haproxy-{version}.jsonl").write_text(text)
        print(f"haproxy-{version}.jsonl: {len(rows)} lines")


if __name__ == "__main__":
    main()
