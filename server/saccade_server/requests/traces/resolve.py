"""From the field ``trace`` and a rendered prompt to what the engine is asked to read.

plan = resolve(options, scope)              # all checks; nothing runs
check_bytes([plan], n, options, most)       # refuses what is beyond a budget
pieces = plan.collect()                     # of one sequence
arrays = pieces.arrays(generated)           # by name
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from saccade_interventions.image_views import ImageView
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_server.engine.traces.data import Trace
from saccade_server.requests.errors import RequestError, TooMuch
from saccade_server.requests.traces.arrays import ROW, ArraySpec
from saccade_server.requests.traces.joining import TraceSum
from saccade_server.requests.traces.kinds import RESOLVERS
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.scope import TOO_LARGE, UNDEFINED, Scope

FIELD = "trace"

MOST_INLINE = 16 * 2**20
"""Bytes of arrays that a request may insist to have in its answer, which is written whole."""


@dataclass(frozen=True)
class TracePlan:
    """A trace of one prompt's answers: what is read, and which arrays come of it."""

    trace: Trace
    arrays: tuple[ArraySpec, ...]
    scope: Scope

    @property
    def bytes(self) -> int:
        """Those of all arrays of one answer, if it is as long as it may be."""
        return sum(spec.bytes for spec in self.arrays)

    def collect(self) -> TraceSum:
        """Where the pieces of one sequence are put together."""
        return TraceSum(self.arrays, self.scope.length)

    def prefixed(self, prefix: str) -> TracePlan:
        """The same with other names of its readings, to stand beside others in one trace."""
        named = tuple(replace(r, name=prefix + r.name) for r in self.trace.readings)

        def renamed(spec: ArraySpec) -> ArraySpec:
            names = tuple(prefix + n for n in spec.readings)
            sums = {prefix + n: rows for n, rows in spec.sums.items()}
            return dataclasses.replace(spec, readings=names, sums=sums)

        return TracePlan(Trace(named), tuple(map(renamed, self.arrays)), self.scope)

    def facts(self) -> dict[str, Any]:
        """What helps to read the arrays, for JSON."""
        return {
            "prompt_tokens": self.scope.length,
            "question": list(self.scope.question),
            "images": [[_view(view) for view in views] for views in self.scope.images],
        }


def resolve(options: TraceOptions, scope: Scope) -> TracePlan:
    """Look up everything that a trace names.

    Raises:
        RequestError: something is not there, or the model cannot show it.
    """
    kinds = options.chosen().items()
    asked = [RESOLVERS[name](scope, chosen, f"{FIELD}.{name}") for name, chosen in kinds]
    readings = tuple(reading for each in asked for reading in each.readings)
    arrays = tuple(spec for each in asked for spec in each.arrays)
    return TracePlan(Trace(readings), arrays, scope)


def check_plan(found: TracePlan, plan: Plan | None, model: ModelFacts) -> None:
    """Refuse a trace that cannot be read beside a request's interventions.

    Raises:
        RequestError: both look for sinks, in different dimensions; a token has one score.
    """
    if plan is None or not found.trace.needs_sinks:
        return
    for rule in plan.rules:
        extra = rule.needs().page_extra
        if extra is not None and extra.scored != model.sink_dims:
            message = (
                f"interventions[{rule.source}] looks for sinks in other dimensions than the trace; "
                'leave out its sink_dims, or what of the trace tells sinks (masses: {"sinks": '
                '"keep"}, heatmaps: {"sinks": "keep"}).'
            )
            raise RequestError(message, code=UNDEFINED, param=FIELD)


def check_bytes(plans: Sequence[TracePlan], n: int, options: TraceOptions, most: int) -> None:
    """Refuse traces that may become larger than the request allows, the server, or an answer.

    Args:
        plans: one for each prompt.
        n: answers to each.
        options: with the request's own limit.
        most: the server's, in bytes.

    Raises:
        TooMuch: the message says which, and what would help.
    """
    needed = n * sum(plan.bytes for plan in plans)
    if needed <= min(options.max_bytes, most):
        if options.delivery == "inline" and needed > MOST_INLINE:
            message = (
                f"The trace may have {needed} bytes, and an answer holds {MOST_INLINE} at most; "
                'leave out delivery, or make it "link".'
            )
            raise TooMuch(message, code=TOO_LARGE, param=f"{FIELD}.delivery")
        return
    own = options.max_bytes
    allows = f"this server allows {most}" if most < own else f"{FIELD}.max_bytes is {own}"
    specs = [spec for plan in plans for spec in plan.arrays]
    largest = max(specs, key=lambda spec: spec.bytes)
    shape = " x ".join(f"{axis.size} {_plural(axis.name)}" for axis in largest.axes)
    message = (
        f"The trace may have {needed} bytes, all answers together; {allows}. The most is "
        f"{largest.name} ({shape}). What would help: {', '.join(_helps(largest))}."
    )
    raise TooMuch(message, code=TOO_LARGE, param=f"{FIELD}.max_bytes")


def _plural(name: str) -> str:
    return f"{name}es" if name == "class" else f"{name}s"


def _helps(largest: ArraySpec) -> Iterator[str]:
    names = [axis.name for axis in largest.axes]
    if ROW in names:
        yield "a smaller max_tokens, or fewer rows"
    for name in ("layer", "head"):
        if name in names:
            yield f"fewer {name}s"
    if "head" in names:
        yield 'reduce: ["head"]'
    if "key" in names:
        yield "fewer keys"


def _view(view: ImageView) -> dict[str, Any]:
    start, end = view.span
    return {
        "start": start,
        "length": end - start,
        "grid": [view.rows, view.columns],
        "box": list(view.box),
        "size": list(view.size),
    }
