"""
The ``detect_errors`` plugin: say which transactions went wrong, by rules of its own kind.

A rule looks at a transaction if its categories, URLs and tags let it, and is met as soon
as one of its triggers is. Then an Issue event goes to the event stores and, where the rule
records headers or bodies, the parts it names go to the object stores as one object.

What Qtap's names leave open is decided here: the first rule that is met ends the search
unless it says ``continue``, and a URL is compared as text with ``*`` for anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.counters import CounterSet
from otel_qtap.plugins.redaction import Redactor
from otel_qtap.stores.events import IssueEvent
from otel_qtap.stores.qtap_fields import category_of, protocol_of, status_of
from otel_qtap.stores.tags import normalised_tags, process_tags
from otel_qtap.transaction.consumer import Consumer, EventConsumer
from otel_qtap.transaction.model import Request, Response, Transaction
from otel_qtap.transaction.readable import readable_body, readable_text

__all__ = ["DetectErrors", "ErrorRule", "parse_status_codes"]

MAX_SEARCHED_BYTES = 256 * 1024
"""Of a decoded response body, from its start, for ``triggerContains``."""

_PLUGIN = "detect_errors"
_STATUS_CODES = range(100, 600)
# What a summary says of a message comes out of these, and so does the text of a body.
_SUMMARY_HEADERS = frozenset({"content-encoding", "content-type", "host", "user-agent"})

_Message = TypeVar("_Message", Request, Response)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """One of the ``rules``; field by field what the Qtap file says in camelCase."""

    name: str = ""
    """What its issues are called; without one they are called by the first reason."""
    trigger_status_codes: frozenset[int] = frozenset()
    trigger_empty_body: bool = False
    """A response that could have had a body and has none."""
    trigger_duration_ms: float = 0
    """Longer than this; 0: never."""
    trigger_contains: tuple[str, ...] = ()
    """Any of these in the response body; needs bodies to be captured."""
    record_request_headers: bool = False
    record_request_body: bool = False
    record_response_headers: bool = False
    record_response_body: bool = False
    only_categories: frozenset[str] = frozenset()
    """Of the response's media type, see ``category_of``; empty: all."""
    only_urls: tuple[str, ...] = ()
    exclude_urls: tuple[str, ...] = ()
    with_tags: tuple[str, ...] = ()
    """Only transactions with one of these, ``key:value``; empty: all."""
    reports_issue: bool = True
    continues: bool = False

    @property
    def records(self) -> tuple[bool, bool, bool, bool]:
        """Which parts are stored: headers and body of the request, then of the response."""
        return (
            self.record_request_headers,
            self.record_request_body,
            self.record_response_headers,
            self.record_response_body,
        )

    @property
    def needs_bodies(self) -> bool:
        """Whether the rule cannot work unless bodies are captured."""
        return bool(self.trigger_contains or self.record_request_body or self.record_response_body)

    def looks_at(self, transaction: Transaction, url: str, tags: Collection[str]) -> bool:
        """Whether the rule is about transactions like this one; ``tags`` are its own."""
        if self.with_tags and not any(tag in tags for tag in normalised_tags(self.with_tags)):
            return False
        if self.only_categories:
            response = transaction.response
            content_type = (response and response.header("content-type")) or ""
            if category_of(content_type) not in self.only_categories:
                return False
        if self.only_urls and not any(_occurs(part, url) for part in self.only_urls):
            return False
        return not any(_occurs(part, url) for part in self.exclude_urls)

    def findings(self, transaction: Transaction) -> Iterator[tuple[str, str]]:
        """Yield (condition, reason) of each trigger that ``transaction`` meets."""
        response = transaction.response
        status = status_of(transaction)
        if status in self.trigger_status_codes:
            yield "status_code", f"status is {status}"
        if response is not None and self.trigger_empty_body and _lacks_body(transaction):
            yield "empty_body", "the response has no body"
        duration_ms = transaction.timings.duration_ns / 1e6
        if 0 < self.trigger_duration_ms < duration_ms:
            yield "duration", f"took {duration_ms:g} ms, more than {self.trigger_duration_ms:g} ms"
        if response is not None and self.trigger_contains and response.body.content:
            data = readable_body(response, MAX_SEARCHED_BYTES).data
            for text in self.trigger_contains:
                if text.encode("utf-8", "surrogateescape") in data:
                    yield "contains", f"the response body contains {text!r}"


class DetectErrors:
    """Give every transaction to the rules, and tell what they found."""

    def __init__(
        self,
        *,
        rules: Sequence[ErrorRule],
        redactor: Redactor,
        consumers: Sequence[EventConsumer],
        object_stores: Sequence[Consumer] = (),
        counters: CounterSet,
        hostname: str = "",
        tags: Iterable[str] = (),
    ) -> None:
        """
        ``object_stores`` get what rules record, redacted, as JSON.

        ``hostname`` and ``tags`` are those of ``ReportUsage``.
        """
        self._redactor = redactor
        self._consumers = tuple(consumers)
        self._object_stores = tuple(object_stores)
        self._hostname = hostname
        self._tags = normalised_tags(tags)
        self._rules = tuple(
            (
                rule,
                counters.counter(
                    "otel_qtap.detect_errors.matches",
                    "{transaction}",
                    "Transactions that a rule of detect_errors was met by.",
                    rule=rule.name or f"rule {number}",
                ),
            )
            for number, rule in enumerate(rules, 1)
        )

    def consume(self, transaction: Transaction) -> None:
        """Hand on an event for each rule that is met, and what those record."""
        url = readable_text(transaction.url)
        tags = self._tags_of(transaction)
        recorded = (False, False, False, False)
        for rule, matches in self._rules:
            if not rule.looks_at(transaction, url, tags):
                continue
            findings = list(rule.findings(transaction))
            if not findings:
                continue
            matches.add()
            if rule.reports_issue:
                self._report(rule, findings, transaction, tags)
            request_head, request_body, response_head, response_body = (
                a or b for a, b in zip(recorded, rule.records, strict=True)
            )
            recorded = (request_head, request_body, response_head, response_body)
            if not rule.continues:
                break
        if any(recorded):
            kept = _parts(self._redactor.redact(transaction), recorded)
            for store in self._object_stores:
                store.consume(kept)

    def _tags_of(self, transaction: Transaction) -> tuple[str, ...]:
        protocol = protocol_of(transaction)
        automatic = process_tags(
            transaction.process, transaction.container, self._hostname, protocol
        )
        return (*self._tags, *automatic)

    def _report(
        self,
        rule: ErrorRule,
        findings: Sequence[tuple[str, str]],
        transaction: Transaction,
        tags: tuple[str, ...],
    ) -> None:
        event = IssueEvent(
            transaction=self._redactor.redact(transaction).reduced_to(CaptureLevel.SUMMARY),
            error=rule.name or findings[0][1],
            conditions=tuple(f"{_PLUGIN}:{condition}" for condition, _ in findings),
            reasons=tuple(reason for _, reason in findings),
            tags=tags,
        )
        for consumer in self._consumers:
            consumer.consume_event(event)


def parse_status_codes(entries: Iterable[str | int]) -> frozenset[int]:
    """
    Return the codes that ``404``, ``5xx`` and ``500-599`` stand for.

    Raises ``ValueError`` for anything else.
    """
    codes: set[int] = set()
    for entry in entries:
        text = str(entry).strip().lower()
        first, dash, last = text.partition("-")
        if text.endswith("xx") and text[:-2].isdigit():
            found = range(int(text[:-2]) * 100, int(text[:-2]) * 100 + 100)
        elif first.isdigit() and (last.isdigit() or not dash):
            found = range(int(first), int(last or first) + 1)
        else:
            raise ValueError(f"{entry!r} is not a status code such as 404, 5xx or 500-599")
        if not found or found[0] not in _STATUS_CODES or found[-1] not in _STATUS_CODES:
            raise ValueError(f"{entry!r} is outside of the status codes, 100 to 599")
        codes.update(found)
    return frozenset(codes)


def _lacks_body(transaction: Transaction) -> bool:
    """Whether a response that may have a body (RFC 9110, section 6.4.1) has none."""
    response = transaction.response
    if response is None or response.status < 200 or response.status in (204, 205, 304):
        return False
    method = transaction.request.method
    if method == "HEAD" or (method == "CONNECT" and response.status < 300):
        return False
    return response.body.size == 0


def _occurs(pattern: str, url: str) -> bool:
    """Whether the parts of ``pattern`` between its ``*`` occur in ``url`` in their order."""
    place = 0
    for part in pattern.split("*"):
        place = url.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def _parts(transaction: Transaction, recorded: Sequence[bool]) -> Transaction:
    """Return ``transaction`` with only those headers and bodies that are to be recorded."""
    request_headers, request_body, response_headers, response_body = recorded
    has_bodies = request_body or response_body
    level = CaptureLevel.FULL if has_bodies else CaptureLevel.HEADERS
    response = transaction.response
    reduced = replace(
        transaction,
        request=_part(transaction.request, headers=request_headers, body=request_body),
        response=None
        if response is None
        else _part(response, headers=response_headers, body=response_body),
    )
    return reduced.reduced_to(level, CaptureFormat.JSON)


def _part(message: _Message, *, headers: bool, body: bool) -> _Message:
    kept = message.headers
    if not headers:
        kept = tuple(item for item in kept if item[0].lower() in _SUMMARY_HEADERS)
    return replace(
        message,
        headers=kept,
        trailers=message.trailers if headers else (),
        body=message.body if body else replace(message.body, content=b""),
    )
