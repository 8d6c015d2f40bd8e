"""What is stored of a transaction, and under which key."""

from __future__ import annotations

import hashlib

import pytest

from otel_qtap.config.capture import CaptureFormat, CaptureLevel
from otel_qtap.stores.artifact import held_bytes, make_artifact
from otel_qtap.stores.json_record import render_json
from otel_qtap.stores.text import render_text

FORMATS = [
    pytest.param(CaptureFormat.JSON, render_json, "application/json", id="json"),
    pytest.param(CaptureFormat.TEXT, render_text, "text/plain", id="text"),
]


@pytest.mark.parametrize(("format_", "render", "content_type"), FORMATS)
def test_the_key_is_the_sha1_of_the_content(
    format_, render, content_type, make_transaction
) -> None:
    """In lower-case hex; the content is what the format says, octet for octet."""
    transaction = make_transaction(format=format_, response_body="Zoë".encode())
    artifact = make_artifact(transaction)

    assert artifact.content == render(transaction).encode()
    assert artifact.content_type == content_type
    assert artifact.digest == hashlib.sha1(artifact.content, usedforsecurity=False).hexdigest()


def test_the_same_transaction_has_the_same_key_and_another_another(make_transaction) -> None:
    """Whoever renders it again finds the object."""
    transaction = make_transaction(response_body=b"content")
    other = make_transaction(response_body=b"other")
    summary = transaction.reduced_to(CaptureLevel.SUMMARY)

    assert make_artifact(transaction) == make_artifact(make_transaction(response_body=b"content"))
    assert len({make_artifact(each).digest for each in (transaction, other, summary)}) == 3


def test_no_name_of_a_process_breaks_it(make_transaction, make_process) -> None:
    """File names need not be text."""
    process = make_process(executable="/bin/\udcff")
    for format_ in CaptureFormat:
        assert make_artifact(make_transaction(process=process, format=format_)).content


def test_bodies_count_as_held(make_transaction) -> None:
    """Both of them, and whatever a transaction takes without."""
    empty = held_bytes(make_transaction(status=None))
    assert empty > 1000
    assert held_bytes(make_transaction(request_body=bytes(10_000))) > empty + 10_000
    assert held_bytes(make_transaction(response_body=bytes(10_000))) > empty + 10_000
