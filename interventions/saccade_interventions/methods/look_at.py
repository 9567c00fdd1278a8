"""Look at: attention to regions of images or of the text, raised, lowered, weighted or taken away.

Scores of the keys S of the regions get a constant, those of the other keys O of the regions' images
another one:

    z'_j = z_j + strength [j in S] + elsewhere [j in O],     A' = softmax(z'),

so that the share s of S in a row becomes s e^b / (1 - s + s e^b) for b = strength, elsewhere = 0:
attention weights are multiplied with e^b and renormalised, and what they are to each other inside S
and outside of it stays. Positive: the model looks there; negative: away. "suppress" in place of a
number takes all attention away; a row that sees no other key keeps its own.

A region with weights w_j >= 0 of its tokens, such as a map that the user has drawn, gets these in
place of the strength, A'_j = w_j A_j / C, where C makes the row sum to 1:

    z'_j = z_j + ln w_j

A weight of 1 changes nothing, 0 takes a token's attention away; where weighted regions meet, their
weights are multiplied. After "active attention" (Alipour et al., arXiv 2003.00431), whose model had
no other attention than that to the image; here tokens that are not of the region keep theirs.

On the keys of an instruction this is InstABoost (arXiv 2506.13734), whose factor M is strength
ln M. On a region of an image, with elsewhere = -strength, it is Gaze Heads (Gandikota & Bau, arXiv
2606.14703), which acts in few heads, ranked for the model, with 10000. There bfloat16 rounds all
scores of S to one number, so that attention to S becomes uniform; here it keeps its proportions.

Which tokens show a region, and what ``overlap`` says: :mod:`saccade_interventions.regions`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.base import PROBE_SIDE, PROBE_TEXT, Grid, Level, Needs, Probe
from saccade_interventions.context import Context, runs
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.regions import ImageRegion, Region
from saccade_interventions.targets import Rows, Sited

MOST_REGIONS = 64
STRONGEST = 20.0

SUPPRESSED = -1000.0
"""Less than what scores differ by, so that nothing is left of a weight; exact enough in float32
for a row that sees nothing else."""


def _strength_kind(value: Any) -> str | None:
    if value == "suppress":
        return "suppress"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else None


Strength = Annotated[
    Annotated[Annotated[float, Field(ge=-STRONGEST, le=STRONGEST)], Tag("number")]
    | Annotated[Literal["suppress"], Tag("suppress")],
    Discriminator(
        _strength_kind,
        custom_error_type="strength",
        custom_error_message='A strength is a number or "suppress"',
    ),
]


class LookAt(Sited):
    """Make the model look at regions of its images or text, or away from them."""

    title: ClassVar[str] = "Look at"
    summary: ClassVar[str] = (
        "Adds a constant to the attention scores of the tokens that show the regions a request "
        "marks: boxes or masks in an image's pixels, token spans, texts. Or multiplies their "
        "attention with weights, such as a map over an image."
    )
    paper: ClassVar[str] = (
        "After Gandikota & Bau, Gaze Heads: How VLMs Look at What They Describe, arXiv 2606.14703; "
        "and InstABoost, Instruction Following by Principled Boosting Attention, arXiv 2506.13734"
    )
    level: ClassVar[Level] = "attention_score"
    example: ClassVar[dict[str, Any]] = {
        "method": "look_at",
        "regions": [{"image": 0, "box": [16, 16, 64, 48]}],
        "strength": 2,
    }
    neutral: ClassVar[dict[str, Any] | None] = {"strength": 0}
    grid: ClassVar[Grid] = ({"strength": 0.5}, {"strength": 1.0}, {}, {"strength": 4.0})
    """Factors of 1.6 to 55 on the weights."""

    method: Literal["look_at"] = "look_at"

    regions: list[Region] = Field(min_length=1, max_length=MOST_REGIONS)
    """What to look at, together: objects with a box, a mask, tokens or a text, or with the weights
    of an image. A region with `weights` gets those in place of the strength."""

    strength: Strength = 2.0
    """Added to the scores of the regions' tokens, so that weights get the factor e^strength. Below
    0: look away. "suppress": not at all."""

    elsewhere: Strength = 0.0
    """The same for the other tokens of those images that have a region."""

    overlap: float = Field(0.5, ge=0.01, le=1)
    """The share of a token's part of the image that a box or mask must cover, or of the box or mask
    if that is smaller. If no token is covered so far, those with the largest share belong to it."""

    rows: Rows = "question+generated"

    def needs(self) -> Needs:
        """What its regions need, together."""
        parts = [region.needs() for region in self.regions]
        return Needs(
            images=max(part.images for part in parts),
            texts=tuple(text for part in parts for text in part.texts),
            tokens=max(part.tokens for part in parts),
            sizes=tuple(size for part in parts for size in part.sizes),
        )

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        word = {"regions": [{"text": PROBE_TEXT.split()[0]}]}
        entry: dict[str, Any] = {"method": "look_at", **word, "strength": 8}
        if not model.accepts_images:
            return Probe(entry)
        half = PROBE_SIDE // 2
        drawn = {"regions": [{"image": 0, "weights": [[0, 1], [30, 1]]}]}
        return Probe({**entry, "regions": [{"box": [0, 0, half, half]}]}, also=(word, drawn))

    @model_validator(mode="after")
    def _says_where_else(self) -> LookAt:
        if self.elsewhere != 0 and not self._images:
            raise PydanticCustomError(
                "no_elsewhere",
                "no region is of an image, so there is nothing else of one",
                {"at": "elsewhere"},
            )
        return self

    def compile(self, context: Context) -> Plan:
        plan, sites = context.plan(), self.sites(context)
        found = self._found(context)
        if found.plain.any():
            region = plan.tag(runs(found.plain))
            plan.score(sites, [region], self.phases, bias=_bias(self.strength))
        if self.elsewhere != 0:
            rest = plan.tag(runs(self._of_images(context) & ~found.plain & ~found.weighted))
            plan.score(sites, [rest], self.phases, bias=_bias(self.elsewhere))
        if found.weighted.any():
            spans = runs(found.weighted)
            slot = plan.key_weights(found.logs[found.weighted], spans)
            plan.score(sites, [], self.phases, slot=slot)
        return plan.build()

    @property
    def _images(self) -> frozenset[int]:
        """Those with a region."""
        return frozenset(part.image for part in self.regions if isinstance(part, ImageRegion))

    def _found(self, context: Context) -> _Found:
        """The prompt positions that the regions have."""
        plain, weighted = np.zeros((2, context.prompt.length), np.bool_)
        logs = np.zeros(context.prompt.length)
        for index, region in enumerate(self.regions):
            positions = region.positions(context, self.overlap, f"regions[{index}]")
            factors = region.factors(context, positions)
            if factors is None:
                plain[positions] = True
            else:
                weighted[positions] = True
                logs[positions] += _logs(factors)
        if plain.all():
            message = "the regions are all of the prompt; nothing is left to look away from"
            raise InterventionError(Code.TARGET_NOT_FOUND, message, "regions")
        return _Found(plain, weighted, np.maximum(logs, SUPPRESSED))

    def _of_images(self, context: Context) -> NDArray[np.bool_]:
        """Which prompt positions are of images with a region, bool [prompt length]."""
        chosen = np.zeros(context.prompt.length, np.bool_)
        for image in self._images:
            for start, end in context.prompt.spans_by_image[image]:
                chosen[start:end] = True
        return chosen


class _Found(NamedTuple):
    """Prompt positions of regions without weights, of those with weights, and what the latter add
    to their scores: bool, bool and float64 [prompt length].
    """

    plain: NDArray[np.bool_]
    weighted: NDArray[np.bool_]
    logs: NDArray[np.float64]


def _logs(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of weights; those of 0 are what suppresses."""
    suppressed = np.full(factors.shape, SUPPRESSED)
    return np.asarray(np.log(factors, out=suppressed, where=factors > 0))


def _bias(strength: float | Literal["suppress"]) -> float:
    return SUPPRESSED if strength == "suppress" else float(strength)
