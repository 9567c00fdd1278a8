r"""AdaptVis: how sharply to look at the image depends on how sure the model is (Chen et al., 2025).

The model first predicts the first token of the answer as it is. With p its largest probability,
rounded to two decimals, the last prompt row then runs with the image scores multiplied,

    z'_j = w1 z_j if p < threshold, w2 z_j otherwise,    for image keys j

in every layer and head, as in ScalingVis: w1 < 1 smooths what the model looked at without success,
w2 > 1 sharpens what it trusts. Only that row is edited, so the first look costs one more step of
one token, not a second prompt, and nothing of it is shown. p is taken under the model's own
distribution, at temperature 1, without penalties, and with the request's other interventions.

The published code (commit 3b41399) generates a whole answer first, of which it uses the first
token's probability. Weights and threshold were chosen by data set: w1 0.5 or 0.8, w2 1.2 to 2,
threshold 0.3 or 0.4; the defaults are those of its script.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.edits import ScoreEdit
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import ConfidenceRule
from saccade_interventions.targets import OnImages, Sited


class AdaptVis(Sited, OnImages):
    """Multiply the image scores of the last prompt row by a weight that depends on confidence."""

    title: ClassVar[str] = "AdaptVis"
    summary: ClassVar[str] = (
        "Multiplies the scores of image keys in the row that predicts the first token, by one of "
        "two weights, chosen by how sure the model is without."
    )
    paper: ClassVar[str] = (
        "Chen et al., Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective "
        "on Focus Areas, 2025"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {"method": "adaptvis", "w1": 0.5, "w2": 1.5}
    neutral: ClassVar[dict[str, Any] | None] = {"w1": 1, "w2": 1}
    grid: ClassVar[Grid] = (
        {"w1": 0.8, "w2": 1.2},
        {"w1": 0.8, "w2": 2.0},
        {},
        {"w1": 1.5, "w2": 0.5},
    )
    """Both weights nearer to 1 than the default; last, the two the other way round."""

    method: Literal["adaptvis"] = "adaptvis"

    w1: float = Field(0.5, ge=0, le=8)
    """Weight of the image scores where the model is unsure. 1 changes nothing there."""

    w2: float = Field(1.5, ge=0, le=8)
    """Weight of the image scores where it is sure. 1 changes nothing there."""

    threshold: float = Field(0.4, ge=0, le=1)
    """Probability of the likeliest first token, in hundredths, from which the model is sure."""

    rows: Literal["last"] = "last"
    """Query rows: the last one of the prompt."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "adaptvis", "w1": 4, "w2": 4})

    def compile(self, context: Context) -> Plan:
        plan, sites = context.plan(), self.sites(context)
        image = plan.tag(self.image_spans(context))
        unsure, sure = (
            (ScoreEdit(sites, self.phases, (image,), scale=w - 1),) if w != 1 else ()
            for w in (self.w1, self.w2)
        )
        if unsure or sure:
            plan.rule(ConfidenceRule(self.threshold, unsure, sure))
        return plan.build()
