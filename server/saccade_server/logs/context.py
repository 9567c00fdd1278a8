"""Which request, and which trace, what is logged belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from saccade_server.trace_context import TraceContext

NO_REQUEST = "-"

request_id: ContextVar[str] = ContextVar("saccade_request_id", default=NO_REQUEST)

trace_context: ContextVar[TraceContext | None] = ContextVar("saccade_trace_context", default=None)


def fields(**values: Any) -> Mapping[str, Any]:
    """The ``extra`` of a record that says ``values`` beside its message."""
    return {"fields": values}


def trace_fields(context: TraceContext | None) -> dict[str, str]:
    """What a record says of a trace."""
    return {} if context is None else {"trace_id": context.trace_id, "span_id": context.span_id}


def surroundings() -> dict[str, str]:
    """What is known of where the code runs that logs something."""
    name = request_id.get()
    request = {} if name == NO_REQUEST else {"request_id": name}
    return request | trace_fields(trace_context.get())
