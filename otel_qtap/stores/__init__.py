"""Where whole transactions are kept, headers and bodies included."""

from otel_qtap.stores.json_record import render_json
from otel_qtap.stores.stdout import StdoutStore, StdoutWriter
from otel_qtap.stores.text import render_text

__all__ = ["StdoutStore", "StdoutWriter", "render_json", "render_text"]
