"""The ops under test: the Triton kernels, or the reference where they cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from saccade_kernels import (
    columns_reference,
    distributions,
    gradients,
    layers,
    products,
    reference,
    residual_tables,
    sinks,
)
from saccade_kernels.batch import AttentionBatch
from saccade_kernels.gpu import tiles


def uses_triton(device: torch.device) -> bool:
    """True on a GPU, and on a CPU under TRITON_INTERPRET=1."""
    return device.type == "cuda" or tiles.interpreted()


def decode(query: torch.Tensor, *arguments: Any, config: Any = None, **more: Any) -> torch.Tensor:
    """``saccade_kernels.gpu.decode.decode``; the reference knows no ``config``."""
    if not uses_triton(query.device):
        return reference.decode(query, *arguments, **more)
    from saccade_kernels.gpu.decode import decode as kernel

    return kernel(query, *arguments, config=config, **more)


def prefill(query: torch.Tensor, *arguments: Any, config: Any = None, **more: Any) -> torch.Tensor:
    """``saccade_kernels.gpu.prefill.prefill``, likewise."""
    if not uses_triton(query.device):
        return reference.prefill(query, *arguments, **more)
    from saccade_kernels.gpu.prefill import prefill as kernel

    return kernel(query, *arguments, config=config, **more)


def page_classes(batch: AttentionBatch) -> Callable[[], Any] | None:
    """What makes the words of a batch's pages anew; None where kernels cannot run."""
    if not uses_triton(batch.context_lens.device):
        return None
    from saccade_kernels.gpu.page_classes import page_classes as kernel

    return lambda: kernel(replace(batch, derived={}), 0)


def edit_residual(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """``saccade_kernels.gpu.residual_tables.edit_residual``."""
    if not uses_triton(hidden.device):
        return residual_tables.edit_residual(hidden, *arguments)
    from saccade_kernels.gpu.residual import edit_residual as kernel

    return kernel(hidden, *arguments)


def mask_rows(logits: torch.Tensor, *arguments: Any) -> None:
    """``saccade_kernels.gpu.distributions.mask_rows``."""
    if not uses_triton(logits.device):
        distributions.mask_rows(logits, *arguments)
        return
    from saccade_kernels.gpu.distributions import mask_rows as kernel

    kernel(logits, *arguments)


def column_sums(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """``saccade_kernels.gpu.columns.column_sums``."""
    if not uses_triton(query.device):
        return columns_reference.column_sums(query, *arguments)
    from saccade_kernels.gpu.columns import column_sums as kernel

    return kernel(query, *arguments)


def attention_rows(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """``saccade_kernels.gpu.columns.attention_rows``."""
    if not uses_triton(query.device):
        return columns_reference.attention_rows(query, *arguments)
    from saccade_kernels.gpu.columns import attention_rows as kernel

    return kernel(query, *arguments)


def saliency(query: torch.Tensor, *arguments: Any) -> Any:
    """``saccade_kernels.gpu.saliency.saliency``."""
    if not uses_triton(query.device):
        return gradients.saliency(query, *arguments)
    from saccade_kernels.gpu.saliency import saliency as kernel

    return kernel(query, *arguments)


def linear(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """``saccade_kernels.gpu.products.linear``."""
    if not uses_triton(hidden.device):
        return products.linear(hidden, *arguments)
    from saccade_kernels.gpu.products import linear as kernel

    return kernel(hidden, *arguments)


def product(hidden: torch.Tensor, weight: torch.Tensor, config: Any = None) -> torch.Tensor:
    """``saccade_kernels.gpu.products.product``; of no config the one that a search begins with."""
    if not uses_triton(hidden.device):
        return products.linear(hidden, weight)
    from saccade_kernels.gpu.products import first_config
    from saccade_kernels.gpu.products import product as kernel

    chosen = config or first_config(weight.shape[0], weight.dtype)
    return kernel(hidden, weight, None, None, chosen)


def add_norm(residual: torch.Tensor, *arguments: Any, **more: Any) -> Any:
    """``saccade_kernels.gpu.norms.add_norm``; the reference knows no ``config``."""
    return _small("add_norm", residual, more)(residual, *arguments)


def norm_rope_store(merged: torch.Tensor, *arguments: Any, **more: Any) -> Any:
    """``saccade_kernels.gpu.rope.norm_rope_store``, likewise."""
    return _small("norm_rope_store", merged, more)(merged, *arguments)


def gate(merged: torch.Tensor, activation: str, **more: Any) -> Any:
    """``saccade_kernels.gpu.gates.gate``, likewise."""
    return _small("gate", merged, more)(merged, activation)


def rotation(positions: torch.Tensor, *arguments: Any) -> Any:
    """``saccade_kernels.gpu.rotation.rotation``."""
    return _small("rotation", positions, {})(positions, *arguments)


def sink_ops(device: torch.device) -> tuple[Any, Any]:
    """What stores sink scores, and what settles tags."""
    if not uses_triton(device):
        return sinks.store_scores, sinks.settle_tags
    from saccade_kernels.gpu import backend as kernels

    return kernels.store_sink_scores, kernels.settle_sink_tags


def _small(name: str, tensor: torch.Tensor, more: dict[str, Any]) -> Any:
    if not uses_triton(tensor.device):
        return getattr(layers, name)
    from saccade_kernels.gpu import backend as kernels

    return partial(getattr(kernels, name), **more)
