"""What the server answers to a generation: whole answers, and the chunks of a stream."""

from typing import TypeVar

from pydantic import Field

from saccade_client.choices import (
    ChatChoice,
    ChatChunkChoice,
    Detected,
    Message,
    TextChoice,
    Usage,
)
from saccade_client.errors import AnswerInvalid
from saccade_client.logprobs import PromptLogprobs
from saccade_client.parsing import carried_by
from saccade_client.receipts import Receipt, StructuredOutput
from saccade_client.tool_calls import ToolCall, ToolCallDelta
from saccade_client.traces import Trace
from saccade_client.wire import Reply

T = TypeVar("T")


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
    interventions_applied: Receipt = Field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return first_text(self.choices)

    @property
    def message(self) -> Message:
        """The first choice's message, for the next turn. Raises AnswerInvalid if there is none."""
        return self._first.message

    @property
    def reasoning(self) -> str:
        """What the first choice thought before it answered."""
        return self.choices[0].reasoning if self.choices else ""

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of the first choice."""
        return self.choices[0].tool_calls if self.choices else []

    def parse(self, kind: type[T]) -> T:
        """Return what the first choice says in JSON as a value of a type; as ChatChoice.parse."""
        with carried_by(self):
            return self._first.parse(kind)

    @property
    def _first(self) -> ChatChoice:
        if not self.choices:
            raise AnswerInvalid("the answer has no choices", answer=self)
        return self.choices[0]

    @property
    def trace(self) -> Trace | None:
        """The trace of the first choice, if the request asked for one."""
        return self.choices[0].trace if self.choices else None

    @property
    def detectors(self) -> list[Detected]:
        """What detectors found in the first choice, in the order of the request."""
        return (self.choices[0].detectors if self.choices else None) or []

    @property
    def structured_output(self) -> StructuredOutput | None:
        """The receipt of the first choice's form, if the request asked for one."""
        return self.choices[0].structured_output if self.choices else None


class Completion(Generation):
    """The answer of /v1/completions; `interventions_applied` is the receipt."""

    object: str = "text_completion"
    choices: list[TextChoice]
    interventions_applied: Receipt = Field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return first_text(self.choices)

    def parse(self, kind: type[T]) -> T:
        """Return what the first choice says in JSON as a value of a type; as ChatChoice.parse."""
        with carried_by(self):
            if not self.choices:
                raise AnswerInvalid("the answer has no choices")
            return self.choices[0].parse(kind)

    @property
    def trace(self) -> Trace | None:
        """The trace of the first choice, if the request asked for one."""
        return self.choices[0].trace if self.choices else None

    @property
    def detectors(self) -> list[Detected]:
        """What detectors found in the first choice, in the order of the request."""
        return (self.choices[0].detectors if self.choices else None) or []

    @property
    def structured_output(self) -> StructuredOutput | None:
        """The receipt of the first choice's form, if the request asked for one."""
        return self.choices[0].structured_output if self.choices else None


class ChatChunk(Generation):
    """One event of a chat stream. The last ones carry usage and receipt, and no text."""

    object: str = "chat.completion.chunk"
    choices: list[ChatChunkChoice] = Field(default_factory=list)
    interventions_applied: Receipt | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the first choice; empty for chunks of the others."""
        return first_text(self.choices)

    @property
    def reasoning(self) -> str:
        """What this chunk adds to the reasoning of the first choice."""
        return "".join(choice.reasoning for choice in self.choices if choice.index == 0)

    @property
    def tool_calls(self) -> list[ToolCallDelta]:
        """What this chunk adds to the calls of the first choice."""
        return [call for item in self.choices if item.index == 0 for call in item.delta.tool_calls]


class CompletionChunk(Generation):
    """One event of a completion stream. The last ones carry usage and receipt, and no text."""

    object: str = "text_completion"
    choices: list[TextChoice] = Field(default_factory=list)
    interventions_applied: Receipt | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the first choice; empty for chunks of the others."""
        return first_text(self.choices)


def first_text(choices: list[ChatChoice] | list[TextChoice] | list[ChatChunkChoice]) -> str:
    return "".join(choice.text for choice in choices if choice.index == 0)
