"""The small steps of a layer are transformers' own, bit for bit, in every dtype."""

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, Qwen3Config
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from saccade_kernels import layers, ops
from saccade_kernels.layers import Heads, RMSNorm, Rotation

TOKENS, HEADS, KV_HEADS, DIM = 5, 6, 2, 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def filled(module: Any, dtype: torch.dtype) -> Any:
    """A norm with weights of all sizes."""
    module.weight.data = torch.randn_like(module.weight)
    return module.to(dtype).requires_grad_(False)


def own(module: Any) -> RMSNorm:
    plus_one = isinstance(module, Gemma3RMSNorm)
    epsilon = module.eps if plus_one else module.variance_epsilon
    return RMSNorm(module.weight.data, epsilon, plus_one)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_norms(kind: Any, dtype: torch.dtype) -> None:
    module = filled(kind(192, eps=1e-5), dtype)
    residual, update = 3 * torch.randn(2, TOKENS, 192).to(dtype)
    assert torch.equal(ops.rms_norm(residual, own(module)), module(residual))
    total, normed = ops.add_norm(residual, update, own(module))
    assert torch.equal(total, residual + update)
    assert torch.equal(normed, module(residual + update))
    other = filled(kind(192, eps=1e-5), dtype)
    total, normed = ops.add_norm(residual, update, own(module), own(other))
    assert torch.equal(total, residual + other(update))
    assert torch.equal(normed, module(total))
    first, normed = ops.add_norm(residual, None, own(module), own(other))
    assert first is residual
    assert torch.equal(normed, module(residual))


def rotation(dtype: torch.dtype) -> tuple[Rotation, tuple[torch.Tensor, torch.Tensor]]:
    """Ours, and the cosines and sines that transformers would pass."""
    angle = torch.randn(TOKENS, DIM // 2) * 9
    cos, sin = torch.cat([angle, angle], -1).cos().to(dtype), angle.sin().to(dtype)
    signed, both = torch.cat([-sin, sin], -1), torch.cat([sin, sin], -1)
    return Rotation(cos[:, None], signed[:, None]), (cos[None], both[None])


@pytest.mark.parametrize("normed", [False, True], ids=["", "normed"])
def test_heads_are_normed_and_rotated(normed: bool, dtype: torch.dtype) -> None:
    merged = torch.randn(TOKENS, (HEADS + 2 * KV_HEADS) * DIM).to(dtype)
    split = merged.view(TOKENS, -1, DIM)
    query, key, value = split.split([HEADS, KV_HEADS, KV_HEADS], 1)
    norm = None
    if normed:
        norms = [filled(LlamaRMSNorm(DIM, eps=1e-6), dtype) for _ in range(2)]
        query, key = norms[0](query), norms[1](key)
        rows = [n.weight.expand(count, -1) for n, count in zip(norms, (HEADS, KV_HEADS))]  # noqa: B905
        norm = RMSNorm(torch.cat(rows), 1e-6)
    turn, (cos, sin) = rotation(dtype)
    wanted = apply_rotary_pos_emb(query[None].transpose(1, 2), key[None].transpose(1, 2), cos, sin)
    heads = Heads(HEADS, KV_HEADS, DIM, norm)
    found = layers.norm_rope(merged, heads, turn)
    for got, want in zip(found, (*(w[0].transpose(0, 1) for w in wanted), value), strict=True):
        assert torch.equal(got, want)
    caches = torch.full((2, 3, 64, KV_HEADS, DIM), torch.nan, dtype=dtype)
    slots = torch.tensor([130, 5, 64, 7, 0])
    assert torch.equal(ops.norm_rope_store(merged, heads, turn, *caches, slots), found[0])
    for cache, stored in zip(caches.view(2, -1, KV_HEADS, DIM), found[1:], strict=True):
        assert torch.equal(cache[slots], stored)
        assert cache.isnan().any(-1).any(-1).sum() == 3 * 64 - TOKENS


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_gates(name: str, dtype: torch.dtype) -> None:
    merged = 3 * torch.randn(TOKENS, 2 * 96).to(dtype)
    gates, up = merged[:, :96], merged[:, 96:]
    assert torch.equal(ops.gate(merged, name), ACT2FN[name](gates) * up)


def test_the_families_activations_are_known() -> None:
    assert Qwen3Config().hidden_act in layers.ACTIVATIONS
    assert Gemma3TextConfig().hidden_activation in layers.ACTIVATIONS


@torch.enable_grad()
def test_autograd_follows_as_through_transformers_modules() -> None:
    module = filled(LlamaRMSNorm(192, eps=1e-5), torch.float32)
    hidden = torch.randn(TOKENS, 192)
    grads = []
    for norm in (module, lambda x: ops.add_norm(x, hidden, own(module))[1]):
        asked = (hidden + hidden if norm is module else hidden.clone()).requires_grad_()
        torch.nn.functional.silu(norm(asked)).sum().backward()
        grads.append(asked.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
