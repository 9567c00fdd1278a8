"""Steering vectors in the residual stream: CAA, RepE and their relatives.

Calibration finds a direction of the residual stream, per layer, that separates two behaviours; at
inference every chosen residual is changed along it. With v the unit direction, p = h . v and a
strength s = coefficient times the length that ``unit`` says (that of the stored vector, RMS(h), or
1):

    op            h becomes                   published as
    add           h + s v                     CAA (arXiv 2312.06681), RepE "linear combination"
    piecewise     h + s sign(p) v             RepE (arXiv 2310.01405) "piece-wise"
    project_out   h - coefficient p v         RepE "projection", directional ablation
    clamp         h + (clip(p) - p) v         capping: clip(p) lies between low and high

``keep_norm`` rescales the row to the norm it had (RepE's "normalize"). Vectors come as an artifact
of kind "vectors", which says for each the residual it belongs to: the number of the layer it
enters, or the number of layers for what leaves the last. CAA and RepE number layers by output: the
output of layer l is residual l + 1.

Rows: the published methods differ. CAA steers what follows the instruction, which is the default
here (the last prompt row and the generated ones); RepE and CAST's behaviour vectors all rows
("prompt+generated"); emotion circuits the last row of each pass, with unit "rms" and coefficient 8.

Where and how strongly: ``saccade calibrate vectors`` tries its vectors on held-out prompts and may
write the residual and the coefficient that did best into the artifact. A request that names no
``layers`` gets that residual, whatever the op. It gets that coefficient for add in unit "raw"
alone: the other ops and units were not tried, and theirs is 1. What a request names is taken as it
is.

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

from saccade_interventions.artifacts import Artifact, ArtifactId, artifact_id, write_artifact
from saccade_interventions.base import Intervention, Level, Probe
from saccade_interventions.context import Context, ModelFacts
from saccade_interventions.edits import NO_LIMIT, StreamEdit
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.indices import Indices
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.targets import Rows
from saccade_interventions.vectors import EXAMPLE_ID, norms, unit_vectors

FIELDS = {
    "add": {"coefficient", "unit"},
    "piecewise": {"coefficient", "unit"},
    "project_out": {"coefficient"},
    "clamp": {"low", "high"},
}
"""Which fields an op has a use for."""

MOST_RMS = 100.0
"""Largest coefficient in units of the residual's root mean square; published work uses 8."""

MOST_PROJECTED = 2.0
"""At 1 project_out removes the part along the vector, at 2 it turns it round."""


class Steering(Intervention):
    """Change residuals along the artifact's directions."""

    title: ClassVar[str] = "Steering vectors"
    summary: ClassVar[str] = (
        "Adds the artifact's vectors to the residual stream, or removes or limits its part along "
        "them."
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

    method: Literal["steering"] = "steering"

    artifact: ArtifactId
    """An artifact of kind "vectors"."""

    op: Literal["add", "piecewise", "project_out", "clamp"] = "add"
    """What happens along each vector: add it, add it with the sign of the residual's own part,
    remove that part, or keep that part within limits."""

    coefficient: float | None = Field(None, ge=-1000, le=1000)
    """Strength of add and piecewise, in `unit`, up to 100 of "rms"; the fraction that project_out
    removes, from 0 to 2, which reflects. 0 changes nothing. None: for add in unit "raw" the
    artifact's own, if it has one; else 1."""

    unit: Literal["raw", "rms", "unit"] = "raw"
    """What a coefficient of 1 adds: the vector as it is stored, one as long as the residual's root
    mean square, or a unit vector."""

    low: float | None = Field(None, ge=-1e9, le=1e9)
    """clamp: least part along the vector. None: no limit."""

    high: float | None = Field(None, ge=-1e9, le=1e9)
    """clamp: largest part along the vector. None: no limit."""

    keep_norm: bool = False
    """Rescale every changed row to the norm it had."""

    layers: Indices | None = None
    """Which of the artifact's vectors: numbers of residuals, see its `layers`. None: those that the
    artifact's defaults name, or all."""

    rows: Rows = "last+generated"

    @model_validator(mode="after")
    def _fields_of_the_op(self) -> Steering:
        spare = {"coefficient", "unit", "low", "high"} - FIELDS[self.op]
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

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        vectors = np.random.default_rng(0).normal(size=(model.layers, model.hidden_size))
        tensors = {"vectors": vectors, "layers": np.arange(model.layers)}
        data = write_artifact("vectors", model.fingerprint, tensors)
        entry = {"method": "steering", "artifact": artifact_id(data), "unit": "rms"}
        return Probe(entry | {"coefficient": 8.0}, data)

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, and its layers in order."""
        entry = super().normalised()
        if entry["layers"] is not None:
            entry["layers"] = sorted(entry["layers"])
        return entry

    def resolved(self, context: Context) -> Self:
        found = context.artifact(self.artifact, "vectors")
        chosen: dict[str, Any] = {}
        if self.layers is None:
            there = found.tensors["layers"].tolist()
            chosen["layers"] = sorted(found.defaults.get("layers", there))
        if self.coefficient is None and "coefficient" in FIELDS[self.op]:
            chosen["coefficient"] = self._advised(found)
        return self.model_copy(update=chosen)

    def compile(self, context: Context) -> Plan:
        entry = self.resolved(context)
        found = context.artifact(self.artifact, "vectors").tensors
        chosen = entry._chosen(found["layers"].tolist())
        vectors = found["vectors"].astype(np.float64)[list(chosen.values())]
        plan = context.plan()
        directions = plan.vectors(unit_vectors(vectors).astype(np.float32))
        for row, (layer, norm) in enumerate(zip(chosen, norms(vectors).tolist(), strict=True)):
            plan.stream(entry._edit(layer, directions, row, norm))
        return plan.build()

    def _advised(self, found: Artifact) -> float:
        """The coefficient of an entry that names none."""
        tried = self.op == "add" and self.unit == "raw"
        return float(found.defaults.get("coefficient", 1.0)) if tried else 1.0

    def _chosen(self, layers: list[int]) -> dict[int, int]:
        """Residual -> row of the artifact, residuals ascending."""
        row_of = {layer: row for row, layer in enumerate(layers)}
        for index, layer in enumerate(self.layers or ()):
            if layer not in row_of:
                message = f"the artifact has no vector for residual {layer}"
                raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, f"layers[{index}]")
        return {layer: row_of[layer] for layer in sorted(self.layers or ())}

    def _edit(self, layer: int, directions: str, row: int, norm: float) -> StreamEdit:
        adds = self.op in ("add", "piecewise")
        low, high = self.limits
        coefficient = self.coefficient or 0.0  # clamp has none
        return StreamEdit(
            layer,
            parse_rows(self.rows),
            directions,
            row,
            scale=1.0 - coefficient if self.op == "project_out" else 1.0,
            shift=coefficient * (norm if self.unit == "raw" else 1.0) if adds else 0.0,
            low=low,
            high=high,
            signed=self.op == "piecewise",
            relative=adds and self.unit == "rms",
            keep_norm=self.keep_norm,
        )
