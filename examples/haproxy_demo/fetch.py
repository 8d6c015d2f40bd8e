"""The few options of ``curl`` that the demo uses, for machines without it."""

from __future__ import annotations

import argparse
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-s", action="store_true", help="silent, as it is anyhow")
    parser.add_argument("-X", dest="method", default="GET")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="body")
    parser.add_argument("url")
    arguments = parser.parse_args()

    url = urlsplit(arguments.url)
    headers = {"User-Agent": "otel-qtap-demo", "Accept": "*/*"}
    for line in arguments.headers:
        name, _, value = line.partition(":")
        headers[name] = value.strip()
    connection = HTTPConnection(url.hostname or "localhost", url.port, timeout=10)
    connection.request(arguments.method, url.path or "/", arguments.body, headers)
    sys.stdout.buffer.write(connection.getresponse().read())


if __name__ == "__main__":
    main()
