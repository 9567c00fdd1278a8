"""Early exits behind a padded step: q is read from residuals that the step has kept (DoLa).

Layers of all rows go through the output projection together, whose weights are read once. Each
pair of rows has room for :data:`EXITS` of them; who has more takes room of padding's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_kernels import ops
from saccade_server.engine.batch import Ints
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.rules.contrast_stage import NUMBERS, contrasting, numbers_of
from saccade_server.engine.seats import Roster
from saccade_server.engine.stages import Parameter, Stage, StepRows, doubling
from saccade_server.models.base import ServedModel

EXITS = 8
"""Early layers that a row has room for: DoLa's buckets have 7 to 10 in models of 28 to 40."""

AT_ONCE = 128
"""Rows of exits whose distributions are in memory at the same time."""


class _Asked(NamedTuple):
    own: Ints  # row of p
    numbers: NDArray[np.float64]  # [rows, 3], of the rules
    first: Ints  # the first exit of each row
    counts: Ints  # and how many it has, side by side
    normed: NDArray[np.uint8]
    is_jsd: NDArray[np.uint8]  # how its exits are compared
    places: Ints  # [exits] among residuals: layer * rows + row
    owners: Ints  # [exits], entry of the row


class _Compared(NamedTuple):
    own: torch.Tensor  # int64 [rows]: rows of p
    owners: torch.Tensor  # int64 [exits], which of them
    is_jsd: torch.Tensor  # bool [exits]


class EarlyStage(Stage):
    """Contrast with early layers."""

    name = "contrast with early layers"

    def __init__(self, model: ServedModel, outputs: StepOutputs, invariant: bool = False) -> None:
        """
        Args:
            invariant: a row's logits do not depend on the others.
        """
        self.sizes = doubling(outputs.most * -(-model.layers // EXITS))
        self.parameters = (
            Parameter(np.int64, outputs.most),
            NUMBERS,
            Parameter(np.int64, 0),
            Parameter(np.int64, 1),
            Parameter(np.uint8),
            Parameter(np.uint8),
            Parameter(np.int64, outputs.most, (EXITS,)),
            Parameter(np.int64, 0, (EXITS,)),
        )
        self._model, self._invariant = model, invariant
        self._outputs = outputs
        self._span = torch.arange(model.layers, device=model.device)

    def asked(self, roster: Roster) -> _Asked | None:
        """See :class:`Stage`."""
        found = [
            (row, rule, rule.early)
            for row, _, rule in contrasting(roster)
            if rule.early is not None
        ]
        if not found:
            return None
        rows = self._outputs.most + 1
        counts = np.array([len(early.layers) for _, _, early in found], np.int64)
        places = [layer * rows + row for row, _, early in found for layer in sorted(early.layers)]
        return _Asked(
            np.array([row for row, _, _ in found], np.int64),
            np.array([numbers_of(rule) for _, rule, _ in found]),
            counts.cumsum() - counts,
            counts,
            np.array([early.norm for _, _, early in found], np.uint8),
            np.array([early.divergence == "jsd" for _, _, early in found], np.uint8),
            np.array(places, np.int64),
            np.repeat(np.arange(len(found)), counts),
        )

    def write(self, parameters: list[NDArray[Any]], asked: _Asked, rows: StepRows) -> int:
        """See :class:`Stage`."""
        exits, count = len(asked.places), len(asked.own)
        size = max(count, -(-exits // EXITS))
        *of_rows, places, owners = parameters
        for array, parameter, values in zip(of_rows, self.parameters, asked, strict=False):
            array[:count] = values
            array[count:size] = parameter.padding
        for array, values, padding in (
            (places, asked.places, self._outputs.most),
            (owners, asked.owners, 0),
        ):
            flat = array[:size].reshape(-1)
            flat[:exits] = values
            flat[exits:] = padding
        return size

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        own, numbers, first, count, is_normed, is_jsd, places, owners = parameters
        outputs, owners = self._outputs, owners.flatten()
        exits = outputs.residuals.flatten(0, 1).index_select(0, places.flatten())
        normed = is_normed.index_select(0, owners).bool()[:, None]
        exits = torch.where(normed, self._model.normed(exits), exits)
        compared = _Compared(own, owners, is_jsd.index_select(0, owners).bool())
        gaps, logits = self._compare(exits, compared)
        index = (first[:, None] + self._span).clamp(max=len(exits) - 1)
        behind = self._span >= count[:, None]
        most, at = gaps.take(index).masked_fill(behind, -torch.inf).max(-1)
        chosen = first + at
        if len(exits) > AT_ONCE:  # only the last of them are still there
            logits = self._model.project(exits.index_select(0, chosen), self._invariant)
            chosen = torch.arange(size, device=chosen.device)
        outputs.mask(own)  # only now: layers are chosen by the model's own distribution
        combined = ops.contrast_rows(outputs.logits, own, logits, chosen, numbers)
        # NaN is larger than all, so that of an exit that is not finite reaches its row.
        outputs.replace(own, combined, most * 0 + outputs.finite().index_select(0, own))

    def _compare(
        self, exits: torch.Tensor, compared: _Compared
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How far each exit's distribution is from its row's, [exits]; and the last logits."""
        gaps, logits = [], exits
        for start in range(0, len(exits), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            logits = self._model.project(exits[part], self._invariant)
            own, *of_exits = compared
            found = (parameter[part] for parameter in of_exits)
            gaps.append(ops.divergences(self._outputs.logits, own, logits, *found))
        return torch.cat(gaps), logits
