"""Tiny chat models in the styles of Qwen3 and Llama 3.1 whose answers end, free or under a grammar.

Random weights would hardly ever close a string. Here the kind of the token before decides, as in a
chain of Markov, which kind is likely: words follow a quote, a quote or the end follows a few words,
and brackets close rather than open. Which words they are, and how many, the random layers decide,
out of the whole prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers import processors as post
from tokenizers.trainers import BpeTrainer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from saccade_testing import chat_templates
from saccade_testing.chat_habits import likely

ChatStyle = Literal["qwen3", "qwen3-thinking", "llama3"]
"""The second's template opens the reasoning itself, always."""

CORPUS = [
    "What is the weather in Paris, and how warm will it be there tomorrow? Please look it up.",
    "You are a helpful assistant who may call functions. The user asks, the assistant answers.",
    "Alice is thirty years old and lives in a small town by the sea with her two brown dogs.",
    '{"name": "get_weather", "arguments": {"city": "London", "unit": "celsius"}}',
    '{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object",'
    '"properties":{"city":{"type":"string"},"age":{"type":"integer"}},"required":["city","age"],'
    '"additionalProperties":false}}}',
    '{"items": [{"title": "one", "done": true}, {"title": "two", "done": false}], "next": null}',
    '{"next":null,"done":true,"more":false}',
    "ipython",
    "Environment: ipython\n",
    "# Tools\n\nFirst line\nSecond line\n\nThird line\n\n",
] * 4

QWEN3_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN3_WORDS = (
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
"""Tokens of their own that are text: ``skip_special_tokens`` keeps them."""

LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)


@dataclass(frozen=True)
class Style:
    """What is a family's own."""

    template: str
    special: tuple[str, ...]
    words: tuple[str, ...]
    ends: tuple[str, ...]
    config: Any
    model: Any


QWEN3 = Style(
    chat_templates.QWEN3,
    QWEN3_SPECIAL,
    QWEN3_WORDS,
    ("<|im_end|>", "<|endoftext|>"),
    Qwen3Config,
    Qwen3ForCausalLM,
)
STYLES = {
    "qwen3": QWEN3,
    "qwen3-thinking": replace(QWEN3, template=chat_templates.QWEN3_THINKING),
    "llama3": Style(
        chat_templates.LLAMA3,
        LLAMA3_SPECIAL,
        (),
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        LlamaConfig,
        LlamaForCausalLM,
    ),
}

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
PADDING = 64
"""As in published models, the output layer has rows that no token belongs to: a multiple of it."""

ChatFolder = Callable[..., str]
"""``folder(style, *first)``: where :func:`save` wrote it."""


def save(style: ChatStyle, folder: Path, first: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Write a whole folder, weights included; return its tokenizer.

    ``first`` are the tokens that answers open with when nothing holds them back: ``<think>`` (with
    reasoning that ends), ``<tool_call>``, ``<|python_tag|>``, or ``<think>`` and a call behind it.
    """
    own = STYLES[style]
    tokenizer = _tokenizer(own)
    config = own.config(
        vocab_size=-(-len(tokenizer) // PADDING) * PADDING,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SIZES,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = own.model(config)
        likely(model, _texts(tokenizer), own.ends[0], first, style == "qwen3-thinking")
    ends = tokenizer.convert_tokens_to_ids(list(own.ends))
    model.generation_config = GenerationConfig(eos_token_id=ends)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return tokenizer


def folders(root: Path) -> ChatFolder:
    """Makes each folder under ``root`` once."""

    @cache
    def folder(style: ChatStyle, *first: str) -> str:
        made = root / "-".join([style, *(token.strip("</|>") for token in first)])
        save(style, made, first)
        return str(made)

    return folder


def _tokenizer(style: Style) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=640, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(style.special))
    words = [AddedToken(word, special=False, normalized=False) for word in style.words]
    tokenizer.add_tokens(words)
    more: dict[str, Any] = {"eos_token": style.ends[0], "pad_token": style.ends[1]}
    if "<|begin_of_text|>" in style.special:
        more["bos_token"] = bos = "<|begin_of_text|>"
        tokenizer.post_processor = post.TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=style.template,
        clean_up_tokenization_spaces=False,
        **more,
    )


def _texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of every token."""
    return [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
