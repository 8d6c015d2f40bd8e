"""Secrets leave a transaction before anything else sees it; everything else stays."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_qtap.config.model import RedactConfig
from otel_qtap.plugins.redaction import Redactor

REDACTOR = Redactor()

URLS = [
    # query keys, in any spelling
    pytest.param("/a?token=s3cret", "/a?token=REDACTED", id="query"),
    pytest.param("/a?x=1&token=s3cret&y=2", "/a?x=1&token=REDACTED&y=2", id="in-between"),
    pytest.param("/a?accessToken=s3cret", "/a?accessToken=REDACTED", id="camel-case"),
    pytest.param("/a?ACCESS_TOKEN=s3cret", "/a?ACCESS_TOKEN=REDACTED", id="upper-case"),
    pytest.param("/a?%74oken=s3cret", "/a?%74oken=REDACTED", id="percent-encoded-key"),
    pytest.param("/a?%2574oken=s3cret", "/a?%2574oken=REDACTED", id="doubly-encoded-key"),
    pytest.param("/a?token=x=y=z", "/a?token=REDACTED", id="value-with-equals"),
    pytest.param("/a?user[password]=s3cret", "/a?user[password]=REDACTED", id="nested-key"),
    pytest.param("/a?token[]=s3cret", "/a?token[]=REDACTED", id="list-key"),
    pytest.param("/a?x=1;token=s3cret;rest", "/a?x=1;token=REDACTED", id="semicolons"),
    pytest.param("/a?token=s3;cret&y=2", "/a?token=REDACTED&y=2", id="semicolon-in-value"),
    pytest.param(
        "/o?X-Amz-Credential=AK%2Fx&X-Amz-Signature=9f&X-Amz-Date=2026",
        "/o?X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED&X-Amz-Date=2026",
        id="aws-v4",
    ),
    pytest.param(
        "/o?AWSAccessKeyId=AK&Signature=9f&Expires=1",
        "/o?AWSAccessKeyId=REDACTED&Signature=REDACTED&Expires=1",
        id="aws-v2",
    ),
    pytest.param("/o?X-Goog-Signature=9f", "/o?X-Goog-Signature=REDACTED", id="google"),
    pytest.param("/o?sv=1&sig=9f", "/o?sv=1&sig=REDACTED", id="azure"),
    # elsewhere in a URL
    pytest.param(
        "http://bob:s3cret@h:81/a?b=c", "http://REDACTED:REDACTED@h:81/a?b=c", id="user-info"
    ),
    pytest.param("https://s3cret@h/", "https://REDACTED:REDACTED@h/", id="user-only"),
    pytest.param("//bob:s3cret@h/", "//REDACTED:REDACTED@h/", id="scheme-relative"),
    pytest.param(
        "/cart;jsessionid=s3cret/items;v=1",
        "/cart;jsessionid=REDACTED/items;v=1",
        id="path-parameter",
    ),
    pytest.param(
        "https://app/cb#access_token=s3cret&expires_in=3",
        "https://app/cb#access_token=REDACTED&expires_in=3",
        id="fragment",
    ),
    pytest.param("/go?to=/login?token=s3cret", "/go?to=/login?token=REDACTED", id="nested-url"),
    pytest.param(
        "/go?to=https%3A%2F%2Fbob%3As3cret%40h%2F%3Ftoken%3Ds3cret",
        "/go?to=https%3A%2F%2FREDACTED%3AREDACTED%40h%2F%3Ftoken%3DREDACTED",
        id="encoded-nested-url",
    ),
]

HARMLESS = [
    "/",
    "*",
    "/api/users?page=2&sort=name",
    "/api/users?token=",
    "/api/users?token",
    "/tokens/token/abc",
    "/mail/bob@example.com",
    "/a?q=a%3Db&author=x&design=y",
    "example.com:443",
    "http://example.com/a?b=c#part",
    "/a;v=1/b;w=2",
    "/?%zz=%&=&&",
]


@pytest.mark.parametrize(("target", "expected"), URLS)
def test_urls_lose_their_secrets(target, expected, make_transaction) -> None:
    """In the request target and in every header that holds a URL: keys stay, values go."""
    headers = (("Referer", target), ("x-original-url", target))
    redacted = REDACTOR.redact(
        make_transaction(
            target=target, request_headers=headers, response_headers=(("location", target),)
        )
    )
    assert redacted.request.target == expected
    assert redacted.request.headers == (("Referer", expected), ("x-original-url", expected))
    assert redacted.response.headers == (("location", expected),)


@pytest.mark.parametrize("target", HARMLESS)
def test_nothing_to_redact_gives_the_same_object(target, make_transaction) -> None:
    """A transaction without secrets is passed on as it is, not copied."""
    transaction = make_transaction(
        target=target, request_headers=(("host", "h"), ("referer", target))
    )
    assert REDACTOR.redact(transaction) is transaction


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "proxy-authorization",
        "COOKIE",
        "Set-Cookie",
        "X-API-Key",
        "x_api_key",
        "Api-Key",
        "apikey",
        "X-Auth-Token",
        "X-Amz-Security-Token",
        "X-CSRF-Token",
    ],
)
def test_secret_headers(name, make_transaction, make_request, make_response) -> None:
    """In requests, responses and trailers, whatever the case of the name; order stays."""
    fields = (("a", "1"), (name, "s3cret"), (name, "s3cret"), ("b", "2"))
    expected = (("a", "1"), (name, "REDACTED"), (name, "REDACTED"), ("b", "2"))
    transaction = make_transaction(
        request=make_request(headers=fields, trailers=fields),
        response=make_response(headers=fields, trailers=fields),
    )
    redacted = REDACTOR.redact(transaction)
    for message in (redacted.request, redacted.response):
        assert message.headers == expected
        assert message.trailers == expected
    assert transaction.request.headers == fields, "the given transaction is never edited"


def test_authority_forms(make_transaction) -> None:
    """User-info has no place in CONNECT targets and Host headers, and does not stay there."""
    redacted = REDACTOR.redact(
        make_transaction(
            method="CONNECT",
            target="bob:s3cret@db:5432",
            request_headers=(("Host", "bob:s3cret@db:5432"),),
        )
    )
    assert redacted.request.target == "REDACTED:REDACTED@db:5432"
    assert redacted.request.headers == (("Host", "REDACTED:REDACTED@db:5432"),)


def test_own_lists_replace_the_defaults(make_transaction) -> None:
    """Who gives names means exactly those."""
    redactor = Redactor(header_names=["X-Patient"], query_keys=["ssn"])
    redacted = redactor.redact(
        make_transaction(
            target="/p?ssn=1&token=t",
            request_headers=(("x-patient", "Bob"), ("authorization", "kept")),
        )
    )
    assert redacted.request.target == "/p?ssn=REDACTED&token=t"
    assert redacted.request.headers == (("x-patient", "REDACTED"), ("authorization", "kept"))


def test_no_response(make_transaction) -> None:
    """A request that got no answer is redacted like any other."""
    transaction = make_transaction(status=None, target="/?token=s3cret")
    assert REDACTOR.redact(transaction).request.target == "/?token=REDACTED"


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=60))
def test_any_target_is_survived_and_redacting_again_changes_nothing(target) -> None:
    """Nothing on the wire makes it fail, and what it made needs no second pass."""
    once = REDACTOR.redact_target(target)
    assert REDACTOR.redact_target(once) == once


@given(
    st.sampled_from(["/a", "http://h/a", "/a;v=1", "/a/b"]),
    st.sampled_from(["token", "password", "sig", "X-Amz-Signature", "%74oken", "user[pwd]"]),
    st.lists(st.sampled_from(["x=1", "y=", "z", "a=b=c", "q=%20", "r=s;t=u"]), max_size=4),
    st.integers(0, 4),
)
def test_a_secret_never_survives_whatever_stands_around_it(path, key, others, place) -> None:
    """Position and neighbours of a secret parameter make no difference."""
    pairs = [*others[:place], f"{key}=hunter2", *others[place:]]
    redacted = REDACTOR.redact_url(f"{path}?{'&'.join(pairs)}")
    assert "hunter2" not in redacted
    assert redacted.count("REDACTED") == 1


def test_the_file_adds_names_to_those_that_are_known(make_transaction) -> None:
    """However they are spelled; the defaults stay."""
    config = RedactConfig(headers=("X-Tenant",), query=("voucher-code",))
    transaction = make_transaction(
        target="/a?voucherCode=v1&token=t1&page=2",
        request_headers=(("x-tenant", "acme"), ("Authorization", "Bearer b1"), ("accept", "*/*")),
    )
    request = Redactor.of(config).redact(transaction).request

    assert request.target == "/a?voucherCode=REDACTED&token=REDACTED&page=2"
    assert [value for _, value in request.headers] == ["REDACTED", "REDACTED", "*/*"]


def test_with_a_key_equal_secrets_become_equal_hashes(make_transaction, monkeypatch) -> None:
    """Who has no key learns only which are equal; another key gives other hashes."""
    monkeypatch.setenv("QTAP_HASH_KEY", "k1")
    config = RedactConfig(hash_key={"type": "env", "value": "QTAP_HASH_KEY"})
    headers = (("authorization", "s3cret"), ("cookie", "other"))
    transaction = make_transaction(target="/a?token=s3cret", request_headers=headers)
    request = Redactor.of(config).redact(transaction).request
    by_hand = hmac.new(b"k1", b"s3cret", "sha256").hexdigest()[:16]

    assert request.target == f"/a?token=REDACTED-{by_hand}"
    assert request.headers[0][1] == f"REDACTED-{by_hand}"
    assert request.headers[1][1] not in (f"REDACTED-{by_hand}", "REDACTED", "other")
    monkeypatch.setenv("QTAP_HASH_KEY", "k2")
    assert Redactor.of(config).redact(transaction).request.target != request.target


def test_plugins_that_ask_in_turn_get_the_same_answer(make_transaction) -> None:
    """About the same transaction; equal ones are still looked at each for itself."""
    redactor = Redactor()
    one, two = (make_transaction(target=f"/{n}?token=s3cret") for n in (1, 2))
    first = redactor.redact(one)

    assert redactor.redact(one) is first
    assert redactor.redact(two).request.target == "/2?token=REDACTED"
    assert redactor.redact(one) == first
