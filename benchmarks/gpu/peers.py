"""Attention as others offer it: torch's SDPA, and the eager formula that published methods patch.

Keys and values are contiguous, as these want them: nothing here pays for pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.problems import TEXT_SINK, VISUAL, VISUAL_SINK, image_tags
from gpu.shapes import Heads

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Dense:
    """[sequences, heads, queries, dim] and [sequences, kv_heads, keys, dim]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @classmethod
    def make(
        cls,
        heads: Heads,
        sequences: int,
        queries: int,
        keys: int,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Dense:
        def draw(count: int, length: int) -> torch.Tensor:
            return torch.randn(sequences, count, length, heads.dim, device=device, dtype=dtype)

        return cls(
            draw(heads.heads, queries), draw(heads.kv_heads, keys), draw(heads.kv_heads, keys)
        )

    @property
    def causal(self) -> bool:
        """Prompts are square; a decode sees everything."""
        return self.query.shape[2] > 1


def sdpa(inputs: Dense, backend: SDPBackend) -> Callable[[], torch.Tensor]:
    """torch's own attention by one backend; on a CPU by whichever it has."""
    gqa = inputs.query.shape[1] != inputs.key.shape[1]

    def call() -> torch.Tensor:
        chosen = backend if inputs.query.is_cuda else SDPBackend.MATH
        with sdpa_kernel(chosen):
            return F.scaled_dot_product_attention(
                inputs.query, inputs.key, inputs.value, is_causal=inputs.causal, enable_gqa=gqa
            )

    return call


def eager(inputs: Dense, var: bool, question: int = 0) -> Callable[[], torch.Tensor]:
    """transformers' eager formula, with VAR's edit of the weights if asked for.

    The edit is in the last ``question`` rows, 0: in all; it is vectorised over heads and
    sequences, which the published code is not.
    """
    queries, keys = inputs.query.shape[2], inputs.key.shape[2]
    group = inputs.query.shape[1] // inputs.key.shape[1]
    device = inputs.query.device
    tags = torch.from_numpy(image_tags(keys)).to(device)
    mask = torch.zeros(queries, keys, device=device, dtype=inputs.query.dtype)
    if inputs.causal:
        hidden = torch.ones(queries, keys, device=device, dtype=torch.bool).triu(1)
        mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)

    def call() -> torch.Tensor:
        key = inputs.key.repeat_interleave(group, 1) if group > 1 else inputs.key
        value = inputs.value.repeat_interleave(group, 1) if group > 1 else inputs.value
        weights = inputs.query @ key.transpose(2, 3) * inputs.query.shape[-1] ** -0.5 + mask
        weights = weights.softmax(-1, dtype=torch.float32).to(inputs.query.dtype)
        if var:
            rows = weights[:, :, -question:] if question else weights
            edited = redistribute(
                rows, tags == VISUAL, tags == VISUAL_SINK, tags == TEXT_SINK, 0.4, 0.05, 0.5
            )
            if question:
                weights[:, :, -question:] = edited
            else:
                weights = edited
        return weights @ value

    return call


def redistribute(
    weights: torch.Tensor,
    visual: torch.Tensor,
    visual_sink: torch.Tensor,
    text_sink: torch.Tensor,
    fraction: float,
    least_mass: float,
    rho: float,
) -> torch.Tensor:
    """VAR on weights [batch, heads, rows, keys]; the key sets broadcast against them."""

    def mass(keys: torch.Tensor) -> torch.Tensor:
        return (weights * keys).sum(-1, keepdim=True, dtype=torch.float32)

    seen, sunk, text = mass(visual), mass(visual_sink), mass(text_sink)
    chosen = (seen + sunk >= least_mass) & (seen >= rho * (seen + sunk))
    gain = fraction * (sunk + text) / seen.clamp(min=1e-6)
    factor = 1 - fraction * (visual_sink | text_sink) + gain * visual
    return torch.where(chosen, weights * factor, weights).to(weights.dtype)
