"""Which model this is: a hash that artifacts name, so that no vector meets other weights."""

from __future__ import annotations

import hashlib
import json

import torch

from saccade_server.models.base import ServedModel

SAMPLES = 64
"""Values of each tensor that are hashed, at least; fewer only of tensors that have fewer."""


def fingerprint(model: ServedModel) -> str:
    """Content hash of the architecture's sizes and evenly spaced values of every weight.

    Values are rounded to bfloat16, so a checkpoint has one fingerprint whether it is served in
    float32 or bfloat16. (float16 cannot hold every small weight; served in it, a checkpoint may
    have another one.) Names and order of the tensors do not matter. A few bytes of each tensor are
    read, in one transfer.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    sizes = (model.layers, model.heads, model.kv_heads, model.head_dim, model.hidden_size)
    weights = [weight for _, weight in model.named_weights()]
    samples = [_sample(weight) for weight in weights]
    counts = [sample.numel() for sample in samples]
    values = torch.cat(samples).cpu().view(torch.int16).split(counts)  # type: ignore[no-untyped-call]
    digests = sorted(
        hashlib.sha256(
            repr(tuple(weight.shape)).encode() + value.numpy().astype("<i2").tobytes()
        ).hexdigest()
        for weight, value in zip(weights, values, strict=True)
    )
    content = [model.family, *sizes, model.vocab_size, digests]
    return "sha256:" + hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """bfloat16 [n] with SAMPLES <= n < 2 SAMPLES, if there are so many values."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(flat.numel() // SAMPLES, 1)].to(torch.bfloat16)
