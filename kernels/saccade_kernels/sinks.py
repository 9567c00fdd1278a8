"""Attention sinks found in the residual stream: scores, and the tags they decide.

A sink token carries a massive activation in a few fixed dimensions D of the residual entering a
layer (VAR, arXiv 2503.03321, Eq. 3): phi_j = max_{d in D} |x_j[d]| / RMS(x_j), with a plain RMS
(no norm weight); token j is a sink of that layer iff phi_j >= tau. phi never exceeds
sqrt(hidden_size).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

RMS_EPSILON = 1e-6


def sink_scores(hidden: torch.Tensor, dims: torch.Tensor) -> torch.Tensor:
    """phi of each token.

    Args:
        hidden: residual entering a layer, [tokens, hidden_size].
        dims: int64 [k], the model's sink dimensions.

    Returns:
        [tokens], float32 (float64 for float64 input).
    """
    work = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    rms = work.square().mean(-1).add(RMS_EPSILON).sqrt()
    return work.index_select(-1, dims).abs().amax(-1) / rms


def store_scores(
    hidden: torch.Tensor,
    rows: torch.Tensor,
    dims: torch.Tensor,
    slots: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Write phi of some rows of a step where it is cached, in place.

    Args:
        hidden: residual entering a layer, [tokens, hidden_size].
        rows: int64 [N], which of its rows.
        dims: as for :func:`sink_scores`.
        slots: int64 [N], the cache slot of each row.
        scores: float32 [slots], of this layer.
    """
    found = sink_scores(hidden.index_select(0, rows), dims)
    scores.index_copy_(0, slots, found.to(scores.dtype))


@dataclass(frozen=True)
class SinkTags:
    """Which tags of which sequences follow from sink scores in one step.

    N positions of S sequences, those of a sequence one behind another. ``remap`` sends the base
    class of a sink position to its class as a sink. If ``require`` is not -1 a sequence without any
    key of that class in a layer keeps its base tags there.

    Of a ``whole`` sequence all examined positions are among the N, and decide whether its
    requirement is met. Of other sequences only positions new in this step are; no new position has
    the required class, so the earlier decision stands:

        prompt       positions 0 to 40, whole        key 7 is a sink of the required class: met
        generated    position 41 alone, not whole    still met, so key 41 is tagged if phi >= tau
    """

    slots: torch.Tensor  # int64 [N]: where the score of the position is cached
    position: torch.Tensor  # int64 [N]
    starts: torch.Tensor  # int64 [S + 1]: of each sequence among the N, and N
    base: torch.Tensor  # int64 [N]: class of the position if it is no sink
    threshold: torch.Tensor  # float32 [S]
    tag_row: torch.Tensor  # int64 [S]
    remap: torch.Tensor  # int64 [S, CLASSES]
    require: torch.Tensor  # int64 [S]
    whole: torch.Tensor  # uint8 [S]

    @cached_property
    def _rules(self) -> _Rules:
        """The same for all layers."""
        index = torch.arange(len(self.whole), device=self.whole.device)
        count = len(self.base)
        sequence = index.repeat_interleave(self.starts.diff(), output_size=count)
        return _Rules(
            sequence=sequence,
            threshold=self.threshold[sequence],
            as_sink=self.remap[sequence, self.base],
            require=self.require[sequence],
            tag_row=self.tag_row[sequence],
        )


@dataclass(frozen=True)
class _Rules:
    """What holds for each of the N positions, int64 [N] but for the threshold."""

    sequence: torch.Tensor
    threshold: torch.Tensor  # float32 [N]
    as_sink: torch.Tensor
    require: torch.Tensor
    tag_row: torch.Tensor


def settle_tags(
    tags: SinkTags, scores: torch.Tensor, table: torch.Tensor, met: torch.Tensor
) -> None:
    """Set the tags of one layer, in place.

    Args:
        scores: phi of every cache slot in this layer, float32 [slots].
        table: uint8 [rows, max_len], this layer's part of the tag table.
        met: uint8 [rows], in this layer: 1 if the requirement of the row's sequence is met; kept
            up to date.
    """
    rules = tags._rules
    is_sink = scores[tags.slots] >= rules.threshold
    tagged = torch.where(is_sink, rules.as_sink, tags.base)
    found = torch.zeros_like(tags.require)
    found.index_add_(0, rules.sequence, (tagged == rules.require).long())
    decided = (tags.require < 0) | (found > 0)
    is_met = torch.where(tags.whole > 0, decided, met[tags.tag_row] > 0)
    met.index_copy_(0, tags.tag_row, is_met.to(met.dtype))
    tagged = torch.where(is_met[rules.sequence], tagged, tags.base)
    table[rules.tag_row, tags.position] = tagged.to(table.dtype)
