"""Masks of grammars behind a padded step: put where stages read them, applied, and taken away.

    masks         those of some rows into ``StepOutputs.allowed``, which allows all tokens elsewhere
                  (stages that make one row of two apply them between)
    masked rows   the rows themselves masked and drawn greedily, and all tokens allowed again

Masks are known later than what other stages are told: the step before must have been read. So they
travel by themselves, behind the step's block, and only those that there are.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from saccade_server.engine.batch import Ints
from saccade_server.engine.masks import Masks
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.seats import Roster
from saccade_server.engine.stages import Stage, StepRows, doubling
from saccade_server.engine.transfer import host_block


class MaskStage(Stage):
    """Puts masks in their rows' places. Padding is the buffers' last row."""

    name = "masks"
    parameters = ()

    def __init__(self, outputs: StepOutputs) -> None:
        self.sizes = doubling(outputs.most)
        self._outputs = outputs
        most, words, device = self.sizes[-1], outputs.words, outputs.logits.device
        self.rows = torch.empty(most, dtype=torch.int64, device=device)
        """Of the step, those that are masked first."""
        self._bits = torch.full((most, words), -1, dtype=torch.int32, device=device)
        self.rest()

    def rest(self) -> None:
        """See :class:`Stage`."""
        self.rows.fill_(self._outputs.most)

    def asked(self, roster: Roster) -> Ints | None:
        """See :class:`Stage`."""
        return roster.held if len(roster.held) else None

    def write(self, parameters: list[NDArray[Any]], asked: Ints, rows: StepRows) -> int:
        """See :class:`Stage`; how many masks there will be is not known yet, but not more."""
        return len(asked)

    def send(self, masks: Masks, rows: Ints) -> None:
        """Queue the copy of the masks of these rows of the step, in their order."""
        assert len(rows) == len(masks.bits)
        places = host_block(self.rows.nbytes, self.rows.device).view(torch.int64)
        padded = places.numpy()
        padded[: len(rows)], padded[len(rows) :] = rows, self._outputs.most
        self.rows.copy_(places, non_blocking=True)
        self._bits[: len(rows)].copy_(masks.bits, non_blocking=True)

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        self._outputs.allowed.index_copy_(0, self.rows[:size], self._bits[:size])


class MaskedStage(Stage):
    """Applies the masks to logits, and draws greedily, as the step has done without them."""

    name = "masked rows"
    parameters = ()

    def __init__(self, masks: MaskStage, outputs: StepOutputs) -> None:
        self.sizes = masks.sizes
        self._masks, self._outputs = masks, outputs

    def asked(self, roster: Roster) -> Ints | None:
        """See :class:`Stage`."""
        return self._masks.asked(roster)

    def write(self, parameters: list[NDArray[Any]], asked: Ints, rows: StepRows) -> int:
        """See :class:`Stage`."""
        return len(asked)

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        outputs, rows = self._outputs, self._masks.rows[:size]
        outputs.mask(rows)
        outputs.draw_again(rows)
        outputs.allowed.index_fill_(0, rows, -1)


def mask_stages(outputs: StepOutputs) -> tuple[MaskStage, MaskedStage]:
    """What runs before all other stages behind a step, and what before the draws."""
    masks = MaskStage(outputs)
    return masks, MaskedStage(masks, outputs)
