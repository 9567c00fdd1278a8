r"""M3ID: Multi-Modal Mutual-Information Decoding (Favero et al., CVPR 2024, arXiv 2403.14003).

The longer an answer, the more of what a model writes follows from its own words and the less from
the image. M3ID subtracts what the model expects without the image, with a weight that grows with
every token. With the distributions p with the images and q without, behind n generated tokens:

    d = log p + w (log p - log q)    w = e^(rate (n + offset)) - 1    where max p < certain
    d = log p                        elsewhere

which is the paper's (1 - g) / g with g = e^(-rate (n + offset)). The first token of an answer is
the model's own unless there is an ``offset``: the paper counts from the beginning of a caption, and
from 10, about the length of the question, where the answer is one word.

Worked example: logits [1, 0.9, 0.8, 0.7] with the image and [1, 1.8, 0.2, -3] without, rate 0.02,
behind 50 tokens (w = 1.718282) and cutoff 0: d = [-1.132645, -2.779098, -0.301676, 4.924998].

Where this differs from published code (there is none of the authors'; AvisC, RITUAL and ONLY carry
the method):

- Their code has no ``certain`` and the cutoff of VCD; the paper has 0.3 and no cutoff. Here both
  act: weights that grow without bound, alone, pick whatever the text finds least likely, as above.
  ``certain: null`` or ``cutoff: 0`` turns either off.
- AvisC begins at n = 1, the others at 0; the offset says so here.
- A weight stops at ``limit``; from where on, receipts count tokens as ``limited``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import Branch, GrowingContrastRule
from saccade_interventions.targets import all_images

MOST_WEIGHT = 1e6
"""Far above it, d is no number of float32 any more."""


class M3ID(Intervention):
    """Draw tokens away from what the text alone expects, the more, the longer the answer."""

    title: ClassVar[str] = "Multi-Modal Mutual-Information Decoding"
    summary: ClassVar[str] = (
        "Draws from log p + w (log p - log q), where q is the distribution without the images and "
        "w grows with every token, wherever the model is not certain."
    )
    paper: ClassVar[str] = (
        "Favero et al., Multi-Modal Hallucination Control by Visual Information Grounding, "
        "CVPR 2024, arXiv 2403.14003"
    )
    level: ClassVar[Level] = "logits"
    needs_image: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"method": "m3id", "rate": 0.05}
    neutral: ClassVar[dict[str, Any] | None] = {"rate": 0}
    grid: ClassVar[Grid] = ({}, {"offset": 10}, {"rate": 0.05}, {"rate": 0.05, "offset": 10})
    """The paper's for captions, its for short answers, and both faster."""

    method: Literal["m3id"] = "m3id"

    rate: float = Field(0.02, ge=0, le=1)
    """How fast the weight grows (lambda). 0 changes nothing, and then cutoff is not applied."""

    offset: float = Field(0.0, ge=0, le=1000)
    """Tokens that count as written before the answer begins."""

    certain: float | None = Field(0.3, gt=0, le=1)
    """From this probability of the likeliest token on, it is drawn as without M3ID. None: never."""

    cutoff: float = Field(0.1, ge=0, le=1)
    """Tokens less likely than this fraction of the likeliest are excluded where M3ID acts."""

    limit: float | None = Field(None, gt=0, le=MOST_WEIGHT)
    """The weight grows no further. None: a million, for the numbers' sake."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        fields = {"rate": 0.05, "offset": 50, "certain": None, "cutoff": 0}
        return Probe({"method": "m3id", **fields})

    def compile(self, context: Context) -> Plan:
        all_images(context)
        plan = context.plan()
        if self.rate > 0:
            rule = GrowingContrastRule(
                Branch("deleted"),
                rate=self.rate,
                offset=self.offset,
                most_weight=MOST_WEIGHT if self.limit is None else self.limit,
                certain=math.inf if self.certain is None else self.certain,
                cutoff=self.cutoff,
            )
            plan.rule(rule)
        return plan.build()
