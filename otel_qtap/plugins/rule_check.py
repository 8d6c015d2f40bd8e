"""
Try a rule on transactions and say which match and why: the core of ``otel-qtap rule``.

Lines come out as they are known, so that a long recording shows its first match at
once. A rule sees transactions as they were; what is printed of them is redacted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import NamedTuple, cast

from otel_qtap.plugins.redaction import Redactor
from otel_qtap.plugins.rule_facts import TransactionFacts
from otel_qtap.rules import (
    HTTP_VOCABULARY,
    Explanation,
    Facts,
    FieldType,
    Outcome,
    Rule,
    RuleError,
    RuleWarning,
    Stage,
    Vocabulary,
)
from otel_qtap.transaction.model import Transaction
from otel_qtap.transaction.readable import escape_line

__all__ = [
    "Subject",
    "SubjectError",
    "check_rule",
    "describe_error",
    "describe_rule",
    "json_subjects",
    "transaction_subjects",
]

MAX_SHOWN = 100  # characters of a value

_MOMENTS = {
    Stage.CONNECTION: "when the connection opens",
    Stage.REQUEST_HEAD: "once the head of the request is there",
    Stage.REQUEST_BODY: "once the request is there",
    Stage.RESPONSE_HEAD: "once the head of the response is there",
    Stage.RESPONSE_BODY: "once the response is there",
    Stage.END: "once the transaction is over",
}


class SubjectError(ValueError):
    """Something to try a rule on that cannot be read; the text says what and where."""


class Subject(NamedTuple):
    """Something to try a rule on."""

    title: str
    """One line for people, redacted."""
    facts: Facts
    shown: Facts
    """The same, redacted: what may be printed."""


# What is printed -----------------------------------------------------------------------


def describe_rule(rule: Rule) -> Iterator[str]:
    """Yield what a rule says, reads and waits for, and what is odd about it."""
    yield f"rule     {escape_line(str(rule))}"
    yield f"reads    {', '.join(sorted(rule.fields)) or 'nothing'}"
    yield f"decided  {_MOMENTS[rule.needs]}"
    for warning in rule.warnings:
        yield f"warning  {_placed(warning)}"


def describe_error(error: RuleError) -> Iterator[str]:
    """Yield what is wrong with an expression, and the place in it."""
    yield str(error)
    yield from (f"    {line}" for line in error.caret().split("\n"))


def check_rule(rule: Rule, subjects: Iterable[Subject], *, quiet: bool = False) -> Iterator[str]:
    """
    Yield one block of lines for each subject, and a count at the end.

    A block has the parts of the expression with their outcomes and the values of the
    fields; with ``quiet`` only matches are printed, each as one line. Raises
    ``SubjectError`` where a subject cannot be read.
    """
    matched = total = 0
    for title, facts, shown in subjects:
        total += 1
        is_match = rule.matches(facts)
        matched += is_match
        if is_match or not quiet:
            yield f"{'match   ' if is_match else 'no match'}  {title}"
        if not quiet:
            yield from _explained(rule.explain(facts), shown, 1)
            yield ""
    yield f"{matched} of {total} transactions match"


def _explained(explanation: Explanation, shown: Facts, depth: int) -> Iterator[str]:
    outcome = explanation.outcome.value
    line = f"  {outcome:<9}{'  ' * depth}{escape_line(explanation.text)}"
    for name, canonical in explanation.fields:
        line += f"    {name} = {_value_text(shown, canonical)}"
    if explanation.outcome is Outcome.MISSING and not explanation.parts and not explanation.fields:
        line += "    has no answer"
    yield line
    for part in explanation.parts:
        yield from _explained(part, shown, depth + 1)


def _value_text(shown: Facts, name: str) -> str:
    found = HTTP_VOCABULARY.resolve(name)
    if found.fact is None:
        return "missing"
    value = getattr(shown, found.fact.attribute)
    if found.key is not None:
        value = value(found.key)
    if value is None:
        return "missing"
    text = json.dumps(value, ensure_ascii=False)
    return escape_line(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…")


def _placed(warning: RuleWarning) -> str:
    return f"column {warning.column}: {warning.message}"


# What a rule is tried on ---------------------------------------------------------------


def transaction_subjects(
    transactions: Iterable[Transaction], redactor: Redactor, hostname: str = ""
) -> Iterator[Subject]:
    """Yield transactions, for instance those of a recording, as subjects."""
    for transaction in transactions:
        redacted = redactor.redact(transaction)
        shown = TransactionFacts(redacted, hostname)
        yield Subject(_title(shown), TransactionFacts(transaction, hostname), shown)


def json_subjects(
    lines: Iterable[str], vocabulary: Vocabulary = HTTP_VOCABULARY
) -> Iterator[Subject]:
    """
    Yield what each line of JSON describes.

    A line is a stored transaction (``format: json``), whose duration is that to the head
    of the response, or an object of fields by name, nested or with dots:
    ``{"http.req.path": "/api", "http": {"res": {"status": 503}}}``. Empty lines are
    skipped. Raises ``SubjectError`` for a line that is neither.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            facts = _facts(_context(json.loads(line)), vocabulary)
        except json.JSONDecodeError as error:
            raise SubjectError(f"line {number}: not JSON: {error.msg}") from None
        except (SubjectError, RecursionError) as error:
            reason = error if isinstance(error, SubjectError) else "too deep"
            raise SubjectError(f"line {number}: {reason}") from None
        yield Subject(_title(facts), facts, facts)


def _title(facts: Facts) -> str:
    status = facts.http_res_status
    words = (
        facts.direction,
        facts.http_req_method,
        facts.http_req_url or facts.http_req_path,
        "no response" if status is None else str(status),
    )
    return escape_line(" ".join(word for word in words if word))


def _context(record: object) -> dict[str, object]:
    """Return fields by name."""
    if not isinstance(record, Mapping):
        raise SubjectError("not an object")
    if isinstance(record.get("request"), Mapping) and "metadata" in record:
        return _stored(record)
    return dict(_flattened(record, ""))


def _flattened(record: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _stored(record: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that a stored transaction tells."""
    metadata, request, response = (
        section if isinstance(section := record.get(name), Mapping) else {}
        for name in ("metadata", "request", "response")
    )
    process_id = str(metadata.get("process_id", ""))
    exe = metadata.get("process_exe")
    context: dict[str, object] = {
        "direction": record.get("direction"),
        "tags": metadata.get("tags"),
        "src.process.pid": int(process_id) if process_id.isdecimal() else None,
        "src.process.path": exe,
        "src.process.binary": exe.rpartition("/")[2] if isinstance(exe, str) else None,
        "src.container.name": metadata.get("container_name"),
        "src.container.image": metadata.get("container_image"),
        "src.pod.name": metadata.get("pod_name"),
        "src.pod.namespace": metadata.get("pod_namespace"),
        "http.req.method": request.get("method"),
        "http.req.path": request.get("path"),
        "http.req.scheme": request.get("scheme"),
        "http.req.url": request.get("url"),
        "http.req.host": request.get("authority"),
        **_stored_headers("http.req.headers.", request),
    }
    is_made_up = response.keys() <= {"status"} and record.get("ending") not in (None, "complete")
    if response and not (is_made_up and response.get("status") in (422, 499)):
        context |= {
            "http.res.status": response.get("status"),
            "http.res.duration_ms": record.get("duration_ms"),
            **_stored_headers("http.res.headers.", response),
        }
    return context


def _stored_headers(prefix: str, message: Mapping[str, object]) -> dict[str, object]:
    headers = message.get("headers")
    if not isinstance(headers, Mapping):
        return {}
    return {
        f"{prefix}{str(name).lower()}": value
        for name, value in headers.items()
        if not str(name).startswith(":")
    }


def _facts(context: Mapping[str, object], vocabulary: Vocabulary) -> Facts:
    """Return facts with the values of ``context``; names of no field say nothing."""
    values: dict[str, object] = {}
    maps: dict[str, dict[str, object]] = {}
    for name, fact in vocabulary:
        if name.endswith("."):
            values[fact.attribute] = maps.setdefault(fact.attribute, {}).get
        else:
            values[fact.attribute] = None
    for name, value in context.items():
        found = vocabulary.resolve(name)
        if found.fact is None or value is None:
            continue
        checked = _checked(name, value, found.fact.type)
        if found.key is not None:
            maps[found.fact.attribute][found.key] = checked
        else:
            values[found.fact.attribute] = checked
    return cast("Facts", SimpleNamespace(**values))


def _checked(name: str, value: object, type_: FieldType) -> object:
    """Return a value of JSON as the field has it. Raises ``SubjectError``."""
    match type_:
        case FieldType.NUMBER:
            is_right, wanted = type(value) in (int, float), "a number"
        case FieldType.BOOLEAN:
            is_right, wanted = isinstance(value, bool), "true or false"
        case FieldType.LIST:
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return tuple(value)
            is_right, wanted = False, "a list of text"
        case _:
            is_right, wanted = isinstance(value, str), "text"
    if not is_right:
        raise SubjectError(f"{name} must be {wanted}")
    return value
