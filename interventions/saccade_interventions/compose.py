"""Several methods in one request, as one plan.

Each method compiles alone, then:

- **Classes.** A key belongs to one class of every method; the plan's classes are the combinations
  that can occur, at most 8. A sink found later changes its class in the methods that look for
  sinks, a recent key in the method that has a window; the other methods see the key as it was.
  Keys that one method hides are hidden for all.
- **Score edits add.** All of them read the unedited score, so their order does not matter:
  alpha |z| on images beside ln(beta) elsewhere gives z' = z + alpha |z| [image] + ln(beta) [else].
  Those that wait for the first token's confidence add to them as well. Weights of single keys add
  like all of them: in one slot where they act in the same heads and rows, else in slots of their
  own.
- **Mass edits come after the softmax**, so they read what score edits made: they weigh, and gate
  on, the attention that those left.
- **Mass edits chain in the order of the request**, m'' = T2 (T1 m), unless one has gates: gates
  read the masses before the chain, so a gated edit shares no (layer, head, row) with another. So
  do edits of heads with key classes of their own, which no other method's classes divide.
- **Head edits chain in order**: gains multiply, to 16 at most, and a later gain also scales an
  earlier shift. Measured gains come last, whatever their place.
- **Residual edits chain in order**, each reading what the one before left, up to 16 of them at one
  site of one row. A map of rank k counts as k.
- **Rules** (measure, contrast, reject, depend on confidence) run beside all edits: what they read
  is the edited model. A request has one of each kind. Whether a contrasted branch is edited too is
  for its method to say.

What would not be exact is refused with intervention_conflict: two rules of a kind, or two that
need the same row or distribution for themselves; measured gains beside a contrasted branch that is
edited too; gated chains; methods that look for sinks by different rules; sinks among generated keys
beside a window of recent ones; mass edits of a head by its own classes and by those of all heads; a
class that receives mass, or that must be found, but is divided by another method, because
"proportions inside a class are kept" is then no longer linear; gains that multiply to more than 16;
and more than 8 classes, 4 slots of key weights, 16 edits of a site, or the vectors that can be in
use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

from saccade_interventions.base import Intervention
from saccade_interventions.chains import (
    find_gated_chain,
    find_loud_chain,
    find_mixed_masses,
)
from saccade_interventions.compiled import plan_of
from saccade_interventions.context import Context
from saccade_interventions.edits import MOST_GAIN, HeadEdit, MassEdit, ScoreEdit
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.partition import Partition, receiving
from saccade_interventions.plan import Plan, find_crowd, find_long_chain
from saccade_interventions.rule_base import Excluded
from saccade_interventions.rules import AnyRule, Rule
from saccade_interventions.slots import Slots
from saccade_kernels.residual import RESIDUAL_EDITS, RESIDUAL_VECTORS


def compile_plan(interventions: Sequence[Intervention], context: Context) -> Plan | None:
    """The plan of a whole request; None if nothing is edited, as with neutral strengths.

    Every edit of the plan carries the index of its intervention as ``source``.

    Raises:
        InterventionError: a method refused, or two of them exclude each other.
    """
    plans: dict[int, Plan] = {}
    for index, intervention in enumerate(interventions):
        try:
            plan = plan_of(intervention, context)
        except InterventionError as error:
            raise error.within(f"interventions[{index}]") from None
        if plan.acts:
            plans[index] = _sourced(plan, index)
    if not plans:
        return None
    if len(plans) == 1:
        return next(iter(plans.values()))
    names = [f"{interventions[i].method_id()} (interventions[{i}])" for i in plans]
    return _Composition(list(plans), names, list(plans.values())).plan()


def _sourced(plan: Plan, index: int) -> Plan:
    """The plan with every edit and rule knowing which intervention it is of.

    A method's own say 0.
    """
    if index == 0:
        return plan
    changed: dict[str, Any] = {
        name: tuple(replace(edit, source=index) for edit in getattr(plan, name))
        for name in ("scores", "masses", "heads", "residuals")
    }
    return replace(plan, **changed, rules=tuple(rule.sourced(index) for rule in plan.rules))


class _Composition:
    """Plans with edits, at least two; ``indices`` say where their methods stand in the request."""

    def __init__(self, indices: list[int], names: list[str], plans: list[Plan]) -> None:
        self._indices = indices
        self._names = names
        self._plans = plans
        self._check_rules()
        try:
            self._slots = Slots(plans)
        except Excluded as error:
            raise self._excluded(error, 0) from None
        self._partition = Partition(plans, self._slots)
        self._views = [self._partition.view(plan) for plan in range(len(plans))]

    def plan(self) -> Plan:
        rules = self._rules()
        self._check_chains()
        return replace(
            self._plans[0],
            classes=len(self._partition.combinations),
            tags=self._partition.tags,
            generated_tag=self._partition.generated_tag,
            scores=tuple(
                self._views[i].score(e) for i, p in enumerate(self._plans) for e in p.scores
            ),
            masses=tuple(self._mass(i, e) for i, p in enumerate(self._plans) for e in p.masses),
            heads=tuple(edit for plan in self._plans for edit in plan.heads),
            residuals=tuple(edit for plan in self._plans for edit in plan.residuals),
            vectors=tuple({v.digest: v for plan in self._plans for v in plan.vectors}.values()),
            key_weights=self._slots.key_weights,
            rules=rules,
        )

    def _mass(self, plan: int, edit: MassEdit) -> MassEdit:
        if edit.per_head_classes:  # by classes that no other plan can divide
            return edit
        try:
            for tag in receiving(edit):
                self._views[plan].whole(tag, "{0} moves attention to keys that {1} divides")
        except Excluded as error:
            raise self._excluded(error, plan) from None
        return replace(
            edit,
            transform=self._partition.transform(plan, edit),
            gates=tuple(self._partition.gate(plan, gate) for gate in edit.gates),
        )

    def _check_chains(self) -> None:
        mixed = find_mixed_masses([edit for plan in self._plans for edit in plan.masses])
        if mixed:
            one, other, layer, head = mixed
            first, second = (self._indices.index(edit.source) for edit in (one, other))
            where = f"layer {layer}, head {head}"
            what = f"{{0}} and {{1}} both move attention in {where}, by classes that exclude others"
            raise self._conflict(first, second, what)
        found = find_gated_chain([edit for plan in self._plans for edit in plan.masses])
        if found:
            one, other, (layer, head, phase) = found
            first, second = (self._indices.index(edit.source) for edit in (one, other))
            where = f"layer {layer}, head {head}, {phase} rows"
            what = (
                f"{{0}} and {{1}} both move attention in {where}, one of them under a condition; "
                "conditions are tested once, before all that moves, so one could not see the other"
            )
            raise self._conflict(first, second, what)
        self._check_gains()
        residuals = [edit for plan in self._plans for edit in plan.residuals]
        long = find_long_chain(residuals)
        if long:
            last, phase = long
            where = f"{last.place}, {phase} rows"
            what = f"{{0}}: {where} have more edits than one row has room for, {RESIDUAL_EDITS}"
            index = self._indices.index(last.source)
            raise self._conflict(index, index, what)
        if crowd := find_crowd(residuals):
            index = self._indices.index(crowd.source)
            what = f"{{0}}: more than {RESIDUAL_VECTORS - 1} vectors cannot be in use at once"
            raise self._conflict(index, index, what)

    def _check_gains(self) -> None:
        edits = [edit for plan in self._plans for edit in plan.heads]
        rules = [rule for plan in self._plans for rule in plan.rules]
        edits += [edit for rule in rules for edit in rule.later_heads(self._plans[0].shape.heads)]
        loud = find_loud_chain(edits)
        if loud:
            last, (layer, head, phase) = loud
            index = self._indices.index(last.source)
            what = (
                f"{{0}}: the gains of layer {layer}, head {head}, {phase} rows multiply to more "
                f"than {MOST_GAIN:g}"
            )
            raise self._conflict(index, index, what)

    def _check_rules(self) -> None:
        """Two rules of one kind may exclude each other, and so may some of different kinds."""
        every = [(i, rule) for i, plan in enumerate(self._plans) for rule in plan.rules]
        for (i, rule), (j, other) in combinations(every, 2):
            if type(rule) is type(other) and rule.why_one is not None:
                raise self._conflict(i, j, f"{{0}} and {{1}}: {rule.why_one}")
        for (i, rule), (j, other) in permutations(every, 2):
            reason = rule.excludes(other)
            if reason is not None:
                raise self._conflict(i, j, reason)

    def _rules(self) -> tuple[AnyRule, ...]:
        """Rules that do what those of all plans do, in the classes of the whole."""
        found: dict[type[Rule], _Composed] = {}
        for i, plan in enumerate(self._plans):
            edited = _edited(plan)
            for rule in plan.rules:
                before, at = found.get(type(rule)), i
                try:
                    made = _Composed(rule.composed(self._views[i]), i, edited)
                    if before is not None:
                        at = before.plan
                        made = before.joined(made)
                except Excluded as error:
                    raise self._excluded(error, at, i) from None
                found[type(rule)] = made
        return tuple(made.rule for made in found.values())

    def _excluded(self, error: Excluded, plan: int, other: int | None = None) -> InterventionError:
        found = other if error.plan is None else error.plan
        return self._conflict(plan, plan if found is None else found, error.reason)

    def _conflict(self, one: int, other: int, what: str) -> InterventionError:
        message = what.format(self._names[one], self._names[other])
        later = self._indices[max(one, other)]
        return InterventionError(Code.CONFLICT, message, f"interventions[{later}]")


@dataclass(frozen=True)
class _Composed:
    """A rule in the classes of the whole, the first plan that has it, and layers edited beside."""

    rule: AnyRule
    plan: int
    edited: frozenset[int]

    def joined(self, other: _Composed) -> _Composed:
        rule = self.rule.joined(other.rule, self.edited, other.edited)
        return _Composed(rule, self.plan, self.edited | other.edited)


def _edited(plan: Plan) -> frozenset[int]:
    """Layers whose attention the plan edits, or may."""
    later = [edit for rule in plan.rules for edit in rule.edits]
    edits: list[ScoreEdit | MassEdit | HeadEdit] = [*plan.scores, *plan.masses, *plan.heads, *later]
    return frozenset(layer for edit in edits for layer, _ in edit.sites)
