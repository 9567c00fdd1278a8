"""The options of a request, written down once for all methods of both clients.

Every option but `images`, `extra` and `profile` is a field of the request body of the same name;
one left out takes the server's default. Names are checked, because a misspelt one would be lost in
silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from saccade_client import response_formats, tools
from saccade_client.errors import InvalidInput
from saccade_client.images import Images
from saccade_client.interventions import Interventions, entries, plain
from saccade_client.response_formats import ResponseFormat
from saccade_client.tools import ToolChoice, Tools

NOT_IN_THE_BODY = ("images", "extra")
FIELDS = {"profile": "intervention_profile"}
"""Options whose field is called otherwise."""
MADE: Mapping[str, Callable[[Any], Any]] = {
    "interventions": entries,
    "response_format": response_formats.entry,
    "tools": tools.entries,
    "tool_choice": tools.choice,
}
"""Options that are not written as they are given."""
GRAMMARS = ("regex", "choice", "grammar")
"""Options that are fields of `structured_outputs`."""


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


class Structure(TypedDict, total=False):
    """What an answer must be; one of them.

    response_format  JSON: a type such as a pydantic model, a JSON Schema, or OpenAI's object
    regex            a text that a regular expression matches as a whole
    choice           one of these texts
    grammar          a text of this grammar
    """

    response_format: ResponseFormat | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None


class ParseOptions(Options, total=False):
    """Options of a chat whose answer's form is said otherwise.

    chat_template_kwargs    variables of the model's chat template, such as enable_thinking
    continue_final_message  continue the text of the last message, an assistant's
    add_generation_prompt   False: end the prompt behind the last message
    images                  one or several: path, bytes, URL, PIL image or uint8 array; they go
                            before the text of the last user message
    logprobs                whether to return log probabilities
    top_logprobs            that many rivals with every token
    tools                   what the model may call: functions, types such as pydantic models, or
                            OpenAI's objects
    tool_choice             "auto", "none", "required", or the one tool that it must call
    parallel_tool_calls     False: at most one call
    include_reasoning       False: without what the model thought, which counts all the same
    reasoning_effort        how much it thinks, in the words of its chat template
    """

    chat_template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    images: Images | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: Tools | None
    tool_choice: ToolChoice | None
    parallel_tool_calls: bool | None
    include_reasoning: bool | None
    reasoning_effort: str | None


class ChatOptions(ParseOptions, Structure, total=False):
    """Options of a chat: those of ParseOptions, and those of Structure for the answer's form."""


class CompletionOptions(Options, Structure, total=False):
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


class TokenizeOptions(TypedDict, total=False):
    """Options of a tokenization; those of the same name are as in a chat or a plain continuation.

    return_token_strs  give every token as the vocabulary writes it, too
    """

    model: str | None
    extra: Mapping[str, Any] | None
    images: Images | None
    tools: Tools | None
    add_special_tokens: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    return_token_strs: bool | None


Known: TypeAlias = "type[Options] | type[ScoreOptions] | type[TokenizeOptions]"


def request_body(own: Mapping[str, Any], given: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """Return `own` fields and options as one body. Raises InvalidInput, TypeError on odd names."""
    check_names(given, known)
    body = dict(own)
    for name, value in given.items():
        if value is None or name in NOT_IN_THE_BODY:
            continue
        made = MADE[name](value) if name in MADE else plain(value, name)
        if name in GRAMMARS:
            body.setdefault("structured_outputs", {})[name] = made
        else:
            body[FIELDS.get(name, name)] = made
    check_structure(body)
    tools.check_choice(body)
    return merged(body, given.get("extra"))


def check_structure(body: Mapping[str, Any]) -> None:
    """Refuse two forms for one answer. Raises InvalidInput."""
    forms = [*body.get("structured_outputs", ())]
    forms += [name for name in ("response_format",) if name in body]
    if len(forms) > 1:
        raise InvalidInput(f"an answer has one form, not those of {' and '.join(forms)}")


def check_names(given: Mapping[str, Any], known: Known) -> None:
    names = known.__annotations__
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "send new fields through extra={…}"
            raise TypeError(f"unknown option {name!r}: {hint}")


def merged(body: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Add the caller's extra fields; one that is set already is refused, never overridden."""
    extra = {} if extra is None else extra
    if not isinstance(extra, Mapping):
        raise InvalidInput(f"extra are fields by name, not {type(extra).__name__}")
    if twice := sorted(body.keys() & extra.keys()):
        raise InvalidInput(f"extra repeats what is set already: {', '.join(twice)}")
    return {**body, **plain(extra, "extra")}
