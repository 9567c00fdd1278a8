"""Which trace a request belongs to, by the headers that it came with."""

from __future__ import annotations

from starlette.datastructures import Headers

from saccade_server.api.layers.record import Record
from saccade_server.logs.context import trace_context
from saccade_server.trace_context import TRACEPARENT, TRACESTATE, TraceContext, parse


class TraceEntry:
    """Notes it for the log and for whoever is asked on the request's behalf; makes no spans."""

    def begun(self, record: Record, headers: Headers) -> None:
        """Be in the trace until the request ends."""
        trace_context.set(trace_of(headers))

    def ended(self, record: Record) -> None:
        """Nothing is left to say."""


def trace_of(headers: Headers) -> TraceContext | None:
    """What the headers say; None if there is no trace, or none that counts."""
    return parse(headers.getlist(TRACEPARENT), headers.getlist(TRACESTATE))
