"""What the server answers, as typed and immutable objects.

Fields unknown to this version are kept as attributes, and fields a server leaves out have defaults,
so that client and server may be of different ages. The wire's own field names are used throughout.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, PrivateAttr

from saccade_client.traces import Trace
from saccade_client.wire import WIRE


class Wire(BaseModel):
    """Base of all answers: immutable, and open to fields of newer servers."""

    model_config = WIRE


class Reply(Wire):
    """A whole answer, which remembers the request id its header carried."""

    _request_id: str | None = PrivateAttr(default=None)

    @property
    def request_id(self) -> str | None:
        """The x-request-id header: quote it when you report a problem."""
        return self._request_id


ReplyT = TypeVar("ReplyT", bound=Reply)


def with_request_id(reply: ReplyT, request_id: str | None) -> ReplyT:
    reply._request_id = request_id
    return reply


class Usage(Wire):
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None


class Rows(Wire):
    """How many query rows an intervention covered: computed in the prompt, generated, or cached.

    Cached rows came from the prefix cache, where they had been computed under the same plan.
    """

    prompt: int = 0
    generated: int = 0
    cached: int = 0


class Edits(Wire):
    """Attention rows of single heads: how many were considered, and how many really moved.

    A row that the server computes more than once counts once, so `moved` never exceeds `evaluated`.

    `moved` is None where rows are not counted: for edits of scores and outputs, which change every
    row they consider, and where several interventions moved rows of the same head.
    """

    evaluated: int = 0
    moved: int | None = None


class AppliedIntervention(Wire):
    """One line of the receipt: what the server really did for entry `index` of the request.

    `filled_in` are fields that the entry left to its artifact, with what they were; `layers` are
    layer indices, `heads` counts (layer, query head) pairs, `counters` say what a method that
    follows a rule did, `measured` what it found out. `status` is one of
    applied      attention moved, rows went through its edits (also of a clamp that never bound), or
                 its rule contrasted or rejected something
    no_effect    it ran, or found no row to run on, and nothing changed
    cached       nothing changed here, but some of its rows are shared with an earlier request
    neutral      its strength makes it the identity, so there was nothing to run
    unconfirmed  the engine sent no report, or several interventions moved rows of the same head
    """

    index: int = 0
    method: str
    version: str | None = None
    fingerprint: str | None = None
    filled_in: dict[str, Any] = {}
    layers: list[int] = []
    heads: int = 0
    rows: Rows = Rows()
    edits: Edits = Edits()
    counters: dict[str, int] = {}
    measured: dict[str, Any] | None = None
    status: str


# Null and absent both mean that nothing was asked for.
Receipt = Annotated[list[AppliedIntervention], BeforeValidator(lambda value: value or [])]


class TopLogprob(Wire):
    """One alternative token with its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A generated token, its log probability and its closest rivals."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(Wire):
    """Log probabilities of the generated tokens, in order."""

    content: list[TokenLogprob] | None = None


class PromptLogprob(Wire):
    """How likely a token was in its place of the prompt; the likeliest has rank 1."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Of each token of a prompt itself and its rivals, by their ids; None for the first."""


class TextLogprobs(Wire):
    """Log probabilities as /v1/completions gives them: parallel lists, one item a token.

    The first token of an echoed prompt has none.
    """

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class Message(Wire):
    """What the model said."""

    role: str = "assistant"
    content: str | None = None


class Detected(Wire):
    """What one detector found in an answer.

    `score` is of the whole answer, None where it has none, and then `reason` says why; `tokens`
    are scores of the answer's tokens, `values` what they are made of. `flagged` is whether the
    score lies on the suspicious side (`suspect`) of the request's `threshold`.
    """

    name: str
    score: float | None = None
    unit: str = ""
    suspect: str = ""
    threshold: float | None = None
    flagged: bool | None = None
    reason: str | None = None
    tokens: list[float | None] | None = None
    values: dict[str, Any] = {}


class ChatChoice(Wire):
    """One of the `n` answers; `finish_reason` is "stop", "length" or a server's own word."""

    index: int = 0
    message: Message
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    trace: Trace | None = None
    detectors: list[Detected] | None = None

    @property
    def text(self) -> str:
        return self.message.content or ""


class TextChoice(Wire):
    """One of the `n` continuations, or a piece of it inside a stream."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None
    trace: Trace | None = None
    detectors: list[Detected] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Delta(Wire):
    """The piece of a message that one chunk adds."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(Wire):
    """The piece that a chunk adds to answer `index`."""

    index: int = 0
    delta: Delta = Delta()
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    trace: Trace | None = None
    detectors: list[Detected] | None = None

    @property
    def text(self) -> str:
        return self.delta.content or ""


class Generation(Reply):
    """What whole answers and chunks of a stream have in common.

    `intervention_profile` is the profile that the interventions came from, if they did;
    `prompt_logprobs` are those of a chat's prompt.
    """

    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str | None = None
    intervention_profile: str | None = None
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatCompletion(Generation):
    """The answer of /v1/chat/completions; `interventions_applied` is the receipt."""

    object: str = "chat.completion"
    choices: list[ChatChoice]
    interventions_applied: Receipt = []

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return first_text(self.choices)

    @property
    def trace(self) -> Trace | None:
        """The trace of the first choice, if the request asked for one."""
        return self.choices[0].trace if self.choices else None

    @property
    def detectors(self) -> list[Detected]:
        """What detectors found in the first choice, in the order of the request."""
        return (self.choices[0].detectors if self.choices else None) or []


class Completion(Generation):
    """The answer of /v1/completions; `interventions_applied` is the receipt."""

    object: str = "text_completion"
    choices: list[TextChoice]
    interventions_applied: Receipt = []

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return first_text(self.choices)

    @property
    def trace(self) -> Trace | None:
        """The trace of the first choice, if the request asked for one."""
        return self.choices[0].trace if self.choices else None

    @property
    def detectors(self) -> list[Detected]:
        """What detectors found in the first choice, in the order of the request."""
        return (self.choices[0].detectors if self.choices else None) or []


class ContinuationScore(Wire):
    """How likely a continuation is: `logprob` is the sum of `token_logprobs`, in nats.

    `is_greedy`: each token is the likeliest where it stands.
    """

    index: int = 0
    logprob: float
    is_greedy: bool
    token_count: int
    tokens: list[str] = []
    token_ids: list[int] = []
    token_logprobs: list[float] = []


class Scores(Generation):
    """The answer of /v1/score, in the order of the continuations."""

    object: str = "score"
    scores: list[ContinuationScore]
    interventions_applied: Receipt = []

    @property
    def logprobs(self) -> list[float]:
        """The log probability of each continuation."""
        return [score.logprob for score in self.scores]

    @property
    def likeliest(self) -> int:
        """The place of the likeliest continuation; of equal ones the first."""
        return max(range(len(self.scores)), key=lambda index: self.scores[index].logprob)


class ChatChunk(Generation):
    """One event of a chat stream. The last ones carry usage and receipt, and no text."""

    object: str = "chat.completion.chunk"
    choices: list[ChatChunkChoice] = []
    interventions_applied: Receipt | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the first choice; empty for chunks of the others."""
        return first_text(self.choices)


class CompletionChunk(Generation):
    """One event of a completion stream. The last ones carry usage and receipt, and no text."""

    object: str = "text_completion"
    choices: list[TextChoice] = []
    interventions_applied: Receipt | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the first choice; empty for chunks of the others."""
        return first_text(self.choices)


def first_text(choices: list[ChatChoice] | list[TextChoice] | list[ChatChunkChoice]) -> str:
    return "".join(choice.text for choice in choices if choice.index == 0)
