"""What the server answers, as pydantic models: they are documented, and tests hold every answer
against them. Nothing is validated while serving.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from saccade_server.api.openapi.absent import Absent, no_default
from saccade_server.api.openapi.detector_replies import Detected
from saccade_server.api.openapi.trace_replies import AnswerTrace
from saccade_server.grammars.grammar import GrammarKind

FINISH = Literal["stop", "length", "tool_calls"]


class Failure(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = Field(description="JSON path of the field that is wrong, if one is.")
    code: str = Field(description="A word for programs: it does not change with the message.")


class ErrorBody(BaseModel):
    """Every refusal and failure, in OpenAI's shape."""

    error: Failure


class Alternative(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """A token of the answer."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Of a chat choice."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(BaseModel):
    """Of a plain completion; offsets count characters of the choice's text. Of an echoed prompt the
    first token has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(BaseModel):
    """How likely a token was in its place of the prompt; the likeliest has rank 1."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Of each token of a prompt: itself and its rivals, by their ids; null for the first."""


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionDetails(BaseModel):
    """Of a model that thinks, and of a method that rejects candidates for tokens."""

    reasoning_tokens: Absent[int]
    saliency_draws: Absent[int]
    saliency_rejections: Absent[int]


class Usage(BaseModel):
    """Tokens of a request; a prompt counts once however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: Absent[CompletionDetails]


class RowCounts(BaseModel):
    """Query rows that ran under an intervention, or were shared from an earlier request."""

    prompt: int
    generated: int
    cached: int


class EditCounts(BaseModel):
    """Edits of single rows. ``moved`` is null where nothing could move or it is not known whose."""

    evaluated: int
    moved: int | None


class Measured(BaseModel):
    """What an intervention measured, by layer."""

    heads: dict[str, list[int]]
    vhd: list[list[float]] | None
    t_vhd: float | None


class Applied(BaseModel):
    """The receipt of one intervention: what really ran."""

    index: int
    method: str
    version: str
    fingerprint: str
    filled_in: dict[str, Any] = Field(
        description="Fields that the entry left to its artifact, and what they were."
    )
    layers: list[int]
    heads: int
    rows: RowCounts
    edits: EditCounts
    counters: dict[str, int]
    measured: Measured | None
    status: Literal["applied", "no_effect", "cached", "neutral", "unconfirmed"]


class Envelope(BaseModel):
    """What every answer and every piece of one begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    intervention_profile: Absent[str]
    interventions_applied: Absent[list[Applied]]


class StructuredOutput(BaseModel):
    """The receipt of what an answer had to be."""

    kind: GrammarKind
    constrained_tokens: int = Field(description="Tokens that were drawn under the grammar.")
    forced_tokens: int = Field(description="Tokens for which the grammar left no other.")
    complete: bool = Field(
        description="The answer ended where it may; false for one that max_tokens or a stop text "
        "cut off."
    )


class CalledFunction(BaseModel):
    """Which function is called, and the JSON text of its arguments."""

    name: str
    arguments: str


class CalledTool(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """What the model said; the content is null where it only thought, or called tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: Absent[str]
    tool_calls: Absent[list[CalledTool]]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FINISH
    structured_output: Absent[StructuredOutput]
    trace: Absent[AnswerTrace]
    detectors: Absent[list[Detected]]


class ChatCompletion(Envelope):
    """The whole answer to a chat."""

    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: Absent[PromptLogprobs]


class FunctionDelta(BaseModel):
    """What is new about a call's function: its name comes first, arguments in pieces."""

    name: Absent[str]
    arguments: str


class ToolDelta(BaseModel):
    """What is new about the call of this index."""

    index: int
    id: Absent[str]
    type: Absent[Literal["function"]]
    function: FunctionDelta


class Delta(BaseModel):
    """What is new about a message."""

    role: Absent[Literal["assistant"]]
    content: Absent[str]
    reasoning_content: Absent[str]
    tool_calls: Absent[list[ToolDelta]]


class ChunkChoice(BaseModel):
    """What is new about one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FINISH | None
    structured_output: Absent[StructuredOutput]
    trace: Absent[AnswerTrace]
    detectors: Absent[list[Detected]]


class ChatChunk(Envelope):
    """The data of one event of a streamed chat; the last event's data is ``[DONE]``."""

    choices: list[ChunkChoice]
    usage: Annotated[Usage | None, Field(None, json_schema_extra=no_default)]
    prompt_logprobs: Absent[PromptLogprobs]


class TextChoice(BaseModel):
    """One continuation, or what is new about it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FINISH | None
    structured_output: Absent[StructuredOutput]
    trace: Absent[AnswerTrace]
    detectors: Absent[list[Detected]]
    prompt_logprobs: Absent[PromptLogprobs]


class TextCompletion(Envelope):
    """The whole answer to a plain prompt."""

    choices: list[TextChoice]
    usage: Usage


class TextChunk(Envelope):
    """The data of one event of a streamed completion; the last event's data is ``[DONE]``."""

    choices: list[TextChoice]
    usage: Annotated[Usage | None, Field(None, json_schema_extra=no_default)]


class ContinuationScore(BaseModel):
    """How likely a continuation is behind the prompt."""

    index: int
    logprob: float = Field(description="The sum of `token_logprobs`, in nats.")
    is_greedy: bool = Field(description="Each token is the likeliest where it stands.")
    token_count: int
    tokens: list[str]
    token_ids: list[int]
    token_logprobs: list[float]


class Scored(Envelope):
    """What each continuation was given, in order."""

    scores: list[ContinuationScore]
    usage: Usage


class Tokenized(BaseModel):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str
