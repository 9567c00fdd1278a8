r"""PAI's contrast: the second half of PAI (Liu, Zheng and Chen, ECCV 2024, arXiv 2407.21771).

Beside its attention edit (the method ``pai``), PAI subtracts what the model expects of the text
alone. A second branch has the same prompt without its image tokens. With the distributions p (with
the images) and q (without) of the next token:

    d = gamma log p - (gamma - 1) log q,    tokens with p < cutoff max p excluded

which is the published gamma (s - u) + u on log-softmax s and u. gamma 1 is the model's own
distribution. The branch is never edited: as in the paper, attention is changed only where there is
an image. Together, ``pai`` and ``pai_contrast`` in one request are the paper's method.

Worked example: logits [2, 1.5, 0, -3] and [1, 1.8, 0.2, -3] with gamma 1.1 and cutoff 0.1 give
d = [-0.484051, -1.114051, -2.604051, excluded].

The published code (LALBJ/PAI, commit 9bbd8bd) defaults to gamma 2 on its command line and
recommends 1.1, with nucleus sampling, in its description; the default here is 1.1. What the chat
template puts around an image (the vision markers of the Qwen families) stays in the branch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import Branch, ContrastRule
from saccade_interventions.targets import all_images


class PAIContrast(Intervention):
    """Contrast the next token's distribution with that for the prompt without its images."""

    title: ClassVar[str] = "Paying more Attention to Image (contrast part)"
    summary: ClassVar[str] = (
        "Draws from gamma log p - (gamma - 1) log q, where q is the distribution without the "
        "images, among the tokens that are likely enough with them."
    )
    paper: ClassVar[str] = (
        "Liu et al., Paying More Attention to Image: A Training-Free Method for Alleviating "
        "Hallucination in LVLMs, ECCV 2024, arXiv 2407.21771"
    )
    level: ClassVar[Level] = "logits"
    needs_image: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"method": "pai_contrast", "gamma": 1.5}
    neutral: ClassVar[dict[str, Any] | None] = {"gamma": 1}
    grid: ClassVar[Grid] = (
        {},
        {"gamma": 1.5},
        {"gamma": 2.0},
        {"gamma": 3.0},
    )
    """From the default up."""

    method: Literal["pai_contrast"] = "pai_contrast"

    gamma: float = Field(1.1, ge=1, le=10)
    """Strength of the contrast. 1 changes nothing, and then cutoff is not applied either."""

    cutoff: float = Field(0.1, ge=0, le=1)
    """Tokens less likely than this fraction of the likeliest are excluded."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "pai_contrast", "gamma": 5, "cutoff": 0})

    def compile(self, context: Context) -> Plan:
        all_images(context)
        plan = context.plan()
        if self.gamma != 1:
            branch = Branch("deleted")
            plan.rule(ContrastRule(self.gamma, self.gamma - 1, self.cutoff, branch=branch))
        return plan.build()
