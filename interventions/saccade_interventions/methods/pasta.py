"""PASTA: Post-hoc Attention Steering (Zhang et al., ICLR 2024, arXiv 2311.02262).

The user marks parts of the prompt; in chosen heads every query row then attends less to the rest of
the prompt. With attention A of one row, prompt keys P, highlighted keys G in P and 0 < alpha <= 1:

    A'_j = alpha A_j / C   for j in P without G,     A'_j = A_j / C   for all other keys,

where C makes the row sum to 1. A constant factor with renormalisation is a constant added to the
score, so this is z'_j = z_j + ln(alpha) on P without G, exactly. Generated keys keep their score.

``mode="include"`` weakens the highlighted keys instead: ln(alpha) on G.

The published code (QingruZhang/PASTA, commit 56a9138) adds ln(alpha) once *per highlighted
section*: with n sections the rest of the prompt gets n ln(alpha), each section (n - 1) ln(alpha),
and both fall behind the generated keys. Here the sections are one set, and ln(alpha) is added once.
Its "include" lifts the rest of the prompt by -ln(alpha) instead of lowering the highlight, which is
the same inside the prompt, but not against the generated keys.

The heads matter: steering all of them harms the model. The paper profiles, per model, which heads
to steer, and no choice suits every model, so a request names its ``heads`` or ``layers``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.base import PROBE_TEXT, Grid, Level, Needs, Probe
from saccade_interventions.context import Context, Prompt, runs
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.spans import Text, TokenSpan, occurrences, tokens_of
from saccade_interventions.targets import Rows, Sited


class PASTA(Sited):
    """Weaken the attention of chosen heads to the prompt around the highlighted parts."""

    title: ClassVar[str] = "Post-hoc Attention Steering"
    summary: ClassVar[str] = (
        "Multiplies the attention to the part of the prompt that is not highlighted by alpha, "
        "renormalised, in the heads a request names."
    )
    paper: ClassVar[str] = (
        "Zhang et al., Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs, "
        "ICLR 2024, arXiv 2311.02262"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {
        "method": "pasta",
        "highlight": ["in JSON"],
        "heads": {"1": [0, 2]},
    }
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 1}
    grid: ClassVar[Grid] = (
        {"alpha": 0.9},
        {"alpha": 0.5},
        {"alpha": 0.1},
        {},
    )
    """What is left to the rest, down to the default."""

    method: Literal["pasta"] = "pasta"

    alpha: float = Field(0.01, ge=1e-6, le=1)
    """Factor on the attention to the weakened keys, before the row is renormalised. 1: none."""

    highlight: list[Text] = Field(default=[], max_length=16)
    """Texts to highlight, every occurrence in the rendered prompt; whole tokens that overlap it."""

    spans: list[TokenSpan] = Field(default=[], max_length=1024)
    """Token positions of the prompt to highlight, [start, end) pairs; they add to `highlight`."""

    mode: Literal["exclude", "include"] = "exclude"
    """Weaken the prompt except the highlight ("exclude") or the highlight itself ("include")."""

    rows: Rows = "prompt+generated"

    def needs(self) -> Needs:
        """The highlighted texts and tokens."""
        ends = [end for _, end in self.spans]
        return Needs(texts=tuple(self.highlight), tokens=max(ends, default=0))

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        layers = list(range(model.layers))
        return Probe({"method": "pasta", "highlight": [PROBE_TEXT.split()[0]], "layers": layers})

    @model_validator(mode="after")
    def _says_what_and_where(self) -> PASTA:
        if not self.highlight and not self.spans:
            raise PydanticCustomError(
                "nothing_highlighted", "name something in highlight or spans", {"at": "highlight"}
            )
        if self.heads is None and self.layers is None:
            raise PydanticCustomError(
                "no_heads",
                "name the heads to steer, best those profiled for the model, "
                'as {"layer": [heads]}; or name layers to steer all their heads',
                {"at": "heads"},
            )
        return self

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        chosen = self._highlighted(context.prompt)
        weakened = plan.tag(runs(chosen if self.mode == "include" else ~chosen))
        plan.score(self.sites(context), [weakened], self.phases, bias=math.log(self.alpha))
        return plan.build()

    def _highlighted(self, prompt: Prompt) -> NDArray[np.bool_]:
        """Which prompt positions are highlighted, bool [prompt length]."""
        chosen = np.zeros(prompt.length, np.bool_)
        for text in dict.fromkeys(self.highlight):
            param = f"highlight[{self.highlight.index(text)}]"
            for start, end in occurrences(prompt, text, param):
                chosen[start:end] = True
        for index, span in enumerate(self.spans):
            start, end = tokens_of(prompt, span, f"spans[{index}]")
            chosen[start:end] = True
        if self.mode == "exclude" and chosen.all():
            raise InterventionError(
                Code.TARGET_NOT_FOUND, "all of the prompt is highlighted; nothing is left to weaken"
            )
        return chosen
