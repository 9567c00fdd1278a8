r"""SGRS: Saliency-Guided Rejection Sampling (Zhang et al., ICLR 2026, arXiv 2601.20279).

Before a hallucinated token, the paper finds, the model loses sight of what it has just said: the
saliency of the previous output tokens falls. SGRS rejects candidates that would be such a token.
For a candidate c, L_c = -log p(c), and the attention A of the row that predicts it, per layer l:

    s_j  = mean over heads of |A_j dL_c/dA_j|
    S(c) = mean over l of  (sum over j in J of s_j) / (||s||_2 sqrt(|J|))

J are the positions of the answer so far, the predictor's own included. c, drawn from the K
likeliest tokens, is accepted iff

    S(c) >= alpha * mean S of the last W tokens of the answer

otherwise it leaves the pool, at most R times; then the likeliest candidate is taken after all.
Candidates are tested as soon as ``warmup`` tokens have an S. End and special tokens are always
accepted. A candidate that is certain (p > 1 - 1e-6) and has no gradient is accepted and not noted.

The pool is made of what the request would draw from: after logit bias, penalties, temperature,
min-p, top-k and top-p, the K likeliest that are left. Sampled requests draw from it, renormalised,
with the request's seed; greedy requests try its tokens from the likeliest down. p(c) in the loss
is the model's own distribution.

Where this differs from the paper, and why. Its S is a mean over J (``normalisation`` "mean"), and
its history grows only when a candidate is accepted (``history`` "accepted"). Together they lock up:
by Cauchy-Schwarz a mean of a row of L2 norm 1 is at most 1 / sqrt(|J|), so S falls while the answer
grows, the history keeps the high values of its beginning, nothing is accepted, and nothing is
noted. Measured on SmolLM2-135M-Instruct (30 layers, of which 6 to 8 count), 16 questions, greedy
answers of 60 tokens, the likeliest token at each place:

    |J|                       1      2-3    4-7    8-15   16-29  30-59
    mean over J               0.284  0.198  0.142  0.100  0.072  0.049
    times sqrt(|J|)           0.284  0.312  0.328  0.336  0.338  0.319
    its share of sum of s     0.106  0.222  0.311  0.438  0.554  0.660

- The mean falls with |J| to the power -0.50. Times sqrt(|J|) it is the cosine of the angle between
  s and the indicator of J: between 0 and 1 at every length, and level. The share of the whole (L1
  in place of L2) grows with |J| to the power 0.39: at alpha 0.6 it rejects nothing, 2 of 928.
- Along those answers 470 of 928 tokens would be fallbacks in the paper's reading, 47 if fallbacks
  are noted (36 % of the likeliest tokens at places 2 to 7 are rejected, 3 % from 16 on), 14 with
  the cosine, 13 with both. Noting what was fallen back to is what the paper's own history of the
  last W *positions* suggests, and what its code does: what lasts is the measure W tokens later.
- Candidates of one place differ little (their S by 7 % of its mean, against 31 % between places),
  function words hardly from others (0.34, 0.33). So where the likeliest token is rejected the
  others mostly are, too: S tells places more than candidates. The paper then takes the largest S;
  that little difference is no reason to leave the likeliest, and answers derail by it.
- The first steps are the noisiest: S of one key varies by 48 % of its mean, from 8 keys on by 31 %,
  and where the history holds a single value 4 of 16 likeliest tokens are rejected. Answers went
  wrong there ("The Monakina" for "The Mona Lisa"). Hence the warm-up, which the paper leaves open.

Run at alpha 0.6, 60 tokens each: the settings that led to the default on 12 of those questions,
with the share of draws rejected, fallbacks, and fallbacks in the worst answer;

    normalisation, history, warmup, fallback
    mean, accepted, 1, most_salient (the paper)     60 %    228   57
    mean, chosen, 1, most_salient                   16 %     31    9
    cosine, accepted, 1, most_salient                8.1 %   13    5
    cosine, chosen, 1, most_salient                  8.0 %   11    4
    cosine, chosen, 5, most_salient                  6.7 %   10    3
    cosine, chosen, 5, likeliest (default)           5.2 %    7    2

the default on the ten questions of tests/server/test_real_model.py, which were chosen by plain
answers alone: 2.1 %, 2, 1, and what was right stays right; and on 16 more: 3.3 %, 7, 3, with
"most_salient" 7.1 %, 19, 15. Those 15 are one answer, to "List five fruits.", for S is low inside
words, whose end follows from their beginning and not from the answer ("Or" 0.52, "anges" 0.17):
"Oranges" became "Ormáls", and the list went on from there. These 16 were what settled the fallback.

What is not shown is that SGRS makes anything better. On the embedded demo model it hurts, in the
default reading less than half as much as in the paper's (docs/evaluation.md).

Where it differs from the published code (LVLMs-Saliency, commit 05c0d0d):

- The code reads the saliency of the row of the candidate itself, which cannot have influenced the
  candidate's probability: it is 0, every threshold is 0, and every first draw is accepted. Here it
  is the row before, the one that predicts.
- The code's J begins behind the image and so holds the question; that is ``after_image``. It never
  holds the last token; that is ``with_self`` false.
- The code samples at temperature 1 whatever is asked.

Variants that are not offered: one norm of the whole saliency matrix instead of the row's, which the
paper's formula may mean, needs the gradients of all earlier rows, which a step with a cache does
not have; and the published code's own scoring, which is sampling from the K likeliest tokens, as
top_k = 5 at temperature 1 is without any method.

Measured hallucination rates that others could reproduce do not exist; treat the paper's with care.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.indices import Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SaliencyRule
from saccade_interventions.targets import check_layers, layers_of_32


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
    grid: ClassVar[Grid] = (
        {"alpha": 0.3},
        {},
        {"alpha": 0.9},
    )
    """How salient a token must be, around the default."""

    method: Literal["sgrs"] = "sgrs"

    candidates: int = Field(5, ge=1, le=16)
    """K: the likeliest tokens, which are drawn from."""

    draws: int = Field(3, ge=1, le=16)
    """R: how many candidates are tried for one token."""

    alpha: float = Field(0.6, ge=0, le=10)
    """Share of the recent mean saliency that a candidate needs. 0: no candidate is rejected, and
    nothing changes; tokens are then not drawn from the K likeliest either."""

    window: int = Field(5, ge=1, le=1024)
    """W: how many saliencies the recent mean is taken over."""

    layers: Annotated[Indices, Field(max_length=128)] | None = None
    """Decoder layers whose saliency counts, from 0. None: 6 to 8 of 32, in proportion."""

    region: Literal["generated", "after_image"] = "generated"
    """What a candidate should be salient to: the answer, or all behind the last image."""

    with_self: bool = True
    """Count the last token of the answer, whose row predicts the candidate."""

    normalisation: Literal["cosine", "mean"] = "cosine"
    """The cosine of the row of saliency with J, or the paper's mean over J, which falls as the
    answer grows."""

    history: Literal["chosen", "accepted"] = "chosen"
    """Whose saliencies the recent mean is over: the last tokens of the answer, or those of them
    that were accepted, without fallbacks."""

    warmup: int = Field(5, ge=1, le=1024)
    """How many tokens must have a saliency before a candidate is tested. 1: all but the first two
    are tested."""

    fallback: Literal["likeliest", "most_salient"] = "likeliest"
    """Which candidate is taken where all draws were rejected: the likeliest, or that with the
    largest saliency, as in the paper."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        """A cosine cannot be ten times its predecessors' for long: their mean is about 0.3."""
        return Probe({"method": "sgrs", "alpha": 10, "warmup": 1})

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
                    normalisation=self.normalisation,
                    history=self.history,
                    warmup=self.warmup,
                    fallback=self.fallback,
                    exempt=model.special_tokens,
                )
            )
        return plan.build()
