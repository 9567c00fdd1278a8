"""A checkpoint on disk in a real shape with random weights: LLaVA-1.5 with its CLIP tower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from gpu.models import text_config
from gpu.shapes import ModelShape

SHARD = 2 << 30
"""Bytes of a file of weights, and of the memory that writing takes."""

SCALE = 0.02
TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
CORPUS = ["What is in the picture? Describe the image. USER: ASSISTANT: a red cat on a mat."]
TEMPLATE = """\
{%- for message in messages -%}
{{ message['role'] | upper }}: {% for item in message['content'] -%}
{%- if item['type'] == 'image' -%}<image>{{ '\\n' }}{%- else -%}{{ item['text'] }}{%- endif -%}
{%- endfor %} {% endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt }}"""


def write(folder: Path, shape: ModelShape, tower: dict[str, int]) -> int:
    """Everything that a server loads. Returns the bytes of all weights.

    Args:
        tower: sizes of the vision tower, as transformers calls them.
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    _processor(tokenizer, tower).save_pretrained(folder)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **tower},
        text_config={"model_type": "llama", **text_config(shape)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = dict(LlavaForConditionalGeneration(config).named_parameters())
    index, total = {}, 0
    for number, shard in enumerate(_shards(shapes)):
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
        total += sum(tensor.nbytes for tensor in shard.values())
    listed = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    return total


def _shards(shapes: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    pool = (torch.randn(1 << 22) * SCALE).to(torch.bfloat16)
    shard: dict[str, torch.Tensor] = {}
    for name, parameter in shapes.items():
        shard[name] = _weights(name, parameter.shape, pool)
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD:
            yield shard
            shard = {}
    yield shard


def _weights(name: str, size: torch.Size, pool: torch.Tensor) -> torch.Tensor:
    """Norms leave what they norm; everything else is noise, from another place for each name."""
    if len(size) == 1 and name.endswith(("weight", "bias")):
        fill = torch.ones if name.endswith("weight") else torch.zeros
        return fill(size, dtype=torch.bfloat16)
    count = size.numel()
    turned = pool.roll(crc32(name.encode()) % len(pool))
    return turned.repeat(-(-count // len(pool)))[:count].reshape(size).contiguous()


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _processor(tokenizer: Any, tower: dict[str, int]) -> Any:
    side = tower["image_size"]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower["patch_size"],
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
    )
