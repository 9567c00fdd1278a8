"""Builds the untrained demo model: tokenizer, processor, and a small but ordinary LLaVA."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .questions import COUNT, DESCRIBE, EXISTS, NUMBERS, WHAT, WHERE
from .scenes import IMAGE_SIZE, PLACES, THINGS

PATCH_SIZE: Final = 8
IMAGE_TOKENS: Final = (IMAGE_SIZE // PATCH_SIZE) ** 2
VOCABULARY_SIZE: Final = 448
CONTEXT_LENGTH: Final = 2048
WIDTH: Final = 192
LAYERS: Final = 6
# Narrow matrices need larger entries than the usual 0.02 to pass a signal on at its own scale.
INITIALIZER_RANGE: Final = 0.06

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
SPECIAL_TOKENS: Final = (PAD, BOS, EOS, IMAGE)

SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.",
    "You are a careful observer. Name only what you can see.",
    "Answer the questions about the image.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "Be brief and precise.",
)

CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {%- set parts = [{'type': 'text', 'text': content}] if content is string else content -%}
    {%- if message['role'] == 'user' -%}
        {{- 'USER:\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'ASSISTANT:\\n' -}}
    {%- elif message['role'] != 'system' -%}
        {{- raise_exception('The roles are system, user and assistant, not ' + message['role']) -}}
    {%- endif -%}
    {%- for part in parts if part['type'] in ('image', 'image_url') -%}
        {{- '<image>\\n' -}}
    {%- endfor -%}
    {%- for part in parts if part['type'] == 'text' -%}
        {{- part['text'] -}}
    {%- endfor -%}
    {{- '</s>\\n' if message['role'] == 'assistant' else '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:\\n' -}}
{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE: every word of the demo world is one token, and any other text encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Image processor, tokenizer and chat template."""
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        size=square,
        crop_size=square,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        # The vision tower's class token, which the "default" strategy drops again.
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> LlavaConfig:
    """64 image tokens, 6 text layers of width 192 with 6 query and 2 key-value heads."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    text = LlamaConfig(
        hidden_size=WIDTH,
        initializer_range=INITIALIZER_RANGE,
        intermediate_size=448,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=CONTEXT_LENGTH,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL_TOKENS.index(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def build_model() -> LlavaForConditionalGeneration:
    """The model with fresh weights from torch's global generator, decoding greedily."""
    model = LlavaForConditionalGeneration(build_config())
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        do_sample=False,
        max_new_tokens=64,
    )
    return model


def _corpus() -> Iterator[str]:
    """Text in which every word of the demo world occurs often enough to become one token."""
    rng = Random("tokenizer")
    for _ in range(4000):
        thing, place, number = rng.choice(THINGS), rng.choice(PLACES), rng.choice(NUMBERS)
        system, describe = rng.choice(SYSTEM_PROMPTS), rng.choice(DESCRIBE)
        exists, answer = rng.choice(EXISTS).format(thing), rng.choice(("Yes", "No"))
        how_many = rng.choice(COUNT).format(rng.choice((thing.shape, "object")))
        where, what = rng.choice(WHERE).format(thing), rng.choice(WHAT).format(place)
        yield f"{system}\nUSER:\n{describe}\nASSISTANT:\nThere is a {thing} and a {thing}.\n"
        yield f"USER:\n{exists}\nASSISTANT:\n{answer}, there is no {thing}.\n"
        yield f"{how_many}\n{number.capitalize()}. There are {number}.\n"
        yield f"{where}\nAt the {place}.\n{what}\nA {thing}. Nothing.\n"
