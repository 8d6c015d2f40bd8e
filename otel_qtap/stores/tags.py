"""
Tags: what Qtap says about every process without being asked.

Written as ``key:value`` where a list is wanted, and as lists by key in Connection
events. Both halves are normalised as Qtap does it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from otel_qtap.connection.model import Container, Process
from otel_qtap.transaction.readable import readable_text

__all__ = ["normalised_tags", "process_tags", "tags_by_key"]


def normalised_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """
    Return those of ``tags`` that are ``key:value``, normalised, in order, each once.

    Lower case, spaces become ``-``; a half that does not begin and end with a letter or
    a digit is no good, and the tag is left out.
    """
    found: dict[str, None] = {}
    for tag in tags:
        key, _, value = tag.partition(":")
        key, value = _normalised(key), _normalised(value)
        if key and value:
            found[f"{key}:{value}"] = None
    return tuple(found)


@lru_cache(maxsize=1024)
def process_tags(
    process: Process, container: Container | None, hostname: str, protocol: str
) -> tuple[str, ...]:
    """Return ``bin``, ``host`` or ``pod``, ``protocol`` and ``strategy`` of a captured process."""
    labels = dict(container.labels) if container else {}
    pod = labels.get("io.kubernetes.pod.name", "")
    return normalised_tags(
        (
            f"bin:{readable_text(process.name)}",
            f"pod:{pod}" if pod else f"host:{hostname}",
            f"protocol:{protocol}",
            "strategy:observe",
        )
    )


def tags_by_key(tags: Iterable[str]) -> dict[str, list[str]]:
    """Return the values of each key, as Connection events have them."""
    values: dict[str, list[str]] = {}
    for tag in tags:
        key, _, value = tag.partition(":")
        values.setdefault(key, []).append(value)
    return values


def _normalised(text: str) -> str:
    text = text.strip().lower().replace(" ", "-")
    return text if text and text[0].isalnum() and text[-1].isalnum() else ""
