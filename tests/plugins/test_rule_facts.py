"""What rules see of a transaction, and what the rules of the guide make of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.connection.model import Peer
from otel_qtap.plugins.http_capture import HttpCapture
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.plugins.rule_facts import RuleBinder, TransactionFacts, highest_possible_level
from otel_qtap.rules import RuleCompiler, Stage
from otel_qtap.transaction.model import Direction, Ending

MS = 1_000_000
INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS_INTERNAL
NONE, SUMMARY, FULL = CaptureLevel.NONE, CaptureLevel.SUMMARY, CaptureLevel.FULL
HEADERS = CaptureLevel.HEADERS


def matches(text, transaction, hostname="") -> bool:
    """Whether a transaction matches an expression."""
    return RuleCompiler().compile(text).matches(TransactionFacts(transaction, hostname))


FIELDS = [  # of GET /api/users?id=1 through the HAProxy of the guide
    pytest.param(INGRESS, 'http.req.method == "GET"', id="method"),
    pytest.param(INGRESS, 'http.req.path == "/api/users"', id="path-without-query"),
    pytest.param(INGRESS, 'http.req.scheme == "http"', id="scheme"),
    pytest.param(INGRESS, 'http.req.url == "http://localhost:8085/api/users?id=1"', id="url"),
    pytest.param(
        EGRESS, 'http.req.url == "http://backend-api-1:8001/api/users?id=1"', id="url-of-egress"
    ),
    pytest.param(INGRESS, 'http.req.host == "localhost:8085"', id="host-with-port"),
    pytest.param(INGRESS, 'http.req.headers.user-agent == "curl/8"', id="request-header"),
    pytest.param(INGRESS, 'http.req.headers.x-twice == "first"', id="first-of-two-headers"),
    pytest.param(INGRESS, 'http.req.headers.x-name == "Größe"', id="header-in-utf-8"),
    pytest.param(INGRESS, "http.req.headers.x-name matches /^Gr..e$/", id="characters"),
    pytest.param(INGRESS, "http.res.status == 503", id="status"),
    pytest.param(INGRESS, 'http.res.headers.content-type == "text/plain"', id="response-header"),
    pytest.param(INGRESS, 'http.res.transfer-encoding == "chunked"', id="transfer-encoding"),
    pytest.param(INGRESS, "http.res.duration_ms == 12.5", id="duration"),
    pytest.param(INGRESS, 'protocol == "http1"', id="protocol"),
    pytest.param(INGRESS, 'direction == "ingress"', id="direction-ingress"),
    pytest.param(EGRESS, 'direction == "egress-internal"', id="direction-egress"),
    pytest.param(INGRESS, 'type == "tcp"', id="type"),
    pytest.param(INGRESS, 'tags contains "bin:haproxy"', id="tag-of-the-program"),
    pytest.param(INGRESS, 'tags contains "protocol:http1"', id="tag-of-the-protocol"),
    pytest.param(INGRESS, "src.ip == 172.18.0.2 && src.port == 80", id="source-is-the-process"),
    pytest.param(INGRESS, "dst.ip in 192.0.2.0/24 && dst.port == 51234", id="peer-is-remote"),
    pytest.param(EGRESS, "src.ip in 172.16.0.0/12 && dst.ip == 172.18.0.3", id="egress-ends"),
    pytest.param(INGRESS, 'dst.domain == "localhost"', id="domain-asked-for"),
    pytest.param(EGRESS, 'dst.domain == "backend-api-1"', id="domain-of-the-server"),
    pytest.param(INGRESS, 'src.process.path == "/usr/local/sbin/haproxy"', id="executable"),
    pytest.param(INGRESS, "exe matches |haproxy$|", id="executable-by-its-old-name"),
    pytest.param(INGRESS, 'src.process.binary == "haproxy"', id="binary"),
    pytest.param(INGRESS, "src.process.pid == 987 && pid == 987", id="process-id"),
    pytest.param(INGRESS, "src.process.user.id == 99", id="user-id"),
    pytest.param(INGRESS, 'src.process.user.name == "haproxy"', id="user-name"),
    pytest.param(INGRESS, 'src.process.env.OTEL_SERVICE_NAME == "edge"', id="environment"),
    pytest.param(INGRESS, 'src.container.id == "c0ffee000000"', id="container-id"),
    pytest.param(INGRESS, 'src.container.name == "haproxy-demo"', id="container-name"),
    pytest.param(INGRESS, 'src.container.image == "haproxy:2.9-alpine"', id="container-image"),
    pytest.param(
        INGRESS,
        'src.container.labels.com.docker.compose.service == "haproxy"',
        id="container-label",
    ),
    pytest.param(INGRESS, 'src.pod.name == "edge-0"', id="pod"),
    pytest.param(INGRESS, 'src.pod.namespace == "web"', id="namespace"),
]


@pytest.fixture
def make_rich_transaction(make_transaction, make_process, make_container):
    """A transaction that has a value for every field that one can have."""

    def make(direction=INGRESS, **changes):
        known = {
            "direction": direction,
            "target": "/api/users?id=1",
            "status": 503,
            "duration_ns": 12 * MS + MS // 2,
            "request_headers": (
                ("Host", "localhost:8085"),
                ("User-Agent", "curl/8"),
                ("X-Twice", "first"),
                ("x-twice", "second"),
                ("X-Name", "Größe".encode().decode("latin-1")),
            ),
            "response_headers": (
                ("Content-Type", "text/plain"),
                ("Transfer-Encoding", "chunked"),
            ),
            "process": make_process(environment=(("OTEL_SERVICE_NAME", "edge"),)),
            "container": make_container(
                labels=(
                    ("com.docker.compose.service", "haproxy"),
                    ("io.kubernetes.pod.name", "edge-0"),
                    ("io.kubernetes.pod.namespace", "web"),
                )
            ),
        }
        return make_transaction(**(known | changes))

    return make


@pytest.mark.parametrize(("direction", "text"), FIELDS)
def test_fields(direction, text, make_rich_transaction) -> None:
    """Each field has the value that Qtap's reference gives it; the negation does not hold."""
    transaction = make_rich_transaction(direction)
    assert matches(text, transaction)
    assert not matches(f"!({text})", transaction)


def missing(name, case, **changes):
    return pytest.param(name, changes, id=f"{name}-{case}")


MISSING = [
    missing("http.res.status", "unanswered", status=None),
    missing("http.res.headers.content-type", "unanswered", status=None),
    missing("http.res.duration_ms", "unanswered", status=None),
    missing("http.res.transfer-encoding", "not-sent", response_headers=()),
    missing("http.req.headers.absent", "not-sent"),
    missing("http.req.host", "not-sent", request_headers=()),
    missing("http.req.path", "connect", method="CONNECT", target="example.com:443"),
    missing("tls.enabled", "plain-text"),
    missing("tls.version", "not-known-yet", scheme="https"),
    missing("tls.sni", "not-known-yet", scheme="https"),
    missing("tls.alpn", "not-known-yet", scheme="https"),
    missing("dst.domain", "address-asked-for", request_headers=(("host", "192.0.2.1:80"),)),
    missing("dst.domain", "ipv6-asked-for", request_headers=(("host", "[2001:db8::1]:80"),)),
    missing("src.container.name", "no-container", container=None),
    missing("src.container.labels.a", "no-container", container=None),
    missing("src.container.labels.a", "no-such-label"),
    missing("src.pod.name", "no-pod"),
    missing("src.pod.labels.app", "not-known-yet"),
    missing("src.pod.annotations.a", "not-known-yet"),
    missing("src.process.env.HOME", "not-kept"),
    missing("src.process.hostname", "in-a-container"),
]


@pytest.mark.parametrize(("name", "changes"), MISSING)
def test_missing_fields_never_match(name, changes, make_transaction) -> None:
    """Neither does their negation."""
    transaction = make_transaction(**changes)
    for text in (name, f"!{name}", f"{name} == 1", f'{name} != ""'):
        rule = RuleCompiler().compile(text)
        assert rule.matches(TransactionFacts(transaction)) is False
        assert rule.explain(TransactionFacts(transaction)).outcome.value == "missing"


def test_a_process_that_was_gone_has_no_facts(make_transaction, make_process) -> None:
    """What could not be asked any more is missing, not empty."""
    process = make_process(executable="", user_id=-1, user="", container_id="")
    transaction = make_transaction(process=process, container=None)
    for name in ("path", "binary", "user.id", "user.name", "hostname"):
        assert not matches(f"src.process.{name} || !src.process.{name}", transaction), name
    assert not matches("src.container.id || !src.container.id", transaction)


def test_the_host_name_is_that_of_processes_outside_containers(
    make_transaction, make_process
) -> None:
    """Inside one a process has another name for itself, which nobody knows."""
    outside = make_transaction(process=make_process(container_id=""), container=None)
    assert matches('src.process.hostname == "lb-1"', outside, "lb-1")
    assert matches('tags contains "host:lb-1"', outside, "lb-1")
    assert not matches("src.process.hostname", make_transaction(), "lb-1")


TARGETS = [
    pytest.param("/health?full=1", "/health", id="origin"),
    pytest.param("http://example.com/a?b", "/a", id="absolute"),
    pytest.param("http://example.com", "/", id="absolute-without-path"),
    pytest.param("*", "*", id="asterisk"),
    pytest.param("/größe".encode().decode("latin-1"), "/größe", id="utf-8"),
    pytest.param("/%2Fapi", "/%2Fapi", id="escapes-stay"),
]


@pytest.mark.parametrize(("target", "path"), TARGETS)
def test_path(target, path, make_transaction) -> None:
    """Of every form of the target, without its query."""
    assert TransactionFacts(make_transaction(target=target)).http_req_path == path


@settings(max_examples=200, deadline=None)
@given(target=st.text(alphabet="/?:a*#%é=.", max_size=12), method=st.sampled_from(["GET", "PUT"]))
def test_path_is_that_of_the_transaction(target, method, make_transaction) -> None:
    """However odd the target is."""
    transaction = make_transaction(target=target, method=method)
    assert TransactionFacts(transaction).http_req_path == (transaction.path or None)


DURATIONS = [
    pytest.param({"duration_ns": 501 * MS}, True, id="slow"),
    pytest.param({"duration_ns": 500 * MS}, False, id="not-slower"),
    pytest.param({"duration_ns": 500 * MS + 1}, True, id="by-a-nanosecond"),
    pytest.param({"status": None, "duration_ns": 900 * MS}, False, id="unanswered"),
]


@pytest.mark.parametrize(("changes", "is_slow"), DURATIONS)
def test_duration(changes, is_slow, make_transaction) -> None:
    """From the first byte of the request to the last byte of the response."""
    assert matches("http.res.duration_ms > 500", make_transaction(**changes)) is is_slow


def test_duration_of_a_response_that_was_cut_off(make_transaction, make_timings) -> None:
    """To what ended it."""
    timings = make_timings(duration_ns=800 * MS, response_end_ns=0)
    cut_off = make_transaction(timings=timings, ending=Ending.RESET)
    assert matches("http.res.duration_ms == 800", cut_off)


def test_encrypted_connections(make_transaction) -> None:
    """What is known of TLS is that it is there."""
    assert matches("tls.enabled && http.req.scheme == 'https'", make_transaction(scheme="https"))


def test_ipv6_peers(make_transaction) -> None:
    """Networks of both families, and IPv4 in IPv6 clothes."""
    transaction = make_transaction(
        local=Peer("2001:db8::1", 80), remote=Peer("::ffff:192.0.2.7", 51234)
    )
    assert matches("src.ip in 2001:db8::/32 && dst.ip == 192.0.2.7", transaction)


# Rules of plugins -------------------------------------------------------------------------


class Sink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.taken = []

    def consume(self, transaction) -> None:
        self.taken.append(transaction)


GUIDE_MACROS = {
    "is_health_check": 'http.req.path == "/health"',
    "is_error": "http.res.status >= 400",
    "is_api_backend": r"http.req.path matches /^\/api\//",
    "is_slow": "http.res.duration_ms > 500",
    "is_rate_limited": "http.res.status == 429 || http.res.status == 503",
    "is_retry": 'http.req.headers.retry-after != ""',
    "is_backup_dc": "http.req.url matches /dc2-/",
}
HEALTH_RULES = [
    ("is_health_check() && http.res.status == 200", NONE),
    ("is_health_check() && is_error()", FULL),
    ("is_error() && !is_health_check()", FULL),
]
BACKEND_RULES = [
    ("is_api_backend()", FULL),
    ("is_slow()", HEADERS),
    ("http.res.status >= 400", FULL),
]
RATE_RULES = [("is_rate_limited()", FULL), ("is_retry()", HEADERS)]
DATACENTER_RULES = [
    ("is_backup_dc()", FULL),
    ("!is_backup_dc() && http.res.status >= 500", FULL),
]
RETRY = (("host", "a"), ("Retry-After", "120"))

GUIDE = [
    pytest.param(HEALTH_RULES, NONE, {"target": "/health", "status": 200}, id="healthy"),
    pytest.param(HEALTH_RULES, FULL, {"target": "/health", "status": 503}, id="unhealthy"),
    pytest.param(HEALTH_RULES, FULL, {"target": "/x", "status": 404}, id="backend-error"),
    pytest.param(HEALTH_RULES, NONE, {"target": "/x", "status": 200}, id="no-error"),
    pytest.param(HEALTH_RULES, NONE, {"target": "/x", "status": None}, id="no-answer"),
    pytest.param(BACKEND_RULES, FULL, {"target": "/api/x"}, id="api"),
    pytest.param(BACKEND_RULES, NONE, {"target": "/api"}, id="not-quite-api"),
    pytest.param(BACKEND_RULES, HEADERS, {"target": "/", "duration_ns": 600 * MS}, id="slow"),
    pytest.param(
        BACKEND_RULES,
        HEADERS,
        {"target": "/", "duration_ns": 600 * MS, "status": 500},
        id="slow-error-is-slow-first",
    ),
    pytest.param(BACKEND_RULES, FULL, {"target": "/", "status": 500}, id="error"),
    pytest.param([("is_error()", FULL)], FULL, {"status": 500}, id="production-error"),
    pytest.param([("is_error()", FULL)], NONE, {"status": 399}, id="production-fine"),
    pytest.param([("http.res.status >= 0", SUMMARY)], SUMMARY, {}, id="all-traffic"),
    pytest.param([("http.res.status >= 0", SUMMARY)], NONE, {"status": None}, id="unanswered"),
    pytest.param(RATE_RULES, FULL, {"status": 429}, id="rate-limited"),
    pytest.param(RATE_RULES, FULL, {"status": 503}, id="unavailable"),
    pytest.param(RATE_RULES, HEADERS, {"request_headers": RETRY}, id="retry"),
    pytest.param(RATE_RULES, NONE, {}, id="no-retry"),
    pytest.param(
        DATACENTER_RULES,
        FULL,
        {"direction": EGRESS, "remote_name": "dc2-web-1"},
        id="backup-datacenter",
    ),
    pytest.param(
        DATACENTER_RULES,
        FULL,
        {"direction": EGRESS, "remote_name": "dc1-web-1", "status": 502},
        id="primary-datacenter-error",
    ),
    pytest.param(
        DATACENTER_RULES, NONE, {"direction": EGRESS, "remote_name": "dc1-web-1"}, id="primary"
    ),
    pytest.param([('http.req.path != "/health"', FULL)], FULL, {"target": "/x"}, id="skip"),
    pytest.param([('http.req.path != "/health"', FULL)], NONE, {"target": "/health"}, id="skipped"),
]


@pytest.mark.parametrize(("rules", "level", "changes"), GUIDE)
def test_every_rule_of_the_guide_decides_as_the_guide_says(
    rules, level, changes, make_transaction, counters
) -> None:
    """With its macros, in list order, the plugin's level being ``none``."""
    compiler, binder, sink = RuleCompiler(GUIDE_MACROS), RuleBinder(), Sink()
    plugin = HttpCapture(
        level=NONE,
        redactor=Redactor(),
        consumers=[sink],
        counters=counters,
        rules=[binder.bind(compiler.compile(text), level) for text, level in rules],
    )
    plugin.consume(make_transaction(**changes))
    assert [taken.level for taken in sink.taken] == ([] if level is NONE else [level])


def test_a_bound_rule_carries_what_it_decides() -> None:
    """Level, format and share; for ``access_logs`` the level under its word."""
    rule = RuleCompiler().compile("true")
    bound = RuleBinder().bind(rule, HEADERS, CaptureFormat.TEXT, 0.5)
    assert (bound.level, bound.mode) == (HEADERS, HEADERS)
    assert (bound.format, bound.sample_rate, bound.rule) == (CaptureFormat.TEXT, 0.5, rule)


def test_rules_share_facts_and_never_mix_transactions(make_transaction) -> None:
    """What one rule looked up does not outlive its transaction."""
    compiler, binder = RuleCompiler(), RuleBinder()
    by_url = binder.bind(compiler.compile("http.req.url contains '/a'"), FULL)
    by_path = binder.bind(compiler.compile("http.req.path == '/a'"), FULL)
    first, second = make_transaction(target="/a"), make_transaction(target="/b")
    for transaction, is_match in ((first, True), (second, False), (first, True)):
        assert by_url.matches(transaction) is is_match
        assert by_path.matches(transaction) is is_match


FORECASTS = [
    pytest.param([("http.res.status >= 400", FULL)], NONE, {}, FULL, NONE, id="errors"),
    pytest.param([("http.res.status >= 400", FULL)], NONE, {"status": 500}, FULL, FULL, id="error"),
    pytest.param([("http.req.path == '/x'", FULL)], SUMMARY, {}, SUMMARY, SUMMARY, id="other-path"),
    pytest.param(
        [("http.req.path == '/api/users'", SUMMARY), ("http.res.status >= 400", FULL)],
        NONE,
        {},
        SUMMARY,
        SUMMARY,
        id="earlier-rule-decides",
    ),
    pytest.param(
        [("http.res.status >= 400", HEADERS), ("http.req.path == '/api/users'", FULL)],
        NONE,
        {},
        FULL,
        FULL,
        id="later-rule-may-decide",
    ),
    pytest.param(
        [("http.res.status == 200 && http.req.path == '/x'", FULL)],
        NONE,
        {},
        NONE,
        NONE,
        id="half-of-it-decides",
    ),
    pytest.param([("http.res.duration_ms > 500", FULL)], NONE, {}, FULL, FULL, id="duration"),
    pytest.param([("http.res.status == 200", NONE)], FULL, {}, FULL, NONE, id="only-exceptions"),
]


@pytest.mark.parametrize(("rules", "default", "changes", "early", "late"), FORECASTS)
def test_bodies_that_nobody_will_keep_are_known_early(
    rules, default, changes, early, late, make_transaction
) -> None:
    """``early``: the most once the request is there; ``late``: once the response head is."""
    compiler, binder = RuleCompiler(), RuleBinder()
    bound = [binder.bind(compiler.compile(text), level) for text, level in rules]
    request = TransactionFacts(make_transaction(**(changes | {"status": None})))
    response = TransactionFacts(make_transaction(**changes))
    assert highest_possible_level(bound, default, request, Stage.REQUEST_HEAD) is early
    assert highest_possible_level(bound, default, response, Stage.RESPONSE_HEAD) is late
