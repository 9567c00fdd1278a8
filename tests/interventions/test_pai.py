"""PAI: the worked example, the formula written out, and where it acts."""

import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.pai import PAI
from saccade_interventions.phases import Phase
from saccade_testing.plans import attend, context_of


def test_the_worked_example():
    z = torch.tensor([4.0, 1.0, -1.0, 0.5, 3.0])
    plan = PAI(alpha=0.5).compile(context_of(Prompt(5, images=((1, 4),))))
    edited = attend(plan, z.expand(4, 5, 5))[0, 4]
    after = torch.tensor([0.666734, 0.054729, 0.007407, 0.025852, 0.245278]).double()
    torch.testing.assert_close(edited, after, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("options", "image_keys", "first_row"),
    [
        ({}, [1, 2, 5, 6], 8),
        ({"image_index": 0}, [1, 2], 8),
        ({"image_index": 1}, [5, 6], 8),
        ({"rows": "question+generated"}, [1, 2, 5, 6], 7),
        ({"rows": "prompt+generated"}, [1, 2, 5, 6], 0),
        ({"rows": "generated"}, [1, 2, 5, 6], 9),
    ],
)
def test_the_formula_written_out(options, image_keys, first_row):
    plan = PAI(alpha=0.2, **options).compile(context_of(Prompt(9, images=((1, 3), (5, 7)))))
    scores = torch.randn(4, 12, 12, dtype=torch.float64)
    raised = scores.clone()
    raised[:, first_row:, image_keys] += 0.2 * scores[:, first_row:, image_keys].abs()
    edited = attend(plan, scores, exact=True)
    torch.testing.assert_close(edited, attend(None, raised), rtol=0, atol=1e-15)


def test_layers_from_the_third_to_the_last():
    context = context_of(Prompt(5, images=((1, 4),)))
    program = PAI().compile(context).program(Phase.LAST)
    assert program.head_edits().any(1).tolist() == [False, False, True, True, True, True]


def test_sites_are_in_order():
    context = context_of(Prompt(5, images=((1, 4),)))
    assert PAI(layers=[3, 1], heads=[2, 0]).sites(context) == ((1, (0, 2)), (3, (0, 2)))
    assert PAI(heads={"3": [2, 0], "1": [1]}).sites(context) == ((1, (1,)), (3, (0, 2)))


def test_no_strength_is_no_plan():
    assert compile_plan([PAI(alpha=0)], context_of(Prompt(5, images=((1, 4),)))) is None


def test_the_contrast_of_logits_is_not_part_of_it():
    assert "gamma" not in PAI.model_fields


def test_needs_an_image():
    with pytest.raises(InterventionError) as caught:
        PAI().compile(context_of(Prompt(5)))
    assert caught.value.code is Code.REQUIRES_IMAGE
