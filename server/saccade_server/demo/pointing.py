"""Supervised attention: two heads learn to look at the patches of the thing being spoken of.

Learning *where to look* from answers alone is what takes a small model longest: for thousands of
steps attention is nearly uniform and its gradient nearly nothing. Naming the right patches outright
takes that wait away. Only training uses it; the weights it leaves behind are ordinary weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION_NAME: Final = "pointing"
POINTING_LAYERS: Final = (2, 3)
# One query head of each key-value group.
POINTING_HEADS: Final = (0, 3)


@dataclass
class Pointers:
    """Which rows should look where in one forward pass, and how badly they do so far."""

    rows: Tensor  # [n, 2], sequence and position
    keys: Tensor  # [n, T] bool, the image tokens to look at
    losses: list[Tensor] = field(default_factory=list)

    def loss(self) -> Tensor:
        return torch.stack(self.losses).mean()


def pointing_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    pointers: Pointers,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Ordinary attention which also leaves the pointing loss of its layer in `pointers`."""
    if module.layer_idx in POINTING_LAYERS:
        groups = query.shape[1] // key.shape[1]
        heads = list(POINTING_HEADS)
        # [B, heads, T, T]
        scores = query[:, heads] @ key[:, [head // groups for head in heads]].transpose(2, 3)
        scores = (scores * scaling).masked_fill(~attention_mask, -torch.inf)
        sequence, position = pointers.rows.unbind(-1)
        # [n, heads, T]
        chosen = scores[sequence, :, position].log_softmax(-1)
        mass = chosen.masked_fill(~pointers.keys[:, None], -torch.inf).logsumexp(-1)
        pointers.losses.append(-mass.mean())
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return output, None


def register() -> None:
    """Make `ATTENTION_NAME` known to transformers."""
    AttentionInterface.register(ATTENTION_NAME, pointing_attention)
