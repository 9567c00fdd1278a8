"""Attention as others offer it: torch's SDPA and varlen, and the eager formula that papers patch.

Keys and values are contiguous, as these want them: nothing here pays for pages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.problems import TEXT_SINK, VISUAL, VISUAL_SINK, image_tags
from gpu.session import Figures, Session
from gpu.shapes import Heads

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}


HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None


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
    def keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values."""
        return self.key, self.value

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


def varlen(inputs: Dense) -> Callable[[], torch.Tensor]:
    """torch's attention of packed sequences (torch.nn.attention.varlen), which is flash attention.

    Plain alone: it has no hook for scores, masks or masses. On a CPU, where it does not run, SDPA
    stands in for it.
    """
    from torch.nn.attention.varlen import varlen_attn

    sequences, heads, queries, _ = inputs.query.shape
    kv_heads, keys = inputs.key.shape[1:3]
    packed = [x.transpose(1, 2).flatten(0, 1).contiguous() for x in (inputs.query, *inputs.keys)]
    starts = torch.arange(sequences + 1, dtype=torch.int32, device=inputs.query.device)
    known = inspect.signature(varlen_attn).parameters
    options = varlen_options(known, inputs.causal, heads != kv_heads)
    arguments = (*packed, starts * queries, starts * keys, queries, keys)
    inspect.signature(varlen_attn).bind(*arguments, **options)
    if not inputs.query.is_cuda:
        return sdpa(inputs, SDPBackend.MATH)

    def call() -> torch.Tensor:
        found: torch.Tensor = varlen_attn(*arguments, **options)
        return found

    return call


def time_varlen(session: Session, cell: Figures, inputs: Sequence[Dense]) -> None:
    """Time it, or say that this torch has none."""
    if HAS_VARLEN:
        session.time(cell, "varlen", [varlen(one) for one in inputs])
    else:
        cell["varlen"] = {"skipped": f"torch {torch.__version__} has no varlen attention"}


def varlen_options(known: Collection[str], causal: bool, grouped: bool) -> dict[str, Any]:
    """Its options, by what this torch calls them: they have changed since torch 2.10."""
    options: dict[str, Any] = {}
    if causal and "is_causal" in known:
        options["is_causal"] = True
    elif causal:
        options["window_size"] = (-1, 0)
    if grouped and "enable_gqa" in known:
        options["enable_gqa"] = True
    return options


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
