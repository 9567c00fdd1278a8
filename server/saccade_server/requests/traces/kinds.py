"""Every kind of trace by its name: what it asks the engine to read, and which arrays come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saccade_server.requests.traces import attention, values
from saccade_server.requests.traces.arrays import Asked
from saccade_server.requests.traces.scope import Scope

Resolve = Callable[[Scope, Any, str], Asked]
"""From what there is, a kind's options and their path in the request."""

RESOLVERS: Mapping[str, Resolve] = {
    "masses": attention.masses,
    "attention": attention.attention,
    "heatmaps": attention.heatmaps,
    "columns": attention.columns,
    "projections": values.projections,
    "logit_lens": values.logit_lens,
    "entropy": values.entropy,
    "token_shares": values.token_shares,
    "vhd": values.vhd,
    "vas": attention.vas,
    "saliency": attention.saliency,
    "sinks": attention.sinks,
}
