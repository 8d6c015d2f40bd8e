"""
The resource of telemetry: the process that was observed, not the agent.

What names the service is asked in this order: the process's own OpenTelemetry
variables, the labels that Kubernetes or Compose put on its container, its program.
"""

from __future__ import annotations

import os
import platform
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from opentelemetry.sdk.resources import Resource
from opentelemetry.version import __version__ as sdk_version

from otel_qtap import __version__
from otel_qtap.connection.model import Container, Process
from otel_qtap.exporters import semconv
from otel_qtap.exporters.spans import Attributes
from otel_qtap.transaction.readable import readable_text

__all__ = ["ResourceTable", "Subject"]

# Namespace that the specification of service.instance.id gives for version 5 UUIDs.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_SERVICE_LABELS = (
    "com.docker.compose.service",
    "app.kubernetes.io/name",
    "io.kubernetes.container.name",
)
_LABEL_ATTRIBUTES = {
    "com.docker.compose.project": semconv.SERVICE_NAMESPACE,
    "io.kubernetes.container.name": semconv.K8S_CONTAINER_NAME,
    "io.kubernetes.pod.name": semconv.K8S_POD_NAME,
    "io.kubernetes.pod.namespace": semconv.K8S_NAMESPACE_NAME,
    "io.kubernetes.pod.uid": semconv.K8S_POD_UID,
}


class Subject(Protocol):
    """What a resource is asked for: a transaction, or an event about a connection."""

    @property
    def process(self) -> Process:
        """The captured process."""

    @property
    def container(self) -> Container | None:
        """The container that it runs in."""


class ResourceTable:
    """Resources by process, made once each; the least recently used go beyond ``capacity``."""

    def __init__(
        self,
        *,
        service_name: str | None = None,
        extra: Mapping[str, str] | None = None,
        host_name: str | None = None,
        host_id: str | None = None,
        capacity: int = 1024,
    ) -> None:
        """``service_name`` overrules what a process says; ``extra`` is added to every resource."""
        self._service_name = service_name
        self._host_id = host_id or _host_id()
        self._capacity = capacity
        self._host: Attributes = {
            semconv.HOST_NAME: host_name or socket.gethostname(),
            semconv.HOST_ARCH: _ARCHITECTURES.get(platform.machine(), platform.machine()),
            semconv.OS_TYPE: "linux",
            semconv.TELEMETRY_SDK_LANGUAGE: "python",
            semconv.TELEMETRY_SDK_NAME: "opentelemetry",
            semconv.TELEMETRY_SDK_VERSION: sdk_version,
            semconv.TELEMETRY_DISTRO_NAME: "otel_qtap",
            semconv.TELEMETRY_DISTRO_VERSION: __version__,
            **(extra or {}),
        }
        self._resources: OrderedDict[tuple[Process, Container | None], Resource] = OrderedDict()

    def __call__(self, subject: Subject) -> Resource:
        """Return the resource of the process that ``subject`` was seen in."""
        key = (subject.process, subject.container)
        found = self._resources.get(key)
        if found is not None:
            self._resources.move_to_end(key)
            return found
        resource = Resource(self._attributes(*key), semconv.SCHEMA_URL)
        self._resources[key] = resource
        if len(self._resources) > self._capacity:
            self._resources.popitem(last=False)
        return resource

    def _attributes(self, process: Process, container: Container | None) -> Attributes:
        labels = dict(container.labels) if container else {}
        environment = dict(process.environment)
        attributes: Attributes = {**self._host}
        attributes |= {
            name: readable_text(labels[label])
            for label, name in _LABEL_ATTRIBUTES.items()
            if labels.get(label)
        }
        attributes |= _listed_attributes(environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        named = next((labels[label] for label in _SERVICE_LABELS if labels.get(label)), "")
        attributes[semconv.SERVICE_NAME] = (
            self._service_name
            or environment.get("OTEL_SERVICE_NAME")
            or attributes.get(semconv.SERVICE_NAME)
            or readable_text(named or process.name)
        )
        attributes.setdefault(semconv.SERVICE_INSTANCE_ID, self._instance_id(process))
        attributes |= _process_attributes(process)
        if container is not None:
            attributes |= _container_attributes(container)
        elif process.container_id:
            attributes[semconv.CONTAINER_ID] = process.container_id
        return attributes

    def _instance_id(self, process: Process) -> str:
        # Whole seconds: the start time is computed from two clocks and may differ in
        # its last digits when the agent is started again.
        started_s = round(process.start_time_ns / 1e9)
        name = f"{self._host_id}:{process.pid}:{started_s}"
        return str(uuid.uuid5(_INSTANCE_NAMESPACE, name))


def _process_attributes(process: Process) -> Attributes:
    attributes: Attributes = {semconv.PROCESS_PID: process.pid}
    if process.start_time_ns:
        attributes[semconv.PROCESS_CREATION_TIME] = _iso_time(process.start_time_ns)
    if process.executable:
        attributes[semconv.PROCESS_EXECUTABLE_NAME] = readable_text(process.name)
        attributes[semconv.PROCESS_EXECUTABLE_PATH] = readable_text(process.executable)
    if process.user:
        attributes[semconv.PROCESS_OWNER] = readable_text(process.user)
    return attributes


def _container_attributes(container: Container) -> Attributes:
    attributes: Attributes = {semconv.CONTAINER_ID: container.id}
    if container.name:
        attributes[semconv.CONTAINER_NAME] = readable_text(container.name)
    name, tag = _split_image(readable_text(container.image))
    if name:
        attributes[semconv.CONTAINER_IMAGE_NAME] = name
    if tag:
        attributes[semconv.CONTAINER_IMAGE_TAGS] = [tag]
    return attributes


def _split_image(image: str) -> tuple[str, str]:
    """Return name and tag: ``registry:5000/haproxy:2.9@sha256:…`` has a port, a tag, a digest."""
    reference = image.partition("@")[0]
    folder, slash, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{folder}{slash}{name}", tag


def _listed_attributes(listed: str) -> Attributes:
    """Return the pairs of ``OTEL_RESOURCE_ATTRIBUTES``; a malformed one makes all of it void."""
    attributes: Attributes = {}
    for pair in listed.split(","):
        if not pair.strip():
            continue
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            return {}
        attributes[key.strip()] = unquote(value.strip())
    return attributes


def _iso_time(time_ns: int) -> str:
    # Milliseconds: the kernel counts the start of a process in clock ticks.
    milliseconds = time_ns // 1_000_000
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{text}.{milliseconds % 1000:03d}Z"


def _host_id() -> str:
    try:
        return Path("/etc/machine-id").read_text("ascii").strip() or os.uname().nodename
    except (OSError, ValueError):
        return os.uname().nodename
