r"""VAF: Visual Amplification Fusion, the method of ClearSight (Yin et al., CVPR 2025).

In the middle layers, where images and text come together, the scores of the image keys are raised
and those of the system prompt lowered, before the softmax:

    z'_j = enhance z_j     for image keys j
    z'_j = suppress z_j    for keys j of the system prompt

in layers 9 to 14 of 32, in proportion, in all heads, for the rows behind the image and all
generated rows. A negative score of an image key falls when it is multiplied, as in the published
code (ClearSight, commit 5466c94).

The code calls the first 35 positions of a LLaVA-1.5 prompt the system prompt, which is all before
the image. Here it is that, too: every position before the first image, whatever the template puts
there. If an image comes first, there is nothing to suppress. There, images count as one block from
the first on; here text between images is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.targets import OnImages, Rows, Sited, layers_of_32


class VAF(Sited, OnImages):
    """Scale the scores of image keys up and those of the system prompt down."""

    title: ClassVar[str] = "Visual Amplification Fusion (ClearSight)"
    summary: ClassVar[str] = (
        "Multiplies the scores of image keys and of the system prompt's keys in the middle layers."
    )
    paper: ClassVar[str] = (
        "Yin et al., ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in "
        "Multimodal Large Language Models, CVPR 2025"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {"method": "vaf", "enhance": 1.3, "suppress": 0.9}
    neutral: ClassVar[dict[str, Any] | None] = {"enhance": 1, "suppress": 1}
    grid: ClassVar[Grid] = (
        {"enhance": 1.05, "suppress": 1.0},
        {},
        {"enhance": 1.3, "suppress": 0.9},
    )
    """Weaker than the default, without suppression; then stronger in both."""

    method: Literal["vaf"] = "vaf"

    enhance: float = Field(1.15, ge=0, le=8)
    """Factor of the image scores. 1 leaves them alone."""

    suppress: float = Field(0.95, ge=0, le=8)
    """Factor of the scores of everything before the first image. 1 leaves them alone."""

    rows: Rows = "question+generated"

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "vaf", "enhance": 4, "suppress": 0})

    def default_layers(self, model: ModelFacts) -> Sequence[int]:
        return layers_of_32(model.layers, 9, 14)

    def compile(self, context: Context) -> Plan:
        plan, sites = context.plan(), self.sites(context)
        image = plan.tag(self.image_spans(context))
        first = context.prompt.images[0][0]
        system = plan.tag([(0, first)] if first else [])
        plan.score(sites, [image], self.phases, scale=self.enhance - 1)
        plan.score(sites, [system], self.phases, scale=self.suppress - 1)
        return plan.build()
