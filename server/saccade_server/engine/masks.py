"""What grammars leave of the tokens that a step draws: rows of bits, on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Batch
from dataclasses import dataclass, field

import numpy as np
import torch

from saccade_kernels import ops
from saccade_server.engine.batch import Ints
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Uploader, host_block


@dataclass(frozen=True)
class Masks:
    """A row of bits for each sequence that a grammar holds in this step; see ``ops.mask_rows``."""

    places: Mapping[Sequence, int] = field(default_factory=dict)  # row of bits, by leader
    bits: torch.Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int32))
    """int32 [rows, ceil(vocabulary / 32)], on the host; pinned where it has to travel."""

    def __bool__(self) -> bool:
        return bool(self.places)

    def among(self, leaders: Batch[Sequence]) -> tuple[Ints, Ints]:
        """Which of these rows are held, and the row of bits of each. A leader may come twice."""
        found = [(row, self.places[s]) for row, s in enumerate(leaders) if s in self.places]
        rows, which = np.array(found, np.int64).reshape(-1, 2).T.copy()
        return rows, which

    def apply(
        self, logits: torch.Tensor, edited: torch.Tensor, leaders: Batch[Sequence], upload: Uploader
    ) -> torch.Tensor:
        """``edited`` with -inf for what is not allowed: in place, or a copy if it is ``logits``.

        Args:
            logits: [rows, vocabulary], not modified.
            edited: the same behind what requests change in it.
            leaders: of the sequence of each row: branches follow theirs.
        """
        if not self.places:
            return edited
        rows, which = self.among(leaders)
        if not len(rows):
            return edited
        edited = edited.clone() if edited is logits else edited
        rows_there, which_there = upload(rows, which)
        ops.mask_rows(
            edited, rows_there, self.bits.to(edited.device, non_blocking=True), which_there
        )
        return edited


FREE = Masks()
"""No grammar holds anything."""

FillMasks = Callable[[tuple[Sequence, ...]], Masks]
"""The masks of leaders whose answers grammars hold, called when the forward pass is queued."""


def bits_of(rows: int, words: int, device: torch.device) -> torch.Tensor:
    """Room for rows of bits on the host, for this device; not initialised."""
    return (
        host_block(rows * words * torch.int32.itemsize, device).view(torch.int32).view(rows, words)
    )
