"""Configurations in the shape of published ones: what they say beside sizes is served."""

import json
from pathlib import Path
from typing import Any

import pytest

from saccade_server.models.family import SUPPORTED, load_config

CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
QWEN = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21}
PUBLISHED: dict[str, dict[str, Any]] = {
    "LLaVA-1.6-Mistral": {
        "model_type": "llava_next",
        "image_token_index": 32000,
        "text_config": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
        "vision_config": CLIP,
        "vision_feature_layer": -2,
        "use_image_newline_parameter": True,
    },
    "LLaVA-1.6-Vicuna": {
        "model_type": "llava_next",
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096},
        "vision_config": CLIP,
    },
    "LLaVA-Interleave": {
        "model_type": "llava",
        "text_config": {"model_type": "qwen2", **QWEN},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "Qwen2-VL": {
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        **QWEN,
        "vision_config": {"depth": 32, "embed_dim": 1280, "in_chans": 3, "spatial_patch_size": 14},
    },
    "InternVL3": {
        "model_type": "internvl",
        "text_config": {
            "model_type": "qwen2",
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            **QWEN,
        },
        "vision_config": {
            "model_type": "internvl_vision",
            "attention_bias": True,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        },
    },
    "SmolVLM": {
        "model_type": "idefics3",
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "qk_layer_norms": False,
            "rope_interleaved": False,
            "use_resampler": False,
        },
        "vision_config": {
            "model_type": "idefics3",
            "image_size": 512,
            "patch_size": 16,
            "max_image_size": {"longest_edge": 512},
        },
    },
    "SmolVLM2": {
        "model_type": "smolvlm",
        "scale_factor": 3,
        "text_config": {"model_type": "llama", "rope_theta": 130000},
        "vision_config": {"model_type": "smolvlm_vision", "image_size": 384, "patch_size": 14},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_described(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    config = load_config(str(tmp_path))
    assert config.model_type == PUBLISHED[name]["model_type"]
    spec = SUPPORTED[config.model_type].describe(config)
    assert {layer.window for layer in spec.layers} == {0}
