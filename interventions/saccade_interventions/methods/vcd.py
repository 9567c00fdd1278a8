r"""VCD: Visual Contrastive Decoding (Leng et al., CVPR 2024, arXiv 2311.16922).

A second view of the prompt, with noise on its images, says what the model would answer from
language alone. What the noise does not change was not seen, and is subtracted. With the
distributions p (clean) and q (noised) of the next token:

    d = (1 + alpha) log p - alpha log q,    tokens with p < beta max p excluded

and tokens are drawn from d, by the request's own temperature and filters. The noise is that of a
diffusion process after ``noise_step`` of its 1000 steps, on the normalised pixels x that the vision
tower takes:

    x' = sqrt(abar) x + sqrt(1 - abar) n,    n ~ N(0, 1),
    abar_T = prod_{t <= T} (1 - b_t),    b_t = sigmoid(-6 + 12 t / 999) (0.005 - 1e-5) + 1e-5

Worked example: logits [2, 1.5, 0, -3] and [1, 1.8, 0.2, -3] with alpha 1 and beta 0.1 give
d = [3, 1.2, -0.2, excluded] up to a constant. All images of a prompt are noised.

Where this differs from the published code (DAMO-NLP-SG/VCD, commit d6568ff):

- The code patches sampling only, so greedy answers are not contrasted there; here they are.
- Its noise is another one in every run; here it follows from ``noise_seed``.
- Its fallbacks, command line and POPE script disagree (alpha 0.5 or 1, beta 0.1 or 0.2); the
  defaults here are those of the command line and of the paper's description.

The code feeds the noised branch to the same model; here other interventions of a request act on
the clean sequence only, unless ``edit_branch`` asks for them in the branch as well.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import Branch, ContrastRule, Noise
from saccade_interventions.targets import all_images

STEPS = 1000
"""Of the diffusion process."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class VCD(Intervention):
    """Contrast the next token's distribution with that for a noised image."""

    title: ClassVar[str] = "Visual Contrastive Decoding"
    summary: ClassVar[str] = (
        "Draws from (1 + alpha) log p - alpha log q, where q is the distribution with noise on the "
        "images, among the tokens that are likely enough without."
    )
    paper: ClassVar[str] = (
        "Leng et al., Mitigating Object Hallucinations in Large Vision-Language Models through "
        "Visual Contrastive Decoding, CVPR 2024, arXiv 2311.16922"
    )
    level: ClassVar[Level] = "logits"
    needs_image: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"method": "vcd", "alpha": 0.5}
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0}
    grid: ClassVar[Grid] = (
        {"alpha": 0.25},
        {"alpha": 0.5},
        {"alpha": 0.5, "noise_step": 800},
        {},
    )
    """Parts of the contrast, one of them with more noise; then all of it."""

    method: Literal["vcd"] = "vcd"

    alpha: float = Field(1.0, ge=0, le=10)
    """Strength of the contrast. 0 changes nothing, and then beta is not applied either."""

    beta: float = Field(0.1, ge=0, le=1)
    """Tokens less likely than this fraction of the likeliest are excluded."""

    noise_step: int = Field(500, ge=0, lt=STEPS)
    """T: how far the image is diffused. At 500 it keeps 0.863 of itself, with 0.505 of noise."""

    noise_seed: Seed = 0
    """Seed of the noise."""

    edit_branch: bool = False
    """Let the request's other interventions act in the noised branch too. Then none of them can
    choose heads by measuring, as ``vhr`` does."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        return Probe({"method": "vcd", "alpha": 5, "beta": 0, "noise_step": 999})

    def compile(self, context: Context) -> Plan:
        all_images(context)
        plan = context.plan()
        if self.alpha:
            noise = Noise(kept(self.noise_step), self.noise_seed)
            branch = Branch("noised", noise, edited=self.edit_branch)
            plan.rule(ContrastRule(1 + self.alpha, self.alpha, self.beta, branch=branch))
        return plan.build()


def kept(step: int) -> float:
    """abar: the share of the image's variance that is left after diffusion step ``step``."""
    rates = 1 / (1 + np.exp(-np.linspace(-6, 6, STEPS))) * (0.005 - 1e-5) + 1e-5
    return float(np.prod(1 - rates[: step + 1]))
