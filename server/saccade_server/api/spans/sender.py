"""The way of spans to a collector: a bounded queue and a thread, which no request waits for.

A collector that is slow, or gone, costs spans and nothing else: what finds the queue full is
dropped, and the log says so. OpenTelemetry's own variables set the rest: the resource
(OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES), sampling (OTEL_TRACES_SAMPLER), the queue
(OTEL_BSP_...) and the exporter (OTEL_EXPORTER_OTLP_...).
"""

from __future__ import annotations

import os
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

import saccade_server

FLUSH_SECONDS = 3.0
"""What is left of the queue may take so long to leave when the server ends."""

SERVICE = "saccade"


class Sender:
    """Makes spans that are sent to ``endpoint``.

    Raises:
        ValueError: one of OpenTelemetry's variables makes no sense.
    """

    def __init__(self, endpoint: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._processor = BatchSpanProcessor(self._exporter)
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self.tracer: Tracer = provider.get_tracer("saccade", saccade_server.__version__)

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Send what is left, at most for ``timeout`` seconds. What ends later is dropped."""
        # The processor would wait ten times as long for a collector that does not answer.
        closing = threading.Thread(target=self._processor.shutdown, name="spans-end", daemon=True)
        closing.start()
        closing.join(timeout)
        if closing.is_alive():
            # Or it would try again for a while.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _resource() -> Resource:
    named = {"service.version": saccade_server.__version__}
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        named["service.name"] = SERVICE
    return Resource.create(named)
