"""Fields of other servers for what this one does not do, and the values that ask for nothing.

With any other value they are refused (:mod:`~saccade_server.api.body.unsupported`).
"""

from __future__ import annotations

from typing import Any

NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
NULL_ONLY = (None, None)
"""Marks a field of which even "off" asks for something."""

# field -> values that ask for nothing beyond what happens anyway; NOTHING is always among them
SHARED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "bad_words": (),
    "cache_salt": (),
    "custom_logit_processor": (),
    "custom_params": (),
    "dry_multiplier": (0,),
    "early_stopping": (),
    "ebnf": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "extra_args": (),
    "grammar": (),
    "include_stop_str_in_output": (),
    "guidance_scale": (1,),
    "input_embeds": (),
    "input_ids": (),
    "json_schema": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": (),
    "lora_path": (),
    "media_io_kwargs": (),
    "min_new_tokens": (0,),
    "mirostat": (0,),
    "mm_processor_kwargs": (),
    "negative_prompt": (),
    "no_repeat_ngram_size": (0,),
    "no_stop_trim": (),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "prompt_embeds": (),
    "reasoning": ({"enabled": False}, {"effort": "none"}),
    "regex": (),
    "repeat_penalty": (1,),  # others' name of repetition_penalty
    "repetition_detection": (),
    "return_hidden_states": (),
    "return_routed_experts": (),
    "return_token_ids": (),
    "return_tokens_as_token_ids": (),
    "session_params": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "smoothing_factor": (0,),
    "stop_regex": (),
    "stop_sequences": (),
    "store": (),
    "thinking_budget": (0,),
    "thinking_token_budget": (0,),
    "truncate_prompt_tokens": (),
    "tfs": (1,),
    "top_a": (0,),
    "typical": (1,),
    "typical_p": (1.0,),
    "use_beam_search": (),
    "xtc_probability": (0,),
}
CHAT: dict[str, tuple[Any, ...]] = SHARED | {
    "add_special_tokens": (),  # the template has them
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": (),
    "echo": (),
    "function_call": ("none",),
    "functions": (),
    "modalities": (["text"],),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETION: dict[str, tuple[Any, ...]] = SHARED | {
    "best_of": (1,),
    "add_generation_prompt": NULL_ONLY,  # a plain prompt goes through no template
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (),
    "documents": (),
    "enable_thinking": NULL_ONLY,
    "function_call": ("none",),
    "functions": (),
    "include_reasoning": (True,),  # a plain prompt's answer is all text
    "messages": (),
    "reasoning_effort": ("none",),
    "separate_reasoning": (),
    "suffix": (),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (),
}
THINKING = ("reasoning", "reasoning_effort", "thinking", "thinking_budget", "thinking_token_budget")
"""Fields that say how much to think; "not at all" is only done by a model that never does."""
UNCALLED = {"tools": "tool_choice", "functions": "function_call"}
"""What may be offered while the field of the second name says "none": nothing is called. Tools are
fields of a chat; these are those of a plain prompt, which has none.
"""
GUIDED = "guided_"
"""What older names of vLLM's for constrained answers begin with; those not in the schema are none
that it has.
"""
INSTEAD = {
    "ebnf": "structured_outputs.grammar",
    "function_call": "tool_choice",
    "functions": "tools",
    "grammar": "structured_outputs.grammar",
    "json_schema": "structured_outputs.json",
    "regex": "structured_outputs.regex",
}
"""Other servers' names of what has one here."""
TOKENIZE = {
    name: CHAT[name]
    for name in (
        *("functions", "function_call", "documents", "chat_template"),
        *("media_io_kwargs", "mm_processor_kwargs", "truncate_prompt_tokens"),
        *("reasoning", "thinking_budget", "thinking_token_budget"),
    )
}
"""Fields of a chat that say what its prompt is: /tokenize refuses them as a chat does."""
