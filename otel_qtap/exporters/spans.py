"""
A transaction as a span: SERVER for what the process served, CLIENT for what it sent.

``ReadableSpan`` is filled in directly: the span is over when it is made, so there is
nothing for a tracer to do, and its clock and ids would be the wrong ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link as SpanLink
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AnyValue

from otel_qtap import __version__
from otel_qtap.exporters import semconv
from otel_qtap.exporters.endpoints import (
    client_end,
    full_url,
    original_scheme,
    server_end,
    target_end,
)
from otel_qtap.exporters.haproxy_log import haproxy_attributes
from otel_qtap.exporters.identity import SpanIdentity
from otel_qtap.protocol.events import Headers
from otel_qtap.transaction.link import HeaderChanges
from otel_qtap.transaction.model import Ending, Timings, Transaction, split_target
from otel_qtap.transaction.readable import readable_text

__all__ = ["SCOPE", "Attributes", "SpanBuilder", "end_ns", "error_type"]

Attributes: TypeAlias = dict[str, AnyValue]

SCOPE = InstrumentationScope("otel_qtap", __version__, schema_url=semconv.SCHEMA_URL)

_ERROR = Status(StatusCode.ERROR)
_UNSET = Status(StatusCode.UNSET)


class SpanBuilder:
    """Make spans and the attributes that spans and log records share."""

    def __init__(
        self,
        *,
        resource_of: Callable[[Transaction], Resource],
        trusts_forwarded: bool = True,
        known_methods: frozenset[str] | None = None,
    ) -> None:
        self._resource_of = resource_of
        self._trusts_forwarded = trusts_forwarded
        self._known_methods = _known_methods() if known_methods is None else known_methods

    def build(
        self, transaction: Transaction, identity: SpanIdentity, attributes: Attributes | None = None
    ) -> ReadableSpan:
        """Return the span of ``transaction``; ``attributes`` if they were made already."""
        if attributes is None:
            attributes = self.attributes(transaction)
        is_ingress = transaction.direction.is_ingress
        end = end_ns(transaction)
        return ReadableSpan(
            name=self._name(transaction),
            context=identity.context,
            parent=identity.parent,
            resource=self._resource_of(transaction),
            attributes=attributes,
            links=[SpanLink(context) for context in identity.links],
            kind=SpanKind.SERVER if is_ingress else SpanKind.CLIENT,
            status=_UNSET if error_type(transaction) is None else _ERROR,
            start_time=min(_start_ns(transaction), end),
            end_time=end,
            instrumentation_scope=SCOPE,
        )

    def attributes(self, transaction: Transaction) -> Attributes:
        """Return everything the conventions ask for, and headers where the level has them."""
        request, response = transaction.request, transaction.response
        attributes: Attributes = {}
        if request.method in self._known_methods:
            attributes[semconv.HTTP_REQUEST_METHOD] = request.method
        else:
            attributes[semconv.HTTP_REQUEST_METHOD] = semconv.METHOD_OTHER
            attributes[semconv.HTTP_REQUEST_METHOD_ORIGINAL] = readable_text(request.method)
        if transaction.direction.is_ingress:
            self._add_server_side(attributes, transaction)
        else:
            _add_client_side(attributes, transaction)
        attributes |= {
            semconv.NETWORK_LOCAL_ADDRESS: transaction.local.address,
            semconv.NETWORK_LOCAL_PORT: transaction.local.port,
            semconv.NETWORK_PEER_ADDRESS: transaction.remote.address,
            semconv.NETWORK_PEER_PORT: transaction.remote.port,
            semconv.NETWORK_PROTOCOL_VERSION: request.version.removesuffix(".0")
            if request.version != "1.0"
            else request.version,
            semconv.OTEL_QTAP_REQUEST_ID: transaction.request_id,
            semconv.OTEL_QTAP_CONNECTION_ID: transaction.connection_id,
        }
        user_agent = request.header("user-agent")
        if user_agent:
            attributes[semconv.USER_AGENT_ORIGINAL] = readable_text(user_agent)
        if request.body.size:
            attributes[semconv.HTTP_REQUEST_BODY_SIZE] = request.body.size
        if response is not None:
            attributes[semconv.HTTP_RESPONSE_STATUS_CODE] = response.status
            attributes[semconv.HTTP_RESPONSE_BODY_SIZE] = response.body.size
        error = error_type(transaction)
        if error is not None:
            attributes[semconv.ERROR_TYPE] = error
        if transaction.ending is not Ending.COMPLETE:
            attributes[semconv.OTEL_QTAP_ENDING] = transaction.ending.value
        _add_times(attributes, transaction.timings)
        _add_relations(attributes, transaction)
        if transaction.level.has_headers:
            _add_headers(attributes, semconv.HTTP_REQUEST_HEADER, request.headers)
            if response is not None:
                _add_headers(attributes, semconv.HTTP_RESPONSE_HEADER, response.headers)
        return attributes

    def _name(self, transaction: Transaction) -> str:
        """Return the method alone: no route is known here, and a path is not one."""
        method = transaction.request.method
        return method if method in self._known_methods else "HTTP"

    def _add_server_side(self, attributes: Attributes, transaction: Transaction) -> None:
        trusts = self._trusts_forwarded
        request = transaction.request
        scheme = original_scheme(transaction, trusts_forwarded=trusts)
        server = server_end(transaction, scheme, trusts_forwarded=trusts)
        client = client_end(transaction, trusts_forwarded=trusts)
        path, query = ("", "") if request.method == "CONNECT" else split_target(request.target)[1:]
        attributes |= {
            semconv.URL_SCHEME: scheme,
            semconv.URL_PATH: readable_text(path),
            semconv.SERVER_ADDRESS: server.address,
            semconv.CLIENT_ADDRESS: client.address,
        }
        if query:
            attributes[semconv.URL_QUERY] = readable_text(query)
        if server.port is not None:
            attributes[semconv.SERVER_PORT] = server.port
        if client.port:
            attributes[semconv.CLIENT_PORT] = client.port


def error_type(transaction: Transaction) -> str | None:
    """
    Return why ``transaction`` failed; ``None`` if it did not.

    A 4xx is the error of a client and no error of the server that sent it. A client
    that goes away, and bytes that the agent lost, are no errors.
    """
    response = transaction.response
    if response is not None:
        lowest = 500 if transaction.direction.is_ingress else 400
        if response.status >= lowest:
            return str(response.status)
    return "timeout" if transaction.was_given_up else transaction.ending.error_type


def end_ns(transaction: Transaction) -> int:
    """Return when the last byte of the response had passed, else when all was over."""
    timings = transaction.timings
    return timings.response_end_ns or timings.end_ns or timings.request_start_ns


def _start_ns(transaction: Transaction) -> int:
    """Return when the work began; for a client that includes making the connection."""
    timings = transaction.timings
    if not transaction.direction.is_ingress and timings.connect_start_ns:
        return timings.connect_start_ns
    return timings.request_start_ns


def _add_client_side(attributes: Attributes, transaction: Transaction) -> None:
    server = target_end(transaction)
    attributes |= {
        semconv.SERVER_ADDRESS: server.address,
        semconv.SERVER_PORT: transaction.remote.port if server.port is None else server.port,
        semconv.URL_FULL: full_url(transaction, server),
        semconv.URL_SCHEME: transaction.scheme,
    }


def _add_times(attributes: Attributes, timings: Timings) -> None:
    if timings.response_start_ns:
        first_byte_ns = max(0, timings.response_start_ns - timings.request_start_ns)
        attributes[semconv.OTEL_QTAP_TIME_TO_FIRST_BYTE] = first_byte_ns / 1e9
    if timings.connect_end_ns:
        connect_ns = timings.connect_end_ns - timings.connect_start_ns
        attributes[semconv.OTEL_QTAP_CONNECT_DURATION] = connect_ns / 1e9


def _add_relations(attributes: Attributes, transaction: Transaction) -> None:
    """Add what it has to do with others: cause, attempts before it, what a proxy did."""
    hop, changes, name = transaction.hop, transaction.hop_changes, transaction.proxy_name
    if transaction.link is not None:
        attributes[semconv.OTEL_QTAP_LINK_METHOD] = transaction.link.method.value
    if transaction.candidates:
        attributes[semconv.OTEL_QTAP_LINK_AMBIGUOUS] = True
    if transaction.resend_count:
        attributes[semconv.HTTP_REQUEST_RESEND_COUNT] = transaction.resend_count
    if transaction.is_health_check:
        attributes[semconv.OTEL_QTAP_HEALTH_CHECK] = True
    if hop is not None:
        attributes[semconv.OTEL_QTAP_PROXY_OVERHEAD] = hop.overhead_ns / 1e9
        attributes[semconv.OTEL_QTAP_PROXY_ATTEMPTS] = hop.attempts
    if changes is not None:
        _add_changes(attributes, semconv.OTEL_QTAP_PROXY_REQUEST_HEADERS, changes.request)
        _add_changes(attributes, semconv.OTEL_QTAP_PROXY_RESPONSE_HEADERS, changes.response)
    if name is not None:
        attributes[semconv.HAPROXY_PROXY_NAME] = readable_text(name.proxy_name)
        attributes[semconv.HAPROXY_SERVICE_NAME] = readable_text(name.service_name)
    if transaction.haproxy_log is not None:
        attributes.update(haproxy_attributes(transaction.haproxy_log))


def _add_changes(attributes: Attributes, prefix: str, changes: HeaderChanges | None) -> None:
    if changes is None:
        return
    for kind, names in zip(
        ("added", "removed", "changed"),
        (changes.added, changes.removed, changes.changed),
        strict=True,
    ):
        if names:
            attributes[prefix + kind] = [readable_text(name) for name in names]


def _add_headers(attributes: Attributes, prefix: str, headers: Headers) -> None:
    values: dict[str, list[str]] = {}
    for name, value in headers:
        key = prefix + readable_text(name.lower())
        values.setdefault(key, []).append(readable_text(value))
    attributes.update(values)


def _known_methods() -> frozenset[str]:
    """Return what the standard variable lists, a full override, else the registered methods."""
    listed = os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "")
    methods = frozenset(method.strip() for method in listed.split(",") if method.strip())
    return methods or semconv.KNOWN_METHODS
