"""Attention sinks found in the residual stream: scores, and the tags they decide.

A sink token carries a massive activation in a few fixed dimensions D of the residual entering a
layer (VAR, arXiv 2503.03321, Eq. 3): phi_j = max_{d in D} |x_j[d]| / RMS(x_j), with a plain RMS
(no norm weight); token j is a sink of that layer iff phi_j >= tau. phi never exceeds
sqrt(hidden_size).
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class SinkTags:
    """Which tags of which sequences follow from sink scores in one step.

    N positions of S sequences. ``remap`` sends the base class of a sink position to its class as a
    sink. If ``require`` is not -1 a sequence without any key of that class in a layer keeps its
    base tags there.

    Of a sequence that is ``whole`` all examined positions are here, and whether the requirement is
    met is decided from them. Of the others only new positions are here, which cannot have the
    required class, so it is met if it was.
    """

    slots: torch.Tensor  # int64 [N]: where the score of the position is cached
    position: torch.Tensor  # int64 [N]
    sequence: torch.Tensor  # int64 [N], 0..S-1
    base: torch.Tensor  # int64 [N]: class of the position if it is no sink
    threshold: torch.Tensor  # float32 [S]
    tag_row: torch.Tensor  # int64 [S]
    remap: torch.Tensor  # int64 [S, CLASSES]
    require: torch.Tensor  # int64 [S]
    whole: torch.Tensor  # uint8 [S]

    def write(self, scores: torch.Tensor, tags: torch.Tensor, met: torch.Tensor) -> None:
        """Set the tags of one layer, in place.

        Args:
            scores: phi of every cache slot in this layer, float32 [slots].
            tags: uint8 [rows, max_len], this layer's part of the tag table.
            met: uint8 [rows], in this layer: 1 if the requirement of the row's sequence is met;
                kept up to date.
        """
        is_sink = scores[self.slots] >= self.threshold[self.sequence]
        tagged = torch.where(is_sink, self.remap[self.sequence, self.base], self.base)
        found = torch.zeros_like(self.require)
        matches = (tagged == self.require[self.sequence]).long()
        found.index_add_(0, self.sequence, matches)
        decided = (self.require < 0) | (found > 0)
        is_met = torch.where(self.whole > 0, decided, met[self.tag_row] > 0)
        met.index_copy_(0, self.tag_row, is_met.to(met.dtype))
        tagged = torch.where(is_met[self.sequence], tagged, self.base)
        tags[self.tag_row[self.sequence], self.position] = tagged.to(tags.dtype)
