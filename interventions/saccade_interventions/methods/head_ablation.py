"""Head ablation: take chosen heads out of the computation, in one of three senses.

"Ablating a head" means different things in the literature; with z_h the head's output before the
output projection, on the chosen rows:

    mode      z_h becomes                                 used by
    zero      0                                           Michel et al. 2019 (arXiv 1905.10650)
    mean      its mean over a data set, by an artifact    function vectors, circuit work
    uniform   the mean of the values of all visible       retrieval heads (arXiv 2404.15574): their
              keys, as if the head's query were zero      code masks the query

Resampling (z_h of another prompt) is not offered. Nor is what some published code does instead of
ablating a head, zeroing a slice of the attention output *behind* the projection: it removes
residual coordinates and not a head.

``uniform`` makes the scores of all visible keys equal before other interventions change them:
their score edits add, so a bias beside it still acts.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.artifacts import ArtifactId
from saccade_interventions.base import Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.edits import Sites
from saccade_interventions.headlists import ChosenHeads
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan

UNTAGGED = 0
"""Class of every key of a plan without tags."""


class HeadAblation(ChosenHeads):
    """Replace the outputs of chosen heads by zero, by their mean, or by uniform attention's."""

    title: ClassVar[str] = "Head ablation"
    summary: ClassVar[str] = (
        "Replaces the outputs of the heads a request names by zero, by their mean over a data set, "
        "or by what uniform attention gives."
    )
    paper: ClassVar[str] = (
        "Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, NeurIPS 2019, "
        "arXiv 1905.10650"
    )
    level: ClassVar[Level] = "head_output"
    example: ClassVar[dict[str, Any]] = {
        "method": "head_ablation",
        "mode": "zero",
        "heads": {"1": [0, 2]},
    }

    method: Literal["head_ablation"] = "head_ablation"

    mode: Literal["zero", "mean", "uniform"] = "zero"
    """What takes the place of the head's output: zero, its mean, or uniform attention's output."""

    means: ArtifactId | None = None
    """An artifact of kind "head_means"; `mode` "mean" needs it."""

    @model_validator(mode="after")
    def _means_for_mean(self) -> HeadAblation:
        if (self.mode == "mean") != (self.means is not None):
            raise PydanticCustomError(
                "means",
                'mode "mean" needs an artifact of means, and no other does',
                {"at": "means"},
            )
        return self

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        layers = list(range(model.layers))
        return Probe({"method": "head_ablation", "mode": "zero", "layers": layers})

    def compile(self, context: Context) -> Plan:
        plan, sites = context.plan(), self.sites(context)
        if self.mode == "uniform":
            plan.score(sites, [UNTAGGED], self.phases, scale=-1.0)
        elif self.means is None:
            plan.head(sites, self.phases, gain=0.0)
        else:
            means = context.artifact(self.means, "head_means", "means").tensors["means"]
            rows, columns = _flat(sites)
            plan.head(sites, self.phases, gain=0.0, shift=means[rows, columns])
        return plan.build()


def _flat(sites: Sites) -> tuple[list[int], list[int]]:
    """Layers and heads of all sites, in their order."""
    pairs = [(layer, head) for layer, heads in sites for head in heads]
    return [layer for layer, _ in pairs], [head for _, head in pairs]
