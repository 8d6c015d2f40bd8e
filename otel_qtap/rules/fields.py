"""
The names that rules know a transaction by.

A ``Vocabulary`` says of each name which type its value has, when it becomes known and
where facts keep it; names of older Qtap releases are aliases. What is in no vocabulary
is missing from every transaction, so a rule that needs it never matches.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType

__all__ = [
    "HTTP_VOCABULARY",
    "FieldFact",
    "FieldType",
    "Resolved",
    "Stage",
    "Vocabulary",
]


class Stage(IntEnum):
    """From when on something about a transaction is known; later is larger."""

    CONNECTION = 0
    REQUEST_HEAD = 1
    REQUEST_BODY = 2
    RESPONSE_HEAD = 3
    RESPONSE_BODY = 4
    END = 5


class FieldType(Enum):
    """What values a field may have; all may be missing."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    ADDRESS = "address"
    """Facts have its text, which is quicker to look up than to take apart."""
    LIST = "list of text"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class FieldFact:
    """Where facts have the value of a field."""

    attribute: str
    """Attribute of ``Facts``; of a map a method that takes the name of the entry."""
    type: FieldType = FieldType.TEXT
    stage: Stage = Stage.CONNECTION
    is_lower: bool = False
    """Of a map: its names are lower case, so one with a capital is never found."""
    cost: int = 1
    """What it costs to read, as a multiple of what a number costs."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name in an expression stands for."""

    name: str
    """Canonical; as written when it is not known."""
    fact: FieldFact | None
    """``None`` when no transaction has it."""
    key: str | None = None
    """The entry of a map."""
    warning: str = ""
    """A sentence for whoever wrote the name; empty when all is well."""


class Vocabulary:
    """The fields, maps and older names that an expression may use."""

    def __init__(
        self,
        fields: Mapping[str, FieldFact],
        maps: Mapping[str, FieldFact] = MappingProxyType({}),
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``maps`` and ``aliases`` of maps are named with the dot that ends their prefix."""
        self._fields = dict(fields)
        self._maps = dict(maps)
        self._aliases = dict(aliases)
        self._resolved: dict[str, Resolved] = {}

    def __iter__(self) -> Iterator[tuple[str, FieldFact]]:
        return iter([*self._fields.items(), *self._maps.items()])

    def resolve(self, name: str) -> Resolved:
        """Return what ``name`` stands for; never raises."""
        found = self._resolved.get(name)
        if found is None:
            found = self._resolved[name] = self._look_up(name)
        return found

    def _look_up(self, name: str) -> Resolved:
        if fact := self._fields.get(name):
            return Resolved(name, fact)
        if target := self._aliases.get(name):
            return self._aliased(name, target)
        if entry := self._entry(name):
            return entry
        for prefix, target in self._aliases.items():
            if prefix.endswith(".") and name.startswith(prefix) and len(name) > len(prefix):
                return self._aliased(name, target + name[len(prefix) :].lower())
        return Resolved(name, None, None, self._unknown(name))

    def _entry(self, name: str) -> Resolved | None:
        for prefix, fact in self._maps.items():
            key = name[len(prefix) :]
            if not name.startswith(prefix) or not key:
                continue
            if fact.is_lower and key != key.lower():
                spelled = prefix + key.lower()
                warning = f"names in {prefix[:-1]} are lower case: write {spelled}"
                return Resolved(name, None, None, warning)
            return Resolved(name, fact, key)
        return None

    def _aliased(self, name: str, target: str) -> Resolved:
        found = self.resolve(target)
        warning = found.warning or f"{name} is an old name of {found.name}"
        return Resolved(found.name, found.fact, found.key, warning)

    def _unknown(self, name: str) -> str:
        if f"{name}." in self._maps:
            return f"{name} has entries and no value of its own: write {name}.name"
        near = difflib.get_close_matches(name.lower(), [*self._fields, *self._aliases], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"no transaction has a field {name}, so this never matches{hint}"


_COSTS = {
    "tags": 2,
    "dst_domain": 15,
    "http_req_path": 2,
    "http_req_url": 20,
    "http_req_host": 15,
    "http_res_duration_ms": 2,
    "http_res_transfer_encoding": 8,
}
"""Of fields that are made of others, or looked for."""


def _facts(stage: Stage, **types: FieldType) -> dict[str, FieldFact]:
    """Return facts by the name of their attribute."""
    return {
        name: FieldFact(name, type_, stage, cost=_COSTS.get(name, 1))
        for name, type_ in types.items()
    }


def _named(facts: Mapping[str, FieldFact]) -> dict[str, FieldFact]:
    """Return facts by the name that rules use: ``http_req_method`` is ``http.req.method``."""
    unusual = {
        "transport": "type",
        "http_res_duration_ms": "http.res.duration_ms",
        "http_res_transfer_encoding": "http.res.transfer-encoding",
    }
    return {unusual.get(name, name.replace("_", ".")): fact for name, fact in facts.items()}


_TEXT, _NUMBER, _LIST = FieldType.TEXT, FieldType.NUMBER, FieldType.LIST

HTTP_VOCABULARY = Vocabulary(
    fields=_named(
        _facts(
            Stage.CONNECTION,
            direction=_TEXT,
            transport=_TEXT,
            tls_enabled=FieldType.BOOLEAN,
            tls_version=_NUMBER,
            tls_sni=_TEXT,
            tls_alpn=_LIST,
            src_ip=FieldType.ADDRESS,
            src_port=_NUMBER,
            src_process_path=_TEXT,
            src_process_binary=_TEXT,
            src_process_pid=_NUMBER,
            src_process_hostname=_TEXT,
            src_process_user_id=_NUMBER,
            src_process_user_name=_TEXT,
            src_container_id=_TEXT,
            src_container_name=_TEXT,
            src_container_image=_TEXT,
            src_pod_name=_TEXT,
            src_pod_namespace=_TEXT,
            dst_ip=FieldType.ADDRESS,
            dst_port=_NUMBER,
        )
        | _facts(
            Stage.REQUEST_HEAD,
            protocol=_TEXT,
            tags=_LIST,
            dst_domain=_TEXT,
            http_req_method=_TEXT,
            http_req_path=_TEXT,
            http_req_scheme=_TEXT,
            http_req_url=_TEXT,
            http_req_host=_TEXT,
        )
        | _facts(Stage.RESPONSE_HEAD, http_res_status=_NUMBER, http_res_transfer_encoding=_TEXT)
        | _facts(Stage.END, http_res_duration_ms=_NUMBER)
    ),
    maps={
        "http.req.headers.": FieldFact(
            "http_req_header", stage=Stage.REQUEST_HEAD, is_lower=True, cost=8
        ),
        "http.res.headers.": FieldFact(
            "http_res_header", stage=Stage.RESPONSE_HEAD, is_lower=True, cost=8
        ),
        "src.process.env.": FieldFact("src_process_env"),
        "src.container.labels.": FieldFact("src_container_label"),
        "src.pod.labels.": FieldFact("src_pod_label"),
        "src.pod.annotations.": FieldFact("src_pod_annotation"),
    },
    aliases={
        "http.req.authority": "http.req.host",
        "http.req.header.": "http.req.headers.",
        "http.res.header.": "http.res.headers.",
        "request.method": "http.req.method",
        "request.path": "http.req.path",
        "request.host": "http.req.host",
        "request.url": "http.req.url",
        "request.header.": "http.req.headers.",
        "request.headers.": "http.req.headers.",
        "response.status": "http.res.status",
        "response.header.": "http.res.headers.",
        "response.headers.": "http.res.headers.",
        "req.method": "http.req.method",
        "req.path": "http.req.path",
        "req.host": "http.req.host",
        "req.url": "http.req.url",
        "res.status": "http.res.status",
        "exe": "src.process.path",
        "bin": "src.process.binary",
        "pid": "src.process.pid",
        "container_name": "src.container.name",
        "container_image": "src.container.image",
        "pod_name": "src.pod.name",
        "pod_namespace": "src.pod.namespace",
    },
)
"""What Qtap knows of an HTTP transaction, ``http.res.duration_ms``, and Qtap's older names."""
