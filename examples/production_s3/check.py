"""
Production with S3: errors as objects in a bucket, nothing else anywhere.

The guide's fourth configuration, with SeaweedFS in place of Amazon: real S3, signed
requests. An object is a whole transaction in JSON, its key the SHA-1 of the content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from checks.captured import levels, read_captured
from checks.s3_server import WRITER, S3Server
from checks.stage import Backend, Finding, Request, Stage

PLACE = 4
BACKENDS = (Backend("app-1", "127.0.1.1", 8001), Backend("app-2", "127.0.1.2", 8002))
ORDER = json.dumps({"order": 4711, "customer": "Alice"})


def check(stage: Stage) -> Iterator[Finding]:
    server = S3Server(stage.directory)
    stage.on_exit(server.stop)
    server.wait_until_it_stores()
    bucket = server.make_bucket("my-company-haproxy-traffic")
    stage.environment = {"AWS_ACCESS_KEY_ID": WRITER[0], "AWS_SECRET_ACCESS_KEY": WRITER[1]}
    stage.replacements = {
        "endpoint: s3.amazonaws.com": f"endpoint: {server.endpoint}",
        "insecure: false": "insecure: true",
    }
    stage.start(BACKENDS)
    count = stage.amount(20, 10)
    stage.send(f"{count} requests that go well", [Request(path="/orders")] * count)
    failing = Request(path="/orders/status/500", method="POST", body=ORDER)
    stage.send("3 orders that fail", [failing] * 3)
    stage.send("1 request that HAProxy denies", [Request(path="/private")])
    stage.finish(0)

    objects = server.objects(bucket)
    texts = [content.decode() for content in objects.values()]
    stored = [item for item in read_captured(texts) if item.pid == stage.haproxy.pid]
    stage.note(f"in the bucket: {levels(stored)}")
    sides = sorted((item.status, item.side) for item in stored)
    yield Finding(
        sides == [(403, "ingress"), *[(500, "egress")] * 3, *[(500, "ingress")] * 3],
        "one object for each side of each error, and for nothing else",
        f"{len(stored)} objects",
    )
    yield Finding(
        all(item.request_body == ORDER for item in stored if item.status == 500),
        "with the body that the client has sent",
    )
    yield Finding(
        all(key == hashlib.sha1(content).hexdigest() for key, content in objects.items()),  # noqa: S324
        "the key of each object is the SHA-1 of its content",
        next(iter(objects), ""),
    )
    words = stage.agent.output() + stage.agent.errors()
    yield Finding(
        "orders" not in words and WRITER[1] not in words,
        "neither traffic nor keys on the agent's own output",
    )
