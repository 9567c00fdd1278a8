"""The spans of a request: itself, and in it how it was prepared, queued, read and answered.

Spans of what happened in the engine are made here, of the times that its outputs bring along: so
one process sends spans, and a step costs nothing for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from starlette.datastructures import Headers

from saccade_server.api.layers.admission import needs_place
from saccade_server.api.layers.record import Record, SequenceRecord
from saccade_server.api.layers.trace_entry import trace_of
from saccade_server.api.spans.attributes import Value, at_end, at_start, failed, of_sequence
from saccade_server.api.spans.sender import Sender
from saccade_server.logs.context import trace_context
from saccade_server.trace_context import TraceContext

MOST_SEQUENCES = 16
"""Sequences of a request that have spans of their own."""

_open: ContextVar[_Open | None] = ContextVar("saccade_span", default=None)

Stretch = tuple[str, float, float]
"""A name, and the seconds of ``time.monotonic`` that it began and ended at."""


class RequestSpans:
    """Begins a span with each request that asks for work, and sends it with those within it.

    What asks how the server is has none. A trace that the client began goes on; whether it is
    sampled is the client's word, unless a sampler is set that thinks otherwise.
    """

    def __init__(self, sender: Sender) -> None:
        self._tracer = sender.tracer

    def begun(self, record: Record, headers: Headers) -> None:
        """Begin the request's span, and be in it until the request ends."""
        coming = trace_of(headers)
        trace_context.set(coming)
        _open.set(None)  # not that of the connection's request before
        if not needs_place(record.path):
            return
        zero = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            record.method,
            _context(coming),
            SpanKind.SERVER,
            at_start(record),
            start_time=zero + _nanoseconds(record.began),
        )
        _open.set(_Open(span, zero))
        trace_context.set(_named(span.get_span_context()))

    def ended(self, record: Record) -> None:
        """End the span; what is said of it now is all that is known of the request."""
        found = _open.get()
        if found is None:
            return
        if found.span.is_recording():
            self._fill(found, record)
        found.span.end(found.zero + _nanoseconds(record.ended))

    def _fill(self, found: _Open, record: Record) -> None:
        span = found.span
        span.update_name(f"{record.method} {record.route}" if record.route else record.method)
        span.set_attributes(at_end(record))
        if record.status >= 500 or (record.error and record.status < 400):
            span.set_status(StatusCode.ERROR, failed(record))
        around = set_span_in_context(span, Context())
        for (name, begin, end), attributes in _within(record):
            begin, end = min(begin, record.ended), min(end, record.ended)
            start = found.zero + _nanoseconds(begin)
            made = self._tracer.start_span(name, around, attributes=attributes, start_time=start)
            made.end(found.zero + _nanoseconds(end))


@dataclass(frozen=True, slots=True)
class _Open:
    """A request's span; ``zero``: nanoseconds since 1970 when ``time.monotonic`` was 0."""

    span: Span
    zero: int


def _within(record: Record) -> Iterator[tuple[Stretch, dict[str, Value]]]:
    if record.began_work:
        yield ("prepare", record.began, record.began_work), {}
    for index, sequence in enumerate(record.sequences[:MOST_SEQUENCES]):
        for stretch in stretches(sequence):
            yield stretch, of_sequence(index, sequence)


def stretches(sequence: SequenceRecord) -> Iterator[Stretch]:
    """Where the time of a sequence went, one after another from when it went to the engine."""
    timing, at = sequence.timing, sequence.began
    if timing is None:
        return
    parts = (("queue", timing.queued), ("prompt", timing.prompt), ("decode", timing.decode))
    for name, seconds in parts:
        if seconds is None:
            return
        yield name, at, at + seconds
        at += seconds


def _nanoseconds(moment: float) -> int:
    return int(1e9 * moment)


def _context(coming: TraceContext | None) -> Context:
    """What a span begins in; never anything of the task that happens to run."""
    if coming is None:
        return Context()
    parent = SpanContext(
        int(coming.trace_id, 16),
        int(coming.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(coming.sampled)),
        trace_state=TraceState.from_header([coming.state]) if coming.state else None,
    )
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _named(context: SpanContext) -> TraceContext:
    return TraceContext(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        context.trace_flags.sampled,
        context.trace_state.to_header(),
    )
