"""Compiled forms of a layer's small kernels and of sink detection, for the offline checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from saccade_kernels.gpu.arguments import POINTERS
from saccade_kernels.gpu.gates import gate_kernel
from saccade_kernels.gpu.norms import norm_kernel
from saccade_kernels.gpu.offline import Variant
from saccade_kernels.gpu.rope import head_block, rope_store_kernel
from saccade_kernels.gpu.rotation import rotation_kernel
from saccade_kernels.gpu.sinks import TAG_BLOCK, TAG_WARPS, score_kernel, settle_kernel
from saccade_kernels.gpu.tuning import SmallConfig, small_config
from saccade_kernels.layers import ACTIVATIONS

HEAD_DIMS = (64, 80, 96, 128, 256)
HEADS, KV_HEADS = 28, 4
HIDDEN_SIZES = (64, 1152, 2048, 3584, 4096, 5376, 8192)
INTERMEDIATE_SIZES = (6912, 14336, 18944)

NORMS = {
    "": {},
    "-add": {"ADD": True},
    "-one": {"PLUS_ONE": True},
    "-add-one": {"ADD": True, "PLUS_ONE": True},
    "-add-normed-one": {"ADD": True, "NORM_UPDATE": True, "PLUS_ONE": True},
}
"""Llama's and Gemma's; what Gemma 3 adds is normed."""

HEAD_NORMS = {"": {}, "-normed": {"NORM": True}, "-normed-one": {"NORM": True, "PLUS_ONE": True}}


def layer_variants() -> Iterator[Variant]:
    """All of them."""
    for dtype, kind in POINTERS.items():
        norm, rope, gate = (small_config(name, dtype) for name in ("norm", "rope", "gate"))
        yield from _norms(kind, norm)
        yield from _rotations(kind)
        yield from _heads(kind, rope)
        yield from _gates(kind, gate)
        yield from _scores(kind, norm)
    yield from _settling()


def _variant(
    name: str, kernel: Any, types: dict[str, str | None], constants: dict[str, Any], warps: int
) -> Variant:
    return Variant(name, kernel, types, constants | {"UPCAST": False}, warps, 3)


def _norms(kind: str, config: SmallConfig) -> Iterator[Variant]:
    for (form, flags), size in itertools.product(NORMS.items(), HIDDEN_SIZES):
        flags = {"ADD": False, "NORM_UPDATE": False, "PLUS_ONE": False} | flags
        types: dict[str, str | None] = dict.fromkeys(("residual", "weight", "output"), kind)
        types |= dict.fromkeys(("update", "total"), kind if flags["ADD"] else None)
        types["update_weight"] = kind if flags["NORM_UPDATE"] else None
        types |= dict.fromkeys(("update_epsilon", "epsilon"), "fp32")
        block = 1 << (size - 1).bit_length()
        constants = flags | {"SIZE": size, "BLOCK": block}
        name = f"norm-d{size}-{kind[1:]}{form}"
        yield _variant(name, norm_kernel, types, constants, config.warps(block))


def _rotations(kind: str) -> Iterator[Variant]:
    for axes, dim in itertools.product((False, True), HEAD_DIMS):
        types: dict[str, str | None] = {"positions": "*i64", "frequencies": "*fp32"}
        types |= {"axis": "*i64" if axes else None, "factor": "fp32", "stride": "i32"}
        types |= dict.fromkeys(("cos", "sin"), kind)
        pairs = dim // 2
        constants = {"PAIRS": pairs, "BLOCK": 1 << (pairs - 1).bit_length(), "AXES": axes}
        name = f"rotation-d{dim}-{kind[1:]}" + "-axes" * axes
        yield _variant(name, rotation_kernel, types, constants, 1)


def _heads(kind: str, config: SmallConfig) -> Iterator[Variant]:
    for (form, flags), dim in itertools.product(HEAD_NORMS.items(), HEAD_DIMS):
        flags = {"NORM": False, "PLUS_ONE": False} | flags
        tensors = ("merged", "cos", "sin", "query", "key_cache", "value_cache")
        types: dict[str, str | None] = dict.fromkeys(tensors, kind)
        types |= {"weight": kind if flags["NORM"] else None, "slots": "*i64", "epsilon": "fp32"}
        pairs, block = head_block(dim, config)
        constants = flags | {"HEADS": HEADS, "KV_HEADS": KV_HEADS, "D": dim}
        constants |= {"ROW": (HEADS + 2 * KV_HEADS) * dim, "BLOCK": block, "PAIRS": pairs}
        name = f"rope-d{dim}-{kind[1:]}{form}"
        yield _variant(name, rope_store_kernel, types, constants, config.warps(2 * pairs * block))


def _gates(kind: str, config: SmallConfig) -> Iterator[Variant]:
    for activation, size in itertools.product(ACTIVATIONS, INTERMEDIATE_SIZES):
        types: dict[str, str | None] = dict.fromkeys(("merged", "output"), kind)
        constants = {"SIZE": size, "ROW": 2 * size, "BLOCK": config.block, "ACTIVATION": activation}
        name = f"gate-{activation}-{size}-{kind[1:]}"
        yield _variant(name, gate_kernel, types, constants, config.warps(config.block))


def _scores(kind: str, config: SmallConfig) -> Iterator[Variant]:
    for size in HIDDEN_SIZES:
        types: dict[str, str | None] = dict.fromkeys(("rows", "dims", "slots"), "*i64")
        types |= {"hidden": kind, "scores": "*fp32", "count": "i32"}
        block = 1 << (size - 1).bit_length()
        constants = {"SIZE": size, "BLOCK": block}
        name = f"score-d{size}-{kind[1:]}"
        yield Variant(name, score_kernel, types, constants, config.warps(block), 3)


def _settling() -> Iterator[Variant]:
    indices = ("slots", "position", "starts", "base", "tag_row", "remap", "require")
    types: dict[str, str | None] = dict.fromkeys(indices, "*i64")
    types |= dict.fromkeys(("whole", "table", "met"), "*u8")
    types |= dict.fromkeys(("scores", "threshold"), "*fp32") | {"stride": "i32"}
    yield Variant("settle", settle_kernel, types, {"BLOCK": TAG_BLOCK}, TAG_WARPS, 3)
