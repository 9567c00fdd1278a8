"""What clients may send. Strict about types in every field that is read, open to unknown fields.

``null`` means "not given" in every field that may be left out, because SDKs send it. Ranges that
depend on the model or on the operator's limits are checked where those are known: lengths in
:mod:`~saccade_server.api.limits`, the rest in :mod:`~saccade_server.api.sampling`. A list stops at
its first mistake, or a body of nothing else would cost seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MOST_STOPS = 4
LONGEST_STOP = 1024
MOST_BIASES = 1024
MOST_ALTERNATIVES = 20
INT64 = 2**63

Token = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


def _text_or_list(value: Any) -> str:
    # One member of the union is chosen before validation, so a client sees one error, not two.
    return "text" if isinstance(value, str) else "list"


def _prompt_kind(value: Any) -> str:
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else None
    if isinstance(first, str):
        return "texts"
    return "token_lists" if isinstance(first, list) else "tokens"


class Strict(BaseModel):
    """Strict types; unknown fields are kept aside in ``model_extra``."""

    model_config = ConfigDict(strict=True, extra="allow")


class Closed(BaseModel):
    """Strict types; unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Closed):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Selecting(BaseModel):
    """The fields that say under which interventions a request runs."""

    model: str | None = Field(None, description="The served model, or `<model>+<profile>`.")
    interventions: Any = Field(
        None,
        description="Interventions, in order: objects with a `method` and its own parameters; "
        "GET /v1/interventions lists them. null or [] for none; left out: those of the profile.",
    )
    intervention_profile: str | None = Field(
        None, description="A profile by name; GET /v1/profiles lists them."
    )
    vllm_xargs: dict[str, Any] | None = Field(
        None, description="`interventions` as a JSON text, for tools that can pass texts only."
    )


class Sampled(Strict, Selecting):
    """The fields that both generation endpoints share."""

    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: (
        Annotated[
            Annotated[Stop, Tag("text")]
            | Annotated[list[Stop], Field(fail_fast=True, max_length=MOST_STOPS), Tag("list")],
            Discriminator(_text_or_list),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[Token], Field(fail_fast=True, max_length=128)] | None = None
    ignore_eos: bool | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MOST_BIASES),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

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


class ImageUrl(Strict):
    """Where an image is: a data URL, or http(s) where the operator allows it."""

    url: str
    detail: str | None = None


class TextPart(Strict):
    """Text among images."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[Part], Field(fail_fast=True, min_length=1), Tag("list")],
        Discriminator(_text_or_list),
    ]


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[str], Field(fail_fast=True, min_length=1), Tag("texts")]
        | Annotated[list[Token], Field(fail_fast=True, min_length=1), Tag("tokens")]
        | Annotated[
            list[Annotated[list[Token], Field(fail_fast=True, min_length=1)]],
            Field(fail_fast=True, min_length=1),
            Tag("token_lists"),
        ],
        Discriminator(_prompt_kind),
    ]
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, however they were given."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str | list[int]], self.prompt)


class ValidateRequest(Closed, Selecting):
    """POST /v1/interventions/validate."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)] | None = None
    prompt_tokens: Annotated[list[Token], Field(fail_fast=True, min_length=1)] | None = None
