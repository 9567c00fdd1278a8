"""What is refused because accepting it would mean silently not doing it.

Unknown fields are accepted and named in a header (:mod:`~saccade_server.api.noeffect`), as OpenAI
SDKs send new ones all the time, with two exceptions: features that change the answer and that this
server lacks, unless they are set to what it does anyway; and names that look like a misspelt
``interventions``, for which the answer would come back unedited.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sized
from functools import lru_cache
from typing import Any

from saccade_server.api.errors import BadRequest, bounded, unsupported

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
    "early_stopping": (),
    "dry_multiplier": (0,),
    "ebnf": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "extra_args": (),
    "grammar": (),
    "include_stop_str_in_output": (),
    "guidance_scale": (1,),
    "include_reasoning": (True,),
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
    "prompt_logprobs": (),
    "reasoning": ({"enabled": False}, {"effort": "none"}),
    "reasoning_effort": ("none",),
    "regex": (),
    "repeat_penalty": (1,),  # others' name of repetition_penalty
    "repetition_detection": (),
    "response_format": ({"type": "text"},),
    "return_hidden_states": (),
    "return_routed_experts": (),
    "return_token_ids": (),
    "return_tokens_as_token_ids": (),
    "separate_reasoning": (),
    "session_params": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "smoothing_factor": (0,),
    "stop_regex": (),
    "stop_sequences": (),
    "structural_tag": (),
    "structured_outputs": (),
    "store": (),
    "thinking": ({"type": "disabled"},),
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
    "tool_choice": ("none", "auto"),
    "tools": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETION: dict[str, tuple[Any, ...]] = SHARED | {
    "best_of": (1,),
    "echo": (),
    "add_generation_prompt": NULL_ONLY,  # a plain prompt goes through no template
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (),
    "documents": (),
    "enable_thinking": NULL_ONLY,
    "function_call": ("none",),
    "functions": (),
    "messages": (),
    "suffix": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (),
}
THINKING = ("reasoning", "reasoning_effort", "thinking", "thinking_budget", "thinking_token_budget")
"""Fields that say how much to think; "not at all" is only done by a model that never does."""
UNCALLED = {"tools": "tool_choice", "functions": "function_call"}
"""What may be offered while the field of the second name says "none": nothing is called."""
GUIDED = "guided_"
"""What vLLM's names for constrained answers begin with."""

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
    }
)
CLOSE_ENOUGH = 0.75
MOST_UNKNOWN = 100


def refuse_unsupported(
    extra: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]], thinks: bool = False
) -> None:
    """Refuse the fields of ``extra`` that ask for what is not done.

    ``thinks``: the model may think before it answers, so asking it not to asks for something.
    """
    _refuse_many(extra)
    refuse_near_misses(name for name, value in extra.items() if value not in (None, {}))
    for name, value in extra.items():
        harmless = () if name.startswith(GUIDED) else known.get(name)
        if name in UNCALLED and extra.get(UNCALLED[name]) == "none":
            continue
        if thinks and name in THINKING:
            if value is not None:
                message = (
                    f"{name} is not supported by this server; how much the model thinks is said in "
                    "chat_template_kwargs."
                )
                raise unsupported(name, message)
        elif harmless is not None and not _asks_nothing(value, harmless):
            raise unsupported(name, f"{name} is not supported by this server.")


def named_as_known(extra: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> set[str]:
    """The fields of ``extra`` that ask for nothing, so that there is nothing to say about them."""
    offered = {name for name in UNCALLED if extra.get(name)}
    return {name for name in extra if name in known or name.startswith(GUIDED)} - offered


def refuse_near_misses(names: Iterable[str]) -> None:
    """Refuse names that were probably meant to be ``interventions``."""
    for name in names:
        if _another_name(name) or _resembles(name):
            raise BadRequest(
                f"Unknown field {bounded(name, 64)!r}: interventions are given as the top-level "
                "field 'interventions', a list of objects with a 'method'.",
                code="intervention_unknown_field",
                param=bounded(name, 64),
            )


def refuse_misplaced(value: Mapping[str, Any]) -> None:
    """Refuse interventions in a body's messages and metadata, where nothing reads them.

    Only names that resemble ``interventions`` count: metadata may well name a plan or a method.
    """
    inner = {name: value.get(name) for name in ("messages", "metadata")}
    for path, item in _objects(inner):
        _refuse_many(item, path)
        for name in item:
            if isinstance(name, str) and _resembles(name):
                message = "interventions are given as the top-level field 'interventions'."
                where = f"{path}.{bounded(name, 64)}"
                raise BadRequest(message, code="intervention_unknown_field", param=where)


def _objects(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every message, content part and image_url of a body, and its metadata, with its path."""
    if isinstance(value.get("metadata"), dict):
        yield "metadata", value["metadata"]
    for path, message in _listed(value.get("messages"), "messages"):
        yield path, message
        for spot, part in _listed(message.get("content"), f"{path}.content"):
            yield spot, part
            if isinstance(part.get("image_url"), dict):
                yield f"{spot}.image_url", part["image_url"]


def _listed(items: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for at, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield f"{path}[{at}]", item


def _refuse_many(names: Sized, param: str | None = None) -> None:
    if len(names) > MOST_UNKNOWN:
        raise BadRequest(f"There are more than {MOST_UNKNOWN} unknown fields.", param=param)


def _plain(name: str) -> str:
    return name[:64].lower().replace("-", "_").strip("_ ")


def _another_name(name: str) -> bool:
    return _plain(name) in OTHER_NAMES


@lru_cache(maxsize=1024)
def _resembles(name: str) -> bool:
    if "intervention" in name.lower():
        return True
    match = difflib.SequenceMatcher(None, _plain(name), "interventions")
    # The first two are bounds from above, and cheap.
    ratios = (match.real_quick_ratio, match.quick_ratio, match.ratio)
    return all(ratio() > CLOSE_ENOUGH for ratio in ratios)


def _asks_nothing(value: Any, harmless: tuple[Any, ...]) -> bool:
    if harmless is NULL_ONLY:
        return value is None
    # Where True is the default, False asks for something.
    by_default = any(item is True for item in harmless)
    allowed = (None, True) if by_default else (*NOTHING, *harmless)
    # In Python 0 == False and 1 == True; here they differ.
    same_kind = [item for item in allowed if isinstance(item, bool) == isinstance(value, bool)]
    return value in same_kind
