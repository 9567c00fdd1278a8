"""The field ``trace`` of a request: closed objects, strict types, everything checked that needs
neither the model nor the prompt; the rest is :mod:`~saccade_server.requests.traces.scope`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.artifacts import DIGEST
from saccade_interventions.indices import Indices
from saccade_interventions.vectors import Site
from saccade_server.requests.traces.fields import (
    Closed,
    Direction,
    Heads,
    Keys,
    Layers,
    Reduced,
    Rows,
    Tau,
    Whole,
)

MIB = 2**20
DEFAULT_BYTES = 16 * MIB
MOST_DIRECTIONS = 16
MOST_RANKS = 20
MOST_GROUPS = 16
MOST_GROUPED = 1024
"""Tokens of a group."""
RECENT = 8
"""Keys before a row that are its recent ones, unless the request says how many."""

Kind = TypeVar("Kind")


def _switch_kind(value: Any) -> str | None:
    if isinstance(value, bool):
        return "switch"
    return "options" if isinstance(value, dict | BaseModel) else None


def _by_head() -> list[Literal["layer", "head"]]:
    return ["head"]


class Rowed(Closed):
    """Of chosen rows."""

    rows: Rows = "answer"


class Layered(Rowed):
    """Of chosen rows and layers."""

    layers: Layers = None


class ByHead(Layered):
    """Of chosen rows, layers and heads."""

    heads: Heads = None
    reduce: Reduced = Field(default_factory=_by_head)


class Masses(ByHead):
    """How much of its attention a row gives to each class of keys."""

    sinks: Literal["group", "keep"] = Field(
        "group", description="Attention sinks: a class of their own, or keys like all others."
    )
    tau: Tau = None
    recent: Whole = Field(
        RECENT, description="Keys before a row that count as its recent ones, itself among them."
    )


class Attention(ByHead):
    """Shares of attention, key by key."""

    keys: Keys = "prompt"


class HeatMaps(ByHead):
    """Shares of attention on the grid of each image."""

    images: Indices | None = Field(
        None, description="Images of the prompt, counted from 0. Left out: all."
    )
    tau: Tau = None
    sinks: Literal["keep", "mark", "drop"] = Field(
        "keep",
        description="Cells that are attention sinks: as they are, told in an array of their own, "
        "or told and set to 0.",
    )


class Columns(ByHead):
    """Shares of attention of each key, summed over rows."""

    keys: Keys = "prompt"


class Saliency(ByHead):
    """What each key meant to the tokens that were drawn; rows are of the answer."""

    keys: Keys = "prompt"


class Projections(Layered):
    """Dot products of what a site holds with unit directions."""

    artifact: Annotated[str, StringConstraints(pattern=DIGEST)] | None = None
    directions: (
        Annotated[list[Direction], Field(min_length=1, max_length=MOST_DIRECTIONS)] | None
    ) = Field(None, description="Of hidden_size numbers each; their lengths do not count.")
    site: Site | None = Field(
        None,
        description="Where: the residual entering a layer (one more than there are layers: behind "
        "the last), or what a part of a layer adds to it. Left out: the artifact's, or residual.",
    )

    @model_validator(mode="after")
    def _one(self) -> Projections:
        if (self.artifact is None) == (self.directions is None):
            raise PydanticCustomError("one_source", "name either an artifact or directions")
        return self


class LogitLens(Layered):
    """The likeliest tokens of layers, by the model's own output projection."""

    top: Annotated[Whole, Field(ge=1, le=MOST_RANKS)] = 5


class Entropy(Rowed):
    """Of the distribution of the next token, the model's last or that of layers."""

    layers: Indices | None = Field(
        None,
        description="Residuals entering these layers, or behind the last, read as if the rest "
        "added nothing. Left out: the model's own distribution alone.",
    )


class TokenShares(Rowed):
    """The probability of groups of tokens being next."""

    tokens: Annotated[
        list[Annotated[list[Whole], Field(fail_fast=True, max_length=MOST_GROUPED)]],
        Field(min_length=1, max_length=MOST_GROUPS, fail_fast=True),
    ] = Field(description="Groups of token ids; a group's probability is the sum of theirs.")


class Divergence(Layered):
    """How far head outputs are from those without the images; rows are of the answer."""

    top: Annotated[Whole, Field(ge=1)] | None = Field(
        None,
        description="Heads of each layer whose divergences T-VHD sums, the largest. Left out: "
        "half of them.",
    )


class VisualAttention(Closed):
    """Shares of attention on images, divided by those on the system prompt."""

    layers: Layers = None
    with_first: bool = Field(
        False,
        description="The first token of all counts to the system prompt. It is an attention sink, "
        "and outweighs the others.",
    )


class Sinks(Closed):
    """Scores of attention sinks, and in how many layers a key is one."""

    layers: Layers = None
    tau: Tau = None


Chosen = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[Kind, Tag("options")],
    Discriminator(
        _switch_kind,
        custom_error_type="trace_kind",
        custom_error_message="true, or an object of options, is expected",
    ),
]
"""A kind of trace as a request names it: true, or its options."""


class TraceOptions(Closed):
    """What to record of the forward passes of a request; nothing of its answer changes.

    Every kind is ``true``, or an object of options; projections need options.
    """

    masses: Chosen[Masses] | None = None
    attention: Chosen[Attention] | None = None
    heatmaps: Chosen[HeatMaps] | None = None
    columns: Chosen[Columns] | None = None
    projections: Projections | None = None
    logit_lens: Chosen[LogitLens] | None = None
    entropy: Chosen[Entropy] | None = None
    token_shares: TokenShares | None = None
    vhd: Chosen[Divergence] | None = None
    vas: Chosen[VisualAttention] | None = None
    saliency: Chosen[Saliency] | None = None
    sinks: Chosen[Sinks] | None = None
    max_bytes: Annotated[Whole, Field(ge=1)] = Field(
        DEFAULT_BYTES,
        description="What all arrays of all choices may have together, as raw numbers; more is "
        "refused before anything runs.",
    )
    encoding: Literal["list", "base64"] = Field(
        "list",
        description="Of arrays in the answer: nested lists, or one text of little-endian numbers.",
    )
    delivery: Literal["auto", "inline", "link"] = Field(
        "auto",
        description="Arrays in the answer, or as a safetensors file behind a link; auto: by size. "
        "An answer holds 16 MiB of them at most.",
    )

    def chosen(self) -> dict[str, Closed]:
        """The kinds that are asked for, with their options, in the order above."""
        found = {}
        for name, default in KINDS.items():
            value = getattr(self, name)
            if value:
                found[name] = default() if value is True else value
        return found


KINDS: dict[str, type[Closed]] = {
    "masses": Masses,
    "attention": Attention,
    "heatmaps": HeatMaps,
    "columns": Columns,
    "projections": Projections,
    "logit_lens": LogitLens,
    "entropy": Entropy,
    "token_shares": TokenShares,
    "vhd": Divergence,
    "vas": VisualAttention,
    "saliency": Saliency,
    "sinks": Sinks,
}
"""Every kind, and its options."""
