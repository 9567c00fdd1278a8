"""Python client of the Saccade inference server.

with Saccade() as client:
    answer = client.chat("Is there a dog?", images="street.jpg", interventions=["pai:alpha=0.3"])
    print(answer.text, answer.interventions_applied)
"""

__version__ = "0.1.0"

from saccade_client.artifacts import Artifact, ArtifactDeleted, ArtifactFacts, artifact_id
from saccade_client.async_client import AsyncSaccade
from saccade_client.catalog import (
    InterventionDetail,
    InterventionInfo,
    Model,
    Profile,
    Validation,
)
from saccade_client.client import Saccade
from saccade_client.errors import (
    APIError,
    Authentication,
    BadRequest,
    Conflict,
    ConnectionFailed,
    InvalidInput,
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
from saccade_client.options import ChatOptions, CompletionOptions, ScoreOptions
from saccade_client.stream import AsyncStream, Stream
from saccade_client.traces import Trace, TraceArray
from saccade_client.types import (
    AppliedIntervention,
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    ContinuationScore,
    Detected,
    Scores,
    Usage,
)

__all__ = [
    "APIError",
    "AppliedIntervention",
    "Artifact",
    "ArtifactDeleted",
    "ArtifactFacts",
    "AsyncSaccade",
    "AsyncStream",
    "Authentication",
    "BadRequest",
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
    "Model",
    "NotFound",
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
    "Timeout",
    "TooLarge",
    "Trace",
    "TraceArray",
    "Usage",
    "Validation",
    "artifact_id",
    "image_part",
]
