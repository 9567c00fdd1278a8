"""Whether there are spans: an observer of requests that makes them, or one that only joins traces.

Nothing of OpenTelemetry is imported where there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from saccade_server.api.layers.record import Observer
from saccade_server.api.layers.trace_entry import TraceEntry
from saccade_server.api.settings import ApiSettings


@dataclass(frozen=True)
class Spans:
    """Who looks at requests for it, and how it ends."""

    observer: Observer
    close: Callable[[], None]

    @staticmethod
    def of(settings: ApiSettings) -> Spans:
        """What the settings ask for.

        Raises:
            ImportError: spans, without the extra that makes them.
            ValueError: one of OpenTelemetry's variables makes no sense.
        """
        if settings.otlp_traces_endpoint is None:
            return Spans(TraceEntry(), lambda: None)
        from saccade_server.api.spans.request_spans import RequestSpans
        from saccade_server.api.spans.sender import Sender

        sender = Sender(settings.otlp_traces_endpoint)
        return Spans(RequestSpans(sender), sender.close)
