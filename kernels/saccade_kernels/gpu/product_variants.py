"""Compiled forms of products, for the offline checks: those that serve, and where a search begins.

Shapes of weights are those of LLaVA-1.5-7B and Qwen2.5-VL-7B, merged, and a small odd one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from saccade_kernels.gpu.arguments import POINTERS
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.products import FEW, first_config, product_kernel
from saccade_kernels.gpu.tuning import ProductConfig, invariant_config, product_config


@dataclass(frozen=True, slots=True)
class WeightShape:
    """One matrix of a model."""

    name: str
    out: int
    inner: int
    biased: bool = False


SHAPES = (
    WeightShape("llava-qkv", 12288, 4096),
    WeightShape("llava-output", 4096, 4096),
    WeightShape("llava-gates", 22016, 4096),
    WeightShape("llava-down", 4096, 11008),
    WeightShape("llava-head", 32064, 4096),
    WeightShape("qwen-qkv", 4608, 3584, biased=True),
    WeightShape("qwen-output", 3584, 3584),
    WeightShape("qwen-gates", 37888, 3584),
    WeightShape("qwen-down", 3584, 18944),
    WeightShape("qwen-head", 152064, 3584),
)
ODD = WeightShape("odd", 1000, 1160, biased=True)


def product_variants() -> Iterator[Variant]:
    """All of them."""
    for shape in (*SHAPES, ODD):
        yield from _forms(shape, torch.bfloat16)
    for dtype in (torch.float16, torch.float32):
        for shape in (*SHAPES[:2], ODD):
            yield from _forms(shape, dtype)


def _forms(shape: WeightShape, dtype: torch.dtype) -> Iterator[Variant]:
    few = product_config(shape.out, shape.inner, FEW, dtype) or first_config(shape.out, dtype)
    yield _form("few", shape, dtype, few)
    yield _form("invariant", shape, dtype, invariant_config(shape.out, dtype))


def _form(kind: str, shape: WeightShape, dtype: torch.dtype, config: ProductConfig) -> Variant:
    pointer = POINTERS[dtype]
    types: dict[str, str | None] = dict.fromkeys(("hidden", "weight", "output"), pointer)
    types |= {"bias": pointer if shape.biased else None, "rows": "i32"}
    constants = {
        "IN": shape.inner,
        "OUT": shape.out,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "INNER": config.inner,
        "BIASED": shape.biased,
        "UPCAST": False,
    }
    name = f"product-{kind}-{shape.name}-{pointer[1:]}"
    return Variant(name, product_kernel, types, constants, config.num_warps, config.num_stages)
