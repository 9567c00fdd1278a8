"""Branches of plans: tokens, images and the plan of each. No server, no engine."""

import numpy as np
import pytest

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.methods.pai import PAI
from saccade_interventions.methods.pai_contrast import PAIContrast
from saccade_interventions.methods.vcd import VCD
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.rules import Branch, ContrastRule, MeasuredGains
from saccade_kernels.controls import NEVER_ATTEND
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.branches import branches_of

FACTS = ModelFacts(layers=4, heads=4, kv_heads=2, head_dim=8, hidden_size=32)


def prompt(*spans, length=12):
    pixels = np.zeros((3, 4, 4), np.float32)
    images = tuple(PreparedImage(f"{a}", a, b - a, pixels, None) for a, b in spans)
    return RenderedPrompt(tuple(range(length)), "", (), images)


def plan_of(methods, *spans, length=12):
    return compile_plan(methods, Context(FACTS, Prompt(length, spans)))


def test_an_edited_branch_runs_the_requests_edits():
    spans = ((2, 5), (7, 9))
    plan = plan_of([PAI(rows="prompt+generated"), VCD(edit_branch=True)], *spans)
    (branch,) = branches_of(plan, prompt(*spans))
    assert branch.plan == plan.without_rules(ContrastRule)
    plan = plan_of([VCD(edit_branch=True)], *spans)
    (branch,) = branches_of(plan, prompt(*spans))
    assert branch.plan is None


def test_what_names_a_view_goes_with_it_and_is_no_feature():
    """Two views with a token before each and one behind the second: 2-7 stand for an image."""
    pixels = np.zeros((3, 4, 4), np.float32)
    views = (
        PreparedImage("a", 3, 1, pixels, None, before=1, image=0),
        PreparedImage("b", 5, 2, pixels, None, before=1, behind=1, image=0),
    )
    shown = RenderedPrompt(tuple(range(12)), "", (), views)
    assert (shown.spans, shown.image_numbers) == (((3, 4), (5, 7)), (0, 0))
    described = Prompt(12, shown.spans, image_numbers=shown.image_numbers)
    plan = compile_plan([PAI(), PAIContrast()], Context(FACTS, described))
    (branch,) = branches_of(plan, shown)
    assert branch.tokens == (0, 1, 8, 9, 10, 11)
    rule = MeasuredGains((1,), 1.5, (), images="hidden")
    _, measured = branches_of(plan.with_rules(rule), shown)
    assert measured.tokens == tuple(range(12))
    assert [at for at, tag in enumerate(measured.plan.base_tags()) if tag == NEVER_ATTEND] == [
        3,
        5,
        6,
    ]


def test_same_images():
    rule = ContrastRule(2, 1, 0, branch=Branch("same"))
    plan = plan_of([PAI()], (2, 5)).with_rules(rule)
    (branch,) = branches_of(plan, prompt((2, 5)))
    assert (branch.tokens, branch.plan) == (tuple(range(12)), None)
    assert [image.digest for image in branch.images] == ["2"]


@pytest.mark.parametrize("images", ["deleted", "hidden"])
def test_a_branch_that_measures(images):
    rule = MeasuredGains((1,), 1.5, (), images=images)
    plan = plan_of([PAI(), PAIContrast()], (2, 5)).with_rules(rule)
    contrasted, measured = branches_of(plan, prompt((2, 5)))
    assert (contrasted.measures, measured.measures) == (False, True)
    assert measured.plan is not None
    assert not measured.plan.rules
    if images == "deleted":
        assert measured.tokens == (0, 1, *range(5, 12))
        assert (measured.images, measured.plan.prompt_length) == ((), 9)
    else:
        assert measured.tokens == tuple(range(12))
        assert (measured.plan.base_tags() == NEVER_ATTEND).nonzero()[0].tolist() == [2, 3, 4]
