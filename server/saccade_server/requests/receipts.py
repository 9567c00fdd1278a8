"""``interventions_applied``: for each requested intervention, what really ran.

Put together from the plan, which says which sites and rows each intervention edits, and from the
engine's receipt, which counts the rows that ran under the plan and those whose attention really
moved. Nothing here is inferred from the request alone. ``filled_in`` are the fields that an entry
left to its artifact, with what they were in the run. The status of an entry is one of

    applied      attention moved, or rows went through its score, head or residual edit, or its
                 rule contrasted or rejected something (counters); whether such an edit changed
                 a number is not counted: a clamp whose limits never bind is applied
    no_effect    it ran, or found no row to run on, and nothing changed
    cached       nothing changed here, but some of its rows are shared with an earlier request
    neutral      its strength makes it the identity, so there was nothing to run
    unconfirmed  the engine sent no receipt, or the next paragraph's case

The engine counts moved rows by (layer, head): each row once, as it was computed first or, if the
first token's confidence let it run again, last. So ``moved`` never exceeds ``evaluated``. Where
several interventions ran mass edits at one of them and rows moved, it is not known whose they were:
then ``moved`` is null for each of these interventions, and ``unconfirmed`` is its status unless
something else proves that it was applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saccade_interventions.base import Intervention
from saccade_interventions.edits import Edits, MassEdit, ResidualEdit
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import Finding, Rule
from saccade_server.engine.request import Receipt

Site = tuple[int, int]
"""Layer and head."""

PROMPT = (Phase.PREFIX, Phase.QUESTION, Phase.LAST)


@dataclass(frozen=True)
class Run:
    """One sequence that ran under a plan. Without a receipt the engine has confirmed nothing."""

    plan: Plan | None
    receipt: Receipt | None = None
    cached_tokens: int = 0

    def rules(self, index: int) -> list[Rule]:
        """Those of the intervention at ``index``."""
        rules = self.plan.rules if self.plan else ()
        return [rule for rule in rules if rule.source == index]

    def counters(self, index: int) -> dict[str, int]:
        """What the engine counted for the intervention's rules, by name."""
        counters = self.receipt.counters if self.receipt else ()
        return {counter.name: counter.value for counter in counters if counter.source == index}

    def finding(self, index: int) -> Finding | None:
        """What the intervention's rule found."""
        findings = self.receipt.findings if self.receipt else ()
        return next((finding for finding in findings if finding.source == index), None)

    def ran(self, index: int) -> list[Edits]:
        """The intervention's edits that ran, by what the engine says it counted and found."""
        always = [edit for edit in (self.plan.edits if self.plan else ()) if edit.source == index]
        counters, finding = self.counters(index), self.finding(index)
        return always + [e for rule in self.rules(index) for e in rule.ran(counters, finding)]


def fingerprint(interventions: Sequence[Intervention]) -> str:
    """One hash for a list of interventions, the same on every replica."""
    names = "\n".join(item.fingerprint() for item in interventions)
    return "sha256:" + hashlib.sha256(names.encode()).hexdigest()


def applied(
    interventions: Sequence[Intervention], resolved: Sequence[Intervention], runs: Sequence[Run]
) -> list[dict[str, Any]]:
    """One entry for each intervention, summed over the sequences of the request.

    ``resolved``: the same interventions as they ran.
    """
    return [
        _entry(index, asked, _filled_in(asked, ran), runs)
        for index, (asked, ran) in enumerate(zip(interventions, resolved, strict=True))
    ]


def sites(index: int, plans: Sequence[Plan | None]) -> set[Site]:
    """Every (layer, head) whose attention the intervention at ``index`` edits."""
    return _sites([edit for plan in plans for edit in _edits(plan, index)])


def layers(index: int, plans: Sequence[Plan | None]) -> list[int]:
    """Every layer that the intervention at ``index`` edits; for the residual, see ResidualEdit."""
    edits = [edit for plan in plans for edit in _edits(plan, index)]
    residuals = {edit.layer for edit in edits if isinstance(edit, ResidualEdit)}
    rules = [rule for plan in plans if plan for rule in plan.rules if rule.source == index]
    measured = {layer for rule in rules for layer in rule.layers_measured}
    return sorted(residuals | measured | {layer for layer, _ in _sites(edits)})


def acts(index: int, plans: Sequence[Plan | None]) -> bool:
    """True if the intervention at ``index`` does anything: an edit or a rule is its own."""
    return any(
        _edits(plan, index) or any(rule.source == index and not rule.silent for rule in plan.rules)
        for plan in plans
        if plan is not None
    )


def phases(index: int, plan: Plan) -> set[Phase]:
    """Every phase of whose rows the intervention at ``index`` edits some, or may."""
    later = [edit for rule in plan.rules for edit in rule.later_heads(1) if edit.source == index]
    return {phase for edit in (*_edits(plan, index), *later) for phase in edit.phases}


def published(runs: Sequence[Run]) -> dict[str, int] | None:
    """What rules of these runs count for the usage of a response, by its name there, summed.

    None where no rule does.
    """
    found: dict[str, int] = {}
    for run in runs:
        for rule in run.plan.rules if run.plan else ():
            counters = run.counters(rule.source)
            for name, counter in rule.published.items():
                found[name] = found.get(name, 0) + counters.get(counter, 0)
    return found or None


def _filled_in(asked: Intervention, ran: Intervention) -> dict[str, Any]:
    before = asked.normalised()
    return {name: value for name, value in ran.normalised().items() if value != before[name]}


def _entry(
    index: int, intervention: Intervention, filled_in: dict[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
    plans = [run.plan for run in runs]
    counts = [_Count.of(run, index) for run in runs]
    prompt = sum(count.prompt for count in counts)
    generated = sum(count.generated for count in counts)
    cached = sum(count.cached for count in counts)
    moved = [count.moved for count in counts if count.moved is not None]
    known = moved and not any(count.disputed for count in counts)
    return {
        "index": index,
        "method": intervention.method_id(),
        "version": intervention.current_version,
        "fingerprint": intervention.fingerprint(),
        "filled_in": filled_in,
        "layers": layers(index, plans),
        "heads": len(sites(index, plans) | _sites([e for run in runs for e in run.ran(index)])),
        "rows": {"prompt": prompt, "generated": generated, "cached": cached},
        "edits": {
            "evaluated": sum(count.evaluated for count in counts),
            "moved": sum(moved) if known else None,
        },
        "counters": _counters(index, runs),
        "measured": _measured(index, runs),
        "status": _status(acts(index, plans), counts),
    }


def _counters(index: int, runs: Sequence[Run]) -> dict[str, int]:
    """What the intervention's rule did, summed by name; empty without a rule."""
    found: dict[str, int] = {}
    for run in runs:
        for name, value in run.counters(index).items():
            found[name] = found.get(name, 0) + value
    return found


def _measured(index: int, runs: Sequence[Run]) -> dict[str, object] | None:
    """What the intervention measured; of several answers to one prompt, the first's."""
    found = (run.finding(index) for run in runs)
    first = next((finding for finding in found if finding is not None), None)
    return None if first is None else first.shown()


def _status(acts: bool, counts: Sequence[_Count]) -> str:
    if not acts:
        return "neutral"
    if any(count.works for count in counts):
        return "applied"
    if not all(count.confirmed for count in counts):
        return "unconfirmed"
    # Shared rows were moved, or not, when they were computed, for another request.
    return "cached" if any(count.cached for count in counts) else "no_effect"


@dataclass(frozen=True)
class _Count:
    """What one sequence did for one intervention.

    ``moved`` is None without mass edits, and leaves out the sites that another intervention shares;
    ``disputed``: rows moved at one of those.
    """

    prompt: int
    generated: int
    cached: int
    evaluated: int
    moved: int | None
    disputed: bool
    works: bool
    confirmed: bool

    @classmethod
    def of(cls, run: Run, index: int) -> _Count:
        edits = run.ran(index)
        counters = run.counters(index)
        effects = {name for rule in run.rules(index) for name in rule.effects}
        rows = _rows(run, index)
        phases = {phase for edit in edits for phase in edit.phases}
        has_masses = any(isinstance(edit, MassEdit) for edit in edits)
        own, shared = _mass_sites(run, index)
        moved = _moved(own, run.receipt) if has_masses else None
        disputed = _moved(shared, run.receipt) > 0
        # Score and head edits change every row they are evaluated on; mass edits may not.
        others = [edit for edit in edits if not isinstance(edit, MassEdit)]
        return cls(
            prompt=sum(rows.get(phase, 0) for phase in PROMPT if phase in phases),
            generated=rows.get(Phase.GENERATED, 0) if Phase.GENERATED in phases else 0,
            cached=_cached(run, phases),
            evaluated=sum(_evaluated(edit, rows) for edit in edits),
            moved=moved,
            disputed=disputed,
            works=bool(moved)
            or any(_evaluated(edit, rows) for edit in others)
            or any(counters.get(name) for name in effects),
            confirmed=run.receipt is not None and not disputed,
        )


def _edits(plan: Plan | None, index: int) -> list[Edits]:
    """Those of the intervention at ``index`` that may run."""
    if plan is None:
        return []
    held = (edit for rule in plan.rules for edit in rule.edits)
    return [edit for edit in (*plan.edits, *held) if edit.source == index]


def _sites(edits: Sequence[Edits]) -> set[Site]:
    return {
        (layer, head)
        for edit in edits
        if not isinstance(edit, ResidualEdit)
        for layer, heads in edit.sites
        for head in heads
    }


def _rows(run: Run, index: int) -> dict[str, int]:
    """Rows of each phase that the intervention at ``index`` had keys to edit in."""
    rows = dict(run.receipt.rows) if run.receipt else {}
    for rule in run.rules(index):
        without = rule.rows_without_keys(run.plan.prompt_length) if run.plan else {}
        rows |= {phase: max(rows.get(phase, 0) - none, 0) for phase, none in without.items()}
    return rows


def _evaluated(edit: Edits, rows: dict[str, int]) -> int:
    """Edits of single rows: one a head, or one a row for the residual."""
    places = 1 if isinstance(edit, ResidualEdit) else sum(len(heads) for _, heads in edit.sites)
    return places * sum(rows.get(phase, 0) for phase in edit.phases)


def _mass_sites(run: Run, index: int) -> tuple[set[Site], set[Site]]:
    """Sites where the intervention at ``index`` alone ran mass edits, and where others did too."""
    rows = run.receipt.rows if run.receipt else {}
    mine: set[Site] = set()
    others: set[Site] = set()
    for edit in run.plan.masses if run.plan else ():
        if _evaluated(edit, rows):
            (mine if edit.source == index else others).update(_sites([edit]))
    return mine - others, mine & others


def _moved(sites: set[Site], receipt: Receipt | None) -> int:
    counts = receipt.moved if receipt else ()
    return sum(count.rows for count in counts if (count.layer, count.head) in sites)


def _cached(run: Run, phases: set[Phase]) -> int:
    """Rows of the given phases that came from the prefix cache."""
    plan, cached = run.plan, run.cached_tokens
    if plan is None:
        return 0
    prefix = min(cached, plan.question_start)
    last = int(cached >= plan.prompt_length)
    counts = {Phase.PREFIX: prefix, Phase.QUESTION: cached - prefix - last, Phase.LAST: last}
    return sum(count for phase, count in counts.items() if phase in phases)
