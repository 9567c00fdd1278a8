"""Which configurations are not served, whatever their decoder: sizes, parts, quantised weights.

Every check raises UnsupportedModelError with the reason, without the model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saccade_kernels.gpu import device, tuning
from saccade_server.models.folder import CONFIG, UnsupportedModelError

SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
"""Fields of a text model's configuration that count something; the optional ones may be None."""


def check_sizes(text: Any) -> None:
    """Refuse sizes of which no model can be built."""
    sizes = {name: getattr(text, name, None) for name in SIZES}
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < 1):
            raise UnsupportedModelError(
                f"{name} is {size!r} in its {CONFIG}, and must be 1 or more"
            )
    heads, kv_heads = text.num_attention_heads, sizes["num_key_value_heads"] or 1
    if heads % kv_heads:
        raise UnsupportedModelError(
            f"its {CONFIG} says {heads} query heads and {kv_heads} key heads, which do not divide "
            "them"
        )


def check_quantisation(*parts: Any) -> None:
    """Refuse weights that stand for others."""
    for part in parts:
        quantised = getattr(part, "quantization_config", None)
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
            raise UnsupportedModelError(
                f"quantization_config names {method!r} in its {CONFIG}; quantised checkpoints are "
                "not supported: use the model's original weights"
            )


def check_gpu(head_dim: int, dtype: torch.dtype) -> None:
    """Refuse heads that no kernel of the current GPU is compiled for."""
    try:
        tuning.check_heads(head_dim, dtype)
    except device.UnsupportedDeviceError as error:
        raise UnsupportedModelError(str(error)) from error
