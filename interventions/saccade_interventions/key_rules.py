"""Rules that say which class keys belong to, beyond the tags of a plan; edits name the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from msgspec.structs import replace

from saccade_interventions.edits import Sites
from saccade_interventions.needs import Needs, PageExtra
from saccade_interventions.phases import PHASES, Phase
from saccade_interventions.rule_base import Excluded, PerHead, PlanClasses, Retags, Rule
from saccade_kernels.controls import EXEMPT_CLASS, SINK_CLASS

if TYPE_CHECKING:
    from saccade_interventions.plan import Plan


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
        key = f"{self.dims} {self.layers}"
        return Needs(page_extra=PageExtra(key, self.generated, scored=self.dims))

    def excludes(self, other: Rule) -> str | None:
        if self.generated and isinstance(other, RecentRule):
            return "{0} looks for sinks among generated keys, whose class {1} changes row by row"
        return None

    def retags(self) -> Retags:
        return Retags(self.remap, generated=self.generated, required=self.require)

    def composed(self, classes: PlanClasses) -> Self:
        require = self.require
        if require is not None:
            require = classes.whole(require, "{0} requires sinks among keys that {1} divides")
        return replace(self, remap=classes.remap(SinkRule), require=require)

    def joined(self, other: Rule, edited: frozenset[int], others: frozenset[int]) -> Self:
        assert isinstance(other, SinkRule)
        if self._detector() != other._detector():
            raise Excluded("{0} and {1} look for sinks by different rules")
        if self.require != other.require:
            raise Excluded("{0} and {1} require different sinks to be found")
        own, theirs = frozenset(self.layers), frozenset(other.layers)
        if (edited - own) & theirs or (others - theirs) & own:
            raise Excluded("{0} and {1} look for sinks in different layers")
        return replace(self, layers=tuple(sorted(own | theirs)))

    def in_branch(self, moved: Callable[[int], int]) -> Self:
        return self

    def _detector(self) -> tuple[float, frozenset[int], bool]:
        return self.threshold, frozenset(self.dims), self.generated


class RecentRule(Rule, frozen=True):
    """The keys just before a generated row change their class, for that row only.

    For the query row at position q the keys j with ``start`` <= j and q - j <= ``width``, and j < q
    unless ``with_self``, have class remap[c] instead of their class c, in every layer. Rows of the
    prompt are not concerned. A class that keys have in the window alone stands for one class, so
    that a key that leaves gets its own back.
    """

    silent: ClassVar[bool] = True
    why_one: ClassVar[str] = "only one of them can have keys that depend on the distance"

    width: int
    start: int
    remap: tuple[tuple[int, int], ...]
    with_self: bool = False

    def needs(self) -> Needs:
        return Needs(single_rows=True)

    def check(self, plan: Plan) -> None:
        inside = {tag for _, tag in self.remap}
        rules = (rule.retags() for rule in plan.rules if rule is not self)
        elsewhere = {tag for found in rules if found for _, tag in found.remap}
        elsewhere |= {plan.generated_tag, *(run.tag for run in plan.tags)}
        elsewhere |= {tag for tag, _ in self.remap}
        if len(inside) < len(self.remap) or elsewhere & inside:
            raise ValueError("a class of recent keys stands for one class and holds no other keys")
        if self.width < 1 or not 0 <= self.start <= plan.prompt_length:
            raise ValueError("recent keys are at least one, and start in the prompt or behind it")

    def rows_without_keys(self, prompt_length: int) -> Mapping[Phase, int]:
        # The first generated row has no recent keys, unless the prompt's count.
        return {Phase.GENERATED: int(self.start >= prompt_length and not self.with_self)}

    def retags(self) -> Retags:
        return Retags(self.remap, self.start, generated=True)

    def composed(self, classes: PlanClasses) -> Self:
        return replace(self, remap=classes.remap(RecentRule))

    def in_branch(self, moved: Callable[[int], int]) -> Self:
        return replace(self, start=moved(self.start))


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
    why_one: ClassVar[str] = "only one of them can find sinks of single heads"

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
            per_head_classes=frozenset(PHASES[:3] if self.decode == "off" else PHASES),
        )

    def per_head(self) -> PerHead:
        if self.exempt_initial:
            return PerHead(self.sites, EXEMPT_CLASS + 1, initial=EXEMPT_CLASS)
        return PerHead(self.sites, SINK_CLASS + 1)

    def in_branch(self, moved: Callable[[int], int]) -> Self:
        return self
