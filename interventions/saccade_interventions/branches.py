"""The plan of a branch that lacks the images: the same edits, on the keys that are left.

A branch is another view of a request's prompt (see Branch in needs.py). Where the request's edits
act in it too, they act on the same rows and the same keys; what named an image key has none to act
on. A rule says whether it acts in branches; what chooses tokens, branches or measures does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saccade_interventions.context import Span, runs
from saccade_interventions.edits import TagRun
from saccade_interventions.key_weights import KeyWeights
from saccade_interventions.plan import Plan
from saccade_interventions.rules import AnyRule
from saccade_kernels.controls import NEVER_ATTEND


def deleted_plan(plan: Plan, spans: Iterable[Span]) -> Plan | None:
    """The plan for the prompt without the positions in ``spans``; None if nothing is left to do.

    Raises:
        ValueError: no position of the prompt is left.
    """
    kept = np.ones(plan.prompt_length, dtype=np.bool_)
    for start, end in spans:
        kept[start:end] = False
    left = int(kept.sum())
    if left == 0:
        raise ValueError("without the images nothing of the prompt is left")

    def moved(position: int) -> int:
        return int(kept[:position].sum()) + max(position - kept.size, 0)

    branch = replace(
        plan,
        prompt_length=left,
        question_start=moved(plan.question_start),
        tags=_tag_runs(plan.base_tags()[kept]),
        key_weights=tuple(
            KeyWeights.pack(slot.unpack(plan.prompt_length)[kept]) for slot in plan.key_weights
        ),
        rules=_rules(plan, moved),
    )
    return branch if branch.acts or branch.hides else None


def same_plan(plan: Plan) -> Plan | None:
    """The plan for the same prompt and images; None if nothing is left to do."""
    branch = replace(plan, rules=_rules(plan))
    return branch if branch.acts else None


def hidden_plan(plan: Plan, spans: Iterable[Span]) -> Plan:
    """The plan for the same prompt with the keys in ``spans`` never attended to."""
    hidden = tuple(TagRun(start, end, NEVER_ATTEND) for start, end in spans)
    return replace(plan, tags=plan.tags + hidden, rules=_rules(plan))


def bare_plan(plan: Plan) -> Plan:
    """A plan for the same prompt that changes nothing."""
    return Plan(plan.shape, plan.prompt_length, plan.question_start, classes=1)


def _rules(plan: Plan, moved: Callable[[int], int] = lambda at: at) -> tuple[AnyRule, ...]:
    """What rules of the plan act in a branch, where positions of the prompt are moved to."""
    found = (rule.in_branch(moved) for rule in plan.rules)
    return tuple(rule for rule in found if rule is not None)


def _tag_runs(tags: NDArray[np.uint8]) -> tuple[TagRun, ...]:
    found: Sequence[int] = np.unique(tags[tags != 0]).tolist()
    return tuple(TagRun(*span, tag) for tag in found for span in runs(tags == tag))
