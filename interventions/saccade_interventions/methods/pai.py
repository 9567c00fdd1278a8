"""PAI: Paying more Attention to Image (Liu, Zheng and Chen, ECCV 2024, arXiv 2407.21771).

Decoding drifts towards what the language model expects of the text alone. PAI raises the scores of
the image keys, before the softmax, for the row that predicts the next token:

    z'_j = z_j + alpha |z_j|    for image keys j,    z'_j = z_j    for all others

The absolute value makes every image score rise, whatever its sign; the softmax then takes the
attention from all other keys in proportion. Because the change depends on the score, the
proportions among the image keys change too.

The published code (LALBJ/PAI, commit 9bbd8bd) does the same in layers 2 to the last, all heads, on
the last row of the prompt and every generated row. It keeps one image position for the whole batch;
here the images are the request's own, and several count as one set of keys. The second half of the
paper, contrasting the logits with those of a prompt without the image, is a method of its own
and not part of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.targets import OnImages, Rows, Sited, inner_layers


class PAI(Sited, OnImages):
    """Raise the attention scores of the image keys: z' = z + alpha |z|."""

    title: ClassVar[str] = "Paying more Attention to Image (attention part)"
    summary: ClassVar[str] = "Raises the scores of image keys by alpha times their absolute value."
    paper: ClassVar[str] = (
        "Liu et al., Paying More Attention to Image: A Training-Free Method for Alleviating "
        "Hallucination in LVLMs, ECCV 2024, arXiv 2407.21771"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {"method": "pai", "alpha": 0.5}
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0}
    grid: ClassVar[Grid] = (
        {"alpha": 0.05},
        {"alpha": 0.1},
        {},
        {"alpha": 0.5},
    )
    """Around the default: above it answers break down on some models."""

    method: Literal["pai"] = "pai"

    alpha: float = Field(0.2, ge=0, le=4)
    """Strength. 0 changes nothing."""

    rows: Rows = "last+generated"

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "pai", "alpha": 4})

    def default_layers(self, model: ModelFacts) -> Sequence[int]:
        return inner_layers(model, first=2, last=0)

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        image = plan.tag(self.image_spans(context))
        plan.score(self.sites(context), [image], self.phases, absolute=self.alpha)
        return plan.build()
