"""How probable groups of tokens are under the model's own distribution."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Drawn, Reader, Traced, Watch, spread
from saccade_server.engine.traces.data import TokenShareReading
from saccade_server.models import lens
from saccade_server.models.tape import Activation

Groups = tuple[tuple[int, ...], ...]


class TokenShareReader(Reader[TokenShareReading]):
    """Of rows whether or not a token is drawn behind them; no edit of logits counts."""

    kind = TokenShareReading

    def why_refused(self, reading: TokenShareReading, request: GenerateRequest) -> str | None:
        """Tokens that the model does not have."""
        size = self.parts.model.vocab_size
        if any(not 0 <= token < size for group in reading.groups for token in group):
            return f"tokens go from 0 to {size - 1}"
        return None

    def watch(self, traced: Batch[Traced[TokenShareReading]]) -> Watch:
        """One for all rows; readings of the same tokens go together."""
        groups: dict[Groups, list[Traced[TokenShareReading]]] = defaultdict(list)
        for one in traced:
            groups[one.reading.groups].append(one)
        return TokenShareWatch(self.parts, groups)


class TokenShareWatch(Watch):
    """Copies the residuals behind the last layer, and projects them behind the step."""

    def __init__(
        self, parts: EngineParts, groups: dict[Groups, list[Traced[TokenShareReading]]]
    ) -> None:
        self._parts = parts
        self._traced = list(groups.values())
        rows = (np.concatenate([one.rows for one in some]) for some in self._traced)
        tokens = (np.array(group, np.int64) for some in groups for group in some)
        sent = parts.upload(*rows, *tokens)
        self._rows, ids = sent[: len(groups)], iter(sent[len(groups) :])
        self._groups = [[next(ids) for _ in some] for some in groups]
        self._last = parts.model.layers
        self.activations = frozenset({(Activation.RESIDUAL, self._last)})
        self._kept: list[torch.Tensor] = []

    def keep(self, what: Activation, layer: int, made: torch.Tensor) -> None:
        """See :class:`Watch`."""
        self._kept = [made.index_select(0, rows) for rows in self._rows]

    def results(self, drawn: Drawn) -> list[torch.Tensor]:
        """Of each set of groups [rows, groups]."""
        pairs = zip(self._kept, self._groups, strict=True)
        return [lens.shares(self._parts.model, kept, groups) for kept, groups in pairs]

    def note(self, arrays: Batch[NDArray[Any]]) -> None:
        """See :class:`Watch`."""
        for some, array in zip(self._traced, arrays, strict=True):
            spread(some, array)
