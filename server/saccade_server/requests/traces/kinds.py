"""Every kind of trace by its name: what it asks the engine to read, and which arrays come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saccade_server.engine.traces.data import EntropyReading, TokenShareReading
from saccade_server.requests.traces import attention
from saccade_server.requests.traces.arrays import ArraySpec, Asked, Axis
from saccade_server.requests.traces.options import Entropy, TokenShares
from saccade_server.requests.traces.scope import Scope

NATS = "nats"

Resolve = Callable[[Scope, Any, str], Asked]
"""From what there is, a kind's options and their path in the request."""


def entropy(scope: Scope, options: Entropy, path: str) -> Asked:
    """[row], or with layers [row, layer]: of the distribution of the next token."""
    rows = scope.rows(options.rows, f"{path}.rows")
    axes = [Axis.rows(rows)]
    layers: tuple[int, ...] = ()
    if options.layers is not None:
        layers = scope.residuals(options.layers, f"{path}.layers")
        axes.append(Axis.of("layer", layers))
    reading = EntropyReading(name="entropy", rows=rows, layers=layers)
    return Asked((reading,), (ArraySpec("entropy", ("entropy",), tuple(axes), NATS, rows=rows),))


def token_shares(scope: Scope, options: TokenShares, path: str) -> Asked:
    """[row, group]: of the distribution of the next token."""
    rows = scope.rows(options.rows, f"{path}.rows")
    for at, group in enumerate(options.tokens):
        scope.check_tokens(group, f"{path}.tokens[{at}]")
    groups = tuple(map(tuple, options.tokens))
    reading = TokenShareReading(name="token_shares", rows=rows, groups=groups)
    axes = (Axis.rows(rows), Axis.of("group", tuple(range(len(groups)))))
    spec = ArraySpec("token_shares", ("token_shares",), axes, "probability", rows=rows)
    return Asked((reading,), (spec,))


RESOLVERS: Mapping[str, Resolve] = {
    "masses": attention.masses,
    "attention": attention.attention,
    "heatmaps": attention.heatmaps,
    "columns": attention.columns,
    "entropy": entropy,
    "token_shares": token_shares,
    "vas": attention.vas,
    "sinks": attention.sinks,
}
