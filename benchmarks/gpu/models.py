"""Models of real shapes with random weights, made where they are used; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from gpu.shapes import ModelShape

MAX_POSITION = 8192


def build(shape: ModelShape, device: torch.device) -> Any:
    """A transformers model in bf16. Multi-head shapes are LLaVA's language model, others Qwen's."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = _llama(shape) if _is_llama(shape) else _qwen(shape)
    finally:
        torch.set_default_dtype(dtype)
    assert model.dtype == torch.bfloat16
    assert _weights(model) == shape.weights, "floors would be those of another model"
    return model.eval().requires_grad_(False)


def _is_llama(shape: ModelShape) -> bool:
    return shape.attention.heads == shape.attention.kv_heads


def text_config(shape: ModelShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention.heads,
        "num_key_value_heads": shape.attention.kv_heads,
        "max_position_embeddings": MAX_POSITION,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


def _llama(shape: ModelShape) -> Any:
    return LlamaForCausalLM(LlamaConfig(**text_config(shape)))


def _qwen(shape: ModelShape) -> Any:
    """The vision tower is a stub: it is not part of any figure here."""
    half = shape.attention.dim // 2
    time = half // 4
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [time, (half - time) // 2, half - time - (half - time) // 2],
    }
    vision = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": shape.hidden,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config={**text_config(shape), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _weights(model: Any) -> int:
    """Weights of the decoder's matrices and of the output layer: what a decode step reads."""
    decoder = sum(p.numel() for p in model.get_decoder().layers.parameters() if p.dim() == 2)
    return int(decoder + model.get_output_embeddings().weight.numel())
