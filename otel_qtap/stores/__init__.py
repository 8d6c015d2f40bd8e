"""Where whole transactions are kept, headers and bodies included, and events are told."""

from otel_qtap.stores.artifact import Artifact, StoredObject, make_artifact
from otel_qtap.stores.connection_event import ConnectionEvent, System
from otel_qtap.stores.events import (
    ArtifactRecord,
    IssueEvent,
    RequestEvent,
)
from otel_qtap.stores.json_record import render_json
from otel_qtap.stores.s3 import S3Options, S3Store
from otel_qtap.stores.stdout import StdoutEventStore, StdoutStore, StdoutWriter
from otel_qtap.stores.text import render_text

__all__ = [
    "Artifact",
    "ArtifactRecord",
    "ConnectionEvent",
    "IssueEvent",
    "RequestEvent",
    "S3Options",
    "S3Store",
    "StdoutEventStore",
    "StdoutStore",
    "StdoutWriter",
    "StoredObject",
    "System",
    "make_artifact",
    "render_json",
    "render_text",
]
