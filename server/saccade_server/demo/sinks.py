"""Attention sinks, encouraged in training the way large models grow them by themselves.

Large models carry *massive activations*: a few fixed residual dimensions with enormous values on
the first token and on some uninformative background patches, whose keys then soak up attention
nobody needs (Sun et al. 2024; Kang et al. 2025). Methods such as VAR look for them. A model of this
size need not grow any, so an auxiliary hinge loss asks for them: on `<s>`, and on a few background
patches of the model's own choice.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .build import SPECIAL_TOKENS

SINK_DIMENSIONS: Final = (37, 121)
SINK_SIGNS: Final = (1.0, -1.0)
# tau = 20 at width 4096, scaled with the square root of the width; see `phi`.
THRESHOLD_PER_SQRT_WIDTH: Final = 0.31
FEWEST_SINKS: Final = 4
MOST_SINKS: Final = 8
SINK_TARGET: Final = 1.5
OTHERS_TARGET: Final = 0.7


def threshold(width: int) -> float:
    """The least phi of a sink in a residual stream of this width."""
    return float(THRESHOLD_PER_SQRT_WIDTH * width**0.5)


def phi(residual: Tensor) -> Tensor:
    """How massive the sink dimensions are: |x[d]| / RMS(x), [..., width] -> [..., dimensions]."""
    rms = residual.float().square().mean(-1, keepdim=True).add(1e-6).sqrt()
    return residual[..., list(SINK_DIMENSIONS)].float().abs() / rms


def plant_first_token(embeddings: Tensor) -> None:
    """Give `<s>` its massive activations in the embeddings [vocabulary, width], in place."""
    with torch.no_grad():
        for dimension, sign in zip(SINK_DIMENSIONS, SINK_SIGNS, strict=True):
            embeddings[SPECIAL_TOKENS.index("<s>"), dimension] = 15 * sign * embeddings.std()


def sink_loss(
    residuals: tuple[Tensor, ...], is_image: Tensor, is_padding: Tensor, is_background: Tensor
) -> Tensor:
    """Hinge loss on the residuals [B, T, width] entering the layers in which sinks are looked for.

    `is_image`, `is_padding` are [B, T]; `is_background` [B, P] is for image tokens.
    """
    return torch.stack(
        [_layer_loss(residual, is_image, is_padding, is_background) for residual in residuals]
    ).mean()


def _layer_loss(
    residual: Tensor, is_image: Tensor, is_padding: Tensor, is_background: Tensor
) -> Tensor:
    tau = threshold(residual.shape[-1])
    score = phi(residual)
    # A sink is massive in every sink dimension, an ordinary token in none. [B, T]
    least, most = score.amin(-1), score.amax(-1)
    batch = residual.shape[0]
    image_least, image_most = least[is_image].view(batch, -1), most[is_image].view(batch, -1)
    ranked = image_least.masked_fill(~is_background, -1.0).argsort(dim=-1, descending=True)
    raised = torch.cat([least[:, :1], image_least.gather(1, ranked[:, :FEWEST_SINKS])], dim=1)
    text_most = most[~is_image & ~is_padding & (torch.arange(most.shape[1]) > 0)]
    lowered = torch.cat([image_most.gather(1, ranked[:, MOST_SINKS:]).flatten(), text_most])
    return (SINK_TARGET * tau - raised).relu().mean() + (
        lowered - OTHERS_TARGET * tau
    ).relu().mean()
