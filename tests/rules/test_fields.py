"""The names that rules know a transaction by."""

from __future__ import annotations

import pytest

from otel_qtap.rules import HTTP_VOCABULARY, Facts, RuleCompiler, Stage

IDENTIFIERS = [
    "http.req.method",
    "http.req.path",
    "http.req.scheme",
    "http.req.url",
    "http.req.host",
    "http.req.headers.user-agent",
    "http.res.status",
    "http.res.headers.content-type",
    "http.res.transfer-encoding",
    "http.res.duration_ms",
    "protocol",
    "direction",
    "type",
    "tags",
    "tls.enabled",
    "tls.version",
    "tls.sni",
    "tls.alpn",
    "src.ip",
    "src.port",
    "dst.ip",
    "dst.port",
    "dst.domain",
    "src.process.path",
    "src.process.binary",
    "src.process.hostname",
    "src.process.user.id",
    "src.process.user.name",
    "src.process.env.OTEL_SERVICE_NAME",
    "src.container.id",
    "src.container.name",
    "src.container.image",
    "src.container.labels.com.docker.compose.service",
    "src.pod.name",
    "src.pod.namespace",
    "src.pod.labels.app",
    "src.pod.annotations.a",
]


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_every_identifier_of_qtap_is_known(name) -> None:
    """A rule may name it, nothing is odd about that, and unknown facts make it missing."""
    rule = RuleCompiler().compile(f"{name} == 1")
    assert rule.fields == {name}
    assert rule.warnings == ()
    assert rule.matches(NothingKnown()) is False
    assert rule.explain(NothingKnown()).outcome.value == "missing"


class NothingKnown(Facts):
    """Facts of which every field is missing."""


def test_facts_have_every_field_of_the_vocabulary() -> None:
    """No name leads to an attribute that is not there."""
    facts = NothingKnown()
    for name, fact in HTTP_VOCABULARY:
        value = getattr(facts, fact.attribute)
        assert (value("x") if name.endswith(".") else value) is None, name


OLD_NAMES = [
    ("request.method", "http.req.method"),
    ("request.path", "http.req.path"),
    ("request.host", "http.req.host"),
    ("request.url", "http.req.url"),
    ("request.header.User-Agent", "http.req.headers.user-agent"),
    ("response.status", "http.res.status"),
    ("http.req.authority", "http.req.host"),
    ("http.req.header.x-y", "http.req.headers.x-y"),
    ("req.host", "http.req.host"),
    ("res.status", "http.res.status"),
    ("exe", "src.process.path"),
    ("bin", "src.process.binary"),
    ("pid", "src.process.pid"),
    ("container_name", "src.container.name"),
    ("container_image", "src.container.image"),
    ("pod_name", "src.pod.name"),
    ("pod_namespace", "src.pod.namespace"),
]


@pytest.mark.parametrize(("old", "name"), OLD_NAMES)
def test_old_names_are_understood(old, name) -> None:
    """They stand for the same field, and a warning tells its name."""
    rule = RuleCompiler().compile(f"t && {old} == 1")
    assert name in rule.fields
    (*_, warning) = rule.warnings
    assert warning.message == f"{old} is an old name of {name}"
    assert warning.column == 6


WARNINGS = [
    pytest.param("http.res.statsu == 1", 1, "did you mean http.res.status?", id="misspelt"),
    pytest.param("status >= 400", 1, "never matches", id="unknown"),
    pytest.param(
        "http.req.headers.Retry-After", 1, "write http.req.headers.retry-after", id="case"
    ),
    pytest.param("http.req.headers != ''", 1, "write http.req.headers.name", id="whole-map"),
    pytest.param("ab == 'x'", 1, "never matches", id="octets-no-more"),
    pytest.param("http.res.status == 0777", 20, "octal: 511", id="octal"),
    pytest.param("is_error", 1, "without () is a field", id="macro-without-parentheses"),
]


@pytest.mark.parametrize(("text", "column", "words"), WARNINGS)
def test_odd_names_bring_a_warning(text, column, words) -> None:
    """The rule is compiled all the same: Qtap does so, too."""
    rule = RuleCompiler({"is_error": "http.res.status >= 400"}).compile(text)
    (warning,) = rule.warnings
    assert words in warning.message
    assert (warning.text, warning.column, warning.macro) == (text, column, "")


def test_a_warning_is_given_once() -> None:
    """For each place."""
    rule = RuleCompiler().compile("nil == 1 || nil == 2")
    assert [warning.column for warning in rule.warnings] == [1, 13]


STAGES = [
    pytest.param("true", Stage.CONNECTION, id="nothing"),
    pytest.param("direction == 'ingress' && src.port == 80", Stage.CONNECTION, id="connection"),
    pytest.param("http.req.path == '/'", Stage.REQUEST_HEAD, id="request-head"),
    pytest.param(
        "http.req.path == '/' && http.res.status == 1", Stage.RESPONSE_HEAD, id="response"
    ),
    pytest.param("http.res.duration_ms > 500", Stage.END, id="end"),
    pytest.param("exe == 'x' || no.such.field", Stage.CONNECTION, id="unknown-is-known-to-be"),
]


@pytest.mark.parametrize(("text", "stage"), STAGES)
def test_rules_know_when_they_can_be_decided(text, stage) -> None:
    """That of the field that becomes known last."""
    assert RuleCompiler().compile(text).needs is stage
