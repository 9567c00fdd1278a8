"""Model folders with a real tokenizer, image processor and template, and no weights."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PromptFolder = Callable[[str], tuple[str, Any]]
"""``folder(family)``: where :func:`save` wrote it, and what it gave back."""

CORPUS = [
    "What is in the picture? There is a red cat on a mat, and a blue dog in the garden.",
    "You are a helpful assistant. USER: ASSISTANT: user assistant system image text",
    "def main(): print('hello world') # 1 2 3 4 5 6 7 8 9 0",
] * 4

PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72]]
TOWER = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]
QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SPLIT_SPECIAL = [
    "<|im_start|>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
]
QWEN_WORDS = ["<think>", "</think>", "<tool_call>"]

LLAMA_TEMPLATE = """\
{%- for message in messages -%}
{{ bos_token if loop.first else '' }}{{ message['role'] | upper }}: {{ message['content'] | trim }}
{{- eos_token if message['role'] == 'assistant' else '\n' }}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt }}"""

LLAVA_TEMPLATE = """\
{%- for message in messages -%}
{{ message['role'] | upper }}: {% for item in message['content'] -%}
{%- if item['type'] == 'image' -%}<image>{{ '\n' }}{%- else -%}{{ item['text'] }}{%- endif -%}
{%- endfor %} {% endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt }}"""

QWEN_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ item['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt }}"""


INTERN_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}{{ '<IMG_CONTEXT>\n' }}{%- else -%}{{ item['text'] }}{%- endif -%}
{%- endfor -%}{{ '<|im_end|>\n' }}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt }}"""

SPLIT_TEMPLATE = """\
<|im_start|>{% for message in messages -%}
{{ message['role'] | capitalize }}{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}<image>{%- else -%}{{ item['text'] }}{%- endif -%}
{%- endfor -%}{{ '<end_of_utterance>\n' }}
{%- endfor -%}
{{- 'Assistant:' if add_generation_prompt }}"""


def byte_level(special: list[str], words: Sequence[str] = (), **kwargs: Any) -> Any:
    """A byte-level BPE like Qwen's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


def sentence_piece(extra: Sequence[str] = (), **kwargs: Any) -> Any:
    """A BPE like Llama 2's: a space before every text, bytes as tokens, a BOS."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(space)
    tokenizer.train_from_iterator(
        CORPUS,
        BpeTrainer(vocab_size=420, special_tokens=[*LLAMA_SPECIAL, *alphabet], show_progress=False),
    )
    # Trained as special tokens for their ids only: bytes are ordinary pieces.
    description = tokenizer.to_str()
    tokenizer = Tokenizer.from_str(_only_special(description, LLAMA_SPECIAL))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = post.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(list(extra))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **kwargs,
    )


def _only_special(description: str, special: list[str]) -> str:
    loaded = json.loads(description)
    loaded["added_tokens"] = [t for t in loaded["added_tokens"] if t["content"] in special]
    return json.dumps(loaded)


def save(family: str, folder: Path) -> Any:
    """Write everything but weights; return the processor or tokenizer that was written."""
    return SAVERS[family](folder)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A picture with structure in every corner."""
    values = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height))


def _text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _save_llama(folder: Path) -> Any:
    tokenizer = sentence_piece(chat_template=LLAMA_TEMPLATE)
    tokenizer.save_pretrained(folder)
    LlamaConfig(**_text_config(tokenizer)).save_pretrained(folder)
    return tokenizer


def _save_qwen3(folder: Path) -> Any:
    tokenizer = byte_level(
        QWEN_SPECIAL, QWEN_WORDS, eos_token="<|im_end|>", chat_template=QWEN_TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    Qwen3Config(**_text_config(tokenizer)).save_pretrained(folder)
    return tokenizer


def _save_llava(folder: Path, text: str = "llama", tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or sentence_piece(["<image>"])
    square = {"height": 24, "width": 24}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
    )
    processor.save_pretrained(folder)
    vision = {"model_type": "clip_vision_model", "image_size": 24, "patch_size": 8}
    LlavaConfig(
        vision_config={**vision, "hidden_size": 32, "num_attention_heads": 2},
        text_config={"model_type": text, **_text_config(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
    ).save_pretrained(folder)
    return processor


def _save_llava_next(folder: Path) -> Any:
    tokenizer = sentence_piece(["<image>"])
    square = {"height": 24, "width": 24}
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 24}, crop_size=square, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
    )
    processor.save_pretrained(folder)
    LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER},
        text_config={"model_type": "llama", **_text_config(tokenizer), "intermediate_size": 48},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
    ).save_pretrained(folder)
    return processor


def _save_llava_qwen2(folder: Path) -> Any:
    """A byte-level tokenizer, without a BOS."""
    return _save_llava(
        folder, "qwen2", byte_level([*QWEN_SPECIAL, "<image>"], eos_token="<|im_end|>")
    )


def _save_qwen_vl(folder: Path, processor_class: Any, config_class: Any) -> Any:
    tokenizer = byte_level(QWEN_SPECIAL, QWEN_WORDS, eos_token="<|im_end|>")
    processor = processor_class.__new__(processor_class)
    pixels = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size=pixels)
    _assemble(processor, images, tokenizer)
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    pairs = [24, 20, 20] if config_class is Qwen3VLConfig else [2, 3, 3]
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": pairs}}
    config_class(
        text_config={**_text_config(tokenizer), **rope},
        vision_config={"patch_size": 8, "spatial_merge_size": 2},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    ).save_pretrained(folder)
    return processor


def _save_internvl(folder: Path) -> Any:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_level(QWEN_SPECIAL[:3], eos_token="<|im_end|>", extra_special_tokens=named)
    images = GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, max_patches=4)
    processor = InternVLProcessor.__new__(InternVLProcessor)
    _assemble(processor, images, tokenizer, INTERN_TEMPLATE)
    processor.image_seq_length = 9
    for name, text in named.items():
        setattr(processor, name, text)
    processor.image_token, processor.image_token_id = (
        "<IMG_CONTEXT>",
        tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    pattern = r"(?P<image><IMG_CONTEXT>)|(?P<video><video>)"
    processor.multimodal_pattern = re.compile(pattern)
    InternVLConfig(
        vision_config={**TOWER, "patch_size": 4},
        text_config={"model_type": "qwen2", **_text_config(tokenizer), "intermediate_size": 48},
        image_token_id=processor.image_token_id,
        image_seq_length=9,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    return _saved(folder, images, tokenizer, processor)


def _save_split(folder: Path, processor_class: Any, images_class: Any, config_class: Any) -> Any:
    """Idefics3 and SmolVLM."""
    tokenizer = byte_level(SPLIT_SPECIAL, eos_token="<end_of_utterance>")
    images = images_class(size={"longest_edge": 72}, max_image_size={"longest_edge": 24})
    processor = processor_class.__new__(processor_class)
    _assemble(processor, images, tokenizer, SPLIT_TEMPLATE)
    processor.image_seq_len = 9
    processor.image_token = "<image>"
    processor.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    processor.fake_image_token = "<fake_token_around_image>"
    processor.global_image_token = processor.global_image_tag = "<global-img>"
    processor.video_token = "<video>"
    processor.video_processor = SimpleNamespace(num_frames=1, fps=1)  # read, whatever is asked
    config_class(
        vision_config={**TOWER, "patch_size": 4},
        text_config={"model_type": "llama", **_text_config(tokenizer), "intermediate_size": 48},
        image_token_id=processor.image_token_id,
        scale_factor=2,
    ).save_pretrained(folder)
    return _saved(folder, images, tokenizer, processor)


def _saved(folder: Path, images: Any, tokenizer: Any, processor: Any) -> Any:
    tokenizer.chat_template = processor.chat_template
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return processor


def _assemble(processor: Any, images: Any, tokenizer: Any, template: str = QWEN_TEMPLATE) -> None:
    """What the constructor does, without the video processor, which needs torchvision."""
    processor.image_processor = images
    processor.tokenizer = tokenizer
    processor.chat_template = template
    for name, text in (
        ("image", "<|image_pad|>"),
        ("video", "<|video_pad|>"),
        ("vision_start", "<|vision_start|>"),
        ("vision_end", "<|vision_end|>"),
    ):
        setattr(processor, f"{name}_token", text)
        setattr(processor, f"{name}_token_id", tokenizer.convert_tokens_to_ids(text))


SAVERS = {
    "llama": _save_llama,
    "qwen3": _save_qwen3,
    "llava": _save_llava,
    "llava_qwen2": _save_llava_qwen2,
    "llava_next": _save_llava_next,
    "internvl": _save_internvl,
    "idefics3": lambda f: _save_split(
        f, Idefics3Processor, Idefics3ImageProcessorPil, Idefics3Config
    ),
    "smolvlm": lambda f: _save_split(f, SmolVLMProcessor, SmolVLMImageProcessorPil, SmolVLMConfig),
    "qwen2_vl": lambda f: _save_qwen_vl(f, Qwen2VLProcessor, Qwen2VLConfig),
    "qwen2_5_vl": lambda f: _save_qwen_vl(f, Qwen2_5_VLProcessor, Qwen2_5_VLConfig),
    "qwen3_vl": lambda f: _save_qwen_vl(f, Qwen3VLProcessor, Qwen3VLConfig),
}
