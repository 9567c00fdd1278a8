"""Python client of the Saccade inference server.

with Saccade() as client:
    answer = client.chat("Is there a dog?", images="street.jpg", interventions=["pai:alpha=0.3"])
    print(answer.text, answer.interventions_applied)
"""

__version__ = "0.1.0"

from saccade_client.answers import ChatChunk, ChatCompletion, Completion, CompletionChunk
from saccade_client.arrays import TraceArray
from saccade_client.artifacts import Artifact, ArtifactDeleted, ArtifactFacts, artifact_id
from saccade_client.async_client import AsyncSaccade
from saccade_client.catalog import (
    InterventionDetail,
    InterventionInfo,
    Model,
    Profile,
    Validation,
)
from saccade_client.choices import ChatChoice, Detected, Message, Usage
from saccade_client.client import Saccade
from saccade_client.errors import (
    AnswerError,
    AnswerInvalid,
    AnswerRefused,
    AnswerTruncated,
    APIError,
    ArgumentsInvalid,
    Authentication,
    BadRequest,
    Conflict,
    ConnectionFailed,
    InvalidInput,
    MissingPackage,
    NotFound,
    RateLimited,
    SaccadeError,
    ServerBusy,
    ServerError,
    StreamInterrupted,
    Timeout,
    TooLarge,
)
from saccade_client.images import image_part
from saccade_client.interventions import Intervention
from saccade_client.options import (
    ChatOptions,
    CompletionOptions,
    ParseOptions,
    ScoreOptions,
    TokenizeOptions,
)
from saccade_client.receipts import AppliedIntervention, StructuredOutput
from saccade_client.response_formats import Parsed
from saccade_client.scores import ContinuationScore, Scores
from saccade_client.stream import AsyncStream, Stream
from saccade_client.tokens import Tokens
from saccade_client.tool_calls import ToolCall, ToolCallDelta
from saccade_client.tools import tool
from saccade_client.traces import Trace

__all__ = [
    "APIError",
    "AnswerError",
    "AnswerInvalid",
    "AnswerRefused",
    "AnswerTruncated",
    "AppliedIntervention",
    "ArgumentsInvalid",
    "Artifact",
    "ArtifactDeleted",
    "ArtifactFacts",
    "AsyncSaccade",
    "AsyncStream",
    "Authentication",
    "BadRequest",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatOptions",
    "Completion",
    "CompletionChunk",
    "CompletionOptions",
    "Conflict",
    "ConnectionFailed",
    "ContinuationScore",
    "Detected",
    "Intervention",
    "InterventionDetail",
    "InterventionInfo",
    "InvalidInput",
    "Message",
    "MissingPackage",
    "Model",
    "NotFound",
    "ParseOptions",
    "Parsed",
    "Profile",
    "RateLimited",
    "Saccade",
    "SaccadeError",
    "ScoreOptions",
    "Scores",
    "ServerBusy",
    "ServerError",
    "Stream",
    "StreamInterrupted",
    "StructuredOutput",
    "Timeout",
    "TokenizeOptions",
    "Tokens",
    "TooLarge",
    "ToolCall",
    "ToolCallDelta",
    "Trace",
    "TraceArray",
    "Usage",
    "Validation",
    "artifact_id",
    "image_part",
    "tool",
]
