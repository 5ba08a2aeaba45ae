"""An OpenTelemetry collector that keeps the spans it is sent over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Spans:
    """The spans received, by id."""

    url: str = ""
    known: dict[bytes, Any] = field(default_factory=dict)

    def add(self, body: bytes) -> None:
        """Take an export request in."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.known.update({span.span_id: span for span in scope.spans})

    def named(self, name: str) -> list[Any]:
        """Spans whose name begins so."""
        return [span for span in list(self.known.values()) if span.name.startswith(name)]

    def ancestors(self, span: Any) -> list[str]:
        """Names of the spans above one, the nearest first; those not received yet are missing."""
        names = []
        while (span := self.known.get(span.parent_span_id)) is not None:
            names.append(span.name)
        return names


@contextmanager
def collecting() -> Iterator[Spans]:
    """A collector on a port of its own."""
    spans = Spans()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            zipped = self.headers.get("content-encoding") == "gzip"
            spans.add(gzip.decompress(body) if zipped else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        spans.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield spans
        finally:
            server.shutdown()
            thread.join()
