"""A folder with a random text model whose template has tools and thinking, like Qwen3's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from saccade_testing import processors

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] -%}
{{ '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- set arguments = call.function.arguments -%}
{{- arguments if arguments is string else arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false }}
{%- endif -%}"""


def save(folder: Path) -> None:
    """Write the whole folder, weights included."""
    tokenizer = processors.save("qwen3", folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    # Large weights: every token of a prompt shows in what follows it.
    sizes: dict[str, Any] = {"intermediate_size": 64, "head_dim": 16, "initializer_range": 0.3}
    config = Qwen3Config.from_pretrained(folder, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
