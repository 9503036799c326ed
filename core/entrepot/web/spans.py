"""Spans, by OpenTelemetry's SDK and its semantic conventions for HTTP servers, databases and object stores.

A span's work in the event loop is to be made and to be put into a bounded queue; a thread takes them from there and sends them in batches.
When the collector is away or too slow, spans are lost and requests are not. Names and attributes hold templates, operations and sizes:
never a query string, a token, a key of S3 or the values of a statement.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from entrepot.web.calls import Call
from entrepot.web.traces import TracesSettings

__all__ = ["Spans"]

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUEUE: Final = 4096
_BATCH: Final = 512
_DELAY: Final = 1000  # milliseconds
_TIMEOUT: Final = 5  # seconds that the collector may take


class Spans:
    """The traces of one process. Made in a thread, since it reads files; `begin`, `end` and `note` never block."""

    def __init__(self, settings: TracesSettings, *, service: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=settings.url, timeout=_TIMEOUT),
                max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=_DELAY,
            )
        )  # fmt: skip
        self._tracer = self._provider.get_tracer("entrepot")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, call: Call) -> object:
        """A span for the request, child of the client's if it sent a traceparent, and current in this task."""
        headers = call.request.headers
        parent = self._propagator.extract(headers) if "traceparent" in headers else context.Context()
        span = self._tracer.start_span(
            call.method if call.method in _METHODS else "HTTP", context=parent, kind=SpanKind.SERVER
        )
        if span.is_recording():
            span.set_attributes(
                {
                    "http.request.method": call.method if call.method in _METHODS else "_OTHER",
                    "url.scheme": "http",
                    "url.path": call.path[:512],
                    "client.address": call.client or "",
                    "user_agent.original": headers.get("User-Agent", "")[:512],
                    "entrepot.request_id": call.request_id,
                }
            )
        # Never detached: every request has a task of its own, and its context ends with it.
        context.attach(trace.set_span_in_context(span, parent))
        return span

    def end(self, call: Call, status: int, *, received: int) -> None:
        """What became of it."""
        span = call.span
        if not isinstance(span, Span):
            return
        if span.is_recording():
            span.update_name(f"{call.method if call.method in _METHODS else 'HTTP'} {call.route}")
            span.set_attributes(
                {
                    "http.route": call.route,
                    "http.response.status_code": status,
                    "http.request.body.size": received,
                    "http.response.body.size": call.sent,
                }
            )
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def note(self, system: str, operation: str, *, seconds: float, error: str | None) -> None:
        """A span that has just ended, within the current one; none outside of a request."""
        if not trace.get_current_span().is_recording():
            return
        now = time.time_ns()
        attributes = (
            {"db.system.name": system, "db.operation.name": operation}
            if system == "postgresql"
            else {"rpc.system": "aws-api", "rpc.service": "S3", "rpc.method": operation}
        )
        span = self._tracer.start_span(
            operation if system == "postgresql" else f"S3.{operation}",
            kind=SpanKind.CLIENT,
            start_time=now - int(seconds * 1e9),
            attributes=attributes,
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    def close(self) -> None:
        """Send what is left and end the thread; blocks, for seconds at most."""
        # By itself it would wait half a minute for a collector that hangs, and the process with it.
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(_TIMEOUT)
