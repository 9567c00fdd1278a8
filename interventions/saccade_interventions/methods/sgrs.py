r"""SGRS: Saliency-Guided Rejection Sampling (Zhang et al., ICLR 2026, arXiv 2601.20279).

Before a hallucinated token, the paper finds, the model loses sight of what it has just said: the
saliency of the previous output tokens falls. SGRS rejects candidates that would be such a token.
For a candidate c, L_c = -log p(c), and the attention A of the row that predicts it, per layer l:

    s_j  = mean over heads of |A_j dL_c/dA_j|
    S(c) = mean over l and over j in J of s_j / ||s||_2

J are the positions of the answer so far, the predictor's own included. c, drawn from the K
likeliest tokens, is accepted iff

    S(c) >= alpha * mean of the last W accepted S

otherwise it leaves the pool, at most R times; then the candidate with the largest S is taken. The
first tokens are not tested: J, or the history, is empty. End and special tokens are always
accepted. A candidate that is certain (p > 1 - 1e-6) and has no gradient is accepted and not noted.

The pool is made of what the request would draw from: after logit bias, penalties, temperature,
min-p, top-k and top-p, the K likeliest that are left. Sampled requests draw from it, renormalised,
with the request's seed; greedy requests try its tokens from the likeliest down. p(c) in the loss
is the model's own distribution.

Where this differs from the published code (LVLMs-Saliency, commit 05c0d0d):

- The code reads the saliency of the row of the candidate itself, which cannot have influenced the
  candidate's probability: it is 0, every threshold is 0, and every first draw is accepted. Here it
  is the row before, the one that predicts.
- The code's J begins behind the image and so holds the question; that is ``after_image``. It never
  holds the last token; that is ``with_self`` false.
- The code notes the saliency of rejected tokens it falls back to, too; the paper, and this, only
  that of accepted ones.
- The code samples at temperature 1 whatever is asked.

Variants that are not offered: one norm of the whole saliency matrix instead of the row's, which the
paper's formula may mean, needs the gradients of all earlier rows, which a step with a cache does
not have; a history that notes fallbacks too; and the published code's own scoring, which is
sampling from the K likeliest tokens, as top_k = 5 at temperature 1 is without any method.

Measured hallucination rates that others could reproduce do not exist; treat the paper's with care.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Intervention, Level, Probe
from saccade_interventions.context import Context, ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SaliencyRule
from saccade_interventions.targets import Indices, check_layers, layers_of_32


class SGRS(Intervention):
    """Reject candidate tokens whose saliency for the recent answer is low."""

    title: ClassVar[str] = "Saliency-Guided Rejection Sampling"
    summary: ClassVar[str] = (
        "Rejects candidates for the next token for which the answer so far hardly mattered."
    )
    paper: ClassVar[str] = (
        "Zhang et al., Hallucination Begins Where Saliency Drops, ICLR 2026, arXiv 2601.20279"
    )
    level: ClassVar[Level] = "sampling"
    example: ClassVar[dict[str, Any]] = {"method": "sgrs", "alpha": 0.6}
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0}

    method: Literal["sgrs"] = "sgrs"

    candidates: int = Field(5, ge=1, le=16)
    """K: the likeliest tokens, which are drawn from."""

    draws: int = Field(3, ge=1, le=16)
    """R: how many candidates are tried for one token."""

    alpha: float = Field(0.6, ge=0, le=10)
    """Share of the recent mean saliency that a candidate needs. 0: no candidate is rejected, and
    nothing changes; tokens are then not drawn from the K likeliest either."""

    window: int = Field(5, ge=1, le=1024)
    """W: how many accepted saliencies the mean is taken over."""

    layers: Annotated[Indices, Field(max_length=128)] | None = None
    """Decoder layers whose saliency counts, from 0. None: 6 to 8 of 32, in proportion."""

    region: Literal["generated", "after_image"] = "generated"
    """What a candidate should be salient to: the answer, or all behind the last image."""

    with_self: bool = True
    """Count the last token of the answer, whose row predicts the candidate."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        """No candidate can have ten times the mean saliency of its predecessors for long."""
        return Probe({"method": "sgrs", "alpha": 10})

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, its layers in order."""
        entry = super().normalised()
        entry["layers"] = None if self.layers is None else sorted(self.layers)
        return entry

    def compile(self, context: Context) -> Plan:
        plan, model = context.plan(), context.model
        layers = layers_of_32(model.layers, 6, 8) if self.layers is None else sorted(self.layers)
        check_layers(self.layers or (), model)
        if self.alpha > 0:
            plan.rule(
                SaliencyRule(
                    layers=tuple(layers),
                    candidates=self.candidates,
                    draws=self.draws,
                    alpha=self.alpha,
                    window=self.window,
                    region=self.region,
                    with_self=self.with_self,
                    exempt=model.special_tokens,
                )
            )
        return plan.build()
