"""OpenTelemetry spans. They are nothing until the process is given a tracer provider; see
``deployments/tracing.py``."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace

from serve_app.metrics import STAGE_TIME, Recorder

tracer = trace.get_tracer("flashhead")


def trace_alone() -> contextvars.Context:
    """A context that holds the current span and nothing else of the current context."""
    alone = contextvars.Context()
    alone.run(context.attach, context.get_current())
    return alone


def past_span(name: str, parent: context.Context, seconds: float, attributes: dict[str, int]) -> None:
    """A span that ends now and began ``seconds`` ago, below the span of ``parent``."""
    end_ns = time.time_ns()
    span = tracer.start_span(name, parent, attributes=attributes, start_time=end_ns - int(seconds * 1e9))
    span.end(end_ns)


@contextmanager
def observed(recorder: Recorder, stage: str) -> Iterator[None]:
    """What is done within is a stage of a chunk: a span, and, where it succeeds, a measurement."""
    started = time.perf_counter()
    with tracer.start_as_current_span(stage):
        yield
    recorder.record(STAGE_TIME, time.perf_counter() - started, stage=stage)
