"""What a model's folder says of its chats and of the ends of its answers."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, ProcessorMixin


def chat_templates(
    model: str, tokenizer: Any, has_processor: bool
) -> tuple[str | None, str | None]:
    """The template, the processor's where there is one, or else the tokenizer's; another for tools.

    Where there are several, the other is the one that transformers takes for tools.
    """
    found: Any = None
    if has_processor:
        description, _ = ProcessorMixin.get_processor_dict(model)
        found = description.get("chat_template")
    found = found or tokenizer.chat_template
    named = found if isinstance(found, dict) else {"default": found}
    template, for_tools = (named.get(name) for name in ("default", "tool_use"))
    if not isinstance(template, str):
        return None, None
    return template, for_tools if isinstance(for_tools, str) else None


def generation_config(model: str) -> Any:
    """Its generation configuration; None if it has none."""
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return None  # the file is optional
