"""Log-probabilities of tokens that are known: the prompt's, or an answer's that is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Drawn, Reader, Traced, Watch, rows_of, spread
from saccade_server.engine.traces.data import ScoreReading
from saccade_server.models import lens
from saccade_server.models.tape import Activation

ARRAYS = ("logprobs", "ranks", "top_tokens", "top_logprobs")
"""Of a score reading, in order; each is called by the reading's name, a dot and this."""

Group = list[Traced[ScoreReading]]


class ScoreReader(Reader[ScoreReading]):
    """Of rows whether or not a token is drawn behind them; no edit of logits counts."""

    kind = ScoreReading

    def why_refused(self, reading: ScoreReading, request: GenerateRequest) -> str | None:
        """Tokens that the rows do not go with, or that are none."""
        vocabulary = self.parts.model.vocab_size
        start, end = reading.rows
        if len(reading.tokens) != end - start:
            return f"it has {len(reading.tokens)} tokens for {end - start} rows"
        if not all(0 <= token < vocabulary for token in reading.tokens):
            return "a token is not in the vocabulary"
        if not 0 <= reading.top <= vocabulary:
            return f"there are no {reading.top} likeliest tokens"
        return None

    def watch(self, traced: Batch[Traced[ScoreReading]]) -> Watch:
        """One for all rows; those with equally many likeliest tokens go together."""
        groups: dict[int, Group] = defaultdict(list)
        for one in traced:
            groups[one.reading.top].append(one)
        return ScoreWatch(self.parts, list(groups.values()))


class ScoreWatch(Watch):
    """Copies what is behind the last layer, and projects it behind the step."""

    def __init__(self, parts: EngineParts, groups: list[Group]) -> None:
        self._parts = parts
        self._groups = groups
        self._layer = parts.model.layers
        self.activations = frozenset({(Activation.RESIDUAL, self._layer)})
        self._rows = parts.upload(*(rows_of(group) for group in groups))
        self._tokens = parts.upload(*(_tokens(group) for group in groups))
        self._kept: list[torch.Tensor] = []

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        self._kept = [made.index_select(0, rows) for rows in self._rows]

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Of each group in turn the arrays of all its rows."""
        return [
            array
            for group, kept, tokens in zip(self._groups, self._kept, self._tokens, strict=True)
            for array in lens.scores(self._parts.model, kept, tokens, group[0].reading.top)
        ]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        for number, group in enumerate(self._groups):
            own = arrays[len(ARRAYS) * number :]
            for name, array in zip(ARRAYS, own, strict=False):
                spread(group, array, f".{name}")


def _tokens(group: Group) -> NDArray[np.int64]:
    """The tokens behind all rows of a group."""
    found: list[int] = []
    for one in group:
        first = one.reading.rows[0]
        found += one.reading.tokens[one.start - first : one.end - first]
    return np.array(found, np.int64)
