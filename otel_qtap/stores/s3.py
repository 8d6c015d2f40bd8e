"""
The ``s3`` object store: each captured transaction as one object in a bucket.

Qtap's shape: the key is the SHA-1 of the content, one PutObject for each transaction,
through a queue and off the tap. What does not arrive is counted with the reason, and
the log says when that begins, when the reason changes, and when it is over.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from otel_qtap.counters import CounterSet
from otel_qtap.delivery import DeliveryError, DeliveryQueue, TapFirst, describe_error
from otel_qtap.stores.artifact import held_bytes, make_artifact
from otel_qtap.transaction.model import Transaction

if TYPE_CHECKING:
    from otel_qtap.stores.s3_client import S3Client

__all__ = ["S3Options", "S3Store"]

_logger = logging.getLogger(__name__)

AMAZON = "s3.amazonaws.com"
_PLACEHOLDER = re.compile(r"\{\{\s*(SCHEME|ENDPOINT|BUCKET|DIGEST)\s*\}\}")
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_REASONS = (
    "auth",
    "bucket_missing",
    "endpoint_down",
    "throttled",
    "wrong_region",
    "server_error",
    "refused",
    "error",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """Where objects go and who says so: the ``s3`` fields of the Qtap file, resolved."""

    bucket: str
    endpoint: str = AMAZON
    """``host`` or ``host:port``."""
    region: str = "us-east-1"
    access_key: str = field(default="", repr=False)
    """With ``secret_key``; without both the usual AWS sources are asked."""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    """Belongs to temporary keys."""
    insecure: bool = False
    """Plain HTTP."""
    access_url: str = ""
    """Template of the addresses that events tell; empty: endpoint, bucket and key."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """``auto``: the bucket is part of the host name at Amazon, of the path elsewhere."""
    ca_file: str = ""
    """Certificates to trust; empty: those of the system."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for what can never work."""
        if not _ENDPOINT.fullmatch(self.endpoint):  # it may hold user-info: never quoted
            raise ValueError("the endpoint of an s3 store must be host or host:port")
        if bool(self.access_key) != bool(self.secret_key):
            missing = "secret_key" if self.access_key else "access_key"
            raise ValueError(
                f"the s3 store for bucket {self.bucket!r} has no {missing}: "
                "access_key and secret_key come together"
            )

    @property
    def is_amazon(self) -> bool:
        """Whether the endpoint is one of Amazon's own."""
        return self._host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    @property
    def endpoint_url(self) -> str | None:
        """The endpoint as a URL; ``None`` for Amazon's of the region, which boto3 knows."""
        return None if self._host == AMAZON else f"{self.scheme}://{self.endpoint}"

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "http" if self.insecure else "https"

    @property
    def addressing_style(self) -> str:
        """What boto3 is told; its own ``auto`` is right for Amazon and for nobody else."""
        return "path" if self.addressing == "auto" and not self.is_amazon else self.addressing

    @property
    def _host(self) -> str:
        return self.endpoint.partition(":")[0].lower()


class S3Store:
    """Put each transaction into a bucket, over a few connections at once."""

    def __init__(
        self,
        options: S3Options,
        *,
        counters: CounterSet,
        name: str = "s3",
        connections: int = 8,
        max_queue_bytes: int = 64 * 1024 * 1024,
        max_delay_s: float = 0.1,
        tap_first: TapFirst | None = None,
    ) -> None:
        """
        Import boto3 and make the client; nothing is sent yet.

        ``name`` tells several stores apart in counters and in the log. Raises
        ``ValueError`` for options that can never work.
        """
        from otel_qtap.stores.s3_client import S3Client  # noqa: PLC0415 - who stores here pays

        self.options = options
        self._name = name
        self._connections = connections
        self._client: S3Client = S3Client(options, connections)
        self._reason = ""
        self._stored = counters.counter(
            "otel_qtap.store.stored", "{object}", "Objects that a bucket took.", destination=name
        )
        self._stored_bytes = counters.counter(
            "otel_qtap.store.stored_bytes", "By", "Content of those objects.", destination=name
        )
        self._failed = {
            reason: counters.counter(
                "otel_qtap.store.failed",
                "{object}",
                "Objects that a bucket did not take.",
                destination=name,
                reason=reason,
            )
            for reason in _REASONS
        }
        self._queue = DeliveryQueue[Transaction](
            name,
            self._deliver,
            max_bytes=max_queue_bytes,
            max_batch_bytes=8 * 1024 * 1024,
            max_batch_items=4 * connections,  # the tap is let through between batches
            max_delay_s=max_delay_s,
            counters=counters,
            size_of=held_bytes,
            tap_first=tap_first,
        )

    def consume(self, transaction: Transaction) -> None:
        """Queue ``transaction``."""
        self._queue.put(transaction)

    def access_url(self, digest: str) -> str:
        """Return the address that events tell of the object with that digest."""
        values = {
            "SCHEME": self.options.scheme,
            "ENDPOINT": self.options.endpoint,
            "BUCKET": self.options.bucket,
            "DIGEST": digest,
        }
        template = self.options.access_url or "{{SCHEME}}://{{ENDPOINT}}/{{BUCKET}}/{{DIGEST}}"
        return _PLACEHOLDER.sub(lambda match: values[match[1]], template)

    def flush(self, deadline_s: float) -> bool:
        """Return whether the bucket took everything consumed before."""
        return self._queue.flush(deadline_s)

    def close(self, deadline_s: float) -> bool:
        """Store what waits and stop; return whether the bucket took all of it."""
        has_arrived = self._queue.close(deadline_s)
        self._client.close()
        return has_arrived

    def _deliver(self, batch: list[Transaction]) -> None:
        round_ = _Round(self._client, batch)
        round_.run(self._connections)
        self._stored.add(len(round_.stored_sizes))
        self._stored_bytes.add(sum(round_.stored_sizes))
        for reason, _ in round_.failures:
            self._failed[reason].add()
        if not round_.failures:
            self._reason = ""
            return
        reason, text = round_.failures[0]
        if self._reason and reason != self._reason:  # the queue tells when it begins and ends
            _logger.warning("%s: delivery still fails, now because %s", self._name, text)
        self._reason = reason
        raise DeliveryError(text, undelivered=len(round_.failures))


class _Round:
    """A batch on its way, over several connections at once."""

    def __init__(self, client: S3Client, batch: list[Transaction]) -> None:
        self.stored_sizes: list[int] = []
        self.failures: list[tuple[str, str]] = []
        """(reason, text) of each object that was not stored."""
        self._client = client
        self._waiting = deque(batch)

    def run(self, connections: int) -> None:
        """Store everything; returns when all of it is stored or has failed."""
        # Daemons made for the round, not a pool: a call that hangs keeps no process alive.
        # Starting one takes 0.1 ms, storing an object 2 ms of the processor.
        threads = [
            threading.Thread(target=self._work, name="s3-put", daemon=True)
            for _ in range(min(connections, len(self._waiting)) - 1)
        ]
        for thread in threads:
            thread.start()
        self._work()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        from otel_qtap.stores.s3_client import S3Error  # noqa: PLC0415 - long imported

        while True:
            try:
                transaction = self._waiting.popleft()
            except IndexError:
                return
            try:
                artifact = make_artifact(transaction)
                self._client.put(artifact.digest, artifact.content, artifact.content_type)
            except S3Error as error:
                self.failures.append((error.reason, str(error)))
            except Exception as error:  # one object must not cost the others
                self.failures.append(("error", describe_error(error)))
            else:
                self.stored_sizes.append(len(artifact.content))
