"""Compiled forms of the gradients of a layer's small steps, for the offline checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from saccade_kernels.gpu.arguments import POINTERS
from saccade_kernels.gpu.key_shares import SPLIT, WARPS, share_kernel
from saccade_kernels.gpu.layer_gradients import (
    gate_gradient_kernel,
    norm_gradient_kernel,
    rope_gradient_kernel,
)
from saccade_kernels.gpu.layer_variants import (
    HEAD_DIMS,
    HEAD_NORMS,
    HEADS,
    HIDDEN_SIZES,
    INTERMEDIATE_SIZES,
    KV_HEADS,
)
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.residual_gradients import gradient_warps, residual_gradient_kernel
from saccade_kernels.gpu.rope import head_block
from saccade_kernels.gpu.tuning import SmallConfig, small_config
from saccade_kernels.layers import ACTIVATIONS

COMMON: dict[str, str | None] = {"rows": "*i64", "losses": "i32"}


def gradient_variants() -> Iterator[Variant]:
    """All of them."""
    for dtype, kind in POINTERS.items():
        yield from _norms(kind, small_config("norm", dtype))
        yield from _gates(kind, small_config("gate", dtype))
        yield from _heads(kind, small_config("rope", dtype))
        yield from _residuals(kind)
    types: dict[str, str | None] = {"saliency": "*fp32", "output": "*fp32", "context_lens": "*i32"}
    types |= dict.fromkeys(("start", "end"), "*i64")
    types |= dict.fromkeys(("losses", "heads", "width", "window", "stride"), "i32")
    yield Variant("share", share_kernel, types, {"SPLIT": SPLIT}, WARPS, 3)


def _norms(kind: str, config: SmallConfig) -> Iterator[Variant]:
    forms = itertools.product((False, True), (False, True), HIDDEN_SIZES)
    for adds, plus_one, size in forms:
        types = COMMON | dict.fromkeys(("grad", "hidden", "weight", "output"), kind)
        types |= {"onto": kind if adds else None, "epsilon": "fp32"}
        block = 1 << (size - 1).bit_length()
        constants = {"SIZE": size, "BLOCK": block, "ADD": adds, "PLUS_ONE": plus_one}
        name = f"norm_gradient-d{size}-{kind[1:]}" + "-add" * adds + "-one" * plus_one
        yield _variant(name, norm_gradient_kernel, types, constants, config.warps(block))


def _gates(kind: str, config: SmallConfig) -> Iterator[Variant]:
    for activation, size in itertools.product(ACTIVATIONS, INTERMEDIATE_SIZES):
        types = COMMON | dict.fromkeys(("grad", "merged", "output"), kind)
        constants = {"SIZE": size, "BLOCK": config.block, "ACTIVATION": activation}
        name = f"gate_gradient-{activation}-{size}-{kind[1:]}"
        warps = config.warps(config.block)
        yield _variant(name, gate_gradient_kernel, types, constants, warps)


def _heads(kind: str, config: SmallConfig) -> Iterator[Variant]:
    for (form, flags), dim in itertools.product(HEAD_NORMS.items(), HEAD_DIMS):
        flags = {"NORM": False, "PLUS_ONE": False} | flags
        tensors = ("grad_query", "grad_key", "grad_value", "cos", "sin", "output")
        types = COMMON | dict.fromkeys(tensors, kind) | {"epsilon": "fp32"}
        types |= dict.fromkeys(("merged", "weight"), kind if flags["NORM"] else None)
        pairs, block = head_block(dim, config)
        constants = flags | {"HEADS": HEADS, "KV_HEADS": KV_HEADS, "D": dim}
        constants |= {"BLOCK": block, "PAIRS": pairs}
        name = f"rope_gradient-d{dim}-{kind[1:]}{form}"
        warps = config.warps(2 * pairs * block)
        yield _variant(name, rope_gradient_kernel, types, constants, warps)


def _residuals(kind: str) -> Iterator[Variant]:
    for size in HIDDEN_SIZES:
        types = COMMON | dict.fromkeys(("grad", "hidden", "output"), kind)
        types |= dict.fromkeys(("bank", "numbers"), "*fp32")
        types |= dict.fromkeys(("programs", "count", "reads", "writes", "flags"), "*i32")
        types |= dict.fromkeys(("site", "sites"), "i32")
        constants = {"D": size, "BLOCK": 1 << (size - 1).bit_length()}
        name = f"residual_gradient-d{size}-{kind[1:]}"
        yield Variant(name, residual_gradient_kernel, types, constants, gradient_warps(size), 3)


def _variant(
    name: str, kernel: Any, types: dict[str, str | None], constants: dict[str, Any], warps: int
) -> Variant:
    return Variant(name, kernel, types, constants | {"UPCAST": False}, warps, 3)
