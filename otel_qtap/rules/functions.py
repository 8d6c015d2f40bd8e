"""The functions that expressions may call: Qtap's own and the one of its rule language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from otel_qtap.rules.values import Value, parse_address, text_of

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

__all__ = ["FUNCTIONS", "Function"]


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language; ``call`` gets as many values as it has parameters."""

    name: str
    parameters: tuple[str, ...]
    call: Callable[..., Value | None]
    """Returns ``None`` where there is no answer, which counts as missing."""


def _starts_with(value: Value, prefix: Value) -> bool:
    return text_of(value).startswith(text_of(prefix))


def _zone(domain: Value) -> str | None:
    return _registered_domain(_host(text_of(domain)))


def _in_zone(domain: Value, zone: Value) -> bool:
    return _lies_in(text_of(domain), text_of(zone))


@lru_cache(maxsize=4096)
def _lies_in(domain: str, zone: str) -> bool:
    host, wanted = _host(domain), _host(zone)
    return bool(wanted) and (host == wanted or host.endswith(f".{wanted}"))


@lru_cache(maxsize=4096)
def _host(name: str) -> str:
    """Return a host name in lower case, without port and without the dot of the root."""
    host, colon, port = name.rpartition(":")
    if colon and port.isdigit() and ":" not in host:
        name = host
    return name.lower().rstrip(".")


@lru_cache(maxsize=4096)
def _registered_domain(host: str) -> str | None:
    """Return the public suffix of ``host`` and one label more, ``None`` if it has none."""
    if not host or parse_address(host.strip("[]")) is not None:
        return None
    return _public_suffixes().privatesuffix(host)


@cache
def _public_suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList  # noqa: PLC0415 - ten thousand suffixes

    return PublicSuffixList()


FUNCTIONS: Mapping[str, Function] = {
    function.name: function
    for function in (
        Function("starts_with", ("value", "prefix"), _starts_with),
        Function("zone", ("domain",), _zone),
        Function("in_zone", ("domain", "zone"), _in_zone),
    )
}
"""``zone(domain)``: the registered domain (public suffix and one label more).
``in_zone(domain, zone)``: whether a domain is the zone or lies in it."""
