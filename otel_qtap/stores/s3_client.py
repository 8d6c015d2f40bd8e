"""
One S3 bucket through boto3, and what its errors mean.

Importing this module imports boto3, which takes a quarter of a second and 40 MB: only
``s3.py`` does, and only where a configuration asks for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import boto3  # type: ignore[import-untyped]
from botocore import exceptions  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.utils import determine_content_length  # type: ignore[import-untyped]

import otel_qtap

if TYPE_CHECKING:
    from otel_qtap.stores.s3 import S3Options

__all__ = ["S3Client", "S3Error"]

_CREDENTIAL_CODES = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthFailure",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_REGION_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
)
_CREDENTIAL_ERRORS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
)
_ASK_FIRST_BYTES = 64 * 1024
_SAFE_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class S3Error(Exception):
    """
    An object was not stored.

    The text is for people and holds neither content nor credentials; ``reason`` is one
    of ``auth``, ``bucket_missing``, ``endpoint_down``, ``throttled``, ``wrong_region``,
    ``server_error``, ``refused``.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class S3Client:
    """Stores objects in one bucket; any number of threads may, at the same time."""

    def __init__(self, options: S3Options, connections: int) -> None:
        """Raise ``ValueError`` for what can never work."""
        self._options = options
        try:
            self._client = _make_client(options, connections)
        except (exceptions.BotoCoreError, ValueError) as error:
            raise ValueError(
                f"bucket {options.bucket!r} at {options.endpoint!r} cannot be used "
                f"({type(error).__name__})"
            ) from None  # its text may quote what the environment or a profile holds

    def put(self, key: str, content: bytes, content_type: str) -> None:
        """Store ``content`` under ``key``; raises ``S3Error``."""
        try:
            self._client.put_object(
                Bucket=self._options.bucket, Key=key, Body=content, ContentType=content_type
            )
        except exceptions.ClientError as error:
            raise self._refusal(error) from None
        except exceptions.BotoCoreError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Close the connections that are idle."""
        self._client.close()

    def _refusal(self, error: exceptions.ClientError) -> S3Error:
        """Explain an answer of the server that is not a success."""
        place = f"{self._options.bucket!r} at {self._options.endpoint}"
        code = str(error.response.get("Error", {}).get("Code", ""))
        code = code if _SAFE_CODE.fullmatch(code) else "unknown"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return S3Error("bucket_missing", f"there is no bucket {place}")
        if code in _REGION_CODES or status == 301:
            region = self._options.region
            return S3Error("wrong_region", f"bucket {place} is not in region {region} ({code})")
        if code in _CREDENTIAL_CODES or status in (401, 403):
            return S3Error("auth", f"bucket {place} refuses the credentials ({code})")
        if code == "SlowDown" or status in (429, 503):
            return S3Error("throttled", f"bucket {place} asks to slow down ({code})")
        if status >= 500:
            return S3Error("server_error", f"bucket {place} has a problem ({code}, {status})")
        return S3Error("refused", f"bucket {place} refuses the object ({code}, {status})")

    def _failure(self, error: exceptions.BotoCoreError) -> S3Error:
        """Explain why there was no answer."""
        name = type(error).__name__
        endpoint = self._options.endpoint
        if isinstance(error, _CREDENTIAL_ERRORS):
            return S3Error("auth", f"no credentials for {endpoint} ({name})")
        if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
            return S3Error("endpoint_down", f"{endpoint} does not answer ({name})")
        return S3Error("refused", f"nothing was sent to {endpoint} ({name})")


def _make_client(options: S3Options, connections: int) -> Any:
    session = boto3.session.Session(
        aws_access_key_id=options.access_key or None,
        aws_secret_access_key=options.secret_key or None,
        aws_session_token=options.session_token or None,
        region_name=options.region,
    )
    # What stands in the Qtap file holds, whatever AWS_ENDPOINT_URL says. A checksum beyond
    # the signature makes the body a trailer-framed one over TLS, which other servers than
    # Amazon's store with the framing named in Content-Encoding, or refuse.
    checksums = "when_supported" if options.is_amazon else "when_required"
    client = session.client(
        "s3",
        endpoint_url=options.endpoint_url,
        use_ssl=not options.insecure,
        verify=options.ca_file or None,
        config=Config(
            s3={"addressing_style": options.addressing_style},
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=connections,
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
            ignore_configured_endpoint_urls=True,
            user_agent_extra=f"otel-qtap/{otel_qtap.__version__}",
        ),
    )
    client.meta.events.register_last("before-call.s3", _send_at_once)
    return client


def _send_at_once(params: dict[str, Any], **_: object) -> None:
    """
    Leave out ``Expect: 100-continue``, which costs a second round trip, for a small body.

    With a large one it stays: a server that refuses closes the connection in the middle
    of it, and its reason would be lost.
    """
    size = determine_content_length(params.get("body"))
    if size is not None and size < _ASK_FIRST_BYTES:
        params["headers"].pop("Expect", None)
