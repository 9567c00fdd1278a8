"""What clients may send. Strict about types in every field that is read, open to unknown fields.

``null`` means "not given" in every field that may be left out, because SDKs send it. Ranges that
depend on the model or on the operator's limits are checked where those are known: lengths in
:mod:`~saccade_server.api.body.limits`, the rest in :mod:`~saccade_server.api.sampling`. A list
stops at its first mistake, or a body of nothing else would cost seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, Discriminator, Field, Tag, WithJsonSchema

from saccade_server.api.body.messages import TEXT_OR_LIST, ChatMessage, Closed, Strict
from saccade_server.api.body.noeffect import describe
from saccade_server.api.body.reasoning import HowMuch, Shown
from saccade_server.api.body.structured import Structured
from saccade_server.api.body.values import (
    INT64,
    LONGEST_STOPS,
    MOST_ALTERNATIVES,
    MOST_BIASES,
    MOST_STOPS,
    Alternatives,
    Stop,
    Stops,
    Token,
    TokenId,
    Whole,
)
from saccade_server.api.errors import BadRequest
from saccade_server.api.tools.fields import ToolChoice, Tools
from saccade_server.requests.traces.options import TraceOptions


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    if isinstance(first, str):
        return "texts"
    return "token_lists" if isinstance(first, list) else "tokens"


def _named_by(key: str) -> WithJsonSchema:
    """What is read elsewhere: a list of objects, each named by one of its fields, or null."""
    entry = {"type": "object", "required": [key], "properties": {key: {"type": "string"}}}
    return WithJsonSchema({"anyOf": [{"type": "array", "items": entry}, {"type": "null"}]})


ONE_TEXT = WithJsonSchema(
    {
        "type": "object",
        "properties": {"interventions": {"type": ["string", "null"]}},
        "additionalProperties": False,
    }
)


class StreamOptions(Strict):
    """How to stream."""

    include_usage: bool | None = Field(None, description="End with a chunk that has the usage.")
    continuous_usage_stats: bool | None = Field(
        None, description="Give the usage so far in every chunk."
    )
    include_obfuscation: Any = Field(
        None, description=describe("stream_options.include_obfuscation")
    )


class Selecting(BaseModel):
    """The fields that say under which interventions a request runs."""

    model: str | None = Field(None, description="The served model, or `<model>+<profile>`.")
    interventions: Annotated[Any, _named_by("method")] = Field(
        None,
        description="Interventions, in order: objects with a `method` and its own parameters; "
        "GET /v1/interventions lists them. null or [] for none; left out: those of the profile, or "
        "of the server's default profile.",
    )
    intervention_profile: str | None = Field(
        None, description="A profile by name; GET /v1/profiles lists them."
    )
    vllm_xargs: Annotated[dict[str, Any], ONE_TEXT] | None = Field(
        None, description="`interventions` as a JSON text, for tools that can pass texts only."
    )


Priority = Annotated[
    Whole | None,
    Field(
        ge=-(2**31),
        lt=2**31,
        description="How urgent the request is while it waits: the lower goes first. Left out: the "
        "key's own, or 0.",
    ),
]


class Sampled(Strict, Selecting, Structured):
    """The fields that both generation endpoints share."""

    max_tokens: Whole | None = Field(
        None,
        ge=0,
        lt=INT64,
        description="The most tokens of an answer. 0, where only the prompt is asked about.",
    )
    max_completion_tokens: Whole | None = Field(
        None,
        ge=0,
        lt=INT64,
        description="The newer name of max_tokens; both may be given if equal.",
    )
    max_new_tokens: Whole | None = Field(
        None, ge=0, lt=INT64, description="Hugging Face's name of max_tokens; likewise."
    )
    min_tokens: Whole | None = Field(
        None,
        ge=0,
        lt=INT64,
        description="Nothing ends the answer before it has as many: no end token, no "
        "stop_token_ids, no stop text.",
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(
        None, ge=0, le=1, description="0 leaves the likeliest token alone, as temperature 0 does."
    )
    top_k: Whole | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: Whole | None = Field(None, ge=1)
    seed: Whole | None = Field(None, ge=-INT64, lt=INT64)
    stop: (
        Annotated[
            Annotated[Stop, Tag("text")] | Annotated[Stops, Tag("list")],
            TEXT_OR_LIST,
        ]
        | None
    ) = Field(
        None,
        description=f"Texts that end the answer, {MOST_STOPS} at most, with {LONGEST_STOPS} "
        "characters together.",
    )
    stop_token_ids: Annotated[list[Token], Field(fail_fast=True, max_length=128)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Alternatives = Field(
        None,
        description="Give the log-probability of every token of the prompt but the first, with "
        "that many rivals, in vLLM's form.",
    )
    priority: Priority = None
    logit_bias: (
        Annotated[
            dict[
                TokenId,
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MOST_BIASES, json_schema_extra={"additionalProperties": False}),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    trace: TraceOptions | None = Field(
        None, description="What to record of the forward passes; see docs/traces.md."
    )
    detectors: Annotated[Any, _named_by("name")] = Field(
        None,
        description="Detectors that score the answer: objects with a `name` and its own "
        "parameters; see docs/detectors.md.",
    )
    user: Any = Field(None, description=describe("user"))
    safety_identifier: Any = Field(None, description=describe("safety_identifier"))
    metadata: Any = Field(None, description=describe("metadata"))
    service_tier: Any = Field(None, description=describe("service_tier"))
    prompt_cache_key: Any = Field(None, description=describe("prompt_cache_key"))
    prompt_cache_retention: Any = Field(None, description=describe("prompt_cache_retention"))

    @property
    def length(self) -> tuple[int | None, str]:
        """The most tokens to generate, and the field that says so.

        Raises:
            BadRequest: two fields say it, and disagree.
        """
        names = ("max_tokens", "max_completion_tokens", "max_new_tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if len(set(given.values())) > 1:
            message = f"{' and '.join(given)} disagree; give one of them."
            raise BadRequest(message, param=next(iter(given)))
        return next(((value, name) for name, value in given.items()), (None, "max_tokens"))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class Templated(HowMuch):
    """The fields that say how a conversation becomes a prompt."""

    add_generation_prompt: bool | None = Field(
        None,
        description="End the prompt with the beginning of an assistant's turn. Left out: unless "
        "the last message is continued.",
    )
    continue_final_message: bool | None = Field(
        None,
        description="Continue the text of the last message, an assistant's, instead of answering "
        "it. The answer is what comes behind that text.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None,
        description="Variables of the model's chat template, such as enable_thinking; GET "
        "/v1/models lists those it has.",
    )
    enable_thinking: bool | None = Field(
        None, description="The same as chat_template_kwargs.enable_thinking."
    )
    tools: Tools | None = Field(
        None, description="Functions that the model may call; the chat template shows them to it."
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description="none: the tools are not shown, and none is called; auto, the default: as the "
        "model likes; required: one or more; an object: the function that it names, or some of "
        "the tools.",
    )


Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1)]


class ChatRequest(Sampled, Templated, Shown):
    """POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    parallel_tool_calls: bool | None = Field(
        None, description="false: one call at most. Left out: several, if the template has a form."
    )


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], Field(fail_fast=True, min_length=1), Tag("texts")]
        | Annotated[Tokens, Tag("tokens")]
        | Annotated[
            list[Tokens],
            Field(fail_fast=True, min_length=1),
            Tag("token_lists"),
        ],
        Discriminator(
            _prompt_kind,
            custom_error_type="no_prompt",
            custom_error_message="a text, a list of tokens, or a list of either is expected",
        ),
    ]
    logprobs: Alternatives = Field(
        None,
        description="Give log-probabilities, with that many rivals for every token.",
    )
    echo: bool | None = Field(
        None, description="Begin with the prompt: its text, and its `logprobs` if they are given."
    )
    add_special_tokens: bool | None = Field(
        None, description="Put the tokenizer's own, such as a BOS, around a text. Left out: true."
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, however they were given."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str | list[int]], self.prompt)


class ValidateRequest(Closed, Selecting, Templated):
    """POST /v1/interventions/validate."""

    messages: Messages | None = None
    prompt_tokens: Tokens | None = None


def _text_or_tokens(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "tokens" if isinstance(value, list) else None


TextOrTokens = Annotated[
    Annotated[str, Field(min_length=1), Tag("text")] | Annotated[Tokens, Tag("tokens")],
    Discriminator(
        _text_or_tokens,
        custom_error_type="not_text_or_tokens",
        custom_error_message="a text or a list of tokens is expected",
    ),
]


class ScoreRequest(Closed, Selecting, Templated):
    """POST /v1/score: a prompt, or a conversation, and what may follow it."""

    prompt: TextOrTokens | None = None
    messages: Messages | None = None
    continuations: Annotated[list[TextOrTokens], Field(fail_fast=True, min_length=1)] = Field(
        description="What may follow the prompt, each by itself: what an assistant might say to a "
        "conversation."
    )
    priority: Priority = None
    add_special_tokens: bool | None = Field(
        None,
        description="Put the tokenizer's own, such as a BOS, before a prompt of text. Left out: "
        "true. A conversation has those of its template.",
    )


class TokenizeRequest(Strict, Templated):
    """POST /tokenize: a plain prompt, or a conversation as a chat would have it."""

    model: str | None = Field(None, description="The served model.")
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        None,
        description="Put the tokenizer's own, such as a BOS, around a prompt. Left out: true. "
        "A conversation has those of its template.",
    )
    return_token_strs: bool | None = Field(
        None, description="Give every token as the vocabulary writes it, too."
    )


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: str | None = Field(None, description="The served model.")
    tokens: Annotated[list[Token], Field(fail_fast=True)]
