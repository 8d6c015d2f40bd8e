"""
The only place that spells attribute names.

Semantic conventions 1.44.0; ``otel_qtap.*`` are ours, where no convention exists.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AWS_S3_BUCKET",
    "AWS_S3_KEY",
    "CLIENT_ADDRESS",
    "CLIENT_PORT",
    "CONTAINER_ID",
    "CONTAINER_IMAGE_NAME",
    "CONTAINER_IMAGE_TAGS",
    "CONTAINER_NAME",
    "ERROR_TYPE",
    "EVENT_HTTP_TRANSACTION",
    "HAPROXY_PROXY_NAME",
    "HAPROXY_SERVICE_NAME",
    "HOST_ARCH",
    "HOST_NAME",
    "HTTP_REQUEST_BODY_CONTENT",
    "HTTP_REQUEST_BODY_SIZE",
    "HTTP_REQUEST_HEADER",
    "HTTP_REQUEST_METHOD",
    "HTTP_REQUEST_METHOD_ORIGINAL",
    "HTTP_REQUEST_RESEND_COUNT",
    "HTTP_RESPONSE_BODY_CONTENT",
    "HTTP_RESPONSE_BODY_SIZE",
    "HTTP_RESPONSE_HEADER",
    "HTTP_RESPONSE_STATUS_CODE",
    "K8S_CONTAINER_NAME",
    "K8S_NAMESPACE_NAME",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "KNOWN_METHODS",
    "METHOD_OTHER",
    "NETWORK_LOCAL_ADDRESS",
    "NETWORK_LOCAL_PORT",
    "NETWORK_PEER_ADDRESS",
    "NETWORK_PEER_PORT",
    "NETWORK_PROTOCOL_VERSION",
    "OS_TYPE",
    "OTEL_QTAP_CAPTURE_LEVEL",
    "OTEL_QTAP_CONNECTION_ID",
    "OTEL_QTAP_CONNECT_DURATION",
    "OTEL_QTAP_ENDING",
    "OTEL_QTAP_HAPROXY_ACTIVE_TIME",
    "OTEL_QTAP_HAPROXY_BACKEND",
    "OTEL_QTAP_HAPROXY_CONNECT_TIME",
    "OTEL_QTAP_HAPROXY_FRONTEND",
    "OTEL_QTAP_HAPROXY_HANDLER",
    "OTEL_QTAP_HAPROXY_QUEUE_TIME",
    "OTEL_QTAP_HAPROXY_REQUEST_TIME",
    "OTEL_QTAP_HAPROXY_RESPONSE_TIME",
    "OTEL_QTAP_HAPROXY_SERVER",
    "OTEL_QTAP_HAPROXY_TERMINATION_STATE",
    "OTEL_QTAP_HEALTH_CHECK",
    "OTEL_QTAP_LINK_AMBIGUOUS",
    "OTEL_QTAP_LINK_METHOD",
    "OTEL_QTAP_OBJECT_SHA1",
    "OTEL_QTAP_OBJECT_URL",
    "OTEL_QTAP_PROXY_ATTEMPTS",
    "OTEL_QTAP_PROXY_OVERHEAD",
    "OTEL_QTAP_PROXY_REQUEST_HEADERS",
    "OTEL_QTAP_PROXY_RESPONSE_HEADERS",
    "OTEL_QTAP_REQUEST_BODY_TRUNCATED",
    "OTEL_QTAP_REQUEST_ID",
    "OTEL_QTAP_RESPONSE_BODY_TRUNCATED",
    "OTEL_QTAP_TIME_TO_FIRST_BYTE",
    "PROCESS_CREATION_TIME",
    "PROCESS_EXECUTABLE_NAME",
    "PROCESS_EXECUTABLE_PATH",
    "PROCESS_OWNER",
    "PROCESS_PID",
    "SCHEMA_URL",
    "SERVER_ADDRESS",
    "SERVER_PORT",
    "SERVICE_INSTANCE_ID",
    "SERVICE_NAME",
    "SERVICE_NAMESPACE",
    "TELEMETRY_DISTRO_NAME",
    "TELEMETRY_DISTRO_VERSION",
    "TELEMETRY_SDK_LANGUAGE",
    "TELEMETRY_SDK_NAME",
    "TELEMETRY_SDK_VERSION",
    "URL_FULL",
    "URL_PATH",
    "URL_QUERY",
    "URL_SCHEME",
    "USER_AGENT_ORIGINAL",
]

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# HTTP
HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_REQUEST_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_REQUEST_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_REQUEST_BODY_SIZE: Final = "http.request.body.size"
HTTP_REQUEST_BODY_CONTENT: Final = "http.request.body.content"
HTTP_REQUEST_HEADER: Final = "http.request.header."
"""Followed by the field name in lower case; the value is a list of strings."""
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_RESPONSE_BODY_SIZE: Final = "http.response.body.size"
HTTP_RESPONSE_BODY_CONTENT: Final = "http.response.body.content"
HTTP_RESPONSE_HEADER: Final = "http.response.header."

METHOD_OTHER: Final = "_OTHER"
KNOWN_METHODS: Final = frozenset(
    {
        "CONNECT",
        "DELETE",
        "GET",
        "HEAD",
        "OPTIONS",
        "PATCH",
        "POST",
        "PUT",
        "QUERY",
        "TRACE",
    }
)

# URL, ends, protocol
URL_FULL: Final = "url.full"
URL_PATH: Final = "url.path"
URL_QUERY: Final = "url.query"
URL_SCHEME: Final = "url.scheme"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
CLIENT_ADDRESS: Final = "client.address"
CLIENT_PORT: Final = "client.port"
NETWORK_LOCAL_ADDRESS: Final = "network.local.address"
NETWORK_LOCAL_PORT: Final = "network.local.port"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
USER_AGENT_ORIGINAL: Final = "user_agent.original"
ERROR_TYPE: Final = "error.type"

# HAProxy, as the haproxy receiver of the OpenTelemetry Collector names what it reads there
HAPROXY_PROXY_NAME: Final = "haproxy.proxy_name"
HAPROXY_SERVICE_NAME: Final = "haproxy.service_name"

# Where the whole transaction is stored
AWS_S3_BUCKET: Final = "aws.s3.bucket"
AWS_S3_KEY: Final = "aws.s3.key"
OTEL_QTAP_OBJECT_SHA1: Final = "otel_qtap.object.sha1"
OTEL_QTAP_OBJECT_URL: Final = "otel_qtap.object.url"

# Resource
SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
PROCESS_PID: Final = "process.pid"
PROCESS_CREATION_TIME: Final = "process.creation.time"
PROCESS_EXECUTABLE_NAME: Final = "process.executable.name"
PROCESS_EXECUTABLE_PATH: Final = "process.executable.path"
PROCESS_OWNER: Final = "process.owner"
CONTAINER_ID: Final = "container.id"
CONTAINER_NAME: Final = "container.name"
CONTAINER_IMAGE_NAME: Final = "container.image.name"
CONTAINER_IMAGE_TAGS: Final = "container.image.tags"
K8S_CONTAINER_NAME: Final = "k8s.container.name"
K8S_NAMESPACE_NAME: Final = "k8s.namespace.name"
K8S_POD_NAME: Final = "k8s.pod.name"
K8S_POD_UID: Final = "k8s.pod.uid"
HOST_NAME: Final = "host.name"
HOST_ARCH: Final = "host.arch"
OS_TYPE: Final = "os.type"
TELEMETRY_DISTRO_NAME: Final = "telemetry.distro.name"
TELEMETRY_DISTRO_VERSION: Final = "telemetry.distro.version"
TELEMETRY_SDK_LANGUAGE: Final = "telemetry.sdk.language"
TELEMETRY_SDK_NAME: Final = "telemetry.sdk.name"
TELEMETRY_SDK_VERSION: Final = "telemetry.sdk.version"

# Ours
OTEL_QTAP_REQUEST_ID: Final = "otel_qtap.request_id"
OTEL_QTAP_CONNECTION_ID: Final = "otel_qtap.connection_id"
OTEL_QTAP_CAPTURE_LEVEL: Final = "otel_qtap.capture.level"
OTEL_QTAP_ENDING: Final = "otel_qtap.ending"
"""How the transaction ended, when it is not complete."""
OTEL_QTAP_HAPROXY_FRONTEND: Final = "otel_qtap.haproxy.frontend"
"""This and the next ones: from the line that HAProxy wrote to its access log."""
OTEL_QTAP_HAPROXY_BACKEND: Final = "otel_qtap.haproxy.backend"
OTEL_QTAP_HAPROXY_SERVER: Final = "otel_qtap.haproxy.server"
"""The last one that was tried."""
OTEL_QTAP_HAPROXY_HANDLER: Final = "otel_qtap.haproxy.handler"
"""What answered in place of a server: ``STATS``, ``CACHE``, ``NOSRV``, …"""
OTEL_QTAP_HAPROXY_TERMINATION_STATE: Final = "otel_qtap.haproxy.termination_state"
OTEL_QTAP_HAPROXY_REQUEST_TIME: Final = "otel_qtap.haproxy.request_time"
"""TR, in seconds, as the next ones; left out where the request did not get that far."""
OTEL_QTAP_HAPROXY_QUEUE_TIME: Final = "otel_qtap.haproxy.queue_time"
"""Tw."""
OTEL_QTAP_HAPROXY_CONNECT_TIME: Final = "otel_qtap.haproxy.connect_time"
"""Tc."""
OTEL_QTAP_HAPROXY_RESPONSE_TIME: Final = "otel_qtap.haproxy.response_time"
"""Tr."""
OTEL_QTAP_HAPROXY_ACTIVE_TIME: Final = "otel_qtap.haproxy.active_time"
"""Ta."""
OTEL_QTAP_HEALTH_CHECK: Final = "otel_qtap.health_check"
"""Set on what HAProxy asked on nobody's behalf."""
OTEL_QTAP_LINK_METHOD: Final = "otel_qtap.link.method"
"""The evidence for the parent: a value of ``LinkMethod``."""
OTEL_QTAP_LINK_AMBIGUOUS: Final = "otel_qtap.link.ambiguous"
"""Set where the evidence fits several parents; the span then has a link to each of them."""
OTEL_QTAP_TIME_TO_FIRST_BYTE: Final = "otel_qtap.time_to_first_byte"
"""Seconds from the first byte of the request to the first one of the response."""
OTEL_QTAP_CONNECT_DURATION: Final = "otel_qtap.connect.duration"
"""Seconds that opening the connection took, on the first request that went over it."""
OTEL_QTAP_PROXY_OVERHEAD: Final = "otel_qtap.proxy.overhead"
"""Seconds in which a proxy was not waiting for a backend."""
OTEL_QTAP_PROXY_ATTEMPTS: Final = "otel_qtap.proxy.attempts"
"""Requests and connection attempts that a proxy made to answer one request."""
OTEL_QTAP_PROXY_REQUEST_HEADERS: Final = "otel_qtap.proxy.request.headers."
"""Followed by ``added``, ``removed`` or ``changed``; the value is a list of field names."""
OTEL_QTAP_PROXY_RESPONSE_HEADERS: Final = "otel_qtap.proxy.response.headers."
OTEL_QTAP_REQUEST_BODY_TRUNCATED: Final = "otel_qtap.request.body.truncated"
OTEL_QTAP_RESPONSE_BODY_TRUNCATED: Final = "otel_qtap.response.body.truncated"

EVENT_HTTP_TRANSACTION: Final = "otel_qtap.http.transaction"
"""Event name of the log record of a transaction."""
