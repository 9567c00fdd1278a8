"""What a plan may ask of the engine beyond edits: to find, to measure, to branch, to choose.

A kind of rule says here all that is to be known of it outside its handler in the engine, as
:class:`~saccade_interventions.rule_base.Rule` lists it; those about key classes are in
key_rules.py. A plan has at most one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as edited
from math import expm1, log1p
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

from msgspec import Struct
from msgspec.structs import replace

from saccade_interventions.edits import Edits, HeadEdit, ScoreEdit
from saccade_interventions.key_rules import HeadSinkRule as HeadSinkRule
from saccade_interventions.key_rules import RecentRule as RecentRule
from saccade_interventions.key_rules import SinkRule as SinkRule
from saccade_interventions.needs import Branch as Branch
from saccade_interventions.needs import Needs as Needs
from saccade_interventions.needs import Noise as Noise
from saccade_interventions.phases import Phase
from saccade_interventions.rule_base import Finding as Finding
from saccade_interventions.rule_base import PlanClasses
from saccade_interventions.rule_base import Rule as Rule

if TYPE_CHECKING:
    from saccade_interventions.plan import Plan


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

    why_one: ClassVar[str] = "only one of them can choose heads by measuring"

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
            own_programs=tuple((phase, self.layers) for phase in self.phases),
            branches=(Branch(self.images, edited=True, measures=True, source=self.source),),
        )

    @property
    def layers_measured(self) -> tuple[int, ...]:
        return self.layers

    def later_heads(self, heads: int) -> tuple[HeadEdit, ...]:
        sites = tuple((layer, tuple(range(heads))) for layer in self.layers)
        return (HeadEdit(sites, self.phases, self.gain, source=self.source),)

    def ran(self, counters: Mapping[str, int], finding: Finding | None) -> tuple[Edits, ...]:
        selected = finding.selected if isinstance(finding, MeasuredHeads) else ()
        sites = tuple((layer, heads) for layer, heads in selected if heads)
        return (HeadEdit(sites, self.phases, self.gain, source=self.source),) if sites else ()


class MeasuredHeads(Finding, frozen=True):
    """What MeasuredGains found, at the last prompt row.

    ``selected``: of each of its layers, the heads that got the gain. If a report was asked for,
    ``divergence`` is the VHD of every [layer][head], unfiltered, and ``total`` is T-VHD.
    """

    selected: tuple[tuple[int, tuple[int, ...]], ...]
    divergence: tuple[tuple[float, ...], ...] = ()
    total: float | None = None

    def shown(self) -> dict[str, object]:
        return {
            "heads": {str(layer): list(heads) for layer, heads in self.selected},
            "vhd": [list(layer) for layer in self.divergence] or None,
            "t_vhd": self.total,
        }


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

    why_one: ClassVar[str] = "only one of them can contrast the next token's distribution"
    effects: ClassVar[frozenset[str]] = frozenset({"contrasted"})

    own: float
    other: float
    cutoff: float
    branch: Branch | None = None
    early: EarlyExit | None = None

    def needs(self) -> Needs:
        branch = self.branch
        branches = () if branch is None else (replace(branch, source=self.source),)
        return Needs(draws=True, branches=branches)

    def excludes(self, other: Rule) -> str | None:
        if self.branch is not None and self.branch.edited and isinstance(other, MeasuredGains):
            return "{0} edits its branch too, which the gains that {1} measures never reach"
        return None


class GrowingContrastRule(Rule, frozen=True):
    """Tokens are drawn away from what a branch expects, the more, the longer the answer (M3ID).

    Behind n generated tokens, with the distributions p of the sequence and q of ``branch``:

        d = log p + w (log p - log q),    w = min(e^(rate (n + offset)) - 1, most_weight)

    with tokens below ``cutoff`` max p excluded. Where w is 0, or some p is at least ``certain``,
    the token is drawn from p as it is. Changes of single logits are as in :class:`ContrastRule`.
    """

    why_one: ClassVar[str] = "only one of them can contrast more with every token"
    effects: ClassVar[frozenset[str]] = frozenset({"contrasted"})

    branch: Branch
    rate: float
    offset: float
    most_weight: float
    certain: float
    cutoff: float

    def needs(self) -> Needs:
        return Needs(draws=True, branches=(replace(self.branch, source=self.source),))

    def excludes(self, other: Rule) -> str | None:
        if isinstance(other, ContrastRule):
            return "{0} and {1} both contrast the next token's distribution"
        if isinstance(other, SaliencyRule):
            return (
                "{1} judges candidates by the model's own distribution; {0} draws from another one"
            )
        if isinstance(other, ConfidenceRule):
            return "{1} depends on the model's own distribution; {0} draws from another one"
        return None

    def weight(self, generated: int) -> float:
        """w behind so many generated tokens."""
        exponent = self.rate * (generated + self.offset)
        return expm1(exponent) if exponent < log1p(self.most_weight) else self.most_weight


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

    why_one: ClassVar[str] = "only one of them can reject candidates"
    chooses: ClassVar[bool] = True
    effects: ClassVar[frozenset[str]] = frozenset({"rejections", "fallbacks"})
    published: ClassVar[Mapping[str, str]] = {
        "saliency_draws": "draws",
        "saliency_rejections": "rejections",
    }

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
        return Needs(token_first=True, draws=True, candidates=self.candidates)

    def excludes(self, other: Rule) -> str | None:
        if isinstance(other, ContrastRule):
            return (
                "{0} judges candidates by the model's own distribution; {1} draws from another one"
            )
        return None


class ConfidenceRule(Rule, frozen=True):
    """Edits of the last prompt row that depend on how sure the model is without them (AdaptVis).

    The row runs without these edits first; if the largest probability of the first token, rounded
    to ``decimals``, is below ``threshold``, it runs again with ``unsure``, otherwise with ``sure``.
    """

    why_one: ClassVar[str] = "only one of them can depend on the first token's confidence"

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

    def check(self, plan: Plan) -> None:
        if any(edit.phases != (Phase.LAST,) for edit in self.edits):
            raise ValueError("what depends on the first token's confidence edits the last row only")

    @property
    def edits(self) -> tuple[ScoreEdit, ...]:
        return (*self.unsure, *self.sure)

    def ran(self, counters: Mapping[str, int], finding: Finding | None) -> tuple[Edits, ...]:
        unsure, sure = (counters.get(name, 0) for name in ("unsure", "sure"))
        return (*(self.unsure if unsure else ()), *(self.sure if sure else ()))

    def excludes(self, other: Rule) -> str | None:
        if isinstance(other, ContrastRule):
            return "{0} depends on the model's own distribution; {1} draws from another one"
        if isinstance(other, MeasuredGains):
            return "{0} runs the last prompt row twice, and {1} measures the heads in it"
        if isinstance(other, HeadSinkRule):
            return "{0} runs the last prompt row twice, and {1} sums the attention of every row"
        return None

    def composed(self, classes: PlanClasses) -> Self:
        unsure, sure = (
            tuple(classes.score(edit) for edit in edits) for edits in (self.unsure, self.sure)
        )
        return replace(self, unsure=unsure, sure=sure)


AnyRule = (
    SinkRule
    | RecentRule
    | HeadSinkRule
    | ContrastRule
    | GrowingContrastRule
    | MeasuredGains
    | SaliencyRule
    | ConfidenceRule
)
"""The kinds of rules, in the order in which a plan lists its own."""

KINDS: tuple[type[Rule], ...] = get_args(AnyRule)

AnyFinding = MeasuredHeads
"""What rules may find and report."""
