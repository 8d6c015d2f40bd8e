"""
A client inside a world: reads requests as JSON lines, writes the answers as JSON lines.

One request after the other, each on a connection of its own unless ``connection`` names
one to be kept. A field ``address`` is where the client itself shall be.
"""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection, HTTPException
from typing import Any


class Client:
    def __init__(self) -> None:
        self._kept: dict[str, HTTPConnection] = {}

    def send(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer; its status is 0 when there was none."""
        name = request["connection"]
        connection = self._kept.get(name)
        if connection is None:
            own = (request["address"], 0) if request["address"] else None
            connection = HTTPConnection(
                "localhost", request["port"], timeout=10, source_address=own
            )
            if name:
                self._kept[name] = connection
        headers = {"User-Agent": "examples-check", **request["headers"]}
        try:
            connection.request(request["method"], request["path"], request["body"] or None, headers)
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            self._kept.pop(name, None)
            return {"status": 0, "headers": {}, "body": str(error)}
        finally:
            if not name:
                connection.close()
        return {"status": answer.status, "headers": dict(answer.headers.items()), "body": body}


def main() -> None:
    client = Client()
    for line in sys.stdin:
        print(json.dumps(client.send(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
