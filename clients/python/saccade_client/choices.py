"""Choices of an answer, whole and in pieces, as typed and immutable objects.

Fields unknown to this version are kept as attributes, and fields a server leaves out have defaults,
so that client and server may be of different ages. The wire's own field names are used throughout.
"""

from typing import Annotated, Any, TypeVar

from pydantic import Field

from saccade_client.errors import (
    AnswerInvalid,
    AnswerRefused,
)
from saccade_client.logprobs import ChatLogprobs, PromptLogprobs, TextLogprobs
from saccade_client.parsing import parsed
from saccade_client.receipts import StructuredOutput
from saccade_client.tool_calls import ToolCall, ToolCallDelta
from saccade_client.traces import Trace
from saccade_client.wire import NULL_IS_EMPTY, Wire

T = TypeVar("T")


class Usage(Wire):
    """Token counts of one request; the reasoning's are among those of the completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning; 0 where the server tells none."""
        return (self.completion_tokens_details or {}).get("reasoning_tokens") or 0

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that came from the prefix cache."""
        return (self.prompt_tokens_details or {}).get("cached_tokens") or 0


class Message(Wire):
    """What the model said, thought and called; a conversation takes it back as it is."""

    role: str = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], NULL_IS_EMPTY] = Field(default_factory=list)

    @property
    def text(self) -> str:
        return self.content or ""

    @property
    def reasoning(self) -> str:
        """What it thought before it answered; empty for models that do not think."""
        return self.reasoning_content or ""

    def entry(self) -> dict[str, Any]:
        """Return the message as a request has it: without what is null or empty."""
        found = self.model_dump(exclude_none=True)
        if not self.tool_calls:
            found.pop("tool_calls", None)
        return found


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
    values: dict[str, Any] = Field(default_factory=dict)


class ChatChoice(Wire):
    """One of the `n` answers; `finish_reason` is "stop", "length", "tool_calls" or another word."""

    index: int = 0
    message: Message
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    trace: Trace | None = None
    detectors: list[Detected] | None = None
    structured_output: StructuredOutput | None = None

    @property
    def text(self) -> str:
        return self.message.text

    @property
    def reasoning(self) -> str:
        return self.message.reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.message.tool_calls

    def parse(self, kind: type[T]) -> T:
        """Return what the text says in JSON, as a model, a dataclass or any type pydantic knows.

        Raises AnswerTruncated, AnswerRefused, AnswerInvalid, and InvalidInput for what is no type.
        """
        if self.message.refusal:
            raise AnswerRefused(f"the model refused: {self.message.refusal}", text=self.text)
        if self.tool_calls and not self.text:
            raise AnswerInvalid("the model called tools instead of answering: see tool_calls")
        return parsed(kind, self.text, self.finish_reason)


class TextChoice(Wire):
    """One of the `n` continuations, or a piece of it inside a stream."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None
    trace: Trace | None = None
    detectors: list[Detected] | None = None
    structured_output: StructuredOutput | None = None
    prompt_logprobs: PromptLogprobs | None = None

    def parse(self, kind: type[T]) -> T:
        """Return what the text says in JSON as a value of a type; as ChatChoice.parse."""
        return parsed(kind, self.text, self.finish_reason)


class Delta(Wire):
    """The piece of a message that one chunk adds."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCallDelta], NULL_IS_EMPTY] = Field(default_factory=list)


class ChatChunkChoice(Wire):
    """The piece that a chunk adds to answer `index`."""

    index: int = 0
    delta: Delta = Delta()
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    trace: Trace | None = None
    detectors: list[Detected] | None = None
    structured_output: StructuredOutput | None = None

    @property
    def text(self) -> str:
        return self.delta.content or ""

    @property
    def reasoning(self) -> str:
        return self.delta.reasoning_content or ""
