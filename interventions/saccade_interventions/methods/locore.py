r"""LocoRE: Local Coherence Reinforcement (*Hallucination Begins Where Saliency Drops*, ICLR 2026).

While it writes, a model's attention to what it has just written fades, and it drifts away from the
image and from itself. LocoRE strengthens, in the row of every generated token, the attention to the
tokens generated just before. For the query row at position q, and the first generated position s:

    W = { j : s <= j < q, q - j <= window }

How it strengthens them the paper leaves open: it multiplies attention weights, says that the
softmax follows, and writes no normalisation; no code is published. Three readings, ``variant``:

    renormalised   A'_j = (1 + beta) A_j / C for j in W, A'_j = A_j / C for all others, where C
                   makes the row sum to 1; the same as z'_j = z_j + ln(1 + beta) for j in W
    literal        A'_j = (1 + beta) A_j for j in W; the row then sums to more than 1
    score          z'_j = (1 + beta) z_j for j in W, before the softmax, as ClearSight's code, from
                   which LocoRE's experiments come, does it; a negative score *falls*

The window is counted in tokens of the sequence, also where rotary positions jump behind an image.
Only what this answer has generated is in it: earlier answers of a conversation are prompt.
``region="after_image"`` lets the window reach back into the question, ``include_self`` puts the
query's own key into it.

beta is 0.15 for LLaVA-1.5 in the paper, 0.20 for Qwen2-VL; with 1 it reports collapse. The window
is not given: here it is 5, that of SGRS in the same paper. The layers are those that traces of the
authors' experiments name, 9 to 14 of 32, carried over to other depths; the paper restricts neither
layers nor heads. An independent replication of the renormalised reading found no effect at 0.15
and a small one from 0.5 on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import RecentRule
from saccade_interventions.targets import Sited, layers_of_32


class LocoRE(Sited):
    """Strengthen the attention of generated tokens to those generated just before them."""

    title: ClassVar[str] = "Local Coherence Reinforcement"
    summary: ClassVar[str] = (
        "Strengthens the attention of every generated token to the last tokens of the answer."
    )
    paper: ClassVar[str] = (
        "Zhang et al., Hallucination Begins Where Saliency Drops, ICLR 2026, arXiv 2601.20279"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {"method": "locore", "beta": 0.2}
    neutral: ClassVar[dict[str, Any] | None] = {"beta": 0}
    grid: ClassVar[Grid] = (
        {},
        {"beta": 0.5},
        {"beta": 1.0},
    )
    """From the default, which is weak on small models, up."""

    method: Literal["locore"] = "locore"

    beta: float = Field(0.15, ge=0, le=10)
    """Strength. 0 changes nothing."""

    window: int = Field(5, ge=1, le=4096)
    """How many tokens back a generated token's window reaches."""

    variant: Literal["renormalised", "literal", "score"] = "renormalised"
    """Multiply the attention and renormalise, multiply it only, or multiply the scores."""

    region: Literal["generated", "after_image"] = "generated"
    """Keys a window may hold: generated ones, or all after the last image."""

    include_self: bool = False
    """Put a token's own key into its window; it then holds one key more."""

    rows: Literal["generated"] = "generated"
    """Query rows: generated ones only."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        """Nearly all attention of generated rows goes to their window, in every layer."""
        return Probe({"method": "locore", "beta": 10, "layers": [*range(model.layers)]})

    def default_layers(self, model: ModelFacts) -> Sequence[int]:
        return layers_of_32(model.layers, 9, 14)

    def compile(self, context: Context) -> Plan:
        plan, sites = context.plan(), self.sites(context)
        recent = plan.new_class()
        if self.variant == "renormalised":
            plan.score(sites, [recent], self.phases, bias=math.log1p(self.beta))
        elif self.variant == "score":
            plan.score(sites, [recent], self.phases, scale=self.beta)
        else:
            plan.mass(sites, [(recent, recent, self.beta)], self.phases)
        prompt = context.prompt
        start = prompt.length if self.region == "generated" else prompt.question_start
        plan.rule(RecentRule(self.window, start, ((0, recent),), self.include_self))
        return plan.build()
