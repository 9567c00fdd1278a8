"""ScalingVis: the worked examples, the formula written out, and where it acts."""

import pytest
import torch

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.methods.scalingvis import ScalingVis
from saccade_interventions.phases import Phase
from saccade_testing.plans import attend, context_of


@pytest.mark.parametrize(
    ("w", "wanted"),
    [
        (1.5, [0.669871, 0.054986, 0.002738, 0.025974, 0.246432]),
        (0.5, [0.697981, 0.021077, 0.007754, 0.016415, 0.256773]),
    ],
)
def test_the_worked_examples(w, wanted):
    z = torch.tensor([4.0, 1.0, -1.0, 0.5, 3.0])
    plan = ScalingVis(w=w).compile(context_of(Prompt(5, images=((1, 4),))))
    edited = attend(plan, z.expand(4, 5, 5))[0, 4]
    torch.testing.assert_close(edited, torch.tensor(wanted).double(), rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("options", "keys"),
    [({}, [1, 2, 5, 6]), ({"image_index": 0}, [1, 2]), ({"image_index": 1}, [5, 6])],
)
def test_the_formula_written_out(options, keys):
    """One row, the last of the prompt; text between images is left alone."""
    plan = ScalingVis(w=1.25, **options).compile(context_of(Prompt(9, images=((1, 3), (5, 7)))))
    scores = torch.randn(4, 12, 12, dtype=torch.float64)
    scaled = scores.clone()
    scaled[:, 8, keys] *= 1.25
    edited = attend(plan, scores)
    torch.testing.assert_close(edited, attend(None, scaled), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("options", "keys"), [({}, [1, 2, 3, 5, 6]), ({"image_index": 1}, [3, 6])])
def test_an_image_of_several_views_is_one(options, keys):
    """Image 1 is shown at 3 and at 6."""
    spans, numbers = ((1, 3), (3, 4), (5, 6), (6, 7)), (0, 1, 0, 1)
    prompt = Prompt(9, images=spans, image_numbers=numbers)
    plan = ScalingVis(**options).compile(context_of(prompt))
    assert [at for at, tag in enumerate(plan.base_tags()) if tag] == keys
    assert plan.question_start == 7
    with pytest.raises(InterventionError, match="there is no image 2; the prompt has 2, from 0"):
        ScalingVis(image_index=2).compile(context_of(prompt))


def test_every_layer_and_head():
    program = ScalingVis().compile(context_of(Prompt(5, images=((1, 4),)))).program(Phase.LAST)
    assert (program.scale[:, :, 1] != 0).all()


def test_a_weight_of_one_is_no_plan():
    assert compile_plan([ScalingVis(w=1)], context_of(Prompt(5, images=((1, 4),)))) is None


def test_needs_an_image():
    with pytest.raises(InterventionError) as caught:
        ScalingVis().compile(context_of(Prompt(5)))
    assert caught.value.code is Code.REQUIRES_IMAGE
