"""M3ID's plans: what they say, what is neutral, what is refused; its weights."""

import math

import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.m3id import M3ID, MOST_WEIGHT
from saccade_interventions.registry import Registry
from saccade_interventions.rules import Branch, GrowingContrastRule
from saccade_testing.plans import context_of

PICTURE = Prompt(9, images=((2, 6),))


def test_the_defaults_are_the_paper_s():
    plan = compile_plan([M3ID()], context_of(PICTURE))
    rule = GrowingContrastRule(Branch("deleted"), 0.02, 0.0, MOST_WEIGHT, 0.3, 0.1)
    assert plan.rules == (rule,)
    assert plan.needs.branches == (Branch("deleted"),)
    assert plan.edits == ()
    assert compile_plan([M3ID(rate=0, cutoff=0.9)], context_of(PICTURE)) is None


def test_weights_by_step():
    """Of contrast_image.md: 0 at first, .0202, 1.718, 6.389, 53.6, and no further than allowed."""
    rule = compile_plan([M3ID()], context_of(PICTURE)).rule(GrowingContrastRule)
    found = [rule.weight(n) for n in (0, 1, 50, 100, 200)]
    assert found == pytest.approx([0, 0.020201, 1.718282, 6.389056, 53.598150], abs=1e-6)
    assert rule.weight(10**9) == MOST_WEIGHT
    context = context_of(PICTURE)
    rule = compile_plan([M3ID(offset=10, limit=0.3)], context).rule(GrowingContrastRule)
    assert rule.weight(0) == pytest.approx(math.expm1(0.2))
    assert [rule.weight(n) for n in (4, 1000)] == [0.3, 0.3]


def test_switched_off():
    plan = compile_plan([M3ID(certain=None, cutoff=0)], context_of(PICTURE))
    rule = plan.rule(GrowingContrastRule)
    assert (rule.certain, rule.cutoff) == (math.inf, 0)


def test_no_image():
    with pytest.raises(InterventionError) as refused:
        compile_plan([M3ID()], context_of(Prompt(5)))
    assert refused.value.code is Code.REQUIRES_IMAGE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rate", wrong) for wrong in (-0.1, 1.1, "1", True, math.nan)),
        *(("offset", wrong) for wrong in (-1, 1001, math.inf)),
        *(("certain", wrong) for wrong in (0, 1.1)),
        *(("cutoff", wrong) for wrong in (-0.1, 1.1)),
        *(("limit", wrong) for wrong in (0, 2e6)),
        ("gamma", 1),
    ],
)
def test_bad_inputs(registry: Registry, name, value):
    with pytest.raises(InterventionError) as refused:
        registry.parse([{"method": "m3id", name: value}])
    assert refused.value.param == f"interventions[0].{name}"
