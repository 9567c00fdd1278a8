"""Steering vectors in the residual stream: CAA, RepE and their relatives.

Calibration finds a direction of the residual stream, per layer, that separates two behaviours; at
inference every chosen residual is changed along it. With v the unit direction, p = h . v and a
strength s = coefficient times the length that ``unit`` says (that of the stored vector, RMS(h), or
1):

    op            h becomes                   published as
    add           h + s v                     CAA (arXiv 2312.06681), RepE "linear combination"
    piecewise     h + s sign(p) v             RepE (arXiv 2310.01405) "piece-wise"
    project_out   h - coefficient p v         RepE "projection", directional ablation
                  h - coefficient P h         Nullu (arXiv 2412.13817): P projects on a subspace
    clamp         h + (clip(p) - p) v         capping: clip(p) lies between low and high
    affine        h + coefficient (T h - h)   T of rank up to 16, such as LoReFT's (arXiv
                                              2404.03592), or diagonal, such as (IA)3's

``keep_norm`` rescales the row to the norm it had (RepE's "normalize"). ``only_above`` and
``only_below`` leave rows alone whose p lies beyond. Vectors come as an artifact of kind "vectors",
which says for each the residual it belongs to: the number of the layer it enters, or the number of
layers for what leaves the last. CAA and RepE number layers by output: the output of layer l is
residual l + 1. Subspaces come as kind "subspaces", maps as "low_rank" or "diagonal".

``site``: h is a residual, or what attention or the MLP of a layer adds to it; in a model that norms
these before it adds them (Gemma 3), behind that norm. VTI (arXiv 2410.15778) is site "mlp_output",
unit "rms", keep_norm, with a coefficient of its lambda times sqrt(hidden size).

Rows: the published methods differ. CAA steers what follows the instruction, which is the default
here (the last prompt row and the generated ones); RepE and CAST's behaviour vectors all rows
("prompt+generated"); emotion circuits the last row of each pass, with unit "rms" and coefficient 8.

Where and how strongly: ``saccade calibrate vectors`` tries its vectors on held-out prompts and may
write the site, the residual and the coefficient that did best into the artifact. A request that
names no ``layers`` gets that residual, whatever the op. It gets that coefficient for add in unit
"raw" alone: the other ops and units were not tried, and theirs is 1. What a request names is taken
as it is, and at another site than the artifact's none of this holds.

Where this differs from published code: project_out divides by v . v whatever the stored length, and
each vector is added once (stored versions of CAA's wrapper add it twice).

Not offered: ActAdd's vector per prompt position, since edits are the same for all rows of a phase;
and conditions on the prompt (CAST). A steering vector is no guarantee for a single sample: check
norms and sweep the coefficient.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.artifact_values import rows_of
from saccade_interventions.artifacts import (
    Artifact,
    ArtifactId,
    advice_for,
    artifact_id,
    write_artifact,
)
from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.defaults import MOST_PROJECTED
from saccade_interventions.edits import NO_LIMIT, ResidualEdit
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.indices import Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.residual_maps import ResidualMaps, maps_of
from saccade_interventions.targets import Rows
from saccade_interventions.units import units_of
from saccade_interventions.vectors import (
    EXAMPLE_ID,
    RESIDUAL,
    Site,
    kind_of,
    layers_at,
    place_of,
)

_BOUNDS = {"only_above", "only_below"}
FIELDS = {
    "add": {"coefficient", "unit", *_BOUNDS},
    "piecewise": {"coefficient", "unit", *_BOUNDS},
    "project_out": {"coefficient", *_BOUNDS},
    "clamp": {"low", "high"},
    "affine": {"coefficient"},
}
"""Which fields an op has a use for."""

KINDS = {
    "add": ("vectors",),
    "piecewise": ("vectors",),
    "project_out": ("vectors", "subspaces"),
    "clamp": ("vectors",),
    "affine": ("low_rank", "diagonal"),
}
"""What artifacts an op takes."""

MOST_RMS = 100.0
"""Largest coefficient in units of the residual's root mean square; published work uses 8."""


class Steering(Intervention):
    """Change residuals along the artifact's directions."""

    title: ClassVar[str] = "Steering vectors"
    summary: ClassVar[str] = (
        "Adds the artifact's vectors to the residual stream or to what layers add to it, removes "
        "or limits its part along them, or maps it."
    )
    paper: ClassVar[str] = (
        "Rimsky et al., Steering Llama 2 via Contrastive Activation Addition, ACL 2024, "
        "arXiv 2312.06681; Zou et al., Representation Engineering, arXiv 2310.01405"
    )
    level: ClassVar[Level] = "residual"
    needs_artifact: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {
        "method": "steering",
        "artifact": EXAMPLE_ID,
        "coefficient": 1.5,
    }
    neutral: ClassVar[dict[str, Any] | None] = {"coefficient": 0}
    grid: ClassVar[Grid] = (
        {"coefficient": 0.25},
        {"coefficient": 0.5},
        {},
        {"coefficient": 2},
    )
    """Around the artifact's own coefficient, {}, put where 1 is."""

    method: Literal["steering"] = "steering"

    artifact: ArtifactId
    """An artifact of kind "vectors"; for project_out also "subspaces", for affine "low_rank" or
    "diagonal"."""

    op: Literal["add", "piecewise", "project_out", "clamp", "affine"] = "add"
    """What happens along each vector: add it, add it with the sign of the residual's own part,
    remove that part, or keep that part within limits. Or the artifact's affine map."""

    site: Site | None = None
    """Where: the residual between layers, or what attention or the MLP of a layer adds to it. None:
    the artifact's own, if it names one; else "residual"."""

    coefficient: float | None = Field(None, ge=-1000, le=1000)
    """Strength of add and piecewise, in `unit`, up to 100 of "rms"; the fraction that project_out
    removes, from 0 to 2, which reflects; how much of the map affine makes. 0 changes nothing. None:
    for add in unit "raw", a subspace and a map the artifact's own, if it has one; else 1."""

    unit: Literal["raw", "rms", "unit"] = "raw"
    """What a coefficient of 1 adds: the vector as it is stored, one as long as the residual's root
    mean square, or a unit vector."""

    low: float | None = Field(None, ge=-1e9, le=1e9)
    """clamp: least part along the vector. None: no limit."""

    high: float | None = Field(None, ge=-1e9, le=1e9)
    """clamp: largest part along the vector. None: no limit."""

    only_above: float | None = Field(None, ge=-1e9, le=1e9)
    """Rows whose part along the vector is smaller stay as they are. None: all are changed. Not for
    a subspace."""

    only_below: float | None = Field(None, ge=-1e9, le=1e9)
    """Rows whose part along the vector is larger stay as they are. None: all are changed."""

    keep_norm: bool = False
    """Rescale every changed row to the norm it had."""

    layers: Indices | None = None
    """Which of the artifact's vectors: numbers of residuals or, at another site, of layers, see its
    `layers`. None: those that the artifact's defaults name, or all."""

    rows: Rows = "last+generated"

    @model_validator(mode="after")
    def _fields_of_the_op(self) -> Steering:
        spare = {"coefficient", "unit", "low", "high", *_BOUNDS} - FIELDS[self.op]
        for name in sorted(spare & self.model_fields_set):
            if getattr(self, name) != type(self).model_fields[name].default:
                message = "{op} has no use for {name}"
                values = {"op": self.op, "name": name, "at": name}
                raise PydanticCustomError("unused", message, values)
        self._check_strength()
        low, high = self.limits
        if self.op == "clamp" and (low, high) == (-NO_LIMIT, NO_LIMIT):
            raise PydanticCustomError("no_limit", "clamp needs low or high", {"at": "low"})
        if low > high:
            raise PydanticCustomError("limits", "low is above high", {"at": "low"})
        above, below = self.bounds
        if above > below:
            message = "only_above is above only_below"
            raise PydanticCustomError("limits", message, {"at": "only_above"})
        return self

    def _check_strength(self) -> None:
        """Beyond these bounds nothing is left of the residual but the direction."""
        most = MOST_RMS if self.unit == "rms" else 1000.0
        least, most = (0.0, MOST_PROJECTED) if self.op == "project_out" else (-most, most)
        if self.coefficient is not None and not least <= self.coefficient <= most:
            values = {"op": self.op, "least": least, "most": most, "at": "coefficient"}
            message = "the coefficient of {op}, in its unit, lies between {least} and {most}"
            raise PydanticCustomError("strength", message, values)

    @property
    def limits(self) -> tuple[float, float]:
        """Bounds of the part along a vector."""
        low = -NO_LIMIT if self.low is None else self.low
        return low, NO_LIMIT if self.high is None else self.high

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which parts along a vector a row is changed."""
        above = -NO_LIMIT if self.only_above is None else self.only_above
        return above, NO_LIMIT if self.only_below is None else self.only_below

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        vectors = np.random.default_rng(0).normal(size=(model.layers, model.hidden_size))
        tensors = {"vectors": vectors, "layers": np.arange(model.layers)}
        data = write_artifact("vectors", model.fingerprint, tensors)
        entry = {"method": "steering", "artifact": artifact_id(data), "unit": "rms"}
        others = ({"site": "attention_output"}, {"site": "mlp_output"})
        return Probe(entry | {"coefficient": 8.0}, data, others)

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, and its layers in order."""
        entry = super().normalised()
        if entry["layers"] is not None:
            entry["layers"] = sorted(entry["layers"])
        return entry

    def resolved(self, context: Context) -> Self:
        found = self._artifact(context)
        advice = advice_for(found, self.site)
        chosen: dict[str, Any] = {}
        if self.site is None and "site" in advice:
            chosen["site"] = advice["site"]
        if self.layers is None:
            chosen["layers"] = sorted(advice.get("layers", rows_of(found.tensors["layers"])))
        if self.coefficient is None and "coefficient" in FIELDS[self.op]:
            tried = found.kind != "vectors" or (self.op == "add" and self.unit == "raw")
            chosen["coefficient"] = float(advice.get("coefficient", 1.0)) if tried else 1.0
        return self.model_copy(update=chosen)

    def compile(self, context: Context) -> Plan:
        entry = self.resolved(context)
        found = self._artifact(context)
        rows = entry._chosen(rows_of(found.tensors["layers"]), context.model)
        made = entry._maps(found, rows)
        plan = context.plan()
        vectors = plan.vectors(made.vectors)
        above, below = entry.bounds
        common: dict[str, Any] = {
            "site": kind_of(entry.site or RESIDUAL),
            "keep_norm": entry.keep_norm,
        }
        common |= {"above": above, "below": below}
        phases = parse_rows(entry.rows)
        for layer, terms in made.terms.items():
            edits = (ResidualEdit(layer, phases, vectors, **common, **term) for term in terms)
            plan.residual(*edits)
        return plan.build()

    def _artifact(self, context: Context) -> Artifact:
        found = context.artifact(self.artifact, KINDS[self.op])
        if found.kind == "subspaces" and self.bounds != (-NO_LIMIT, NO_LIMIT):
            at = "only_below" if self.only_above is None else "only_above"
            message = f"{at} is about the part along one vector; the artifact has subspaces"
            raise InterventionError(Code.INVALID_PARAMS, message, at)
        return found

    def _chosen(self, rows: dict[int, list[int]], model: ModelFacts) -> dict[int, list[int]]:
        """Rows of the artifact by number of residual or layer, ascending."""
        site, asked = self.site or RESIDUAL, self.layers or ()
        for index, layer in enumerate(asked):
            if layer not in rows:
                message = f"the artifact has no vector for {place_of(site, layer)}"
                raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, f"layers[{index}]")
            if layer >= layers_at(site, model.layers):
                message = f"there is no {place_of(site, layer)}: name layers"
                raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, "site")
        return {layer: rows[layer] for layer in sorted(asked)}

    def _maps(self, found: Artifact, rows: dict[int, list[int]]) -> ResidualMaps:
        """What is done in each layer."""
        coefficient = self.coefficient or 0.0  # clamp has none
        if found.kind != "vectors":
            return maps_of(found, rows, coefficient)
        units = units_of(found, [row for (row,) in rows.values()])
        terms = {
            layer: [{"row": row, **self._change(coefficient, length)}]
            for row, (layer, length) in enumerate(zip(rows, units.lengths, strict=True))
        }
        return ResidualMaps(units.vectors, terms)

    def _change(self, coefficient: float, length: float) -> dict[str, Any]:
        """What happens along one vector that is stored with this length."""
        adds = self.op in ("add", "piecewise")
        low, high = self.limits
        return {
            "scale": 1.0 - coefficient if self.op == "project_out" else 1.0,
            "shift": coefficient * (length if self.unit == "raw" else 1.0) if adds else 0.0,
            "low": low,
            "high": high,
            "signed": self.op == "piecewise",
            "relative": adds and self.unit == "rms",
        }
