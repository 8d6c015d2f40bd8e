"""Request events, and how little they tell of credentials."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field

import pytest

from otel_qtap.plugins.redaction import Redactor
from otel_qtap.plugins.report_usage import ReportUsage, auth_token

PAYLOAD = base64.urlsafe_b64encode(json.dumps({"sub": "Zoë"}).encode()).decode().rstrip("=")
JWT = f"eyJhbGciOiJIUzI1NiJ9.{PAYLOAD}.c2lnbmF0dXJl"


@dataclass
class Sink:
    """An event store that keeps what it gets."""

    taken: list = field(default_factory=list)

    def consume_event(self, event) -> None:
        self.taken.append(event)


def test_every_transaction_is_an_event_for_every_store(make_transaction) -> None:
    """With the tags of the process and the configured ones."""
    stores = [Sink(), Sink()]
    plugin = ReportUsage(
        redactor=Redactor(), consumers=stores, hostname="edge", tags=["Team:Edge", "bad"]
    )
    plugin.consume(make_transaction())
    plugin.consume(make_transaction(status=None))

    records = [[event.record() for event in store.taken] for store in stores]
    assert records[0] == records[1]
    assert [record["status"] for record in records[0]] == [200, 499]
    assert records[0][0]["tags"] == [
        "team:edge",
        "bin:haproxy",
        "host:edge",
        "protocol:http1",
        "strategy:observe",
    ]


def test_no_secret_leaves_in_an_event(make_transaction) -> None:
    """Neither in the URL nor in what is held until it is written; bodies are let go."""
    store = Sink()
    plugin = ReportUsage(redactor=Redactor(), consumers=[store], hostname="edge")
    plugin.consume(
        make_transaction(
            target="/?token=hunter2-hunter2-hunter2",
            request_headers=(("authorization", "Bearer hunter2-hunter2-hunter2"),),
            response_body=b"hunter2",
        )
    )
    (event,) = store.taken
    shown = json.dumps(event.record()) + repr(event) + event.describe()
    assert "hunter2" not in shown
    assert event.record()["authTokenMask"] == "hunt***(15)***ter2"
    assert event.transaction.request.header("authorization") == "REDACTED"
    assert event.transaction.response.body.content == b""


TOKENS = [
    pytest.param(("Authorization", JWT), "jwt", f"eyJh***({len(JWT) - 8})***dXJl", id="jwt"),
    pytest.param(
        ("authorization", f"Bearer {JWT}"), "jwt", f"eyJh***({len(JWT) - 8})***dXJl",
        id="jwt-as-bearer",
    ),
    pytest.param(("Authorization", "Basic dXNlcjpwYXNzd29yZA=="), "basic_auth",
                 "dXNl***(12)***ZA==", id="basic"),
    pytest.param(("Authorization", "bearer abcdefghij"), "bearer_token", "ab******ij", id="bearer"),
    pytest.param(("Authorization", "Bearer a.b.c"), "bearer_token", "*****", id="three-parts"),
    pytest.param(("Authorization", "OAuth abcdefghijklmnop"), "oauth_token",
                 "ab************op", id="oauth"),
    pytest.param(("X-API-KEY", "abcdefgh"), "api_key", "********", id="x-api-key"),
    pytest.param(("api-key", "abcdefghi"), "api_key", "ab*****hi", id="api-key"),
    pytest.param(("APIKey", "abcdefghijklmnopq"), "api_key", "abcd***(9)***nopq", id="apikey"),
    pytest.param(("X-Auth-Token", "abc"), "unknown", "***", id="x-auth-token"),
    pytest.param(("Authorization", "Digest username=x"), "unknown", "Dige***(9)***me=x",
                 id="digest"),
    pytest.param(("Authorization", "Bearer "), "bearer_token", "", id="nothing-behind-the-scheme"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "kind", "mask"), TOKENS)
def test_kind_and_mask(header, kind, mask) -> None:
    """Qtap's kinds; short credentials are hidden wholly, of long ones eight characters show."""
    token = auth_token((("accept", "*/*"), header))
    assert (token.type, token.mask) == (kind, mask)
    assert token.source.lower() == header[0].lower()
    assert token.hash == hashlib.sha256(header[1].encode()).hexdigest()


def test_the_first_of_the_known_headers_counts() -> None:
    """By Qtap's order, not by that of the request; an empty one does not."""
    both = (("x-auth-token", "later"), ("authorization", "first"))
    assert auth_token(both).source == auth_token(both[::-1]).source == "Authorization"
    assert auth_token((("authorization", ""), ("x-auth-token", "t"))).source == "X-Auth-Token"
    assert auth_token((("authorization", "one"), ("authorization", "two"))).mask == "***"
    assert auth_token((("host", "x"), ("cookie", "session=1"))) is None


@pytest.mark.parametrize(
    "value", ["a.!!.c", "a.W10.c", "a..c", f"a.{'W' * 20000}.c", "\xff.\xff.\xff"]
)
def test_no_value_breaks_it(value) -> None:
    """Three parts alone are no JWT."""
    assert auth_token((("authorization", value),)).type == "unknown"
