"""What the server answers about itself; see :mod:`~saccade_server.api.openapi.replies`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from saccade_server.api.openapi.absent import Absent
from saccade_server.grammars.grammar import GrammarKind


class ModelCard(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    accepts_images: bool
    accepts_tools: bool
    structured_outputs: list[GrammarKind] = Field(description="What answers can be held to.")
    knows_sinks: bool = Field(
        description="Whether attention sinks can be told, as methods and traces about them need."
    )
    batch_invariant: bool = Field(
        description="Whether a request's tokens depend, bit for bit, on nothing that runs beside "
        "it, as `saccade serve --batch-invariant` promises."
    )
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    fingerprint: str
    chat_template_variables: list[str]
    reasoning_markers: list[str] | None = Field(
        description="What stands around the model's reasoning, which answers have apart from their "
        "content; null if the chat template speaks of none."
    )
    profile: str | None = Field(
        description="Whose interventions requests get that name this model and nothing else: an "
        "alias's own profile, or else the server's default, if it has one."
    )


class ModelList(BaseModel):
    """The served model, and an alias of it for every profile."""

    object: Literal["list"]
    data: list[ModelCard]


class MethodFacts(BaseModel):
    """What a method is."""

    id: str
    version: str
    title: str
    summary: str
    paper: str
    level: str
    needs_image: bool
    needs_artifact: bool


class MethodLine(MethodFacts):
    """A method, and whether the served model supports it.

    ``tested``: it passed the self-test of this server, which may be off or run out of time.
    """

    supported: bool
    tested: bool
    reason: str | None
    conflicts_with: list[str]


class MethodList(BaseModel):
    """All methods."""

    object: Literal["list"]
    data: list[MethodLine]


class Method(MethodFacts):
    """A method and the JSON Schema of its entry."""

    rows: str | None
    # Named otherwise than in the answer: BaseModel has a method of that name.
    entry_schema: Annotated[dict[str, Any], Field(alias="schema")]
    example: dict[str, Any]
    neutral: dict[str, Any] | None


class CheckedEntry(BaseModel):
    """An entry as it would run, its artifact's defaults filled in.

    Where and whether it acts is only known if there was a prompt.
    """

    index: int
    method: str
    version: str
    fingerprint: str
    entry: dict[str, Any]
    layers: Absent[list[int]]
    heads: Absent[int]
    status: Absent[Literal["ready", "neutral"]]


class Validation(BaseModel):
    """What a real request with these interventions would run."""

    object: Literal["intervention.validation"]
    valid: Literal[True]
    checked: list[Literal["parameters", "model", "prompt"]]
    depends_on_prompt: list[str]
    prompt_tokens: int | None
    profile: str | None
    fingerprint: str
    interventions: list[CheckedEntry]


class ProfileCard(BaseModel):
    """A bundle of interventions that the operator named."""

    id: str
    object: Literal["intervention.profile"]
    description: str
    model: str
    interventions: list[dict[str, Any]]
    fingerprint: str
    default: bool = Field(description="Requests that name nothing get it; [] opts out.")


class ProfileList(BaseModel):
    """All profiles."""

    object: Literal["list"]
    data: list[ProfileCard]


class ArtifactCard(BaseModel):
    """What calibration found, kept on the server."""

    id: str
    object: Literal["artifact"]
    kind: str
    bytes: int
    notes: str
    defaults: dict[str, Any] = Field(description="What entries get that leave these fields out.")
    fits: bool = Field(description="Whether it was made for the served model.")
    created: int = Field(description="When it was put here, in seconds since the epoch.")
    last_used: int | None = Field(
        description="When a prompt was last prepared with it, by any server of the folder."
    )
    uses: int = Field(description="How many prompts were, by all servers of the folder.")
    profile: str | None = Field(description="A profile that names it: then it stays.")


class ArtifactList(BaseModel):
    """All artifacts, and the room for them."""

    object: Literal["list"]
    data: list[ArtifactCard]
    total_bytes: int = Field(description="Of everything in the folder, unfinished uploads too.")
    max_bytes: int
    ttl_seconds: float | None = Field(
        description="After which those leave that nothing has used; null: never."
    )


class ArtifactDeleted(BaseModel):
    """An artifact that is gone."""

    id: str
    object: Literal["artifact"]
    deleted: Literal[True]


class Version(BaseModel):
    """Of the server."""

    version: str
    deployment: str = Field(description="Equal on servers that may stand behind one address.")


class DeploymentFacts(BaseModel):
    """What must be equal on servers behind one address."""

    object: Literal["deployment"]
    deployment: str = Field(description="The digest of the facts.")
    facts: dict[str, Any]


class Load(BaseModel):
    """What the engine is busy with, and its lifetime counters."""

    running: int
    waiting: int
    cache_usage: float
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    image_encodes: int
    plans: int
    http_requests: int
    intervention_noops: int = Field(description="Anything but 0 is a fault of the server.")
    draining: bool
