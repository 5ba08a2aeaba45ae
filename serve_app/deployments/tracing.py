"""Where spans go: ``exporter_import_path`` of a Serve config's ``tracing_config``.

    tracing_config:
      enabled: true
      exporter_import_path: serve_app.deployments.tracing:otlp_span_processors
      sampling_ratio: 0.01

Serve gives each replica and proxy a tracer provider, makes a span of each call between them and hands the
trace on with it; our own spans lie below those. Without that nothing is recorded.
"""

from __future__ import annotations

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def otlp_span_processors() -> list[SpanProcessor]:
    """Spans in batches to an OpenTelemetry collector over HTTP, as the standard ``OTEL_EXPORTER_OTLP_*`` and
    ``OTEL_BSP_*`` variables of the process say.

    Raises:
        ImportError: the exporter, extra ``otel``, is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return [BatchSpanProcessor(OTLPSpanExporter())]
