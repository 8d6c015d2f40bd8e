"""Names are those of the published conventions."""

from __future__ import annotations

import importlib
import pkgutil

import opentelemetry.semconv._incubating.attributes as development
import opentelemetry.semconv.attributes as stable
from opentelemetry.semconv.schemas import Schemas

from otel_qtap.exporters import semconv

# In the registry after 1.44.0.
NEWER = {"http.request.body.content", "http.response.body.content"}
# Of the OpenTelemetry Collector: metadata.yaml of its haproxy receiver.
COLLECTOR = {"haproxy.proxy_name", "haproxy.service_name"}


def published_names() -> set[str]:
    names: set[str] = set()
    for package in (stable, development):
        for module in pkgutil.iter_modules(package.__path__):
            values = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            names |= {value for value in values.values() if isinstance(value, str)}
    return names


def test_every_name_is_published_or_ours() -> None:
    """No misspelt, renamed or invented attribute outside ``otel_qtap.``."""
    names = {
        value.rstrip(".")
        for name in semconv.__all__
        if isinstance(value := getattr(semconv, name), str)
    }
    names -= {semconv.SCHEMA_URL, semconv.METHOD_OTHER}
    ours = {name for name in names if name.startswith("otel_qtap.")}
    known = published_names() | {"http.request.header", "http.response.header"}
    assert names - ours - NEWER - COLLECTOR - known == set()


def test_schema_url_is_the_one_of_the_sdk() -> None:
    """The schema that our names follow is one that the SDK's release knows."""
    assert semconv.SCHEMA_URL in {schema.value for schema in Schemas}
