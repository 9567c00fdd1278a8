"""A batch as the named arguments of a kernel, for the launchers of saliency.py and columns.py."""

from __future__ import annotations

from typing import Any

import torch

from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gpu.tiles import (
    CONTROL_ARGUMENTS,
    PER_HEAD_ARGUMENTS,
    control_arguments,
    per_head_arguments,
)

TABLES = tuple(
    name if name in ("tags", "key_weights", "moved") else f"{name}_table"
    for name in CONTROL_ARGUMENTS
)
"""What the kernels call the control arguments."""

TABLE_TYPES = dict.fromkeys(TABLES, "*fp32") | {
    "edits_table": "*u8",
    "tags": "*u8",
    "hides": "*u8",
    "moved": "*i32",
}
"""What triton calls them, and the table that only decodes read."""

PER_HEAD_TYPES = dict(zip(PER_HEAD_ARGUMENTS, ("*i32", "*u8", "*u8"), strict=True))
"""Those of the tables that tell heads apart; None each in a form that does not."""

Variant = tuple[str, Any, dict[str, str | None], dict[str, Any], int, int]
"""The fields of :class:`saccade_kernels.gpu.offline.Variant`, in order."""

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
"""What triton calls a tensor of a cache's dtype."""


def batch_arguments(batch: AttentionBatch, layer: int, edited: bool) -> dict[str, Any]:
    """Everything that kernels read of a batch; tables only for a variant that edits."""
    layers, max_len = batch.tables()[1].tags.shape[1:] if edited else (0, 0)
    per_head = per_head_arguments(batch, edited and batch.per_head_classes)
    return {
        **dict(zip(TABLES, control_arguments(batch, edited), strict=True)),
        **dict(zip(PER_HEAD_ARGUMENTS, per_head, strict=True)),
        "context_lens": batch.context_lens,
        "query_starts": batch.query_starts,
        "page_table": batch.page_table,
        "control_rows": batch.control_rows,
        "tag_rows": batch.tag_rows,
        "layer": layer,
        "stride_pages": batch.page_table.stride(0),
        "layers": layers,
        "max_len": max_len,
    }


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], config: tuple[int, ...]
) -> None:
    """Launch a kernel with those of the arguments that it takes.

    Args:
        config: warps and stages, and the most registers of a thread, if there is to be a limit.
    """
    warps, stages, *registers = config
    taken = {name: arguments[name] for name in kernel.arg_names}
    limit = {"maxnreg": registers[0]} if registers and registers[0] else {}
    kernel[grid](**taken, num_warps=warps, num_stages=stages, **limit)
