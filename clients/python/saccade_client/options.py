"""The options of a request, written down once for all methods of both clients.

Every option but `images`, `extra` and `profile` is a field of the request body of the same name;
one left out takes the server's default. Names are checked, because a misspelt one would be lost in
silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from saccade_client.errors import InvalidInput
from saccade_client.images import Images
from saccade_client.interventions import Interventions, entries, plain

NOT_IN_THE_BODY = ("images", "extra")
FIELDS = {"profile": "intervention_profile"}
"""Options whose field is called otherwise."""


class Options(TypedDict, total=False):
    """Options of every kind of generation.

    model                  default: the first that the server lists, asked once and remembered
    interventions          in order; [] means none; left out: those of the profile, if there is one
    profile                an operator's bundle of interventions, by name
    extra                  body fields this client has no name for
    max_tokens             most tokens to generate
    min_tokens             nothing ends the answer before
    temperature            0 for greedy decoding
    top_p, top_k, min_p    cuts of the distribution
    seed                   of this request's own random draws
    stop, stop_token_ids   end the answer there
    ignore_eos             go on to max_tokens, for measurements
    n                      answers to the same prompt
    priority               how urgent it is while it waits: the lower goes first
    *_penalty, logit_bias  changes of the logits
    prompt_logprobs        log probabilities of the prompt's tokens, with that many rivals
    trace                  what to record of the forward passes, such as {"masses": True}
    detectors              what scores the answer, such as [{"name": "svar", "threshold": 1.2}]
    """

    model: str | None
    interventions: Interventions | None
    profile: str | None
    extra: Mapping[str, Any] | None
    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    n: int | None
    priority: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | Mapping[int, float] | None
    prompt_logprobs: int | None
    trace: Mapping[str, Any] | None
    detectors: Sequence[Mapping[str, Any]] | None


class ChatOptions(Options, total=False):
    """Options of a chat.

    chat_template_kwargs    variables of the model's chat template, such as enable_thinking
    continue_final_message  continue the text of the last message, an assistant's
    add_generation_prompt   False: end the prompt behind the last message
    images                  one or several: path, bytes, URL, PIL image or uint8 array; they go
                            before the text of the last user message
    logprobs                whether to return log probabilities
    top_logprobs            that many rivals with every token
    """

    chat_template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    images: Images | None
    logprobs: bool | None
    top_logprobs: int | None


class CompletionOptions(Options, total=False):
    """Options of a plain continuation.

    add_special_tokens  False: without a BOS and the like
    logprobs            return log probabilities, with that many rivals for every token
    echo                begin with the prompt, and with its log probabilities if there are some
    """

    add_special_tokens: bool | None
    logprobs: int | None
    echo: bool | None


class ScoreOptions(TypedDict, total=False):
    """Options of a score; those of the same name are as in a chat or a plain continuation.

    images  go before the text of the last user message
    """

    model: str | None
    interventions: Interventions | None
    profile: str | None
    extra: Mapping[str, Any] | None
    images: Images | None
    add_special_tokens: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None


def request_body(
    own: Mapping[str, Any], given: Mapping[str, Any], known: type[Options] | type[ScoreOptions]
) -> dict[str, Any]:
    """Return `own` fields and options as one body. Raises InvalidInput, TypeError on odd names."""
    check_names(given, known)
    body = dict(own)
    for name, value in given.items():
        if value is not None and name not in NOT_IN_THE_BODY:
            field = FIELDS.get(name, name)
            body[field] = entries(value) if name == "interventions" else plain(value, name)
    return merged(body, given.get("extra"))


def check_names(given: Mapping[str, Any], known: type[Options] | type[ScoreOptions]) -> None:
    names = known.__annotations__
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "send new fields through extra={…}"
            raise TypeError(f"unknown option {name!r}: {hint}")


def merged(body: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Add the caller's extra fields; one that is set already is refused, never overridden."""
    extra = extra or {}
    if twice := sorted(body.keys() & extra.keys()):
        raise InvalidInput(f"extra repeats what is set already: {', '.join(twice)}")
    return {**body, **extra}
