"""What readers of some pages bring along, made in their folder before the first block."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def pickled_model(folder: Path) -> None:
    """IN: a model whose weights are a pickle."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    config.save_pretrained(folder / "IN")
    torch.save(model.state_dict(), folder / "IN" / "pytorch_model.bin")


BROUGHT: Mapping[str, Callable[[Path], None]] = {"docs/models.md": pickled_model}
