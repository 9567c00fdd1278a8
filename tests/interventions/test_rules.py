"""What kinds of rules say of themselves, all together: of each other, of plans, on the wire."""

from itertools import product

import msgspec
import pytest

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ScoreEdit
from saccade_interventions.needs import NOTHING, Branch, PageExtra, merged
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import (
    KINDS,
    AnyRule,
    ConfidenceRule,
    ContrastRule,
    GrowingContrastRule,
    HeadSinkRule,
    MeasuredGains,
    RecentRule,
    SaliencyRule,
    SinkRule,
)
from saccade_kernels.controls import ControlShape

EDIT = ScoreEdit(((0, (1,)),), (Phase.LAST,), (0,), bias=1.0)
RULES: dict[type, AnyRule] = {
    type(rule): rule
    for rule in (
        SinkRule(3.0, (1,), (0, 1), ((0, 1),), generated=True),
        RecentRule(4, 9, ((0, 2),)),
        HeadSinkRule(((0, (1,)),), 0.1),
        ContrastRule(2.0, 1.0, 0.1, branch=Branch("deleted", edited=True)),
        GrowingContrastRule(Branch("deleted"), 0.02, 0.0, 100.0, 0.3, 0.1),
        MeasuredGains((1,), 2.0, (Phase.LAST, Phase.GENERATED), images="hidden"),
        SaliencyRule((0,), 2, 2, 0.5, 4),
        ConfidenceRule(0.5, (EDIT,), ()),
    )
}
EXCLUDED = {
    (SinkRule, RecentRule),
    (ContrastRule, MeasuredGains),
    (SaliencyRule, ContrastRule),
    (ConfidenceRule, ContrastRule),
    (GrowingContrastRule, ContrastRule),
    (GrowingContrastRule, SaliencyRule),
    (GrowingContrastRule, ConfidenceRule),
    (ConfidenceRule, MeasuredGains),
    (ConfidenceRule, HeadSinkRule),
}


def plan_of(*rules: AnyRule) -> Plan:
    return Plan(ControlShape(2, 2, 4), 9, 4, classes=3, scores=(EDIT,), rules=rules)


def test_every_kind_is_tried_here() -> None:
    assert list(RULES) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_stays_what_it_is_on_the_wire(kind: type) -> None:
    plan = plan_of(RULES[kind].sourced(3))
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan)
    assert arrived == plan
    assert type(arrived.rules[0]) is kind
    assert arrived.fingerprint() == plan.fingerprint() == plan_of(RULES[kind]).fingerprint()


@pytest.mark.parametrize(("one", "other"), [*product(KINDS, KINDS)])
def test_which_kinds_exclude_each_other(one: type, other: type) -> None:
    reason = None if one is other else RULES[one].excludes(RULES[other])
    assert (reason is not None) == ((one, other) in EXCLUDED)
    assert reason is None or ("{0}" in reason and "{1}" in reason)


def test_a_builder_refuses_what_excludes_each_other() -> None:
    for one, other in EXCLUDED - {(SinkRule, RecentRule)}:
        builder = PlanBuilder(ControlShape(2, 2, 4), 9, 4)
        builder.rule(RULES[one])
        builder.rule(RULES[other])
        with pytest.raises(ValueError, match="not both: ") as refused:
            builder.build()
        assert {name for name in (one.__name__, other.__name__) if name in str(refused.value)}


def test_there_is_one_of_a_kind_or_it_can_be_joined() -> None:
    """What has no reason to be alone says how two become one."""
    for kind, rule in RULES.items():
        if rule.why_one is None:
            assert rule.joined(rule, frozenset(), frozenset()) == rule
        else:
            assert rule.why_one.startswith("only one of them can "), kind
            with pytest.raises(NotImplementedError):
                rule.joined(rule, frozenset(), frozenset())


def test_rules_about_keys_act_in_branches_and_on_edits_alone() -> None:
    """The others are the request's own, and something by themselves."""
    for kind, rule in RULES.items():
        about_keys = kind in (SinkRule, RecentRule, HeadSinkRule)
        assert rule.silent == about_keys
        assert (rule.in_branch(lambda at: at) == rule) == about_keys
        assert Plan(ControlShape(2, 2, 4), 9, 4, 1, rules=(rule,)).acts != about_keys
        assert rule.sourced(2).source == 2


def test_what_a_rule_makes_knows_its_intervention() -> None:
    confidence, measured = (RULES[kind].sourced(5) for kind in (ConfidenceRule, MeasuredGains))
    assert [edit.source for edit in confidence.edits] == [5]
    assert [edit.source for edit in measured.later_heads(4)] == [5]
    assert [branch.source for branch in measured.needs().branches] == [5]


def test_needs_of_a_plan_are_those_of_its_rules_together() -> None:
    assert plan_of().needs == merged([]) == NOTHING
    needs = plan_of(RULES[ContrastRule], RULES[MeasuredGains], RULES[SinkRule]).needs
    assert needs.branches == (
        Branch("deleted", edited=True),
        Branch("hidden", edited=True, measures=True),
    )
    assert needs.page_extra == PageExtra("(1,) (0, 1)", generated=True, scored=(1,))
    assert needs.own_pages == {Phase.LAST, Phase.GENERATED}
    assert not any([needs.whole_prompt, needs.token_first, needs.single_rows])
    early = MeasuredGains((1,), 2.0, (Phase.PREFIX,))
    assert plan_of(early).needs.whole_prompt
    assert plan_of(RULES[SaliencyRule]).needs.token_first
