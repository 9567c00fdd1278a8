"""What is refused because accepting it would mean silently not doing it.

Unknown fields are accepted, as OpenAI SDKs send new ones all the time, with two exceptions:
features that change the answer and that this server lacks, unless they are set to what it does
anyway; and names that look like a misspelt ``interventions``, for which the answer would come back
unedited.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from saccade_server.api.errors import BadRequest, bounded, unsupported

NOTHING: tuple[Any, ...] = (None, False, [], {}, "")

# field -> values that ask for nothing beyond what happens anyway; NOTHING is always among them
SHARED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "bad_words": (),
    "early_stopping": (),
    "extra_args": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0,),
    "logits_processors": (),
    "min_tokens": (0,),
    "mm_processor_kwargs": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (),
}
CHAT: dict[str, tuple[Any, ...]] = SHARED | {
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (),
    "documents": (),
    "echo": (),
    "function_call": ("none",),
    "functions": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "store": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETION: dict[str, tuple[Any, ...]] = SHARED | {"best_of": (1,), "echo": (), "suffix": ()}

OTHER_NAMES = frozenset(
    {
        "attention",
        "attention_control",
        "attention_steering",
        "control",
        "controller",
        "controllers",
        "controls",
        "edits",
        "extra_body",
        "hook",
        "hooks",
        "intervene",
        "method",
        "methods",
        "plan",
        "profile",
        "steer",
        "steer_vector_request",
        "steering",
        "steering_vector",
        "steering_vectors",
        "vllm_xargs",
    }
)
CLOSE_ENOUGH = 0.75


def refuse_unsupported(extra: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse the fields of ``extra`` that ask for what is not done."""
    refuse_near_misses(extra)
    for name, value in extra.items():
        if name in known and not _asks_nothing(value, known[name]):
            raise unsupported(name, f"{name} is not supported by this server.")


def refuse_near_misses(names: Iterable[str]) -> None:
    """Refuse names that were probably meant to be ``interventions``."""
    for name in names:
        if _near_miss(name):
            raise BadRequest(
                f"Unknown field {bounded(name, 64)!r}: interventions are given as the top-level "
                "field 'interventions', a list of objects with a 'method'.",
                code="intervention_unknown_field",
                param=bounded(name, 64),
            )


def _near_miss(name: str) -> bool:
    plain = name.lower().replace("-", "_").strip("_ ")
    if plain in OTHER_NAMES or "intervention" in plain:
        return True
    ratio = difflib.SequenceMatcher(None, plain[:64], "interventions").ratio
    return len(plain) < 64 and ratio() > CLOSE_ENOUGH


def _asks_nothing(value: Any, harmless: tuple[Any, ...]) -> bool:
    # Where True is the default, False asks for something.
    by_default = any(item is True for item in harmless)
    allowed = (None, True) if by_default else (*NOTHING, *harmless)
    # In Python 0 == False and 1 == True; here they differ.
    same_kind = [item for item in allowed if isinstance(item, bool) == isinstance(value, bool)]
    return value in same_kind
