"""Strengths that an artifact's calibration chose: what requests get that name none.

They stand in the artifact's metadata, under ``defaults``, as the text of a JSON object. Whatever a
request says itself wins, field by field. Kinds that may have them, all fields optional:

    vectors       site         where its vectors act; absent: residuals
                  layers       of the artifact
                  coefficient  of the vectors as they are stored, added
    subspaces, low_rank, diagonal: likewise, with the coefficient of their only operation
    head_vectors  alpha        in standard deviations: the artifact has sigma
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.indices import Indices
from saccade_interventions.vectors import Site
from saccade_interventions.wording import about

MOST_CHARACTERS = 16 * 2**10
MOST_STRENGTH = 1000.0
MOST_PROJECTED = 2.0
"""At 1 a projection removes the part in a subspace, at 2 it turns it round."""

NOTHING: Mapping[str, Any] = MappingProxyType({})

Strength = Annotated[float, Field(ge=-MOST_STRENGTH, le=MOST_STRENGTH)]


class _Defaults(BaseModel):
    """Chosen fields; at least one, and none that is neutral."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("coefficient", "alpha", check_fields=False)
    @classmethod
    def _acts(cls, strength: float) -> float:
        if strength == 0:
            raise PydanticCustomError("neutral", "a strength of 0 changes nothing")
        return strength


class _OfVectors(_Defaults):
    site: Site | None = None
    layers: Indices | None = None
    coefficient: Strength | None = None


class _OfSubspaces(_OfVectors):
    coefficient: Annotated[float, Field(ge=0, le=MOST_PROJECTED)] | None = None


class _OfHeadVectors(_Defaults):
    alpha: Strength


KINDS: Mapping[str, type[_Defaults]] = {
    "vectors": _OfVectors,
    "subspaces": _OfSubspaces,
    "low_rank": _OfVectors,
    "diagonal": _OfVectors,
    "head_vectors": _OfHeadVectors,
}
"""Kind of artifact -> its fields."""


def read_defaults(kind: str, text: str) -> Mapping[str, Any]:
    """The fields that a text of ``defaults`` sets, read-only; the text may be from anywhere.

    Raises:
        ValueError: it is not such a text; the message says why, in words for a client.
    """
    if kind not in KINDS:
        raise ValueError(f"artifacts of kind {kind} have no defaults")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"defaults have at most {MOST_CHARACTERS} characters")
    try:
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise ValueError("defaults are not the text of a JSON object") from None
    try:
        checked = KINDS[kind].model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(step)[:64] for step in ("defaults", *first["loc"]))
        raise ValueError(about(path, first)) from None
    chosen = checked.model_dump(exclude_none=True)
    if not chosen:
        raise ValueError("defaults set no field")
    return MappingProxyType(chosen)


def write_defaults(defaults: Mapping[str, Any]) -> str:
    """The text of ``defaults``; equal ones give equal texts."""
    return json.dumps(dict(defaults), sort_keys=True, separators=(",", ":"))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found
