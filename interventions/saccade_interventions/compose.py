"""Several methods in one request, as one plan.

Each method compiles alone, then:

- **Classes.** A key belongs to one class of every method; the plan's classes are the combinations
  that can occur, at most 8. A sink found later changes its class in the methods that look for
  sinks.
- **Score edits add.** All of them read the unedited score, so their order does not matter:
  PAI with alpha and PASTA with ln(beta) give z' = z + alpha |z| [image] + ln(beta) [weakened].
- **Mass edits come after the softmax**, so they read what score edits made: VAR beside PAI weighs,
  and gates on, the attention that PAI left.
- **Mass edits chain in the order of the request**, m'' = T2 (T1 m), unless one has gates: gates
  read the masses before the chain, so a gated edit shares no (layer, head, row) with another.
- **Gains multiply.**

What would not be exact is refused with intervention_conflict: gated chains; methods that look for
sinks by different rules; a class that receives mass but is divided by another method, because
"proportions inside a class are kept" is then no longer linear; and more than 8 classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saccade_interventions.base import Intervention
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.partition import Partition, receiving
from saccade_interventions.plan import MassEdit, Plan, ScoreEdit, SinkRule, find_gated_chain


def compile_plan(interventions: Sequence[Intervention], context: Context) -> Plan | None:
    """The plan of a whole request; None if nothing is edited, as with neutral strengths.

    Every edit of the plan carries the index of its intervention as ``source``.

    Raises:
        InterventionError: a method refused, or two of them exclude each other.
    """
    plans: dict[int, Plan] = {}
    for index, intervention in enumerate(interventions):
        try:
            plan = intervention.compile(context)
        except InterventionError as error:
            raise error.within(f"interventions[{index}]") from None
        if plan.edits:
            plans[index] = _sourced(plan, index)
    if not plans:
        return None
    if len(plans) == 1:
        return next(iter(plans.values()))
    names = [f"{interventions[i].method_id()} (interventions[{i}])" for i in plans]
    return _Composition(list(plans), names, list(plans.values())).plan()


def _sourced(plan: Plan, index: int) -> Plan:
    return replace(
        plan,
        scores=tuple(replace(edit, source=index) for edit in plan.scores),
        masses=tuple(replace(edit, source=index) for edit in plan.masses),
        gains=tuple(replace(edit, source=index) for edit in plan.gains),
    )


class _Composition:
    """Plans with edits, at least two; ``indices`` say where their methods stand in the request."""

    def __init__(self, indices: list[int], names: list[str], plans: list[Plan]) -> None:
        self._indices = indices
        self._names = names
        self._plans = plans
        self._partition = Partition(plans)

    def plan(self) -> Plan:
        sinks = self._sinks()
        self._check_chains()
        return replace(
            self._plans[0],
            classes=len(self._partition.combinations),
            tags=self._partition.tags,
            generated_tag=self._partition.generated_tag,
            scores=tuple(self._score(i, e) for i, p in enumerate(self._plans) for e in p.scores),
            masses=tuple(self._mass(i, e) for i, p in enumerate(self._plans) for e in p.masses),
            gains=tuple(edit for plan in self._plans for edit in plan.gains),
            sinks=sinks,
        )

    def _score(self, plan: int, edit: ScoreEdit) -> ScoreEdit:
        classes = [n for tag in edit.classes for n in self._partition.members(plan, tag)]
        return replace(edit, classes=tuple(sorted(classes)))

    def _mass(self, plan: int, edit: MassEdit) -> MassEdit:
        for tag in receiving(edit):
            other = self._partition.divider(plan, tag)
            if other is not None:
                raise self._conflict(plan, other, "{0} moves attention to keys that {1} divides")
        return replace(
            edit,
            transform=self._partition.transform(plan, edit),
            gates=tuple(self._partition.gate(plan, gate) for gate in edit.gates),
        )

    def _check_chains(self) -> None:
        found = find_gated_chain([edit for plan in self._plans for edit in plan.masses])
        if found:
            one, other, (layer, head, phase) = found
            first, second = (self._indices.index(edit.source) for edit in (one, other))
            where = f"layer {layer}, head {head}, {phase} rows"
            what = f"{{0}} and {{1}} both move attention in {where}, one of them under a condition"
            raise self._conflict(first, second, what)

    def _sinks(self) -> SinkRule | None:
        """One rule that does for every plan what its own rule did."""
        rules = {i: plan.sinks for i, plan in enumerate(self._plans) if plan.sinks}
        if not rules:
            return None
        first, rule = next(iter(rules.items()))
        layers = {layer for other in rules.values() for layer in other.layers}
        for i, other in rules.items():
            if _detector(other) != _detector(rule):
                raise self._conflict(first, i, "{0} and {1} look for sinks by different rules")
            if self._required(i, other) != self._required(first, rule):
                raise self._conflict(first, i, "{0} and {1} require different sinks to be found")
            edited = {layer for edit in self._plans[i].edits for layer, _ in edit.sites}
            if edited - set(other.layers) & layers:
                raise self._conflict(first, i, "{0} and {1} look for sinks in different layers")
        return replace(
            rule,
            layers=tuple(sorted(layers)),
            remap=self._partition.remap,
            require=self._required(first, rule),
        )

    def _required(self, plan: int, rule: SinkRule) -> int | None:
        if rule.require is None:
            return None
        other = self._partition.divider(plan, rule.require)
        if other is not None:
            raise self._conflict(plan, other, "{0} requires sinks among keys that {1} divides")
        return self._partition.members(plan, rule.require)[0]

    def _conflict(self, one: int, other: int, what: str) -> InterventionError:
        message = what.format(self._names[one], self._names[other])
        later = self._indices[max(one, other)]
        return InterventionError(Code.CONFLICT, message, f"interventions[{later}]")


def _detector(rule: SinkRule) -> tuple[float, frozenset[int], bool]:
    return rule.threshold, frozenset(rule.dims), rule.generated
