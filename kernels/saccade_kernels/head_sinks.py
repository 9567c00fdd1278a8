"""Attention sinks of single heads, found in the attention itself (ACT, arXiv 2406.15765).

A key is a sink of a head if it receives much attention on average over the query rows that can see
it: a_k = 1 / (N - k) sum_{i >= k} A[i, k] > threshold, for the N rows and keys so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saccade_kernels.controls import EXEMPT_CLASS, SINK_CLASS


@dataclass(frozen=True)
class HeadSinkCriterion:
    """Which keys of a head are its sinks, and the classes that follow; see HeadSinkRule.

    ``relative``: the threshold is divided by the number of keys. ``first_found``: the first sink is
    spared instead of the initial key. ``exempt_initial``: the initial key has a class of its own.
    """

    threshold: float
    relative: bool = False
    first_found: bool = False
    exempt_initial: bool = False

    def classes(self, sums: torch.Tensor, least_rows: int = 1) -> torch.Tensor:
        """Classes of the keys by the attention each got in all rows so far.

        Args:
            sums: [heads, keys]; as many rows as keys, of which N - k can see key k.
            least_rows: keys that fewer rows can see are no sinks.

        Returns:
            uint8 [heads, keys].
        """
        return self._classes(mean_received(sums), _rows_that_see(sums) >= least_rows)

    def classes_of_row(self, row: torch.Tensor) -> torch.Tensor:
        """The same by one row of attention alone, [heads, keys]."""
        return self._classes(row, torch.ones_like(row[0], dtype=torch.bool))

    def threshold_among(self, keys: int) -> float:
        """The score above which a key is a sink, among ``keys`` keys."""
        return self.threshold / keys if self.relative else self.threshold

    def _classes(self, score: torch.Tensor, is_candidate: torch.Tensor) -> torch.Tensor:
        threshold = self.threshold_among(score.shape[1])
        found = (score > threshold) & is_candidate
        if self.first_found:
            found &= found.cumsum(1) > 1
        else:
            found[:, 0] = False
        classes = found.to(torch.uint8) * SINK_CLASS
        if self.exempt_initial:
            classes[:, 0] = EXEMPT_CLASS
        return classes


@dataclass(frozen=True)
class SumsSoFar:
    """Attention that each key has got from all rows so far, in the heads that count."""

    values: torch.Tensor  # [n heads, room for keys]; 0 where no row has looked
    counts: bool  # the rows at hand are to be added
    least_rows: int  # see HeadSinkCriterion


def settle_classes(
    weights: torch.Tensor,
    heads: torch.Tensor,
    end: int,
    criterion: HeadSinkCriterion,
    sums: SumsSoFar | None,
    table: torch.Tensor,
) -> None:
    """Find the classes of a sequence's keys in some heads and write them, in place.

    Args:
        weights: attention of the rows at hand, summed, [query heads, keys]; ``end`` of the keys
            are the sequence's.
        heads: int64 [n], query heads.
        sums: judges by all rows so far, and keeps them; None: by the row at hand alone.
        table: uint8 [query heads, max_len], this layer's classes of the sequence.
    """
    own = weights.index_select(0, heads)[:, :end]
    if sums is None:
        classes = criterion.classes_of_row(own)
    else:
        so_far = sums.values[:, :end]
        if sums.counts:
            so_far += own
        classes = criterion.classes(so_far, sums.least_rows)
    table.narrow(1, 0, end).index_copy_(0, heads, classes)


def mean_received(sums: torch.Tensor) -> torch.Tensor:
    """a_k: what each key got on average from the rows that can see it, [heads, keys].

    Args:
        sums: [heads, keys]; as many rows as keys.
    """
    return sums / _rows_that_see(sums)


def _rows_that_see(sums: torch.Tensor) -> torch.Tensor:
    return torch.arange(sums.shape[1], 0, -1, device=sums.device)
