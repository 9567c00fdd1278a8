"""Head steering: Inference-Time Intervention (Li et al., NeurIPS 2023, arXiv 2306.03341).

A few heads linearly encode a property such as truthfulness; their outputs z_h, before the output
projection, are shifted along the direction theta_h that separates it:

    z_h' = z_h + alpha sigma_h theta_h    for each head of the artifact

theta_h is a unit vector: the normalised mean difference ("center of mass") or probe weight. sigma_h
is the standard deviation of the activations' projections on it. Both come from calibration, as an
artifact of kind "head_vectors"; the paper takes K = 48 heads of Llama-7B, and alpha = 15.

The shift acts on the last row of every forward pass, as live ITI does: the last prompt row and each
generated row. Baking it into a bias of the output projection, as released checkpoints do, would
edit every prompt row too; ``rows`` can ask for that. (The published script that bakes stores the
unprojected vector since commit b5b9c4c of likenneth/honest_llama, which is not this method.)

``unit`` "raw" adds alpha v_h with the vectors as they are stored, which is how emotion circuits
(Aurora-cx/EmotionCircuits-LLM) modulate heads: mean differences, on all rows.

The paper's alpha suits its model and heads, and ruins others' answers: ``saccade calibrate
head-vectors`` may write the alpha that did best on held-out prompts into the artifact. A request
in unit "sigma" that names no alpha gets that one.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from saccade_interventions.artifacts import Artifact, ArtifactId, artifact_id, write_artifact
from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.headlists import by_site
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.targets import Rows
from saccade_interventions.units import shifts_of
from saccade_interventions.vectors import EXAMPLE_ID, unit_vectors

PUBLISHED = 15.0
"""Alpha of the paper, for 48 heads of Llama-7B."""


class HeadSteering(Intervention):
    """Shift the outputs of the artifact's heads: z' = z + alpha sigma theta."""

    title: ClassVar[str] = "Head steering (Inference-Time Intervention)"
    summary: ClassVar[str] = (
        "Shifts the outputs of the artifact's heads along its directions, by alpha standard "
        "deviations."
    )
    paper: ClassVar[str] = (
        "Li et al., Inference-Time Intervention: Eliciting Truthful Answers from a Language Model, "
        "NeurIPS 2023, arXiv 2306.03341"
    )
    level: ClassVar[Level] = "head_output"
    needs_artifact: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {
        "method": "head_steering",
        "artifact": EXAMPLE_ID,
        "alpha": 15,
    }
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0}
    grid: ClassVar[Grid] = (
        {"alpha": 0.5},
        {"alpha": 1},
        {"alpha": 2},
        {"alpha": 4},
        {},
    )
    """Up to the artifact's own strength, {}, put where the published one is."""

    method: Literal["head_steering"] = "head_steering"

    artifact: ArtifactId
    """An artifact of kind "head_vectors": heads, their directions, and their sigma."""

    alpha: float | None = Field(None, ge=-1000, le=1000)
    """Strength; negative to steer away. 0 changes nothing. None: in unit "sigma" the artifact's
    own, if it has one; else the paper's 15."""

    unit: Literal["sigma", "unit", "raw"] = "sigma"
    """What alpha counts: standard deviations, unit vectors, or the vectors as they are stored."""

    rows: Rows = "last+generated"

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        heads = [(layer, head) for layer in range(model.layers) for head in range(model.heads)]
        values = np.random.default_rng(0).normal(size=(len(heads), model.head_dim))
        tensors = {"heads": np.array(heads), "vectors": values}
        data = write_artifact("head_vectors", model.fingerprint, tensors)
        entry = {"method": "head_steering", "artifact": artifact_id(data), "unit": "raw"}
        return Probe(entry, data)

    def resolved(self, context: Context) -> Self:
        if self.alpha is not None:
            return self
        found = context.artifact(self.artifact, "head_vectors")
        advised = found.defaults.get("alpha", PUBLISHED) if self.unit == "sigma" else PUBLISHED
        return self.model_copy(update={"alpha": advised})

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        found = context.artifact(self.artifact, "head_vectors")
        sites, order = by_site(found.tensors["heads"])
        alpha = self.resolved(context).alpha or 0.0
        shift = shifts_of(found, self.unit, alpha, lambda: self._directions(found)[order])
        plan.head(sites, parse_rows(self.rows), shift=shift)
        return plan.build()

    def _directions(self, found: Artifact) -> NDArray[np.float64]:
        """What alpha multiplies: [heads, head_dim]."""
        vectors = found.tensors["vectors"].astype(np.float64)
        if self.unit == "raw":
            return vectors
        vectors = unit_vectors(vectors)
        if self.unit == "unit":
            return vectors
        if "sigma" not in found.tensors:
            message = 'the artifact has no sigma; use unit "unit" or "raw"'
            raise InterventionError(Code.ARTIFACT_MISMATCH, message, "unit")
        return found.tensors["sigma"].astype(np.float64)[:, None] * vectors
