r"""ScalingVis: the last prompt row looks at the image more sharply, or less (Chen et al., 2025).

The scores of the image keys are multiplied before the softmax, in every layer and head, for the one
row that predicts the first token of the answer:

    z'_j = w z_j    for image keys j,    z'_j = z_j    for all others

Within the image the distribution becomes A^w, renormalised: w > 1 sharpens it, w < 1 smooths it.
How much attention the image gets in all changes too, either way, because nothing makes up for the
new scale. Generated rows are not edited; what they see of it is the last prompt row's keys and
values. The paper's weights, chosen by data set, are 0.5, 0.8, 1.2, 1.5 and 2.

The published code (AdaptVis, commit 3b41399) does the same to the block from the start of the first
image to the end of the last; here text between images is left alone.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.targets import OnImages, Sited


class ScalingVis(Sited, OnImages):
    """Multiply the scores of the image keys in the last prompt row: z' = w z."""

    title: ClassVar[str] = "ScalingVis"
    summary: ClassVar[str] = (
        "Multiplies the scores of image keys in the row that predicts the first token."
    )
    paper: ClassVar[str] = (
        "Chen et al., Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective "
        "on Focus Areas, 2025"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {"method": "scalingvis", "w": 1.5}
    neutral: ClassVar[dict[str, Any] | None] = {"w": 1}
    grid: ClassVar[Grid] = (
        {},
        {"w": 0.8},
        {"w": 1.5},
        {"w": 0.5},
    )
    """Both sides of 1: which one helps, differs from model to model."""

    method: Literal["scalingvis"] = "scalingvis"

    w: float = Field(1.2, ge=0, le=8)
    """Weight of the image scores. 1 changes nothing, more sharpens, less smooths."""

    rows: Literal["last"] = "last"
    """Query rows: the last one of the prompt."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "scalingvis", "w": 4})

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        image = plan.tag(self.image_spans(context))
        plan.score(self.sites(context), [image], self.phases, scale=self.w - 1)
        return plan.build()
