"""Draws of padded decodes: the stages of rows that sample.

The graph of a step ends with the greedy draw, which is right for most rows (outputs.py). Rows that
sample are drawn behind it and take its tokens' places, in a stage for each kind of draw.

A row draws what it draws in an ordinary step, by the same functions (sampler.py). Requests that
change single logits, and plans that choose among candidates, draw there.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_server.engine.batch import Ints
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.sampler import OFF, PICKS, Columns, DrawKind
from saccade_server.engine.seats import Roster, Seats
from saccade_server.engine.stages import Parameter, Stage, StepRows

IDLE = (0.0, 1.0, 0.0, OFF, 1.0)
"""What padding draws with: the columns of the sampler."""


class DrawStage(Stage):
    """Draws of one kind. Padding draws from, and into, the buffers' last rows."""

    def __init__(
        self, kind: DrawKind, outputs: StepOutputs, seats: Seats, sizes: Batch[int]
    ) -> None:
        self.name = f"{kind.name.lower()} draw"
        self.sizes = tuple(sizes)
        self.parameters = (
            Parameter(np.int64, outputs.most),  # row
            Parameter(np.float64, IDLE, (len(IDLE),)),
        )
        self._kind = kind
        self._outputs = outputs
        self._seats = seats

    def asked(self, roster: Roster) -> Ints | None:
        """The rows that draw so; see :class:`Stage`."""
        return roster.draws.get(self._kind)

    def write(self, parameters: list[NDArray[Any]], asked: Ints, rows: StepRows) -> int:
        """See :class:`Stage`."""
        places, columns = parameters
        places[: len(asked)] = asked
        at = rows.starts[asked] + 1 - rows.roster.prompt_lengths[asked]
        columns[: len(asked)] = self._seats.columns(rows.roster, asked, at).T
        return len(asked)

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        rows, values = parameters
        columns = Columns(*values.T[:, :, None])
        picked = PICKS[self._kind](self._outputs.logits.index_select(0, rows), columns)
        self._outputs.news.tokens.index_copy_(0, rows, picked)


def draw_stages(outputs: StepOutputs, seats: Seats, sizes: Batch[int]) -> list[Stage]:
    """One for each kind of draw but the greedy one."""
    return [DrawStage(kind, outputs, seats, sizes) for kind in PICKS]
