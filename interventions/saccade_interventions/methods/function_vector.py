"""Function vectors (Todd et al., ICLR 2024, arXiv 2310.15213).

A few heads carry a compact vector of an in-context task. The sum of their mean outputs over
prompts that show the task,

    v = sum over chosen heads (l, h) of W_o^l[:, h] zbar_(l, h),

added to the residual at the output of one layer, makes the model do the task without examples:

    h' = h + coefficient v    on the last prompt row and each generated row

``site`` names another place of that layer for it: what its attention or its MLP adds to the
residual. At the MLP's output it comes to the same sum; at attention's the layer's MLP reads it too.

Nothing is rescaled; the paper's coefficient is 1. A layer about a third of the way up is a good
choice; the paper sweeps all of them. v is given as an artifact of kind "vectors", without the bias
that some models' output projections have (published code counts it once per head). Finding the
heads takes a task's prompts, clean and with shuffled labels, and is not part of ``saccade
calibrate``; :func:`saccade_interventions.artifacts.write_artifact` writes a v found elsewhere.

The published code (ericwtodd/function_vectors, commit fb9eac7) edits only where a decoder layer
returns a tuple; under current transformers it returns a tensor, and the code silently does nothing.
It can stop after a number of tokens, which is not offered here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from saccade_interventions.artifacts import (
    Artifact,
    ArtifactId,
    advice_for,
    artifact_id,
    write_artifact,
)
from saccade_interventions.base import Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.edits import ResidualEdit
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.indices import Index
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.targets import Rows
from saccade_interventions.units import units_of
from saccade_interventions.vectors import (
    EXAMPLE_ID,
    RESIDUAL,
    Site,
    kind_of,
)


class FunctionVector(Intervention):
    """Add a task's vector to the output of one layer."""

    title: ClassVar[str] = "Function vectors"
    summary: ClassVar[str] = "Adds the vector of a task to the output of one decoder layer."
    paper: ClassVar[str] = (
        "Todd et al., Function Vectors in Large Language Models, ICLR 2024, arXiv 2310.15213"
    )
    level: ClassVar[Level] = "residual"
    needs_artifact: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {
        "method": "function_vector",
        "artifact": EXAMPLE_ID,
    }
    neutral: ClassVar[dict[str, Any] | None] = {"coefficient": 0}

    method: Literal["function_vector"] = "function_vector"

    artifact: ArtifactId
    """An artifact of kind "vectors" with the task's vector, or with one for each of some layers."""

    coefficient: float | None = Field(None, ge=-1000, le=1000)
    """Factor on the vector. 0 changes nothing. None: the artifact's own, if it has one and nothing
    else is asked for than its site; else 1."""

    site: Site | None = None
    """Which output of the layer: "residual", the whole layer's, or what attention or the MLP adds
    to it. None: the artifact's own, if it names one; else "residual"."""

    layer: Index | None = None
    """The decoder layer whose output gets the vector. None: where the artifact says, if it has one
    vector or its defaults name one. A single vector may go to any layer; of several, the layer's
    own is taken."""

    rows: Rows = "last+generated"

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        values = np.random.default_rng(0).normal(size=(1, model.hidden_size))
        tensors = {"vectors": values, "layers": np.array([max(model.layers // 3, 1)])}
        data = write_artifact("vectors", model.fingerprint, tensors)
        entry = {"method": "function_vector", "artifact": artifact_id(data), "coefficient": 100.0}
        return Probe(entry, data)

    def resolved(self, context: Context) -> Self:
        found = context.artifact(self.artifact, "vectors")
        advice = advice_for(found, self.site)
        chosen: dict[str, Any] = {}
        if self.site is None and "site" in advice:
            chosen["site"] = advice["site"]
        if self.coefficient is None:
            chosen["coefficient"] = float(advice.get("coefficient", 1.0))
        layer, _ = self._place(found, context.model)
        if self.layer is None and layer >= 0:  # residual 0 is no layer's output
            chosen["layer"] = layer
        return self.model_copy(update=chosen)

    def compile(self, context: Context) -> Plan:
        found = context.artifact(self.artifact, "vectors")
        entry = self.resolved(context)
        site = entry.site or RESIDUAL
        layer, row = self._place(found, context.model)
        units = units_of(found, [row])
        plan = context.plan()
        direction = plan.vectors(units.vectors)
        shift = (entry.coefficient or 0.0) * units.lengths[0]
        number = layer + (site == RESIDUAL)
        phases = parse_rows(self.rows)
        plan.residual(ResidualEdit(number, phases, direction, 0, shift=shift, site=kind_of(site)))
        return plan.build()

    def _place(self, found: Artifact, model: ModelFacts) -> tuple[int, int]:
        """The layer whose output is changed, -1 for the embeddings, and the artifact's row."""
        own: Site = found.defaults.get("site", RESIDUAL)
        before = own == RESIDUAL  # the artifact numbers layers by what they put out
        layers = [number - before for number in found.tensors["layers"].tolist()]
        if self.layer is None:
            advised = [number - before for number in found.defaults.get("layers", ())] or layers
            if len(advised) > 1:
                message = f"the artifact has {len(advised)} vectors; say which layer"
                raise InterventionError(Code.INVALID_PARAMS, message, "layer")
            if advised[0] < 0 and (self.site or own) != RESIDUAL:
                message = "the artifact's vector is of residual 0, which no layer puts out"
                raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, "layer")
            return advised[0], layers.index(advised[0])
        if self.layer >= model.layers:
            message = f"there is no layer {self.layer}; the model has {model.layers}, from 0"
            raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, "layer")
        if len(layers) == 1:
            return self.layer, 0
        if self.layer not in layers:
            message = f"the artifact has no vector for the output of layer {self.layer}"
            raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, "layer")
        return self.layer, layers.index(self.layer)
