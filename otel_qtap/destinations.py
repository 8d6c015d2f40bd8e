"""
Where things go: the stores and exporters that a configuration names, made and ready.

Making them reaches no network, so a destination that is away is no obstacle; one that
can never work is a ``DestinationError``, and then nothing of the others is left behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from otel_qtap.config.model import Config, HealthChecks, OtelProtocol, OtelStore, Signal
from otel_qtap.config.model import S3Store as S3StoreConfig
from otel_qtap.config.model import StdoutStore as StdoutStoreConfig
from otel_qtap.counters import CounterSet
from otel_qtap.delivery import TapFirst, describe_error
from otel_qtap.plugins import ArtifactReporter
from otel_qtap.stores import (
    S3Options,
    S3Store,
    StdoutEventStore,
    StdoutStore,
    StdoutWriter,
    StoredObject,
    make_artifact,
)
from otel_qtap.transaction.consumer import Consumer, EventConsumer
from otel_qtap.transaction.model import Transaction

__all__ = ["Destination", "DestinationError", "Destinations"]


class DestinationError(Exception):
    """A destination that cannot work as the file describes it; the text is for people."""


class Destination(Consumer, Protocol):
    """A store or an exporter with a queue of its own."""

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before has arrived."""

    def close(self, deadline_s: float) -> bool:
        """Deliver what waits and stop; return whether all of it arrived."""


class Destinations:
    """All destinations of one configuration, sorted by what they take."""

    def __init__(
        self,
        config: Config,
        *,
        writer: StdoutWriter,
        counters: CounterSet,
        tap_first: TapFirst,
        span_key: bytes,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """
        Make them; raises ``DestinationError``.

        ``writer`` is the way to stdout, which outlives every configuration, as does
        ``span_key``, from which the ids of spans follow.
        """
        self.object_stores: tuple[Consumer, ...] = ()
        """Take whole transactions, as far as a plugin says."""
        self.exporters: tuple[Consumer, ...] = ()
        """Make spans and log records of transactions."""
        self.events: tuple[EventConsumer, ...] = ()
        """Take what plugins were asked to report."""
        self.connections: tuple[EventConsumer, ...] = ()
        """Take the life of connections, which nobody asked for by name."""
        self._queues: list[Destination] = []
        self._s3_stores: list[S3Store] = []
        with ExitStack() as made:
            made.callback(self.close, 0.0)
            self._make_stores(config, writer, counters, tap_first, environ)
            self._make_exporters(config, counters, tap_first, span_key, environ)
            self.object_stores += self._artifact_reporters()
            made.pop_all()

    @property
    def transactions(self) -> tuple[Consumer, ...]:
        """Take the transactions that ``http_capture`` keeps."""
        return (*self.object_stores, *self.exporters)

    def flush(self, deadline_s: float) -> bool:
        """Return whether everything consumed before has arrived, stdout aside."""
        results = [queue.flush(deadline_s) for queue in self._queues]
        return all(results)

    def close(self, deadline_s: float) -> bool:
        """Deliver what waits and stop, all but stdout; return whether all of it arrived."""
        results = [queue.close(deadline_s) for queue in self._queues]
        return all(results)

    def _make_stores(
        self,
        config: Config,
        writer: StdoutWriter,
        counters: CounterSet,
        tap_first: TapFirst,
        environ: Mapping[str, str],
    ) -> None:
        if any(isinstance(store, StdoutStoreConfig) for store in config.object_stores()):
            self.object_stores += (StdoutStore(writer),)
        buckets = [store for store in config.object_stores() if isinstance(store, S3StoreConfig)]
        for bucket, name in zip(buckets, _names(buckets, "s3"), strict=True):
            store = _make_s3(bucket, name, counters, tap_first, environ)
            self._queues.append(store)
            self._s3_stores.append(store)
        self.object_stores += tuple(self._s3_stores)
        if any(isinstance(store, StdoutStoreConfig) for store in config.event_stores()):
            # As in Qtap, which prints nothing of the kind above debug.
            is_verbose = logging.getLogger("otel_qtap").isEnabledFor(logging.DEBUG)
            self._add_event_store(StdoutEventStore(writer), with_connections=is_verbose)

    def _make_exporters(
        self,
        config: Config,
        counters: CounterSet,
        tap_first: TapFirst,
        span_key: bytes,
        environ: Mapping[str, str],
    ) -> None:
        receivers = [
            store
            for store in config.event_stores()
            if isinstance(store, OtelStore) and store.protocol is not OtelProtocol.STDOUT
        ]
        if not receivers:
            return
        # The OpenTelemetry SDK is a third of the agent's memory; only who exports pays for it.
        from otel_qtap.exporters import (  # noqa: PLC0415
            OtlpExporter,
            ResourceTable,
            SpanIdentifier,
            TransportOptions,
        )

        identify = SpanIdentifier(span_key)
        leaves_out_checks = config.tap.health_checks is HealthChecks.COUNT
        for store, name in zip(receivers, _names(receivers, "otlp"), strict=True):
            extra = {"deployment.environment.name": store.environment} if store.environment else {}
            try:
                exporter = OtlpExporter(
                    counters=counters,
                    transport=TransportOptions(
                        endpoint=store.resolve_endpoint(environ),
                        protocol=store.protocol.value,
                        headers=store.resolve_headers(environ),
                        insecure=None if store.tls.enabled else True,
                    ),
                    signals=tuple(signal.value for signal in store.signals),
                    identify=identify,
                    resource_of=ResourceTable(service_name=store.service_name or None, extra=extra),
                    object_of=self._find_object if self._s3_stores else None,
                    name=name,
                    tap_first=tap_first,
                )
            except Exception as error:  # of the SDK, whose texts may quote an endpoint
                raise DestinationError(
                    f"the event store {name} cannot be used ({describe_error(error)}); look at its "
                    "endpoint and protocol, and at the variables OTEL_EXPORTER_OTLP_*"
                ) from None
            self._queues.append(exporter)
            self.exporters += (_WithoutHealthChecks(exporter) if leaves_out_checks else exporter,)
            if Signal.LOGS in store.signals:
                self._add_event_store(exporter, with_connections=True)

    def _add_event_store(self, store: EventConsumer, *, with_connections: bool) -> None:
        self.events += (store,)
        if with_connections:
            self.connections += (store,)

    def _artifact_reporters(self) -> tuple[Consumer, ...]:
        """Return what tells the event stores of each stored object."""
        consumers = self.connections
        if not self._s3_stores:  # what was printed has no address: only who debugs looks for it
            consumers = tuple(each for each in consumers if isinstance(each, StdoutEventStore))
        if not consumers or not self.object_stores:
            return ()
        urls_of = [store.access_url for store in self._s3_stores]
        return (ArtifactReporter(urls_of=urls_of, consumers=consumers),)

    def _find_object(self, transaction: Transaction) -> StoredObject:
        """Return where the first bucket has ``transaction``; for workers, as it renders it."""
        digest = make_artifact(transaction).digest
        store = self._s3_stores[0]
        return StoredObject(store.options.bucket, digest, store.access_url(digest))


class _WithoutHealthChecks:
    """
    Passes on everything but health checks, which ``tap.health_checks: count`` leaves out.

    They are counted where they are recognized.
    """

    def __init__(self, following: Consumer) -> None:
        self._consume: Callable[[Transaction], None] = following.consume

    def consume(self, transaction: Transaction) -> None:
        """Pass ``transaction`` on unless HAProxy sent it on nobody's behalf."""
        if not transaction.is_health_check:
            self._consume(transaction)


def _names(stores: Sequence[S3StoreConfig | OtelStore], kind: str) -> Iterator[str]:
    """Yield what each store is called in counters and in the log."""
    for number, store in enumerate(stores):
        yield store.id or (kind if number == 0 else f"{kind}-{number}")


def _make_s3(
    store: S3StoreConfig,
    name: str,
    counters: CounterSet,
    tap_first: TapFirst,
    environ: Mapping[str, str],
) -> S3Store:
    keys = store.resolve_keys(environ)
    if keys is None and store.access_key is not None:
        # Asking the usual AWS sources instead could store under somebody else's name.
        raise DestinationError(
            f"the object store {name} cannot be used: its access_key or secret_key is empty or "
            "names an environment variable that is not set"
        )
    access_key, secret_key = keys or ("", "")
    # Temporary keys of the environment come with a token.
    is_environment = bool(access_key) and access_key == environ.get("AWS_ACCESS_KEY_ID")
    try:
        return S3Store(
            S3Options(
                bucket=store.bucket,
                endpoint=store.endpoint,
                region=store.region,
                access_key=access_key,
                secret_key=secret_key,
                session_token=environ.get("AWS_SESSION_TOKEN", "") if is_environment else "",
                insecure=store.insecure,
                access_url=store.access_url,
            ),
            counters=counters,
            name=name,
            tap_first=tap_first,
        )
    except ValueError as error:
        raise DestinationError(f"the object store {name} cannot be used: {error}") from None
