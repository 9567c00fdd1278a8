"""What the engine is told of the request that a sequence is made for."""

from __future__ import annotations

from saccade_server.engine.origin import Origin
from saccade_server.logs.context import NO_REQUEST, request_id, trace_context


def origin() -> Origin:
    """That of the request being answered here."""
    trace, name = trace_context.get(), request_id.get()
    return Origin("" if name == NO_REQUEST else name, "" if trace is None else trace.traceparent)
