"""
Take credentials out of a transaction before anything queues, stores or exports it.

Names decide, not values: a header or query key that is known to carry a secret keeps
its name and loses its value. Where the end of a secret is in doubt, more is removed
rather than less. Bodies are not searched: whoever must not store them captures
``headers`` or less.

``redact`` in the Qtap file adds names, and a key: with that a secret becomes a keyed hash
of itself, so that who has no secret can still tell that two requests came with the same.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from urllib.parse import quote, unquote, unquote_plus

from otel_qtap.config.model import RedactConfig
from otel_qtap.protocol.events import Headers
from otel_qtap.transaction.link import TRACE_CONTEXT_NAMES
from otel_qtap.transaction.model import Transaction

__all__ = ["DEFAULT_HEADER_NAMES", "DEFAULT_QUERY_KEYS", "REDACTED", "Redactor"]

REDACTED = "REDACTED"
"""The value that the semantic conventions put in place of a secret."""

DEFAULT_HEADER_NAMES = frozenset(
    {
        "api-key",
        "apikey",
        "authentication-info",
        "authorization",
        "cf-access-client-secret",
        "cf-access-jwt-assertion",
        "cf-access-token",
        "cookie",
        "cookie2",
        "csrf-token",
        "dpop",
        "ocp-apim-subscription-key",
        "private-token",
        "proxy-authentication-info",
        "proxy-authorization",
        "set-cookie",
        "set-cookie2",
        "x-access-token",
        "x-amz-security-token",
        "x-amzn-oidc-accesstoken",
        "x-amzn-oidc-data",
        "x-api-key",
        "x-api-token",
        "x-apikey",
        "x-auth-key",
        "x-auth-request-access-token",
        "x-auth-token",
        "x-authorization",
        "x-client-secret",
        "x-consul-token",
        "x-csrf-token",
        "x-csrftoken",
        "x-forwarded-access-token",
        "x-forwarded-authorization",
        "x-functions-key",
        "x-gitlab-token",
        "x-goog-api-key",
        "x-goog-iap-jwt-assertion",
        "x-id-token",
        "x-jwt-assertion",
        "x-ms-token-aad-access-token",
        "x-ms-token-aad-id-token",
        "x-ms-token-aad-refresh-token",
        "x-original-authorization",
        "x-refresh-token",
        "x-registry-auth",
        "x-secret",
        "x-secret-key",
        "x-session-id",
        "x-session-token",
        "x-shopify-access-token",
        "x-token",
        "x-vault-token",
        "x-xsrf-token",
    }
)
"""Lower case. Request and response headers and trailers alike."""

DEFAULT_QUERY_KEYS = frozenset(
    {
        "access_key",
        "access_token",
        "api_key",
        "api_token",
        "assertion",
        "auth",
        "auth_key",
        "auth_token",
        "authorization",
        "AWSAccessKeyId",
        "bearer",
        "bearer_token",
        "client_assertion",
        "client_secret",
        "code_verifier",
        "credential",
        "credentials",
        "csrf",
        "csrf_token",
        "id_token",
        "id_token_hint",
        "jsessionid",
        "jwt",
        "oauth_signature",
        "oauth_token",
        "oauth_verifier",
        "otp",
        "passcode",
        "passphrase",
        "passwd",
        "password",
        "phpsessid",
        "private_key",
        "pwd",
        "refresh_token",
        "reset_token",
        "SAMLResponse",
        "secret",
        "secret_key",
        "session",
        "session_id",
        "session_token",
        "sid",
        "sig",
        "sign",
        "Signature",
        "subscription_key",
        "token",
        "user_token",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-API-Key",
        "X-Auth-Token",
        "X-Goog-Credential",
        "X-Goog-Signature",
        "xsrf_token",
    }
)
"""Compared without regard to case, ``-``, ``_`` and ``.``: ``accessToken`` is in it."""

# Headers whose value is a URL or a request target, or holds one.
_URL_HEADERS = frozenset(
    {
        "content-location",
        "link",
        "location",
        "referer",
        "refresh",
        "x-accel-redirect",
        "x-envoy-original-path",
        "x-forwarded-uri",
        "x-original-uri",
        "x-original-url",
        "x-rewrite-url",
    }
)
_AUTHORITY_HEADERS = frozenset({"host", ":authority", "x-forwarded-host"})

_USER_INFO = re.compile(r"((?:^|[A-Za-z][A-Za-z0-9+.-]*:)//)[^/?#\s<>\"']*@")
_MAY_HOLD_PART = re.compile(r"[@?#;]")  # what sets off user-info, query, fragment, parameters
_MAY_HOLD_SECRET = re.compile(r"=|@|%3D|%40", re.IGNORECASE)
_MAX_KNOWN_NAMES = 4096
_MAX_KNOWN_KEY_SIZE = 64
_HASH_DIGITS = 16  # of HMAC-SHA-256: too many to meet by chance, too few to fill a log
_MAX_NESTING = 2  # a URL in a parameter of a URL in a parameter


class _Kind(Enum):
    """What a header field may hold."""

    SECRET = 1
    URL = 2
    AUTHORITY = 3
    OTHER = 4


_SECRET, _URL, _OTHER = _Kind.SECRET, _Kind.URL, _Kind.OTHER  # looking up a member is slow


class Redactor:
    """Replace the values of secret headers and query keys, and user-info, by ``REDACTED``."""

    def __init__(
        self,
        header_names: Iterable[str] = DEFAULT_HEADER_NAMES,
        query_keys: Iterable[str] = DEFAULT_QUERY_KEYS,
        *,
        hash_key: bytes = b"",
    ) -> None:
        """With a ``hash_key`` secrets are replaced by keyed hashes."""
        self._hash_key = hash_key
        self._header_names = frozenset(name.lower().replace("_", "-") for name in header_names)
        self._hides_trace = not self._header_names.isdisjoint(TRACE_CONTEXT_NAMES)
        self._query_keys = frozenset(_plain(key) for key in query_keys)
        self._harmless: set[str] = set()
        self._kinds: dict[str, _Kind] = {}  # by spelling: looking up is half the cost of asking
        self._harmless_keys: set[str] = set()  # of queries, by spelling
        self._last: Transaction | None = None
        self._last_redacted: Transaction | None = None

    @classmethod
    def of(cls, config: RedactConfig) -> Redactor:
        """Return the redactor that a Qtap file asks for: what it names, beyond the defaults."""
        key = config.hash_key.resolve() if config.hash_key else None
        return cls(
            (*DEFAULT_HEADER_NAMES, *config.headers),
            (*DEFAULT_QUERY_KEYS, *config.query),
            hash_key=(key or "").encode("utf-8", "surrogateescape"),
        )

    def redact(self, transaction: Transaction) -> Transaction:
        """
        Return ``transaction`` without its secrets: the same object if it holds none.

        Plugins of a stack ask for the same transaction one after the other, so the last
        answer is kept.
        """
        if transaction is self._last and self._last_redacted is not None:
            return self._last_redacted
        self._last = transaction
        self._last_redacted = redacted = self._redact(transaction)
        return redacted

    def _redact(self, transaction: Transaction) -> Transaction:
        if self._hides_trace:
            transaction = self._without_trace(transaction)
        request, response = transaction.request, transaction.response
        target = self.redact_target(request.target)
        headers = self._redact_headers(request.headers)
        trailers = request.trailers and self._redact_headers(request.trailers)
        if (
            target is not request.target
            or headers is not request.headers
            or trailers is not request.trailers
        ):
            request = replace(request, target=target, headers=headers, trailers=trailers)
        if response is not None:
            headers = self._redact_headers(response.headers)
            trailers = response.trailers and self._redact_headers(response.trailers)
            if headers is not response.headers or trailers is not response.trailers:
                response = replace(response, headers=headers, trailers=trailers)
        if request is transaction.request and response is transaction.response:
            return transaction
        return replace(transaction, request=request, response=response)

    def _without_trace(self, transaction: Transaction) -> Transaction:
        """Redact the trace context of all that it is related to: else they would disagree."""
        hide, link = self._redact_headers, transaction.link
        if link is not None:
            ancestors = [
                each._replace(context=hide(each.context), begun=hide(each.begun))
                for each in link.ancestors
            ]
            link = replace(link, ancestors=tuple(ancestors))
        candidates = [
            each._replace(root_headers=hide(each.root_headers)) for each in transaction.candidates
        ]
        return replace(
            transaction, link=link, begun=hide(transaction.begun), candidates=tuple(candidates)
        )

    def redact_target(self, target: str) -> str:
        """Return a request target of any form without its secrets."""
        if not _MAY_HOLD_PART.search(target):  # a plain path, as most targets are
            return target
        if "@" in target and target[:1] not in ("/", "*") and "//" not in target:
            return _without_user_info(target)  # authority form: user:password@host:443
        return self.redact_url(target)

    def redact_url(self, url: str) -> str:
        """Return ``url``, absolute or not, without its secrets: the same object if none."""
        return self._redact_url(url, _MAX_NESTING)

    def _redact_headers(self, headers: Headers) -> Headers:
        harmless = self._harmless
        changed: list[tuple[str, str]] | None = None
        for index, (name, value) in enumerate(headers):
            if name in harmless:
                continue
            kind = self._kinds.get(name) or self._kind_of(name)
            if kind is _OTHER:
                continue
            redacted = self._redact_value(kind, value)
            if redacted is not value:
                if changed is None:
                    changed = list(headers)
                changed[index] = (name, redacted)
        return headers if changed is None else tuple(changed)

    def _kind_of(self, name: str) -> _Kind:
        key = name.lower().replace("_", "-")
        if key in self._header_names:
            kind = _Kind.SECRET
        elif key in _URL_HEADERS:
            kind = _Kind.URL
        elif key in _AUTHORITY_HEADERS:
            kind = _Kind.AUTHORITY
        else:
            kind = _Kind.OTHER
        if len(self._kinds) >= _MAX_KNOWN_NAMES:  # peers choose names: keep it bounded
            self._kinds.clear()
            self._harmless.clear()
        self._kinds[name] = kind
        if kind is _OTHER:
            self._harmless.add(name)
        return kind

    def _redact_value(self, kind: _Kind, value: str) -> str:
        if kind is _SECRET:
            return self._replacement(value)
        if kind is _URL:
            return self.redact_url(value)
        return _without_user_info(value) if "@" in value else value

    def _redact_url(self, url: str, nesting: int) -> str:
        if "@" in url:
            url = _USER_INFO.sub(rf"\1{REDACTED}:{REDACTED}@", url)
        has_query = "?" in url or "#" in url
        if not has_query and ";" not in url:
            return url
        head, mark, fragment = url.partition("#")
        path, question, query = head.partition("?")
        if not fragment and ";" not in url and self._is_harmless(query):
            return url
        redacted = (
            self._redact_path_parameters(path)
            + question
            + self._redact_pairs(query, nesting)
            + mark
            + self._redact_pairs(fragment, nesting)  # #access_token=… of an OAuth redirect
        )
        return url if redacted == url else redacted

    def _redact_path_parameters(self, path: str) -> str:
        """Redact ``/shop;jsessionid=…/cart``: parameters of a path segment."""
        if ";" not in path or "=" not in path:
            return path
        return "/".join(
            ";".join(self._redact_pair(part) for part in segment.split(";"))
            for segment in path.split("/")
        )

    def _is_harmless(self, query: str) -> bool:
        """Whether nothing in a query needs a closer look, as it mostly is; a tenth of its cost."""
        for pair in query.split("&"):
            key, _, value = pair.partition("=")
            if _MAY_HOLD_SECRET.search(value):
                return False
            if key not in self._harmless_keys:
                if self._is_secret(key):
                    return False
                if len(self._harmless_keys) >= _MAX_KNOWN_NAMES:
                    self._harmless_keys.clear()
                if len(key) <= _MAX_KNOWN_KEY_SIZE:
                    self._harmless_keys.add(key)
        return True

    def _redact_pairs(self, query: str, nesting: int) -> str:
        if "=" not in query:
            return query
        return "&".join(self._redact_segment(segment, nesting) for segment in query.split("&"))

    def _redact_segment(self, segment: str, nesting: int) -> str:
        """Redact what stands between two ``&``; some servers part pairs by ``;`` as well."""
        parts = segment.split(";")
        for index, part in enumerate(parts):
            key, separator, value = part.partition("=")
            is_last = index == len(parts) - 1
            if separator and (value or not is_last) and self._is_secret(key):
                # Whether the secret ends at the next ";" is not known: all of the rest goes.
                secret = ";".join([value, *parts[index + 1 :]])
                return ";".join([*parts[:index], f"{key}={self._replacement(secret)}"])
        return self._redact_nested(segment, nesting)

    def _redact_nested(self, pair: str, nesting: int) -> str:
        """Redact a URL that is the value of a parameter, percent-encoded or not."""
        key, _, value = pair.partition("=")
        if not nesting or not _MAY_HOLD_SECRET.search(value):
            return pair
        nested = unquote(value)
        redacted = self._redact_url(nested, nesting - 1)
        if redacted is nested:
            return pair
        return f"{key}={quote(redacted, safe='') if '%' in value else redacted}"

    def _redact_pair(self, pair: str) -> str:
        key, separator, value = pair.partition("=")
        if not separator or not value or not self._is_secret(key):
            return pair
        return f"{key}={self._replacement(value)}"

    def _replacement(self, secret: str) -> str:
        """Return what stands in place of ``secret``."""
        if not self._hash_key:
            return REDACTED
        digest = hmac.digest(self._hash_key, secret.encode("utf-8", "surrogatepass"), "sha256")
        return f"{REDACTED}-{digest.hex()[:_HASH_DIGITS]}"

    def _is_secret(self, key: str) -> bool:
        """Whether ``key``, or a part of ``user[password]``, is one of the secret keys."""
        for _ in range(3):  # %2574oken is %74oken is token
            if "%" not in key:
                break
            key = unquote_plus(key)
        if "[" in key:
            return any(_plain(part.rstrip("]")) in self._query_keys for part in key.split("["))
        return _plain(key) in self._query_keys


def _plain(key: str) -> str:
    return key.strip(" +").lower().replace("-", "").replace("_", "").replace(".", "")


def _without_user_info(authority: str) -> str:
    return f"{REDACTED}:{REDACTED}@{authority.rpartition('@')[2]}"
