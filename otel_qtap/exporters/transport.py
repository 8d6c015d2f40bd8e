"""
The SDK's OTLP exporters, set up from what the operator configured.

Their differences end here: above, a ``Sender`` is a thing that takes a batch.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import requests
    from grpc import ChannelCredentials  # type: ignore[import-untyped] # grpcio ships no types

__all__ = ["Sender", "Signal", "TransportOptions", "make_sender", "sdk_messages"]

Signal: TypeAlias = Literal["traces", "logs"]

_CA_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Sender(Protocol):
    """What both SDK exporters of both transports have in common."""

    def export(self, batch: Sequence[Any], /) -> Any:
        """Send ``batch``, retrying within the timeout; the ``name`` of the result tells."""

    def shutdown(self) -> None:
        """End what is under way and close the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """
    How to reach the receiver; ``None`` leaves a setting to ``OTEL_EXPORTER_OTLP_*``.

    Making them raises ``OSError`` for a file that cannot be read.
    """

    endpoint: str | None = None
    """
    ``host:port``, or a URL whose scheme decides about TLS.

    With ``host:port`` it is plain unless ``insecure`` is false or a CA file is given.
    """
    protocol: str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)  # credentials, mostly
    timeout_s: float | None = None
    insecure: bool | None = None
    ca_file: str | None = None
    client_certificate_file: str | None = None
    client_key_file: str | None = None
    compression: Literal["gzip", "none"] | None = None

    def __post_init__(self) -> None:
        for file in (self.ca_file, self.client_certificate_file, self.client_key_file):
            if file is not None:
                Path(file).read_bytes()  # now, with the name in the error, and not per batch

    def protocol_of(self, signal: Signal) -> Literal["grpc", "http"]:
        """Return the transport for ``signal``; Qtap's default is gRPC."""
        name = (
            self.protocol
            or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "grpc"
        )
        if name == "grpc":
            return "grpc"
        if name in ("http", "http/protobuf"):
            return "http"
        raise ValueError(f"protocol {name!r} is not one of grpc, http, http/protobuf")

    @property
    def is_plain(self) -> bool:
        """Whether an endpoint without a scheme is spoken to without TLS."""
        if self.insecure is None:
            return self.ca_file is None and self.client_certificate_file is None
        return self.insecure

    def http_url(self, signal: Signal) -> str | None:
        """Return the URL for ``signal``; ``None`` to let the SDK ask the environment."""
        if not self.endpoint:
            return None
        url = self.endpoint
        if "://" not in url:
            url = f"{'http' if self.is_plain else 'https'}://{url}"
        url = url.rstrip("/")
        for path in ("/v1/traces", "/v1/logs", "/v1/metrics"):
            url = url.removesuffix(path)  # a URL meant for one signal serves the others too
        return f"{url}/v1/{signal}"


def make_sender(signal: Signal, options: TransportOptions) -> Sender:
    """Return the SDK's exporter for ``signal``; nothing is connected yet."""
    _quiet_sdk()
    if options.protocol_of(signal) == "grpc":
        return _make_grpc_sender(signal, options)
    return _make_http_sender(signal, options)


def _make_grpc_sender(signal: Signal, options: TransportOptions) -> Sender:
    # gRPC's core writes every failed connection to stderr; our own warning says it once.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported here: loading it takes 17 MB that users of HTTP need not pay.
    from grpc import Compression  # noqa: PLC0415 - see above
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import (  # noqa: PLC0415 - see above
        OTLPLogExporter,
    )
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - see above
        OTLPSpanExporter,
    )

    insecure = options.insecure
    if options.endpoint and "://" not in options.endpoint:
        insecure = options.is_plain
    make: Callable[..., Sender] = OTLPSpanExporter if signal == "traces" else OTLPLogExporter
    compression = None
    if options.compression is not None:
        compression = (
            Compression.Gzip if options.compression == "gzip" else Compression.NoCompression
        )
    return make(
        endpoint=options.endpoint or None,
        insecure=insecure,
        credentials=_grpc_credentials(options),
        # gRPC allows metadata keys in lower case only.
        headers={key.lower(): value for key, value in (options.headers or {}).items()} or None,
        timeout=options.timeout_s,
        compression=compression,
    )


def _grpc_credentials(options: TransportOptions) -> ChannelCredentials | None:
    files = (options.ca_file, options.client_key_file, options.client_certificate_file)
    if not any(files):
        return None
    from grpc import ssl_channel_credentials  # noqa: PLC0415 - as in _make_grpc_sender

    return ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))


def _make_http_sender(signal: Signal, options: TransportOptions) -> Sender:
    # Imported here: loading it takes 3 MB that users of gRPC need not pay.
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415 - see above
    from opentelemetry.exporter.otlp.proto.http._log_exporter import (  # noqa: PLC0415 - see above
        OTLPLogExporter,
    )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - see above
        OTLPSpanExporter,
    )

    make: Callable[..., Sender] = OTLPSpanExporter if signal == "traces" else OTLPLogExporter
    compression = None
    if options.compression is not None:
        compression = (
            Compression.Gzip if options.compression == "gzip" else Compression.NoCompression
        )
    url = options.http_url(signal)
    ca_file = options.ca_file or _ca_file_of_environment(signal)
    return make(
        endpoint=url,
        certificate_file=ca_file,
        client_certificate_file=options.client_certificate_file,
        client_key_file=options.client_key_file,
        headers=dict(options.headers or {}) or None,
        timeout=options.timeout_s,
        compression=compression,
        session=None if ca_file is None else _session_without_environment(url),
    )


def _ca_file_of_environment(signal: Signal) -> str | None:
    """Return the CA file to verify with, the OpenTelemetry variables before those of requests."""
    names = (
        f"OTEL_EXPORTER_OTLP_{signal.upper()}_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        *_CA_BUNDLE_VARIABLES,
    )
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _session_without_environment(url: str | None) -> requests.Session:
    """
    Return a session that verifies with the CA file it is told.

    A session that trusts the environment lets ``REQUESTS_CA_BUNDLE`` overrule that file
    without a word. The variables that name a proxy are still followed.
    """
    import requests  # noqa: PLC0415 - as in _make_http_sender

    session = requests.Session()
    session.trust_env = False
    if url is not None:
        session.proxies.update(requests.utils.get_environ_proxies(url))
    return session


class _SdkMessages(logging.Handler):
    """
    Keeps the SDK's first complaint of an export, which the result does not tell.

    The first one names the cause; later ones say that retries did not help.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._local = threading.local()  # an export and its messages are on one thread

    def clear(self) -> None:
        """Forget; the next message is the first."""
        self._local.text = ""

    @property
    def first(self) -> str:
        """The message, on one line."""
        text: str = getattr(self._local, "text", "")
        return text

    def emit(self, record: logging.LogRecord) -> None:
        if self.first:
            return
        if "encode" in record.msg:  # may quote what could not be encoded
            self._local.text = "a record could not be encoded"
        else:
            self._local.text = " ".join(record.getMessage().split())[:300]


sdk_messages = _SdkMessages()


def _quiet_sdk() -> None:
    """Keep the SDK's exporters from logging every failed batch; their reason goes into ours."""
    logger = logging.getLogger("opentelemetry.exporter.otlp")
    if sdk_messages not in logger.handlers:
        logger.addHandler(sdk_messages)
        logger.propagate = False
