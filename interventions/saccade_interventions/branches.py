"""The plan of a branch that lacks the images: the same edits, on the keys that are left.

A branch is another view of a request's prompt (see Branch and MeasuredGains in rules.py). Where
the request's edits act in it too, they act on the same rows and the same keys; what named an image
key has none to act on. Rules that choose tokens, branch or measure are the request's own and no
branch has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from msgspec.structs import replace as moved_rule
from numpy.typing import NDArray

from saccade_interventions.context import Span, runs
from saccade_interventions.edits import TagRun
from saccade_interventions.plan import Plan
from saccade_interventions.rules import (
    ConfidenceRule,
    ContrastRule,
    MeasuredGains,
    RecentRule,
    SaliencyRule,
)
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
    branch = replace(
        _without_choices(plan),
        prompt_length=left,
        question_start=_moved(plan.question_start, kept),
        tags=_tag_runs(plan.base_tags()[kept]),
    )
    recent = plan.rule(RecentRule)
    if recent is not None:
        branch = branch.with_rules(moved_rule(recent, start=_moved(recent.start, kept)))
    return branch if branch.acts or branch.hides else None


def same_plan(plan: Plan) -> Plan | None:
    """The plan for the same prompt and images; None if nothing is left to do."""
    branch = _without_choices(plan)
    return branch if branch.acts else None


def hidden_plan(plan: Plan, spans: Iterable[Span]) -> Plan:
    """The plan for the same prompt with the keys in ``spans`` never attended to."""
    hidden = tuple(TagRun(start, end, NEVER_ATTEND) for start, end in spans)
    return replace(_without_choices(plan), tags=plan.tags + hidden)


def bare_plan(plan: Plan) -> Plan:
    """A plan for the same prompt that changes nothing."""
    return Plan(plan.shape, plan.prompt_length, plan.question_start, classes=1)


def _without_choices(plan: Plan) -> Plan:
    return plan.without_rules(MeasuredGains, ContrastRule, SaliencyRule, ConfidenceRule)


def _moved(position: int, kept: NDArray[np.bool_]) -> int:
    """Where a position is when only the ``kept`` ones are left."""
    behind = max(position - kept.size, 0)
    return int(kept[:position].sum()) + behind


def _tag_runs(tags: NDArray[np.uint8]) -> tuple[TagRun, ...]:
    found: Sequence[int] = np.unique(tags[tags != 0]).tolist()
    return tuple(TagRun(*span, tag) for tag in found for span in runs(tags == tag))
