"""A small paged cache of its own, to run a model outside the engine: for measurements and tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from saccade_kernels.batch import PAGE, AttentionBatch, Prefill, Run
from saccade_server.models.attention import ForwardStep
from saccade_server.models.base import ServedModel
from saccade_server.models.probes import ResidualProbe


class ScratchCache:
    """Paged keys and values of a few sequences that grow step by step.

    Pages of different sequences alternate, so a mistake in the page table shows.
    """

    def __init__(self, model: ServedModel, sequences: int, max_len: int) -> None:
        pages = -(-max_len // PAGE)
        shape = (sequences * pages, PAGE, model.kv_heads, model.head_dim)
        self._device = model.device
        self._keys = [
            torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(model.layers)
        ]
        self._values = [
            torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(model.layers)
        ]
        self._pages = torch.arange(sequences * pages).view(pages, sequences).T
        self.lengths = [0] * sequences

    def step(
        self, new: Sequence[tuple[int, int]], probes: tuple[ResidualProbe, ...] = ()
    ) -> ForwardStep:
        """Admit ``new`` tokens, (sequence, count) in packing order, sequences with one first."""
        counts = [count for _, count in new]
        sequences = [sequence for sequence, _ in new]
        assert counts == sorted(counts, key=lambda count: count != 1)
        slots = torch.cat([self._admit(sequence, count) for sequence, count in new])
        contexts = [self.lengths[sequence] for sequence in sequences]
        sizes = list(zip(contexts, counts, strict=True))
        batch = AttentionBatch(
            slots=slots.to(self._device),
            query_starts=self._int32([0, *accumulate(counts)]),
            context_lens=self._int32(contexts),
            page_table=self._pages[sequences].int().to(self._device),
            num_decodes=counts.count(1),
            max_context=max((end for end, count in sizes if count == 1), default=0),
            prefills=tuple(Prefill(n, end, (Run(n, 0),)) for end, n in sizes if n > 1),
            control_rows=self._int32([0] * sum(counts)),
            tag_rows=self._int32([0] * len(new)),
        )
        return ForwardStep(batch, self._keys, self._values, probes)

    def slots(self, sequence: int, start: int, end: int) -> torch.Tensor:
        """Cache slots of positions ``start`` to ``end`` of a sequence, int64 on the CPU."""
        position = torch.arange(start, end)
        return self._pages[sequence, position // PAGE] * PAGE + position % PAGE

    def _admit(self, sequence: int, count: int) -> torch.Tensor:
        start = self.lengths[sequence]
        self.lengths[sequence] += count
        return self.slots(sequence, start, start + count)

    def _int32(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._device)
