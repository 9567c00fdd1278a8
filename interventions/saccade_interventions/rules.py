"""What a plan may ask of the engine beyond edits: to find, to measure, to branch, to choose.

Every kind of rule is here, and says all that is to be known of it outside its handler in the
engine (see :class:`~saccade_interventions.facts.Rule`). A plan has at most one of each.
"""

from __future__ import annotations

from dataclasses import replace as edited
from typing import ClassVar, Literal, Self, get_args

from msgspec import Struct
from msgspec.structs import replace

from saccade_interventions.edits import ScoreEdit, Sites
from saccade_interventions.facts import Rule as Rule
from saccade_interventions.needs import Branch as Branch
from saccade_interventions.needs import Needs as Needs
from saccade_interventions.needs import Noise as Noise
from saccade_interventions.needs import PageExtra
from saccade_interventions.phases import PHASES, Phase


class SinkRule(Rule, frozen=True):
    """Sinks found while prefilling change the class of their position, layer by layer.

    Position j is a sink of a layer iff max over ``dims`` of abs(x_j) / RMS(x_j) >= ``threshold``
    (x: residual entering the layer). ``remap`` lists (class, class as a sink). If ``require`` is
    set, a layer where no prompt position got that class keeps its base tags. ``generated``:
    positions after the prompt are examined too.
    """

    silent: ClassVar[bool] = True

    threshold: float
    dims: tuple[int, ...]
    layers: tuple[int, ...]
    remap: tuple[tuple[int, int], ...]
    require: int | None = None
    generated: bool = False

    def needs(self) -> Needs:
        # Scores are kept by cache slot; thresholds are applied later.
        return Needs(page_extra=PageExtra(f"{self.dims} {self.layers}", self.generated))


class RecentRule(Rule, frozen=True):
    """The keys just before a generated row change their class, for that row only.

    For the query row at position q the keys j with ``start`` <= j and q - j <= ``width``, and j < q
    unless ``with_self``, have class remap[c] instead of their class c, in every layer. Rows of the
    prompt are not concerned. A class that keys have in the window alone stands for one class, so
    that a key that leaves gets its own back.
    """

    silent: ClassVar[bool] = True

    width: int
    start: int
    remap: tuple[tuple[int, int], ...]
    with_self: bool = False

    def needs(self) -> Needs:
        return Needs(single_rows=True)


class HeadSinkRule(Rule, frozen=True):
    """Key classes of single heads, by the attention that their keys received (ACT).

    In each site, a key k whose mean attention a_k = mean over rows i >= k of A[i, k] (A before mass
    edits) exceeds the threshold is a sink of that head: of class 1 among the classes of its own
    that the head has. All other keys are of class 0, but the initial token of class 2 if
    ``exempt_initial``. The threshold is ``threshold``, or ``threshold`` / N for N keys if
    ``relative``. ``spare`` keys are no sinks: the initial token, or the first key found.

    Prompt rows: one set, from the means over all prompt rows. Generated rows: by ``decode``, the
    running mean over all rows so far, this one included, for keys with at least ``least_rows``
    rows; or the current row alone; or the prompt's set; or no keys.

    Score edits go by the tags in these heads, too; masses move there by edits of
    ``per_head_classes``.
    """

    silent: ClassVar[bool] = True

    sites: Sites
    threshold: float
    relative: bool = False
    spare: Literal["initial", "first_found"] = "initial"
    decode: Literal["running", "row", "frozen", "off"] = "running"
    least_rows: int = 4
    exempt_initial: bool = False

    def needs(self) -> Needs:
        return Needs(
            whole_prompt=True,
            single_rows=True,
            own_pages=frozenset(PHASES),
            per_head_classes=True,
        )


class MeasuredGains(Rule, frozen=True):
    """Heads whose output depends on the image are amplified; which ones is measured (VHR).

    At the last prompt row, layer by layer with the gains of the layers below in force, head output
    z is compared with z0, that of a branch without the image. VHD = ||z - z0||; it counts as 0 for
    outliers (VHD and ||z0||^2 both above mean + std of the layer's heads, if ``drop_outliers``).
    Heads with VHD above the lower median get ``gain``, on rows of ``phases``.

    ``images``: how the branch lacks the images, deleted or hidden from attention. ``both``: gains
    act in the branch too. ``population``: std divides by n instead of n - 1. ``relative``: VHD is
    divided by ||z0||. ``report``: if positive, VHD is measured in every layer and reported with
    T-VHD, the sum over layers of the ``report`` largest.

    The gain comes after every head edit of the plan: it multiplies what they made, shifts too.
    """

    layers: tuple[int, ...]
    gain: float
    phases: tuple[Phase, ...]
    drop_outliers: bool = True
    images: Literal["deleted", "hidden"] = "deleted"
    both: bool = True
    population: bool = False
    relative: bool = False
    report: int = 0

    def needs(self) -> Needs:
        own = frozenset(self.phases)
        return Needs(
            whole_prompt=not own.isdisjoint({Phase.PREFIX, Phase.QUESTION}),
            own_pages=own,
            own_programs=own,
            branches=(Branch(self.images, edited=True, measures=True, source=self.source),),
        )


class EarlyExit(Struct, frozen=True):
    """Logits read from the residual entering ``layers`` (0: the embeddings), at the sampled row.

    Of several layers the one counts whose distribution differs most from the final one, by
    ``divergence``. ``norm``: the final norm is applied before the output projection.
    """

    layers: tuple[int, ...]
    norm: bool = False
    divergence: Literal["dola", "jsd"] = "dola"


class ContrastRule(Rule, frozen=True):
    """Tokens are drawn from d = own log p - other log q instead of log p.

    p is the distribution of the sequence, q that of ``branch`` or ``early``, one of which is set.
    Tokens with p < ``cutoff`` max p are excluded. (Adding a constant to either log changes nothing,
    so this is also the form on logits.) What a request changes in single logits (bias, penalties,
    ends held back) it changes in those of both p and q, if q is that of a branch, and in those of p
    alone, if q is that of an early layer.
    """

    own: float
    other: float
    cutoff: float
    branch: Branch | None = None
    early: EarlyExit | None = None

    def needs(self) -> Needs:
        if self.branch is None:
            return Needs()
        return Needs(branches=(replace(self.branch, source=self.source),))


class SaliencyRule(Rule, frozen=True):
    """Candidates whose saliency for the recent output is low are rejected (SGRS).

    For each of the ``candidates`` likeliest tokens c, in each of ``layers``: G = |A dL/dA| of the
    predictor row, L = -log p(c), mean over heads, divided by its L2 norm over keys; S(c) is the
    mean over layers and over the keys J, times sqrt(|J|) where ``normalisation`` is "cosine". J are
    the generated positions, or all after the image (``region``), the predictor's own among them if
    ``with_self``. c is accepted iff S(c) >= alpha * mean S of the last ``window`` tokens, or if
    fewer than ``warmup`` had an S; at most ``draws`` draws, then the ``fallback``, which counts
    among the last tokens unless ``history`` is "accepted". Tokens of ``exempt`` are never rejected,
    nor are those that end the answer.
    """

    layers: tuple[int, ...]
    candidates: int
    draws: int
    alpha: float
    window: int
    region: Literal["generated", "after_image"] = "generated"
    with_self: bool = True
    normalisation: Literal["cosine", "mean"] = "cosine"
    history: Literal["chosen", "accepted"] = "chosen"
    warmup: int = 5
    fallback: Literal["likeliest", "most_salient"] = "likeliest"
    exempt: tuple[int, ...] = ()

    def needs(self) -> Needs:
        return Needs(token_first=True)


class ConfidenceRule(Rule, frozen=True):
    """Edits of the last prompt row that depend on how sure the model is without them (AdaptVis).

    The row runs without these edits first; if the largest probability of the first token, rounded
    to ``decimals``, is below ``threshold``, it runs again with ``unsure``, otherwise with ``sure``.
    """

    threshold: float
    unsure: tuple[ScoreEdit, ...]
    sure: tuple[ScoreEdit, ...]
    decimals: int = 2

    def needs(self) -> Needs:
        return Needs(token_first=True, last_row_twice=True)

    def sourced(self, source: int) -> Self:
        unsure, sure = (
            tuple(edited(edit, source=source) for edit in edits)
            for edits in (self.unsure, self.sure)
        )
        return replace(self, unsure=unsure, sure=sure, source=source)


AnyRule = (
    SinkRule
    | RecentRule
    | HeadSinkRule
    | ContrastRule
    | MeasuredGains
    | SaliencyRule
    | ConfidenceRule
)
"""The kinds of rules, in the order in which a plan lists its own."""

KINDS: tuple[type[Rule], ...] = get_args(AnyRule)
