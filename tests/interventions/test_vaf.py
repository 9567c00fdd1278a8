"""VAF: the formula written out, and where it acts."""

import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.vaf import VAF
from saccade_interventions.phases import Phase
from saccade_testing.plans import attend, context_of


@pytest.mark.parametrize(
    ("images", "options", "image", "system"),
    [
        (((2, 4), (6, 8)), {}, [2, 3, 6, 7], [0, 1]),
        (((2, 4), (6, 8)), {"image_index": 1}, [6, 7], [0, 1]),
        (((0, 2),), {}, [0, 1], []),
    ],
)
def test_the_formula_written_out(images, options, image, system):
    """Rows behind the last image, and generated ones."""
    prompt = Prompt(10, images=images)
    plan = VAF(enhance=1.25, suppress=0.75, **options).compile(context_of(prompt))
    scores = torch.randn(4, 13, 13, dtype=torch.float64)
    z = scores.clone()
    z[:, prompt.question_start :, image] *= 1.25
    z[:, prompt.question_start :, system] *= 0.75
    edited = attend(plan, scores)
    torch.testing.assert_close(edited, attend(None, z), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("layers", "wanted"), [(32, range(9, 15)), (6, [2, 3]), (28, range(8, 13)), (1, [0])]
)
def test_the_middle_layers(layers, wanted):
    context = context_of(Prompt(5, images=((1, 4),)), layers=layers)
    program = VAF().compile(context).program(Phase.LAST)
    assert program.head_edits().any(1).nonzero()[0].tolist() == [*wanted]


def test_defaults_are_the_published_ones():
    plan = VAF().compile(context_of(Prompt(5, images=((1, 4),))))
    assert [edit.scale for edit in plan.scores] == pytest.approx([0.15, -0.05])


def test_factors_of_one_are_no_plan():
    context = context_of(Prompt(5, images=((1, 4),)))
    assert compile_plan([VAF(enhance=1, suppress=1)], context) is None


def test_needs_an_image():
    with pytest.raises(InterventionError) as caught:
        VAF().compile(context_of(Prompt(5)))
    assert caught.value.code is Code.REQUIRES_IMAGE
