"""The resource names the observed process: its service, its container, its host."""

from __future__ import annotations

import pytest

from otel_qtap.exporters.resource import ResourceTable

NAMES = [
    pytest.param({}, {}, "haproxy", id="program"),
    pytest.param({}, {"com.docker.compose.service": "edge"}, "edge", id="compose"),
    pytest.param({}, {"io.kubernetes.container.name": "lb"}, "lb", id="kubernetes-container"),
    pytest.param(
        {},
        {"io.kubernetes.container.name": "lb", "app.kubernetes.io/name": "shop"},
        "shop",
        id="kubernetes-app",
    ),
    pytest.param(
        {"OTEL_RESOURCE_ATTRIBUTES": "service.name=listed"},
        {"com.docker.compose.service": "edge"},
        "listed",
        id="resource-attributes",
    ),
    pytest.param(
        {"OTEL_SERVICE_NAME": "said", "OTEL_RESOURCE_ATTRIBUTES": "service.name=listed"},
        {},
        "said",
        id="service-name-wins",
    ),
    pytest.param({"OTEL_RESOURCE_ATTRIBUTES": "junk"}, {}, "haproxy", id="malformed"),
]


@pytest.fixture
def attributes_of(make_transaction, make_process, make_container):
    """Make the resource attributes of a process in a container."""

    def build(*, environment=None, labels=None, container=True, table=None, **process):
        table = table or ResourceTable(host_name="edge-1", host_id="machine")
        return table(
            make_transaction(
                process=make_process(environment=tuple((environment or {}).items()), **process),
                container=make_container(labels=tuple((labels or {}).items()))
                if container
                else None,
            )
        ).attributes

    return build


@pytest.mark.parametrize(("environment", "labels", "name"), NAMES)
def test_service_name(environment, labels, name, attributes_of) -> None:
    """The process knows best, then its labels, then its program."""
    assert attributes_of(environment=environment, labels=labels)["service.name"] == name


def test_all_attributes(attributes_of) -> None:
    """Service, process, container, host and distribution."""
    attributes = dict(attributes_of())
    for volatile in ("telemetry.sdk.version", "telemetry.distro.version", "host.arch"):
        assert attributes.pop(volatile)
    assert attributes == {
        "service.name": "haproxy",
        "service.instance.id": attributes["service.instance.id"],
        "process.pid": 987,
        "process.creation.time": "2026-08-29T09:40:00.123Z",
        "process.executable.name": "haproxy",
        "process.executable.path": "/usr/local/sbin/haproxy",
        "process.owner": "haproxy",
        "container.id": "c0ffee" + "0" * 58,
        "container.name": "haproxy-demo",
        "container.image.name": "haproxy",
        "container.image.tags": ("2.9-alpine",),
        "host.name": "edge-1",
        "os.type": "linux",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.distro.name": "otel_qtap",
    }


def test_listed_attributes_are_taken_over(attributes_of) -> None:
    """What a process says of itself is kept, percent-encoding undone; facts are not overruled."""
    attributes = attributes_of(
        environment={
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod%2Feu,process.pid=1"
        },
        labels={"io.kubernetes.pod.name": "edge-7f", "com.docker.compose.project": "shop"},
    )
    assert attributes["deployment.environment.name"] == "prod/eu"
    assert attributes["process.pid"] == 987
    assert attributes["k8s.pod.name"] == "edge-7f"
    assert attributes["service.namespace"] == "shop"


def test_instance_id_is_of_the_process(attributes_of) -> None:
    """Stable for a process across agents; another one for another process or start."""

    def instance(**process) -> str:
        return attributes_of(**process)["service.instance.id"]

    started = 1_788_000_000_000_000_000
    first = instance(pid=1, start_time_ns=started)
    assert instance(pid=1, start_time_ns=started + 300_000_000) == first
    assert len({first, instance(pid=2, start_time_ns=started), instance(pid=1)}) == 3


@pytest.mark.parametrize(
    ("image", "name", "tags"),
    [
        ("haproxy:2.9", "haproxy", ("2.9",)),
        ("registry:5000/lb/haproxy", "registry:5000/lb/haproxy", None),
        ("registry:5000/haproxy:2.9@sha256:abc", "registry:5000/haproxy", ("2.9",)),
    ],
)
def test_images(image, name, tags, make_transaction, make_container) -> None:
    """Name and tag, without being fooled by the port of a registry."""
    resource = ResourceTable()(make_transaction(container=make_container(image=image)))
    assert resource.attributes["container.image.name"] == name
    assert resource.attributes.get("container.image.tags") == tags


def test_one_resource_per_process(make_transaction, make_process) -> None:
    """A process keeps its resource object; the table stays bounded."""
    table = ResourceTable(capacity=2)
    first = make_transaction()
    resource = table(first)
    assert table(first) is resource
    for pid in (1, 2):
        table(make_transaction(process=make_process(pid=pid)))
    assert table(first) is not resource
    assert table(first) == resource


def test_configured_name_and_extras(attributes_of) -> None:
    """What the operator configures stands above all."""
    table = ResourceTable(service_name="edge", extra={"deployment.environment.name": "prod"})
    attributes = attributes_of(table=table, environment={"OTEL_SERVICE_NAME": "said"})
    assert attributes["service.name"] == "edge"
    assert attributes["deployment.environment.name"] == "prod"


def test_unknown_process(attributes_of) -> None:
    """A process that was gone before it could be asked still has a resource."""
    attributes = attributes_of(
        container=False, executable="", user="", start_time_ns=0, container_id="abc"
    )
    assert attributes["service.name"] == "unknown"
    assert attributes["container.id"] == "abc"
    assert "process.creation.time" not in attributes
