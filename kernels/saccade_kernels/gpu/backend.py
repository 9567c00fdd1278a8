"""The Triton kernels as ops.py calls them; arguments are the reference's."""

from __future__ import annotations

from saccade_kernels.gpu.columns import attention_rows, column_sums
from saccade_kernels.gpu.decode import decode
from saccade_kernels.gpu.distributions import contrast_rows, divergences, mask_rows
from saccade_kernels.gpu.gates import gate
from saccade_kernels.gpu.head_sinks import find_head_sinks, settle_prompt_sinks
from saccade_kernels.gpu.head_weights import head_weights
from saccade_kernels.gpu.invariant import invariant_attention
from saccade_kernels.gpu.key_shares import key_shares
from saccade_kernels.gpu.layer_gradients import gate_gradient, norm_gradient, rope_gradient
from saccade_kernels.gpu.norms import add_norm, rms_norm
from saccade_kernels.gpu.prefill import prefill
from saccade_kernels.gpu.products import linear
from saccade_kernels.gpu.residual import edit_residual
from saccade_kernels.gpu.residual_gradients import residual_gradient
from saccade_kernels.gpu.rope import norm_rope_store
from saccade_kernels.gpu.rotation import rotation
from saccade_kernels.gpu.saliency import saliency
from saccade_kernels.gpu.sinks import settle_sink_tags, store_sink_scores

__all__ = [
    "add_norm",
    "attention_rows",
    "column_sums",
    "contrast_rows",
    "decode",
    "divergences",
    "edit_residual",
    "find_head_sinks",
    "gate",
    "gate_gradient",
    "head_weights",
    "invariant_attention",
    "key_shares",
    "linear",
    "mask_rows",
    "norm_gradient",
    "norm_rope_store",
    "prefill",
    "residual_gradient",
    "rms_norm",
    "rope_gradient",
    "rotation",
    "saliency",
    "settle_prompt_sinks",
    "settle_sink_tags",
    "store_sink_scores",
]
